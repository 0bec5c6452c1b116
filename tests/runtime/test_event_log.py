"""structlog comes without what it does not need."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from portal.ops.runtime.logs import engine_log
import portal.ops.backup.run
assert not [name for name in sys.modules if name.partition(".")[0] == "rich"], sorted(sys.modules)
engine_log("test").info("event")
from rich.table import Table
print(Table.__name__)
"""


def test_the_log_does_not_import_rich() -> None:
    """What logs does not load rich, and whatever needs rich afterwards gets it."""
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "Table\n"), ran.stderr
