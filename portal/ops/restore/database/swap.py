"""Exchanges two databases in one transaction: the live name always belongs completely to one of them.

    1 give the incoming database what no dump has: owner, privileges, settings, comment
    2 open the incoming database to connections, and close the outgoing one
    3 rename the outgoing one: the server locks it, so new connections wait
    4 end its sessions over a second connection, until it has none
    5 rename the incoming one to the live name; commit

Everything is part of the transaction. A crash at any instant leaves nothing to clean up: the server rolls back when the
client is gone, and waiting connections are let in. A connection that waits through the commit is refused once, and
reaches the new database when it retries.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, LiteralString

import psycopg
from psycopg.sql import SQL, Identifier

from portal.ops.errors import BusyError
from portal.ops.postgres.identity import give_identity, read_identity
from portal.ops.postgres.server import MAY_END, find_database, list_sessions, maintenance, refuse_prepared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.postgres.connection import Connection
    from portal.ops.postgres.server import DatabaseFacts, Session
    from portal.ops.settings.database_url import DatabaseTarget

_PATIENCE_SECONDS: Final = 0.45
_PAUSES_SECONDS: Final = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
_EVICT_EVERY_SECONDS: Final = 0.01

# The stage did not wait for the disk. This commit does, and it flushes all WAL before it.
_WAIT_FOR_DISK: Final = """
    SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'
"""
# By oid and not by name: after the commit the name is the new database's, whose sessions must survive.
_EVICT: Final[LiteralString] = f"""
    SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity AS a WHERE a.datid = %s::bigint::oid AND {MAY_END}
"""  # noqa: S608  (both parts are constants)
_NOT_NOW: Final = (
    psycopg.errors.ObjectInUse,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.InternalError_,  # "tuple concurrently updated": another session altered the database
)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Which database takes the place of which.

    Arguments:
        live: the live name.
        kept_as: the new name of the outgoing database.
        incoming: the database that becomes the live one; None if there is to be none.
        inherits: whether the incoming database gets owner, privileges and settings of the outgoing one.
        owner: the owner of the incoming database; None for the owner of the outgoing one.
    """

    live: str
    kept_as: str
    incoming: str | None
    inherits: bool
    owner: str | None = None


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """The result of an exchange.

    Arguments:
        downtime_seconds: seconds during which nobody could connect, including failed attempts.
        warnings: properties that could not be carried over, with the statement that an administrator can run.
    """

    downtime_seconds: float
    warnings: tuple[str, ...] = ()


def exchange(target: DatabaseTarget, wanted: Exchange) -> Exchanged:
    """Make a closed database the live one; the previous one is closed and kept.

    Raises:
        BusyError: a session in the live database cannot be ended, or new ones appear faster than they are ended.
        SourceError: the server failed, and nothing has changed.
    """
    downtime = 0.0
    with maintenance(target) as connection, maintenance(target) as second:
        outgoing = find_database(connection, wanted.live)
        if outgoing is not None:
            _refuse_immovable(connection, wanted.live)
        for pause in (*_PAUSES_SECONDS, None):
            attempt = _Attempt(connection, second, wanted, outgoing)
            try:
                attempt.run()
                return Exchanged(downtime_seconds=downtime + attempt.seconds, warnings=attempt.warnings)
            except _NOT_NOW as error:
                downtime += attempt.seconds
                if pause is None:
                    raise _in_use(list_sessions(connection, wanted.live), wanted.live) from error
                time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


class _Attempt:
    """One transaction of an exchange, with a limited wait for the live database to be empty."""

    def __init__(
        self, connection: Connection, second: Connection, wanted: Exchange, outgoing: DatabaseFacts | None
    ) -> None:
        self._connection = connection
        self._second = second
        self._wanted = wanted
        self._outgoing = outgoing
        self.seconds = 0.0
        self.warnings: tuple[str, ...] = ()

    def run(self) -> None:
        """Perform the exchange, or leave everything unchanged."""
        wanted, started = self._wanted, None
        try:
            with self._connection.transaction():
                self._prepare()
                started = time.monotonic()
                if self._outgoing is not None:
                    with _evicting(self._second, self._outgoing.oid):
                        self._rename(wanted.live, wanted.kept_as)
                if wanted.incoming is not None:
                    self._rename(wanted.incoming, wanted.live)
        finally:
            self.seconds = time.monotonic() - started if started is not None else 0.0

    def _prepare(self) -> None:
        wanted = self._wanted
        milliseconds = str(round(_PATIENCE_SECONDS * 1000))
        self._connection.execute("SELECT set_config('lock_timeout', %s, true)", [milliseconds])
        self._connection.execute(_WAIT_FOR_DISK)
        if wanted.incoming is not None and wanted.inherits:
            identity = read_identity(self._connection, wanted.live)
            if identity is not None:
                self.warnings = give_identity(
                    self._connection, identity, wanted.incoming, shown_as=wanted.live, owner=wanted.owner
                )
        allow = SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        if wanted.incoming is not None:
            self._connection.execute(allow.format(Identifier(wanted.incoming), SQL("true")))
        if self._outgoing is not None:
            self._connection.execute(allow.format(Identifier(wanted.live), SQL("false")))
        self._connection.execute("SELECT set_config('statement_timeout', %s, true)", [milliseconds])

    def _rename(self, old: str, new: str) -> None:
        self._connection.execute(SQL("ALTER DATABASE {} RENAME TO {}").format(Identifier(old), Identifier(new)))


@contextmanager
def _evicting(connection: Connection, oid: int) -> Iterator[None]:
    """End the sessions of a database repeatedly while the context lasts."""
    enough = threading.Event()

    def evict() -> None:
        while not enough.is_set():
            connection.execute(_EVICT, [oid])
            enough.wait(_EVICT_EVERY_SECONDS)

    thread = threading.Thread(target=evict, name="session-eviction", daemon=True)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def _refuse_immovable(connection: Connection, live: str) -> None:
    """Check for sessions that we may not end, before any other is disturbed."""
    refuse_prepared(connection, live)
    immovable = [session for session in list_sessions(connection, live) if not session.can_be_ended]
    if immovable:
        raise _in_use(immovable, live)


def _in_use(sessions: list[Session], live: str) -> BusyError:
    who = ", ".join(map(str, sessions)) or "somebody who came and went"
    return BusyError(
        f"database {live} is in use by {who}, and the session cannot be ended",
        hint="stop that application, or restore as a user that may end it (GRANT pg_signal_backend), and try again",
    )
