"""Finds expressions that work while the portal runs, but fail while a dump is restored.

`pg_restore` works with an empty `search_path`. A function that finds a table or function by that path fails then, and
with it the rows of every table whose CHECK constraint, generated column, domain or partition key calls it, and every
index on its result. So each such expression is evaluated for one row, with an empty path.

Its functions run with the rights of this session's user then, which may be the administrator's. So only expressions and
functions of owners who could act as this user anyway are evaluated; the others are named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.sql import SQL, Composed, Identifier

from portal.ops.postgres.table_names import table_name

if TYPE_CHECKING:
    from portal.ops.postgres.connection import Connection

_EXPRESSIONS: Final = """
    SELECT DISTINCT n.nspname, c.relname, x.what, x.expression, p.oid::regprocedure::text,
           CASE WHEN NOT bool_and(pg_has_role(c.relowner, session_user, 'MEMBER')) OVER expression THEN c.relowner
                WHEN NOT bool_and(pg_has_role(p.proowner, session_user, 'MEMBER')) OVER expression THEN p.proowner
           END::regrole::text
    FROM (
        SELECT conrelid AS relation, 'constraint ' || conname AS what, pg_get_expr(conbin, conrelid) AS expression,
               'pg_constraint'::regclass AS class, oid
        FROM pg_constraint WHERE contype = 'c' AND conrelid <> 0
        UNION ALL
        SELECT d.adrelid, 'column ' || a.attname, pg_get_expr(d.adbin, d.adrelid), 'pg_attrdef'::regclass, d.oid
        FROM pg_attrdef AS d JOIN pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
        WHERE a.attgenerated <> ''
        UNION ALL
        SELECT indrelid, 'index ' || indexrelid::regclass, pg_get_expr(indexprs, indrelid), 'pg_class'::regclass,
               indexrelid
        FROM pg_index WHERE indexprs IS NOT NULL
        UNION ALL
        SELECT indrelid, 'index ' || indexrelid::regclass, pg_get_expr(indpred, indrelid), 'pg_class'::regclass,
               indexrelid
        FROM pg_index WHERE indpred IS NOT NULL
        UNION ALL
        SELECT leaf.relid, 'the partition key (' || partrelid::regclass || ')', pg_get_expr(partexprs, partrelid),
               'pg_class'::regclass, partrelid
        FROM pg_partitioned_table,
             LATERAL (SELECT relid FROM pg_partition_tree(partrelid) AS t JOIN pg_class AS c ON c.oid = t.relid
                      WHERE c.relkind = 'r' LIMIT 1) AS leaf
        WHERE partexprs IS NOT NULL
    ) AS x
    JOIN pg_class AS c ON c.oid = x.relation AND c.relkind IN ('r', 'm')
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_depend AS d ON d.classid = x.class AND d.objid = x.oid AND d.refclassid = 'pg_proc'::regclass
    JOIN pg_proc AS p ON p.oid = d.refobjid JOIN pg_language AS l ON l.oid = p.prolang
    WHERE l.lanname IN ('sql', 'plpgsql') AND n.nspname !~ '^pg_'
      AND NOT EXISTS (SELECT FROM unnest(p.proconfig) AS setting WHERE setting LIKE 'search_path=%')
    WINDOW expression AS (PARTITION BY x.class, x.oid)
    ORDER BY 1, 2, 3
"""
# A domain's check calls its value VALUE, for which a column of the base type is substituted.
_DOMAINS: Final = """
    SELECT DISTINCT n.nspname, t.typname, k.conname, pg_get_expr(k.conbin, 0), t.typbasetype::regtype::text,
           p.oid::regprocedure::text,
           CASE WHEN NOT bool_and(pg_has_role(t.typowner, session_user, 'MEMBER')) OVER expression THEN t.typowner
                WHEN NOT bool_and(pg_has_role(p.proowner, session_user, 'MEMBER')) OVER expression THEN p.proowner
           END::regrole::text
    FROM pg_constraint AS k JOIN pg_type AS t ON t.oid = k.contypid JOIN pg_namespace AS n ON n.oid = t.typnamespace
    JOIN pg_depend AS d ON d.classid = 'pg_constraint'::regclass AND d.objid = k.oid
         AND d.refclassid = 'pg_proc'::regclass
    JOIN pg_proc AS p ON p.oid = d.refobjid JOIN pg_language AS l ON l.oid = p.prolang
    WHERE k.contype = 'c' AND l.lanname IN ('sql', 'plpgsql') AND n.nspname !~ '^pg_'
      AND NOT EXISTS (SELECT FROM unnest(p.proconfig) AS setting WHERE setting LIKE 'search_path=%')
    WINDOW expression AS (PARTITION BY k.oid)
    ORDER BY 1, 2, 3
"""
_NOT_FOUND: Final = (
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedObject,
    psycopg.errors.UndefinedTable,
)


def fragile_expressions(connection: Connection) -> list[str]:
    """Expressions that would fail in a restore, or could not be tried, found in the open transaction."""
    said = []
    with connection.transaction(force_rollback=True):  # the path is unchanged; a lost connection raises nothing here
        connection.execute("SELECT set_config('search_path', '', true)")
        found = connection.execute(_EXPRESSIONS).fetchall()
        for schema, table, what, expression, function, stranger in found:
            name = f"{what} of {table_name(schema, table)}"
            if stranger:
                said.append(_untried(name, function, stranger))
            elif reason := _failure(connection, Identifier(schema, table), str(expression)):
                lost = "it cannot be built" if what.startswith("index ") else "its rows cannot be restored"
                said.append(_fragile(name, lost, reason, function))
        for schema, domain, check, expression, base, function, stranger in connection.execute(_DOMAINS).fetchall():
            name = f"constraint {check} of domain {table_name(schema, domain)}"
            if stranger:
                said.append(_untried(name, function, stranger))
            elif reason := _failure_of_domain(connection, str(expression), str(base)):
                said.append(_fragile(name, "rows of tables that use it cannot be restored", reason, function))
    return said


def _fragile(name: str, lost: str, reason: str, function: str) -> str:
    return (
        f"{name} fails in a restore, so {lost}: {reason}; {function} has to find it without a search_path: "
        f"{_mended(function)}, and back up again"
    )


def _untried(name: str, function: str, stranger: str) -> str:
    return (
        f"whether {name} can be restored was not tried: role {stranger} could have its own code run with the rights "
        f"of this user. If {function} finds other objects by a search_path, it fails in a restore: {_mended(function)}"
    )


def _mended(function: str) -> str:
    return f"ALTER FUNCTION {function} SET search_path = public"


def _failure(connection: Connection, table: Identifier, expression: str) -> str:
    return _failure_of(connection, SQL("SELECT ({}) FROM ONLY {} LIMIT 1").format(SQL(expression), table))


def _failure_of_domain(connection: Connection, expression: str, base: str) -> str:
    query = SQL("SELECT ({}) FROM (SELECT NULL::{} AS value) AS one")
    return _failure_of(connection, query.format(SQL(expression), SQL(base)))


def _failure_of(connection: Connection, query: Composed) -> str:
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
