"""Counts the rows of every table: during a dump in the same snapshot, and after a restore.

Counted are the tables whose rows pg_dump writes: ordinary tables and single partitions. Not counted are partitioned
tables (they have no rows of their own), foreign and temporary tables, tables of an extension (its script fills them),
and unlogged tables on a standby, where they cannot be read.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, LiteralString

import psycopg
from psycopg.sql import SQL, Identifier, Literal

from portal.ops.postgres.table_names import table_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from portal.ops.postgres.connection import Connection

_CANCEL_SECONDS = 3.0
_PATIENCE_SECONDS = 1.0

_TABLES: LiteralString = """
    SELECT n.nspname, c.relname, c.oid::bigint
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND (c.relpersistence = 'p' OR c.relpersistence = 'u' AND NOT pg_is_in_recovery())
      AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    ORDER BY 1, 2
"""
_ROOTS: LiteralString = """
    SELECT n.nspname, c.relname, rn.nspname, r.relname
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_class AS r ON r.oid = pg_catalog.pg_partition_root(c.oid)
    JOIN pg_catalog.pg_namespace AS rn ON rn.oid = r.relnamespace
    WHERE c.relispartition AND c.relkind = 'r'
"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose rows are dumped.

    Arguments:
        name: schema and table, as `table_name` writes them.
    """

    name: str
    identifier: Identifier
    oid: int


def list_tables(connection: Connection) -> list[Table]:
    """Return the tables whose rows pg_dump writes, sorted by name; waits for no lock."""
    return [
        Table(name=table_name(schema, relation), identifier=Identifier(schema, relation), oid=oid)
        for schema, relation, oid in connection.execute(_TABLES)
    ]


def partition_roots(connection: Connection) -> dict[str, str]:
    """Return the topmost partitioned table of each partition, both by name."""
    return {
        table_name(schema, relation): table_name(root_schema, root)
        for schema, relation, root_schema, root in connection.execute(_ROOTS)
    }


def table_sizes(connection: Connection, tables: Sequence[Table]) -> dict[str, int | None]:
    """Return each table's size in bytes on the server's disk, with TOAST data, without indexes; None if it was dropped.

    To measure a table the server locks it, so this waits for sessions that have locked it.
    """
    query = "SELECT oid, pg_table_size(oid::oid) FROM unnest(%s::bigint[]) AS wanted (oid)"
    names = {table.oid: table.name for table in tables}
    return {names[oid]: size for oid, size in connection.execute(query, [list(names)])}


def count_rows(connection: Connection, tables: Sequence[Table]) -> dict[str, int]:
    """Count the rows of each table exactly, in the connection's snapshot.

    Returns:
        row counts by table name.
    """
    counts = {}
    for table in tables:
        # ONLY: a child table that inherits from this one is counted by itself.
        row = connection.execute(SQL("SELECT count(*) FROM ONLY {}").format(table.identifier)).fetchone()
        assert row is not None
        counts[table.name] = row[0]
    return counts


class SnapshotCount:
    """A count in a thread, over its own connection, in an exported snapshot.

    Arguments:
        connection: an autocommit connection, which this object will close.
        snapshot: the result of ``pg_export_snapshot()``; its transaction must outlive the count.
    """

    def __init__(self, connection: Connection, snapshot: str, tables: Sequence[Table]) -> None:
        self._connection = connection
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self._snapshot = snapshot
        self._tables = tables
        self._counts: dict[str, int] = {}
        self._error: psycopg.Error | None = None
        self._thread = threading.Thread(target=self._count, name="row-count", daemon=True)
        self._thread.start()

    def result(self) -> dict[str, int]:
        """Wait for the end and return row counts by table; raises `psycopg.Error` if the count failed."""
        while self._thread.is_alive():  # so that a signal is noticed between two waits
            self._thread.join(_PATIENCE_SECONDS)
        if self._error is not None:
            raise self._error
        return self._counts

    def cancel(self) -> None:
        """End the count and its thread; does nothing after the end."""
        if self._thread.is_alive():
            with contextlib.suppress(psycopg.Error):
                self._connection.cancel_safe(timeout=_CANCEL_SECONDS)
            # If the server does not react, the thread still ends, since its socket is shut.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _count(self) -> None:
        try:
            with self._connection as connection:
                connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                connection.execute(SQL("SET TRANSACTION SNAPSHOT {}").format(Literal(self._snapshot)))
                # The dump has priority: a count takes one core at most.
                connection.execute("SET LOCAL max_parallel_workers_per_gather = 0")
                self._counts = count_rows(connection, self._tables)
        except psycopg.Error as error:
            self._error = error
