"""Dumps the portal's database: pg_dump in an exported snapshot, with the rows of every table counted in it.

    1 a transaction exports the snapshot, and locks every table against TRUNCATE and DROP
    2 pg_dump starts in that snapshot; the caller reads its output
    3 meanwhile another connection counts the rows in the same snapshot
    4 the dump is complete only when both have ended

This takes three connections. Import this module late: it loads the database driver.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain, repeat
from typing import IO, TYPE_CHECKING, Self

import psycopg
from psycopg.sql import SQL

from portal.ops.errors import DumpFailedError, SchemaChangedError, SessionEndedError
from portal.ops.postgres.client_tools import find_client
from portal.ops.postgres.connection import connect, conninfo, libpq_environment, milliseconds, silencing_options
from portal.ops.postgres.explained import explained_errors
from portal.ops.postgres.failures import explain_dump_failure
from portal.ops.postgres.inspection import check_readable, read_facts
from portal.ops.postgres.locks import lock_holders
from portal.ops.postgres.row_counts import SnapshotCount, list_tables, table_sizes
from portal.ops.postgres.source_facts import read_source_facts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from portal.ops.postgres.client_tools import ClientTool
    from portal.ops.postgres.connection import Connection
    from portal.ops.postgres.inspection import ServerFacts
    from portal.ops.postgres.row_counts import Table
    from portal.ops.postgres.source_facts import SourceFacts
    from portal.ops.runtime.process import ProcessRunner, RunningProcess
    from portal.ops.settings.load import DatabaseTarget

_NAMED = 5
_STATISTICS_SINCE = 18
# We hold the locks that pg_dump needs. If pg_dump must wait for one, a session that wants to drop the table is queued
# between us and waits for our lock in turn; only starting again resolves that. pg_dump makes it the limit of whole
# statements, so it is no shorter where nobody is to wait for a lock.
_QUEUED_SECONDS = 1.0
_MOST_ENDED = 3
_PAUSES_SECONDS = (0.1, 0.2, 0.4, 0.8, 1.6)


@dataclass(frozen=True, kw_only=True)
class DumpFacts:
    """The facts about a complete dump.

    Arguments:
        server_version: the server's version string, such as ``17.10``.
        pg_dump_version: the version of pg_dump.
        row_counts: dumped rows by table, named as by `table_name`.
    """

    server_version: str
    pg_dump_version: str
    row_counts: dict[str, int]


def open_dump(
    target: DatabaseTarget,
    *,
    runner: ProcessRunner,
    timeout_seconds: float,
    bin_dir: Path | None = None,
    lock_timeout_seconds: float = 60.0,
) -> DatabaseDump:
    """Start a dump. The calling thread must stay until the dump has ended, since pg_dump ends with it.

    Arguments:
        target: the database.
        runner: starts pg_dump.
        timeout_seconds: seconds for the whole dump; then pg_dump is killed.
        bin_dir: the only directory to look for pg_dump in; None looks everywhere.
        lock_timeout_seconds: seconds to wait for a table that another session has locked.

    Raises:
        SourceError: the server cannot be reached, the user cannot read everything, a table stays locked, or no pg_dump
            fits; each has a subclass of its own.
    """
    until = time.monotonic() + lock_timeout_seconds
    for attempt, pause in enumerate(chain(_PAUSES_SECONDS, repeat(_PAUSES_SECONDS[-1]))):
        try:
            return _open(target, runner, timeout_seconds, bin_dir, lock_timeout_seconds)
        except (SchemaChangedError, SessionEndedError) as error:
            # A restore replaces the database once. Who ends our session again and again means it.
            ended_too_often = isinstance(error, SessionEndedError) and attempt >= _MOST_ENDED
            if ended_too_often or time.monotonic() + pause > until:
                raise
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _open(
    target: DatabaseTarget,
    runner: ProcessRunner,
    timeout_seconds: float,
    bin_dir: Path | None,
    lock_timeout_seconds: float,
) -> DatabaseDump:
    """One attempt. pg_dump writes nothing before it has read the whole schema, so until then it can be repeated."""
    with ExitStack() as guard, explained_errors(target):
        opened = guard.enter_context(ExitStack())
        connection = opened.enter_context(closing(connect(target)))
        lock_seconds = min(lock_timeout_seconds, timeout_seconds)
        snapshot = _export_snapshot(connection, lock_seconds)
        check_readable(connection)
        server = read_facts(connection)
        tool = find_client("pg_dump", server.major, runner=runner, bin_dir=bin_dir)
        tables = list_tables(connection)
        _lock(connection, tables, lock_seconds)
        sizes = _sizes(connection, tables)
        facts = read_source_facts(connection)
        command = _command(tool, server.major, target, snapshot)
        command += encoding_options(connection)
        process = runner.start(command, environment=libpq_environment(target))
        opened.callback(process.stdout.close)
        opened.callback(process.kill)
        count = SnapshotCount(connect(target), snapshot, tables)
        opened.callback(count.cancel)
        parts = _Parts(
            target=target,
            server=server,
            tool=tool,
            tables=tables,
            sizes=sizes,
            facts=facts,
            process=process,
            count=count,
            stdout=Started(process.stdout),
        )
        dump = DatabaseDump(parts, timeout_seconds, opened)
        dump.await_schema()
        guard.pop_all()  # from now on the dump closes what was opened
        return dump


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """The running parts of a dump."""

    target: DatabaseTarget
    server: ServerFacts
    tool: ClientTool
    tables: Sequence[Table]
    sizes: dict[str, int]
    facts: SourceFacts
    process: RunningProcess
    count: SnapshotCount
    stdout: Started


class Started:
    """The output of a program, which can wait for the first byte."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._first = b""

    def has_begun(self) -> bool:
        """Wait for the first byte; return whether there is one."""
        self._first = self._stream.read(1)
        return bool(self._first)

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes, or everything available."""
        if not self._first or size == 0:
            return self._stream.read(size)
        first, self._first = self._first, b""
        return first + self._stream.read(size - 1 if size > 0 else size)

    def readinto(self, room: memoryview) -> int:
        """Read into a buffer; return the number of bytes."""
        if self._first and len(room):
            room[0:1], self._first = self._first, b""
            return 1
        found: int = self._stream.readinto(room)  # type: ignore[attr-defined]
        return found


class DatabaseDump:
    """A running dump; made by `open_dump`. Leaving its context ends all its parts.

    Read `stdout` to its end, then call `finish`: the end of the stream does not show that the dump is complete.

    Arguments:
        opened: closes all parts at the end.
    """

    def __init__(self, parts: _Parts, timeout_seconds: float, opened: ExitStack) -> None:
        self._parts = parts
        self._timeout_seconds = timeout_seconds
        self._opened = opened
        self._expired = threading.Event()
        self.stdout = parts.stdout
        self.server = parts.server
        self.facts = parts.facts
        self.table_names = tuple(table.name for table in parts.tables)
        self.table_bytes = parts.sizes
        self.estimated_bytes = sum(parts.sizes.values())
        timer = threading.Timer(timeout_seconds, self._expire)
        timer.daemon = True
        timer.start()
        opened.callback(timer.cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def await_schema(self) -> None:
        """Wait for the first byte of the dump.

        Raises:
            SchemaChangedError: tables were created or dropped while pg_dump was reading the schema.
            SessionEndedError: the database was replaced meanwhile.
            DumpFailedError: it took too long.
        """
        if self.stdout.has_begun():
            return
        returncode = self._parts.process.wait()
        if self._expired.is_set():
            raise self._too_slow()
        if returncode != 0:
            error = explain_dump_failure(returncode, self._parts.process.stderr_tail())
            if isinstance(error, SchemaChangedError | SessionEndedError):
                raise error

    def finish(self) -> DumpFacts:
        """Wait until pg_dump and the row count have ended.

        Raises:
            DumpFailedError: pg_dump failed, was killed, or took too long (retryable).
            SourceError: a more specific error, if pg_dump's message shows one.
        """
        with self._opened, explained_errors(self._parts.target):
            returncode = self._parts.process.wait()
            if self._expired.is_set():
                raise self._too_slow()
            if returncode != 0:
                raise explain_dump_failure(returncode, self._parts.process.stderr_tail())
            return DumpFacts(
                server_version=self._parts.server.version,
                pg_dump_version=self._parts.tool.version,
                row_counts=self._row_counts(),
            )

    def abort(self) -> None:
        """End pg_dump, the row count and the transaction; does nothing after the end."""
        self._opened.close()

    def _row_counts(self) -> dict[str, int]:
        try:
            return self._parts.count.result()
        except psycopg.Error:
            if self._expired.is_set():
                raise self._too_slow() from None
            raise

    def _expire(self) -> None:
        self._expired.set()
        self._parts.process.kill()
        self._parts.count.cancel()

    def _too_slow(self) -> DumpFailedError:
        return DumpFailedError(
            f"the dump of {self._parts.target.name} did not end within {self._timeout_seconds:g} s and was stopped",
            hint="see whether the server or the reader of the dump hangs, or allow more time",
        )


def _export_snapshot(connection: Connection, lock_seconds: float) -> str:
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    connection.execute("SELECT set_config('lock_timeout', %s, true)", [f"{milliseconds(lock_seconds)}ms"])
    row = connection.execute("SELECT pg_export_snapshot()").fetchone()
    assert row is not None
    return str(row[0])


def _lock(connection: Connection, tables: Sequence[Table], timeout_seconds: float) -> None:
    """Lock the tables as pg_dump does, so that row count and dump see the same tables."""
    if not tables:
        return
    names = SQL(", ").join(SQL("ONLY {}").format(table.identifier) for table in tables)
    try:
        connection.execute(SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(names))
    except psycopg.errors.LockNotAvailable as error:
        connection.execute("ROLLBACK")
        raise _locked(connection, tables, timeout_seconds) from error
    except psycopg.errors.UndefinedTable as error:
        raise SchemaChangedError(f"the schema changed: {error.diag.message_primary}", hint="try again") from error


def _sizes(connection: Connection, tables: Sequence[Table]) -> dict[str, int]:
    """The sizes of locked tables. They were locked by their names, which others may have by now."""
    sizes = table_sizes(connection, tables)
    if gone := [name for name, size in sizes.items() if size is None]:
        raise SchemaChangedError(f"the schema changed: {gone[0]} was replaced by another table", hint="try again")
    return {name: size for name, size in sizes.items() if size is not None}


def _locked(connection: Connection, tables: Sequence[Table], timeout_seconds: float) -> DumpFailedError:
    wanted = {table.name for table in tables}
    holders = [holder for holder in lock_holders(connection) if holder.what in wanted]
    which = "; ".join(map(str, holders[:_NAMED])) or "a session that is gone by now"
    return DumpFailedError(
        f"another session kept a table locked for more than {timeout_seconds:g} s: {which}",
        hint="perhaps a migration: wait until it is done, or end it with pg_terminate_backend, and try again",
    )


def _command(tool: ClientTool, server_major: int, target: DatabaseTarget, snapshot: str) -> list[str]:
    return [
        str(tool.path),
        "--format=custom",
        "--compress=0",
        "--no-password",
        "--quote-all-identifiers",  # newer servers, to which it may be restored, have more keywords
        f"--snapshot={snapshot}",
        f"--lock-wait-timeout={milliseconds(_QUEUED_SECONDS)}",
        f"--dbname={conninfo(target, options=silencing_options(target))}",
        *statistics_options(tool, server_major),
    ]


def statistics_options(tool: ClientTool, server_major: int) -> list[str]:
    """The options with which pg_dump includes the planner's statistics; by default it does not.

    A server that would refuse them gets none in its dumps, so that plain pg_restore can restore these to it.
    """
    return ["--statistics"] if min(tool.major, server_major) >= _STATISTICS_SINCE else []


def encoding_options(connection: Connection) -> list[str]:
    """The option with which pg_dump writes the database's own encoding, whatever `client_encoding` is set for it."""
    return [f"--encoding={connection.info.parameter_status('server_encoding')}"]
