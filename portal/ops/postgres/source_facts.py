"""Facts that a backup records besides the dump, and rows and objects that no dump has.

Everything is read in the dump's snapshot. `pg_dump` leaves out: rows of tables that belong to an extension, unless the
extension has marked them; unlogged tables on a standby; unfinished indexes; and subscriptions, except for a superuser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, LiteralString

import psycopg
from psycopg.sql import SQL, Identifier

from portal.ops.postgres.fragile import fragile_expressions
from portal.ops.postgres.identity import DatabaseIdentity, read_identity
from portal.ops.postgres.table_names import table_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from portal.ops.postgres.connection import Connection

_NAMED: Final = 5
_OURS: Final[LiteralString] = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
_IN_EXTENSION: Final[LiteralString] = """
    EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
"""

_SIZES: Final = """
    SELECT pg_database_size(current_database()), (SELECT count(*) FROM pg_largeobject_metadata)
"""
# Objects of which a restored database must have as many as the source. Not counted: constraints of partitions that
# follow from their parents', and NOT NULL, which is a constraint since version 18. The server makes these itself.
_COUNTS: Final[LiteralString] = f"""
    SELECT (SELECT count(*) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
              JOIN pg_namespace AS n ON n.oid = c.relnamespace
            WHERE {_OURS} AND (i.indisvalid OR c.relkind = 'I') AND NOT EXISTS (
              SELECT FROM pg_depend AS d
              WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indrelid AND d.deptype = 'e')),
           (SELECT count(*) FROM pg_constraint AS k JOIN pg_namespace AS n ON n.oid = k.connamespace
            WHERE {_OURS} AND k.conrelid <> 0 AND k.contype <> 'n' AND k.conparentid = 0 AND NOT EXISTS (
              SELECT FROM pg_depend AS d
              WHERE d.classid = 'pg_class'::regclass AND d.objid = k.conrelid AND d.deptype = 'e')),
           (SELECT count(*) FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
              JOIN pg_namespace AS n ON n.oid = c.relnamespace
            WHERE {_OURS} AND NOT t.tgisinternal AND NOT {_IN_EXTENSION})
"""  # noqa: S608  (the parts are constants)
_INVALID: Final[LiteralString] = f"""
    SELECT n.nspname, c.relname, c.relkind = 'I' FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE {_OURS} AND NOT (i.indisvalid AND i.indisready) ORDER BY 1, 2
"""  # noqa: S608
_UNVALIDATED: Final[LiteralString] = f"""
    SELECT n.nspname, c.relname, k.conname FROM pg_constraint AS k JOIN pg_class AS c ON c.oid = k.conrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE {_OURS} AND NOT k.convalidated ORDER BY 1, 2, 3
"""  # noqa: S608
# Tables of an extension, except those whose rows it has marked to be dumped.
_EXTENSION_TABLES: Final[LiteralString] = f"""
    SELECT n.nspname, c.relname, e.extname,
           has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE')
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
         AND d.refclassid = 'pg_extension'::regclass
    JOIN pg_extension AS e ON e.oid = d.refobjid
    WHERE c.relkind = 'r' AND NOT c.oid = ANY(coalesce(e.extconfig, '{{}}')) AND {_OURS} ORDER BY 1, 2
"""  # noqa: S608
_UNLOGGED: Final[LiteralString] = f"""
    SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence = 'u' AND pg_is_in_recovery() AND {_OURS} AND NOT {_IN_EXTENSION}
    ORDER BY 1, 2
"""  # noqa: S608
_FOREIGN: Final[LiteralString] = f"""
    SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'f' AND {_OURS} ORDER BY 1, 2
"""  # noqa: S608
_SUBSCRIPTIONS: Final = """
    SELECT s.subname, m.rolsuper FROM pg_subscription AS s JOIN pg_database AS d ON d.oid = s.subdbid,
           pg_roles AS m WHERE d.datname = current_database() AND m.rolname = current_user ORDER BY 1
