# ruff: noqa: S608  (the queries are put together from constants)
"""Everything that is in a database, as text: two databases hold the same if and only if this is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, LiteralString

from psycopg.sql import SQL, Identifier

from portal.ops.postgres.connection import connect

if TYPE_CHECKING:
    from portal.ops.postgres.connection import Connection
    from portal.ops.settings.database_url import DatabaseTarget

Contents = dict[str, list[str]]

_OURS: LiteralString = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"

# After a round trip the server writes the casts in a list of varchar in other places, though they do the same.
_PLAIN_CONSTRAINT: LiteralString = (
    "regexp_replace(pg_get_constraintdef(c.oid), '::(character varying|text)(\\[\\])?|[()]', '', 'g')"
)
_DEFINITIONS: dict[str, LiteralString] = {
    "schemas": f"SELECT nspname, nspacl::text FROM pg_namespace AS n WHERE {_OURS}",
    "relations": f"""
        SELECT c.oid::regclass, relkind, relpersistence, relrowsecurity, relispartition, relispopulated, reloptions,
               pg_get_expr(relpartbound, c.oid), relacl::text FROM pg_class AS c JOIN pg_namespace AS n
        ON n.oid = relnamespace WHERE {_OURS}""",
    "columns": f"""
        SELECT attrelid::regclass, attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated,
               attstorage, attacl::text, pg_get_expr(adbin, adrelid)
        FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = attrelid JOIN pg_namespace AS n ON n.oid = relnamespace
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE {_OURS} AND attnum > 0 AND NOT attisdropped""",
    "constraints": f"""
        SELECT conrelid::regclass, conname, {_PLAIN_CONSTRAINT}, condeferred, convalidated
        FROM pg_constraint AS c JOIN pg_namespace AS n ON n.oid = connamespace WHERE {_OURS}""",
    "indexes": f"SELECT pg_get_indexdef(indexrelid), indisvalid, indisclustered FROM pg_index JOIN pg_class AS c "
    f"ON c.oid = indexrelid JOIN pg_namespace AS n ON n.oid = relnamespace WHERE {_OURS}",
    "views": f"SELECT c.oid::regclass, pg_get_viewdef(c.oid) FROM pg_class AS c JOIN pg_namespace AS n "
    f"ON n.oid = relnamespace WHERE {_OURS} AND relkind IN ('v', 'm')",
    "triggers": "SELECT pg_get_triggerdef(oid), tgenabled FROM pg_trigger WHERE NOT tgisinternal",
    "rules": "SELECT pg_get_ruledef(oid) FROM pg_rewrite WHERE oid > 16383",
    "functions": f"""
        SELECT p.oid::regprocedure, CASE WHEN prokind <> 'a' THEN pg_get_functiondef(p.oid) END, proacl::text
        FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = pronamespace WHERE {_OURS}""",
    "operators": f"SELECT o.oid::regoperator, oprcode FROM pg_operator AS o JOIN pg_namespace AS n "
    f"ON n.oid = oprnamespace WHERE {_OURS}",
    "policies": "SELECT * FROM pg_policies",
    "types": f"""
        SELECT t.oid::regtype, typtype, typdefault, typnotnull, typacl::text,
               (SELECT array_agg(enumlabel ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid)
        FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = typnamespace WHERE {_OURS}""",
    "statistics": "SELECT pg_get_statisticsobjdef(oid) FROM pg_statistic_ext",
    "extensions": "SELECT extname, extversion, extnamespace::regnamespace FROM pg_extension",
    "comments": "SELECT pg_describe_object(classoid, objoid, objsubid), description FROM pg_description "
    "WHERE objoid > 16383",
    "default rights": "SELECT defaclrole::regrole, defaclnamespace::regnamespace, defaclobjtype, defaclacl::text "
    "FROM pg_default_acl",
    "sequences": "SELECT * FROM pg_sequences",
    "inheritance": "SELECT inhrelid::regclass, inhparent::regclass FROM pg_inherits",
    "large objects": "SELECT oid, lomacl::text, md5(lo_get(oid)) FROM pg_largeobject_metadata",
    "publications": "SELECT p.pubname, t.tablename FROM pg_publication AS p LEFT JOIN pg_publication_tables AS t "
    "USING (pubname)",
}
_TABLES: LiteralString = f"""
    SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
    WHERE {_OURS} AND relkind IN ('r', 'm') AND relispopulated
"""


def read_contents(target: DatabaseTarget) -> Contents:
    """Every row of every table, every sequence and large object, and every definition."""
    with connect(target) as connection, connection.transaction():
        connection.execute("SET LOCAL search_path = ''")
        contents = {what: _lines(connection, query) for what, query in _DEFINITIONS.items()}
        for schema, table in connection.execute(_TABLES).fetchall():
            rows = SQL("SELECT row_to_json(t)::text FROM ONLY {} AS t").format(Identifier(schema, table))
            contents[f"rows of {schema}.{table}"] = sorted(str(row) for (row,) in connection.execute(rows))
        return contents


def _lines(connection: Connection, query: LiteralString) -> list[str]:
    rows = connection.execute(SQL("SELECT row_to_json(d)::text FROM ({}) AS d").format(SQL(query)))
    return sorted(str(row) for (row,) in rows)
