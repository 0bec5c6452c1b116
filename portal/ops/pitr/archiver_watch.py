"""Ends a base backup that waits too long for the server's own archiving of WAL.

With ``archive_mode=on`` the server ends a base backup only when its `archive_command` has stored the WAL of it. If that
command fails, the server tries again for ever.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import psycopg

from portal.ops.errors import DumpFailedError, OpsError
from portal.ops.postgres.server import maintenance
from portal.ops.units import span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.runtime.process import RunningProcess
    from portal.ops.settings.database_url import DatabaseTarget

_PATIENCE_SECONDS: Final = 300.0
_LOOK_SECONDS: Final = 5.0
_WAITING: Final = """
    SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event = 'BackupWaitWalArchive'
"""


@contextmanager
def archiver_watched(target: DatabaseTarget, application: str, process: RunningProcess) -> Iterator[None]:
    """Kill the program of a base backup after the server has waited too long, and say why it was killed.

    Arguments:
        application: the name of the program's connection.

    Raises:
        DumpFailedError: the server's archiving does not succeed (retryable).
    """
    done, expired = threading.Event(), threading.Event()

    def watch() -> None:
        since: float | None = None
        while not done.wait(min(_LOOK_SECONDS, _PATIENCE_SECONDS)):
            since = (since or time.monotonic()) if _waits(target, application) else None
            if since is not None and time.monotonic() - since > _PATIENCE_SECONDS:
                expired.set()
                process.kill()
                return

    thread = threading.Thread(target=watch, name="archiver-watch", daemon=True)
    thread.start()
    try:
        yield
    except DumpFailedError as error:
        if not expired.is_set():
            raise
        raise DumpFailedError(
            f"the server's archive_command has not succeeded for {span(timedelta(seconds=_PATIENCE_SECONDS))}, and a "
            "base backup waits for it",
            hint="See pg_stat_archiver and the server's log, correct archive_command, and make the base backup again.",
        ) from error
    finally:
        done.set()
        thread.join()


def _waits(target: DatabaseTarget, application: str) -> bool:
    """True if the server waits; a server that cannot be asked is the concern of the program itself."""
    try:
        with maintenance(target) as connection:
            return connection.execute(_WAITING, [application]).fetchone() is not None
    except (OpsError, psycopg.Error):
        return False
