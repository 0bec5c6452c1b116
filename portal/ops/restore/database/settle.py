"""Counts the rows of a filled database, and gives the planner its statistics, without which first queries are slow.

A dump by pg_dump 18 or newer carries the statistics of the source, and servers from 18 on accept them. A table uses
them if the planner of the source knew the table's size, and if they turn out to be complete. All other tables are
analyzed, which takes far longer.

Sizes are not taken from the dump, because the source's tables may be bloated: building the indexes has recorded the
sizes of the restored ones. It does so only if autovacuum is on, so without autovacuum all tables are analyzed.
"""

from __future__ import annotations

import re
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.sql import SQL

from portal.ops.postgres.connection import connect
from portal.ops.postgres.row_counts import count_rows, list_tables
from portal.ops.postgres.server import restoring_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from portal.ops.postgres.connection import Connection
    from portal.ops.postgres.row_counts import Table
    from portal.ops.postgres.toc import Entry
    from portal.ops.settings.database_url import DatabaseTarget

_SINCE: Final = 180000
_SIZES: Final = "SELECT oid::bigint, pg_table_size(oid) FROM pg_class WHERE oid = ANY(%s::bigint[]::oid[])"
_RELATIONS: Final = """
    SELECT c.oid::bigint, n.nspname, c.relname, true
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = ANY(%(tables)s::bigint[]::oid[])
    UNION ALL
    SELECT i.indrelid::bigint, n.nspname, c.relname, false
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE i.indrelid = ANY(%(tables)s::bigint[]::oid[])
"""
# What the source's definitions are written for, as pg_restore sets it.
_READ_PLAINLY: Final = """
    SELECT set_config('search_path', '', false), set_config('standard_conforming_strings', 'on', false)
"""
# ANALYZE leaves out columns and expressions with target 0, and virtual columns. A dump has no extended statistics.
_IS_COMPLETE: Final = """
    SELECT c.reltuples, NOT EXISTS (
        SELECT FROM pg_attribute AS a JOIN pg_class AS r ON r.oid = a.attrelid
        JOIN pg_namespace AS n ON n.oid = r.relnamespace LEFT JOIN pg_index AS i ON i.indexrelid = r.oid
        WHERE (r.oid = c.oid OR i.indrelid = c.oid AND i.indexprs IS NOT NULL AND i.indkey[a.attnum - 1] = 0)
          AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v' AND a.attstattarget IS DISTINCT FROM 0
          AND NOT EXISTS (
            SELECT FROM pg_stats AS s
            WHERE s.schemaname = n.nspname AND s.tablename = r.relname AND s.attname = a.attname AND NOT s.inherited)
    ) AND NOT c.relhassubclass AND NOT EXISTS (SELECT FROM pg_statistic_ext WHERE stxrelid = c.oid)
    FROM pg_class AS c WHERE c.oid = %s::bigint::oid
"""
_OF_COLUMNS: Final = "SELECT * FROM pg_catalog.pg_restore_attribute_stats("
_ROWS: Final = re.compile(r"'reltuples', '(-?[0-9.]+(?:e[+-]?[0-9]+)?)'::real")
# By default, a server analyzes a table again when more rows than this have changed.
_FEW_ROWS: Final = 50
_SMALL_PART: Final = 0.1


@dataclass(kw_only=True)
class _Recorded:
    """The statistics of a table in the dump.

    Arguments:
        rows: the number of rows that the source's planner assumed.
        statements: what gives them to the table and to its indexes on expressions.
    """

    rows: float = -1.0
    statements: list[str] = field(default_factory=list)


def settle(target: DatabaseTarget, jobs: int, statistics: Sequence[Entry] = ()) -> dict[str, int]:
    """Count the rows of every table, and give the planner its statistics.

    Arguments:
        jobs: the number of connections.
        statistics: the dump's entries with statistics.

    Returns:
        the number of rows by table.
    """
    with connect(target) as connection, restoring_errors(target):
        tables = _largest_first(connection, list_tables(connection))
        recorded: dict[int, _Recorded] = {}
        if statistics and connection.info.server_version >= _SINCE:
            connection.execute(_READ_PLAINLY)
            recorded = _share_out(connection, tables, statistics)
    waiting = deque((table, recorded.get(table.oid)) for table in tables)
    with ThreadPoolExecutor(max(1, jobs), thread_name_prefix="settle") as pool:
        shares = [pool.submit(_settle_share, target, waiting) for _ in range(max(1, jobs))]
    return {table: rows for share in shares for table, rows in share.result().items()}


def _settle_share(target: DatabaseTarget, waiting: deque[tuple[Table, _Recorded | None]]) -> dict[str, int]:
    """Take tables from the queue until it is empty."""
    counts: dict[str, int] = {}
    with connect(target) as connection, restoring_errors(target):
        while True:
            try:
                table, recorded = waiting.popleft()
            except IndexError:
                return counts
            counts |= count_rows(connection, [table])
            if recorded is None or not _give(connection, table, recorded, counts[table.name]):
                connection.execute(SQL("ANALYZE {}").format(table.identifier))


def _give(connection: Connection, table: Table, recorded: _Recorded, rows: int) -> bool:
    """Give a table its recorded statistics; return False if they do not fit, or are not all that it needs."""
    if not _is_about(recorded.rows, rows):
        return False
    connection.execute(_READ_PLAINLY)
    if not all(_executed(connection, statements) for statements in recorded.statements):
        return False
    row = connection.execute(_IS_COMPLETE, [table.oid]).fetchone()
    return row is not None and _is_about(row[0], rows) and bool(row[1])


def _executed(connection: Connection, statements: str) -> bool:
    """Execute statements; return False if the server refuses: then ANALYZE does better than an error."""
    try:
        connection.execute(statements.encode(connection.info.encoding))
    except (psycopg.DatabaseError, UnicodeError):
        if connection.closed:
            raise
        return False
    return True


def _is_about(assumed: float, rows: int) -> bool:
    return rows > 0 and abs(assumed - rows) <= _FEW_ROWS + _SMALL_PART * rows


def _share_out(connection: Connection, tables: Sequence[Table], statistics: Sequence[Entry]) -> dict[int, _Recorded]:
    """The recorded statistics of each table by its oid; those of views and partitioned tables are given at once."""
    others = {(entry.schema, entry.name): entry.definition for entry in statistics}
    found: dict[int, _Recorded] = {}
    for oid, schema, name, is_table in connection.execute(_RELATIONS, {"tables": [table.oid for table in tables]}):
        definition = others.pop((schema, name), "")
        about_columns = definition.find(_OF_COLUMNS)
        recorded = found.setdefault(oid, _Recorded())
        if about_columns >= 0:
            recorded.statements.append(definition[about_columns:])
        if is_table and (rows := _ROWS.search(definition)):
            recorded.rows = float(rows[1])
    for definition in others.values():
        if (about_columns := definition.find(_OF_COLUMNS)) >= 0:
            _executed(connection, definition[about_columns:])
    return found


def _largest_first(connection: Connection, tables: Sequence[Table]) -> list[Table]:
    found: list[tuple[int, int]] = connection.execute(_SIZES, [[table.oid for table in tables]]).fetchall()
    sizes = dict(found)
    return sorted(tables, key=lambda table: -sizes.get(table.oid, 0))
