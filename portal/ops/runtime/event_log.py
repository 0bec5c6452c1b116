"""Imports structlog without rich, which makes every command start a third faster.

If rich is installed, structlog.dev imports it to draw tracebacks. We log tracebacks as text, and import rich only to
draw tables. Written against structlog 25; if structlog stops importing rich, this does nothing.
"""

from __future__ import annotations

import sys
from typing import Any, cast

_RICH = "rich"

if _RICH in sys.modules:
    import structlog
else:
    _modules = cast("dict[str, Any]", sys.modules)
    _modules[_RICH] = None  # makes its import raise ImportError, which structlog handles
    try:
        import structlog
    finally:
        del _modules[_RICH]

__all__ = ["structlog"]
