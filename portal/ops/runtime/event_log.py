"""structlog, imported without rich: every command starts a third faster.

structlog.dev imports rich, where it is installed, to draw tracebacks. Ours go into log lines, and the tables on a
terminal import rich when they are drawn. Written against structlog 25: where it no longer imports rich, this does
nothing.
"""

from __future__ import annotations

import sys
from typing import Any, cast

_RICH = "rich"

if _RICH in sys.modules:
    import structlog
else:
    _modules = cast("dict[str, Any]", sys.modules)
    _modules[_RICH] = None  # an import of it raises ImportError, which structlog expects
    try:
        import structlog
    finally:
        del _modules[_RICH]

__all__ = ["structlog"]
