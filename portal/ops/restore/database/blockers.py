"""Sessions that a restore in place waits for: ended if that is allowed, and named if not.

A statement of pg_restore waits for a lock without a limit of its own, since a dump sets that to none. So the sessions
of the restore are watched over another connection, and ended when they have waited for too long.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, LiteralString

import psycopg

from portal.ops.errors import OpsError
from portal.ops.postgres.connection import connect
from portal.ops.postgres.locks import lock_holders, locked_out
from portal.ops.postgres.server import MAY_END, maintenance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.postgres.connection import Connection
    from portal.ops.postgres.locks import Holder
    from portal.ops.settings.database_url import DatabaseTarget

_LOOK_EVERY_SECONDS: Final = 0.1
_BLOCKERS: Final[LiteralString] = f"""
    SELECT restoring.pid, a.pid, {MAY_END}
    FROM pg_stat_activity AS restoring, unnest(pg_blocking_pids(restoring.pid)) AS blocker (pid),
         pg_stat_activity AS a
    WHERE restoring.application_name = %s AND a.pid = blocker.pid AND a.application_name <> %s
"""  # noqa: S608  (both parts are constants)
_END: Final = "SELECT pg_terminate_backend(unnest(%s::int[]))"


@contextmanager
def ending_blockers(target: DatabaseTarget, restore_id: str) -> Iterator[None]:
    """End the sessions that the restore waits for, such as one that was left open in a transaction.

    Arguments:
        target: the live database; `lock_seconds` is how long to wait for one that may not be ended.
        restore_id: the name that the restore's own sessions go by.

    Raises:
        BusyError: it was waited for too long; the restore's sessions are ended, and nothing has happened.
    """
    enough = threading.Event()
    with maintenance(target) as connection:
        watch = _Watch(connection, target, restore_id, enough)
        thread = threading.Thread(target=watch.run, name="blocker-eviction", daemon=True)
        thread.start()
        try:
            yield
        except OpsError as error:
            enough.set()
            thread.join()
            if watch.gave_up:
                raise locked_out(target, holders=watch.holders) from error
            raise
        finally:
            enough.set()
            thread.join()


class _Watch:
    """Looks again and again at who is waited for."""

    def __init__(
        self, connection: Connection, target: DatabaseTarget, restore_id: str, enough: threading.Event
    ) -> None:
        self._connection = connection
        self._target = target
        self._restore_id = restore_id
        self._enough = enough
        self.gave_up = False
        self.holders: list[Holder] = []

    def run(self) -> None:
        """Until the restore has ended, or has waited for too long."""
        waiting_since: float | None = None
        with suppress(psycopg.Error):  # a server that goes away ends the restore as well
            while not self._enough.wait(_LOOK_EVERY_SECONDS):
                found = self._connection.execute(_BLOCKERS, [self._restore_id, self._restore_id]).fetchall()
                self._end(blocker for _, blocker, may_end in found if may_end)
                stuck = [(ours, blocker) for ours, blocker, may_end in found if not may_end]
                waiting_since = (waiting_since or time.monotonic()) if stuck else None
                if waiting_since is not None and time.monotonic() - waiting_since >= self._target.lock_seconds:
                    self._give_up(stuck)
                    return

    def _give_up(self, stuck: list[tuple[int, int]]) -> None:
        self.gave_up = True
        with suppress(OpsError, psycopg.Error), connect(self._target) as inside:
            self.holders = lock_holders(inside, [blocker for _, blocker in stuck])
        self._end(ours for ours, _ in stuck)

    def _end(self, pids: Iterator[int]) -> None:
        chosen = sorted(set(pids))
        if chosen:
            self._connection.execute(_END, [chosen])
