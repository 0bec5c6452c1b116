"""Commands start without what they do not need yet, and structlog comes without what it does not need."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from portal.ops.runtime.logs import engine_log
import portal.ops.backup.listing, portal.ops.offsite.fetch, portal.ops.storage.object_store
heavy = {"structlog", "asyncio", "http.client", "obstore", "pyrage", "cryptography", "asyncssh", "boto3", "psycopg"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
import portal.ops.backup.run
engine_log("test").info("event")
assert not [name for name in sys.modules if name.partition(".")[0] == "rich"], sorted(sys.modules)
from rich.table import Table
print(Table.__name__)
"""


def test_libraries_are_loaded_when_they_are_needed() -> None:
    """Listing and fetching load no library before its first use; structlog loads no rich, and others get it."""
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "Table\n"), ran.stderr
