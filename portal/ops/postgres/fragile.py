"""Expressions that work while the portal runs, and not while a dump is restored.

`pg_restore` works with an empty `search_path`. A function that finds a table or another function by that path fails
then, and with it the rows of every table whose CHECK constraint or generated column calls it. Each such expression is
tried on one row, with an empty path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.sql import SQL, Identifier

from portal.ops.postgres.table_names import table_name

if TYPE_CHECKING:
    from portal.ops.postgres.connection import Connection

_EXPRESSIONS: Final = """
    SELECT DISTINCT n.nspname, c.relname, x.what, x.expression, p.oid::regprocedure::text
    FROM (
        SELECT conrelid AS relation, 'constraint ' || conname AS what, pg_get_expr(conbin, conrelid) AS expression,
               'pg_constraint'::regclass AS class, oid
        FROM pg_constraint WHERE contype = 'c' AND conrelid <> 0
        UNION ALL
        SELECT d.adrelid, 'column ' || a.attname, pg_get_expr(d.adbin, d.adrelid), 'pg_attrdef'::regclass, d.oid
        FROM pg_attrdef AS d JOIN pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
        WHERE a.attgenerated <> ''
    ) AS x
    JOIN pg_class AS c ON c.oid = x.relation AND c.relkind = 'r' JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_depend AS d ON d.classid = x.class AND d.objid = x.oid AND d.refclassid = 'pg_proc'::regclass
    JOIN pg_proc AS p ON p.oid = d.refobjid JOIN pg_language AS l ON l.oid = p.prolang
    WHERE l.lanname IN ('sql', 'plpgsql') AND n.nspname !~ '^pg_'
      AND NOT EXISTS (SELECT FROM unnest(p.proconfig) AS setting WHERE setting LIKE 'search_path=%')
    ORDER BY 1, 2, 3
"""
_NOT_FOUND: Final = (
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedObject,
    psycopg.errors.UndefinedTable,
)


def fragile_expressions(connection: Connection) -> list[str]:
    """What would fail in a restore, in words; a part of the transaction that is open."""
    said = []
    with connection.transaction():
        connection.execute("SELECT set_config('search_path', '', true)")
        found = connection.execute(_EXPRESSIONS).fetchall()
        for schema, table, what, expression, function in found:
            if reason := _failure(connection, Identifier(schema, table), str(expression)):
                said.append(
                    f"{what} of {table_name(schema, table)} fails in a restore, so its rows cannot be restored: "
                    f"{reason}; {function} has to find it without a search_path: ALTER FUNCTION {function} "
                    "SET search_path = public, and back up again"
                )
        raise psycopg.Rollback  # the path is as it was
    return said


def _failure(connection: Connection, table: Identifier, expression: str) -> str:
    query = SQL("SELECT ({}) FROM ONLY {} LIMIT 1").format(SQL(expression), table)
    try:
        with connection.transaction():
            connection.execute(query)
    except _NOT_FOUND as error:
        return error.diag.message_primary or ""
    except psycopg.errors.LockNotAvailable:
        raise
    except psycopg.DatabaseError:
        if connection.closed:
            raise
    return ""
