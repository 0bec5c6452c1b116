"""Ends or names the sessions that block a restore in place.

A statement of pg_restore waits for a lock without limit, since the dump sets `lock_timeout` to 0. So a second
connection watches the sessions of the restore, and ends them when they have waited too long.
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
    """End sessions that the restore waits for, such as one left open in a transaction.

    Arguments:
        target: the live database; `lock_seconds` limits the wait for a session that must not be ended.
        restore_id: the application name of the restore's own sessions.

    Raises:
        BusyError: the wait was too long; the restore's sessions are ended, and nothing has changed.
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
    """Checks repeatedly which sessions block the restore."""

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
        """Run until the restore has ended or has waited too long."""
        waiting_since: float | None = None
        with suppress(psycopg.Error):  # if the server goes away, the restore ends as well
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
