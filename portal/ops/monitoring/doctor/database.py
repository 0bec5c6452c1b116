"""Checks that the database can be reached, dumped completely, and restored."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from psycopg.sql import Identifier

from portal.ops.errors import ClientToolError
from portal.ops.monitoring.doctor.check import Check, Finding, fault, ok, warning
from portal.ops.postgres.client_tools import find_client
from portal.ops.postgres.connection import connect
from portal.ops.postgres.explained import explained_errors
from portal.ops.postgres.fragile import fragile_expressions
from portal.ops.postgres.inspection import check_readable, read_facts
from portal.ops.postgres.server import list_sessions, maintenance
from portal.ops.postgres.source_facts import left_out
from portal.ops.restore.database.means import (
    drill_obstacles,
    in_place_obstacles,
    least_grants,
    look_at_means,
    swap_obstacles,
)
from portal.ops.restore.database.plan import is_local
from portal.ops.units import duration, human_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from portal.ops.postgres.connection import Connection
    from portal.ops.restore.database.means import Means
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.runtime.progress import Clock
    from portal.ops.settings.database_url import DatabaseTarget

_STATEMENT_SECONDS: Final = 15
_CLOCK_WARNING_SECONDS: Final = 5
_CLOCK_FAULT_SECONDS: Final = 300
_NAMED: Final = 3
_DATA_DIRECTORY: Final = "SELECT setting FROM pg_settings WHERE name = 'data_directory'"
_NOW: Final = "SELECT extract(epoch FROM clock_timestamp())::float8"


class DatabaseChecks:
    """The checks of one database, over one connection.

    Arguments:
        target: the database.
        bin_dir: the directory of client programs; None looks for them.
        repository: the repository, which should not be on the database's disk.
        clock: returns the time on this machine.
    """

    def __init__(
        self, target: DatabaseTarget, *, runner: ProcessRunner, bin_dir: Path | None, repository: Path, clock: Clock
    ) -> None:
        self._target = target
        self._runner = runner
        self._bin_dir = bin_dir
        self._repository = repository
        self._clock = clock
        self._connection: Connection | None = None
        self._means: Means | None = None

    def all(self) -> list[Check]:
        """All checks; the first one opens the connection for the others."""
        following = {
            "client programs": self._programs,
            "reading": self._reading,
            "whole dump": self._left_out,
            "restoring": self._restoring,
            "drill": self._drilling,
            "sessions": self._sessions,
            "server's disk": self._disk,
            "clock": self._time,
        }
        return [
            Check(name="server", look=self._server),
            *(Check(name=name, look=self._connected(look)) for name, look in following.items()),
        ]

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _connected(self, look: Callable[[Connection], Finding]) -> Callable[[], Finding]:
        def look_if_connected() -> Finding:
            if self._connection is None:
                return warning("not looked at, because the server cannot be asked", "")
            with explained_errors(self._target):
                return look(self._connection)

        return look_if_connected

    def _server(self) -> Finding:
        target = self._target
        connection = connect(target)
        with explained_errors(target):
            connection.execute(f"SET statement_timeout = '{_STATEMENT_SECONDS}s'".encode())
            facts = read_facts(connection)
        self._connection = connection
        what = f"PostgreSQL {facts.version} at {target.host}:{target.port}, user {target.user}, database {target.name}"
        if facts.in_recovery:
            return warning(
                f"{what}: a standby, which cannot be restored to",
                "Back up from it if you like; for a restore set DD_DATABASE_HOST to the primary server.",
            )
        return ok(f"{what} of {human_bytes(facts.size_bytes)}")

    def _programs(self, connection: Connection) -> Finding:
        major = connection.info.server_version // 10000
        found = [
            find_client(program, major, runner=self._runner, bin_dir=self._bin_dir)
            for program in ("pg_dump", "pg_restore")
        ]
        what, newest = ", ".join(f"{tool.path} {tool.version}" for tool in found), max(tool.major for tool in found)
        try:
            find_client("psql", newest, runner=self._runner, bin_dir=self._bin_dir)
        except ClientToolError as error:
            return warning(f"{what}; {error.message}: a restore in place, or its rollback, may need it", error.hint)
        if any(tool.major != major for tool in found):
            return warning(
                f"{what}, for a server of version {major}",
                f"They work, but their dumps are read by pg_restore {newest} or newer only. For the server's own "
                f"version: apt-get install postgresql-client-{major}",
            )
        return ok(what)

    def _reading(self, connection: Connection) -> Finding:
        check_readable(connection)
        return ok(f"user {self._target.user} may read every table and sequence")

    def _left_out(self, connection: Connection) -> Finding:
        said = [*left_out(connection), *fragile_expressions(connection)]
        if said:
            return warning("; ".join(said[:_NAMED]), "Know that no backup has it, or change it as it says there.")
        return ok("a dump leaves nothing out")

    def _restoring(self, _: Connection) -> Finding:
        means = self._seen()
        swap = swap_obstacles(means)
        if not swap:
            return ok(f"by swap: user {means.me.name} may create and rename databases")
        in_place = in_place_obstacles(means, {}, means.inside.large_objects)
        mend = _least(means) or swap[0].hint
        if in_place:
            what = "; ".join(dict.fromkeys(error.message for error in (*swap, *in_place)))
            return fault(f"user {means.me.name} can back up, and not restore: {what}", mend)
        return warning(f"only in place, which locks the portal out meanwhile: {swap[0].message}", mend)

    def _drilling(self, _: Connection) -> Finding:
        means = self._seen()
        against = drill_obstacles(means)
        if not against:
            return ok("a drill may create a database for itself, and everything in it")
        return warning(f"no drill is possible: {against[0].message}", _least(means) or against[0].hint)

    def _seen(self) -> Means:
        if self._means is None:
            with maintenance(self._target) as connection:
                self._means = look_at_means(self._target, connection)
        return self._means

    def _sessions(self, connection: Connection) -> Finding:
        sessions = list_sessions(connection, self._target.name)
        stuck = [str(session) for session in sessions if not session.can_be_ended]
        if stuck:
            user = Identifier(self._target.user).as_string(connection)
            return warning(
                f"a restore may not end {', '.join(stuck[:_NAMED])}{' and others' if len(stuck) > _NAMED else ''}",
                f"As an administrator: GRANT pg_signal_backend TO {user}; or stop that application before a restore.",
            )
        return ok(f"a restore may end the sessions of others ({len(sessions)} now)")

    def _disk(self, connection: Connection) -> Finding:
        row = connection.execute(_DATA_DIRECTORY).fetchone()
        if not row or not is_local(self._target):
            return ok("cannot be seen from here")
        try:
            shared = os.stat(row[0]).st_dev == self._repository.stat().st_dev
        except OSError:
            return ok("cannot be seen from here")
        if shared:
            return warning(
                f"the repository is on the same disk as the database ({row[0]}): both would be lost together",
                "Move BACKUP_LOCAL_PATH to another disk, or copy the archives elsewhere every day.",
            )
        return ok("the database is on another disk than the repository")

    def _time(self, connection: Connection) -> Finding:
        before = time.monotonic()
        row = connection.execute(_NOW).fetchone()
        away = time.monotonic() - before
        assert row is not None
        apart = abs(self._clock().timestamp() - row[0]) - away
        if apart < _CLOCK_WARNING_SECONDS:
            return ok("this machine and the server agree what time it is")
        what = f"the clocks of this machine and of the server are {duration(apart)} apart"
        mend = "Let both be set by NTP: timedatectl set-ntp true; ages and retention go by this machine's clock."
        return fault(what, mend) if apart >= _CLOCK_FAULT_SECONDS else warning(what, mend)


def _least(means: Means) -> str:
    grants = least_grants(means)
    return f"As an administrator: {grants}" if grants else ""
