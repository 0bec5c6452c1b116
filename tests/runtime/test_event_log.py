"""Commands start without what they do not need yet, and structlog comes without what it does not need."""

from __future__ import annotations

import json
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


THREADS = """
import sys, threading, time
from portal.ops.model import LogFormat
from portal.ops.runtime.logs import configure_logging, configure_with_first_event, engine_log

def configure():
    time.sleep(0.2)  # the other threads arrive meanwhile
    configure_logging(LogFormat.JSON, sys.stdout)

configure_with_first_event(configure)
log, start = engine_log("test"), threading.Barrier(8)

def tell():
    start.wait()
    log.info("event")

threads = [threading.Thread(target=tell) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_first_events_of_several_threads_are_all_written_as_configured() -> None:
    """Whichever thread is first configures the log, and the others wait for it."""
    ran = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert [json.loads(line)["event"] for line in ran.stdout.splitlines()] == ["event"] * 8