"""


@dataclass(frozen=True, kw_only=True)
class ExtensionTable:
    """A table of an extension whose rows are in no dump.

    Arguments:
        name: the name as by `table_name`.
        identifier: the name quoted for SQL.
        extension: the extension.
    """

    name: str
    identifier: Identifier
    extension: str


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """Facts about a database besides its dump.

    Arguments:
        size_bytes: bytes on the server's disk, including indexes.
        counts: the numbers of indexes, constraints and triggers.
        invalid_indexes: the names of invalid indexes.
        unvalidated: constraints that were not validated.
        warnings: data that no dump has.
    """

    identity: DatabaseIdentity
    size_bytes: int
    large_objects: int
    counts: dict[str, int]
    invalid_indexes: tuple[str, ...]
    unvalidated: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The facts as types of JSON, for the manifest."""
        return {
            "database": self.identity.to_dict(),
            "database_bytes": self.size_bytes,
            "large_objects": self.large_objects,
            "counts": self.counts,
            "invalid_indexes": list(self.invalid_indexes),
            "unvalidated_constraints": list(self.unvalidated),
        }


def read_source_facts(connection: Connection) -> SourceFacts:
    """Query the facts within the open transaction."""
    row = connection.execute(_SIZES).fetchone()
    assert row is not None
    size, large_objects = row
    identity = read_identity(connection, connection.info.dbname)
    assert identity is not None
    invalid = connection.execute(_INVALID).fetchall()
    unvalidated = connection.execute(_UNVALIDATED).fetchall()
    return SourceFacts(
        identity=identity,
        size_bytes=size,
        large_objects=large_objects,
        counts=count_objects(connection),
        invalid_indexes=tuple(table_name(schema, name) for schema, name, _ in invalid),
        unvalidated=tuple(f"{name} of {table_name(schema, table)}" for schema, table, name in unvalidated),
        warnings=(*left_out(connection), *fragile_expressions(connection)),
    )


def count_objects(connection: Connection) -> dict[str, int]:
    """The numbers of indexes, constraints and triggers that a dump of the database has."""
    row = connection.execute(_COUNTS).fetchone()
    assert row is not None
    return dict(zip(("indexes", "constraints", "triggers"), row, strict=True))


def extension_tables(connection: Connection) -> list[ExtensionTable]:
    """Tables of extensions that have rows which no dump has."""
    found = []
    for schema, name, extension, is_readable in connection.execute(_EXTENSION_TABLES).fetchall():
        identifier = Identifier(schema, name)
        if is_readable and not _has_rows(connection, identifier):
            continue
        found.append(ExtensionTable(name=table_name(schema, name), identifier=identifier, extension=extension))
    return found


def left_out(connection: Connection) -> list[str]:
    """The data that a dump of the database would omit, one sentence each."""
    said = [
        f"the rows of {table.name} are in no dump: the table belongs to extension {table.extension}; if it is yours: "
        f"ALTER EXTENSION {Identifier(table.extension).as_string(None)} DROP TABLE {table.identifier.as_string(None)}"
        for table in extension_tables(connection)
    ]
    unlogged = [table_name(*row) for row in connection.execute(_UNLOGGED)]
    if unlogged:
        said.append(f"a standby has no rows of unlogged tables, so they are not in the dump: {_some(unlogged)}")
    foreign = [table_name(*row) for row in connection.execute(_FOREIGN)]
    if foreign:
        said.append(f"rows of foreign tables are on other servers, and not in the dump: {_some(foreign)}")
    invalid = [table_name(schema, name) for schema, name, is_root in connection.execute(_INVALID) if not is_root]
    if invalid:
        said.append(f"indexes that are not valid are not in the dump (REINDEX repairs them): {_some(invalid)}")
    subscriptions = [name for name, is_superuser in connection.execute(_SUBSCRIPTIONS) if not is_superuser]
    if subscriptions:
        said.append(f"only a superuser dumps subscriptions; these are not in the dump: {_some(subscriptions)}")
    return said


def _has_rows(connection: Connection, table: Identifier) -> bool:
    try:
        with connection.transaction():
            row = connection.execute(SQL("SELECT EXISTS (SELECT FROM ONLY {})").format(table)).fetchone()
    except psycopg.errors.DatabaseError:
        return True  # unreadable is not empty
    return row is not None and bool(row[0])


def _some(names: Iterable[str]) -> str:
    named = list(names)
    more = len(named) - _NAMED
    return ", ".join(named[:_NAMED]) + (f" and {more} more" if more > 0 else "")
