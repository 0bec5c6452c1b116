"""Counting the rows of every table: beside a dump, in the snapshot that it uses, and after a restore.

A table here is one whose rows pg_dump writes: ordinary tables and single partitions. Not counted are partitioned
parents (they have no rows of their own), foreign and temporary tables, tables of an extension (its own script fills
them), and unlogged ones on a standby, which cannot be read there.
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
    """Return the tables whose rows pg_dump would write, in the order of their names; waits for no lock."""
    return [
        Table(name=table_name(schema, relation), identifier=Identifier(schema, relation), oid=oid)
        for schema, relation, oid in connection.execute(_TABLES)
    ]


def partition_roots(connection: Connection) -> dict[str, str]:
    """Return for each partition the partitioned table at the top, both by their names."""
    return {
        table_name(schema, relation): table_name(root_schema, root)
        for schema, relation, root_schema, root in connection.execute(_ROOTS)
    }


def table_sizes(connection: Connection, tables: Sequence[Table]) -> dict[str, int]:
    """Return the bytes of each table on the server's disk, with out-of-line values, without indexes.

    The server locks each table to measure it, and waits for whoever has locked it.
    """
    query = "SELECT oid, pg_table_size(oid::oid) FROM unnest(%s::bigint[]) AS wanted (oid)"
    names = {table.oid: table.name for table in tables}
    return {names[oid]: size for oid, size in connection.execute(query, [list(names)])}


def count_rows(connection: Connection, tables: Sequence[Table]) -> dict[str, int]:
    """Count the rows of each table, exactly, in whatever snapshot the connection has.

    Returns:
        The number of rows by the table's name.
    """
    counts = {}
    for table in tables:
        # ONLY: a child that inherits from a table is counted by itself.
        row = connection.execute(SQL("SELECT count(*) FROM ONLY {}").format(table.identifier)).fetchone()
        assert row is not None
        counts[table.name] = row[0]
    return counts


class SnapshotCount:
    """A count that runs on a thread of its own, over a connection of its own, in an exported snapshot.

    Arguments:
        connection: an autocommit connection that this object takes over and closes.
        snapshot: the name that ``pg_export_snapshot()`` gave; its transaction must outlive the count.
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
        """Wait for the end and return the number of rows by table; `psycopg.Error` if the count failed."""
        while self._thread.is_alive():  # a signal is noticed between two waits
            self._thread.join(_PATIENCE_SECONDS)
        if self._error is not None:
            raise self._error
        return self._counts

    def cancel(self) -> None:
        """End the count and its thread; harmless after the end."""
        if self._thread.is_alive():
            with contextlib.suppress(psycopg.Error):
                self._connection.cancel_safe(timeout=_CANCEL_SECONDS)
            # A server that does not listen any more keeps nobody waiting: the thread finds its socket shut.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _count(self) -> None:
        try:
            with self._connection as connection:
                connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                connection.execute(SQL("SET TRANSACTION SNAPSHOT {}").format(Literal(self._snapshot)))
                # The dump comes first: a count takes one core at the most.
                connection.execute("SET LOCAL max_parallel_workers_per_gather = 0")
                self._counts = count_rows(connection, self._tables)
        except psycopg.Error as error:
            self._error = error
