"""Restores over the contents of the live database in one transaction, and rolls that back.

    1 make a safety dump of the live database, and record the oids of its tables
    2 run pg_restore in one transaction; end sessions that block it

Tables that the backup does not know stay. So do extensions that exist already, and schemas with any of these or with
other objects that the backup does not know: they cannot be dropped. Default privileges of the live database apply to
restored tables too. A restored table has a new oid, which shows after a crash whether the transaction was committed.
The rollback is one transaction too: it drops the objects that the restore created, and restores the safety dump.

A rollback loses what is written between the safety dump and the restore's transaction, so stop the portal during the
restore.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from psycopg.sql import SQL

from portal.ops.errors import RepositoryError, RestoreError
from portal.ops.hints import Advice
from portal.ops.postgres.connection import connect
from portal.ops.postgres.dump import open_dump
from portal.ops.postgres.dump_contents import (
    EVENT_TRIGGER,
    EXTENSION,
    STATISTICS,
    needs_administrator,
    partitions_first,
)
from portal.ops.postgres.dump_file import read_file_contents
from portal.ops.postgres.public_schema import without_comment_on_public
from portal.ops.postgres.row_counts import list_tables
from portal.ops.postgres.server import read_me, restoring_errors
from portal.ops.postgres.table_names import normal_name
from portal.ops.repository.durable import write_durably
from portal.ops.repository.faults import explain
from portal.ops.restore.database.blockers import ending_blockers
from portal.ops.restore.database.stage import objects_owner

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from psycopg.sql import Composed

    from portal.ops.postgres.connection import Connection
    from portal.ops.postgres.dump import DatabaseDump
    from portal.ops.postgres.pg_restore import Restorer
    from portal.ops.postgres.row_counts import Table
    from portal.ops.postgres.toc import Entry
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.settings.database_url import DatabaseTarget

_DUMP_SECONDS: Final = 6 * 3600.0
_READ_BYTES: Final = 1 << 20

_EXTENSIONS: Final = "SELECT extname FROM pg_extension"
_EXTENSION_SCHEMAS: Final = """
    SELECT n.nspname FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace
"""
# Relations, functions and types of users; not what belongs to an extension or follows from a type.
_OBJECTS: Final = """
    SELECT n.nspname, o.name
    FROM (SELECT 'pg_class'::regclass::oid, oid, relnamespace, relname FROM pg_class
          WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
          UNION ALL SELECT 'pg_proc'::regclass, oid, pronamespace, proname FROM pg_proc
          UNION ALL SELECT 'pg_type'::regclass, oid, typnamespace, typname FROM pg_type
          WHERE (typtype IN ('b', 'd', 'e', 'r') AND typelem = 0)
          OR (SELECT relkind FROM pg_class WHERE oid = typrelid) = 'c') AS o (catalog, oid, namespace, name)
    JOIN pg_namespace AS n ON n.oid = o.namespace
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT EXISTS (
        SELECT FROM pg_depend AS d WHERE d.classid = o.catalog AND d.objid = o.oid AND d.deptype IN ('e', 'i'))
"""
_EXTENSION_TABLES: Final = """
    SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
    WHERE c.relkind IN ('r', 'p')
"""
# The sequences that the tables of extensions count with go on where they are: these tables are not restored.
_THEIR_SEQUENCES: Final = """
    SELECT n.nspname, s.relname FROM pg_class AS s JOIN pg_namespace AS n ON n.oid = s.relnamespace
    JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.deptype IN ('a', 'i')
    JOIN pg_depend AS e ON e.classid = 'pg_class'::regclass AND e.objid = d.refobjid AND e.deptype = 'e'
    WHERE s.relkind = 'S' AND d.refclassid = 'pg_class'::regclass
"""
_SEQUENCE_KINDS: Final = ("SEQUENCE", "SEQUENCE OWNED BY", "SEQUENCE SET")
_FUNCTION_KINDS: Final = ("FUNCTION", "PROCEDURE", "AGGREGATE")
_OBJECT_KINDS: Final = (
    *("TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE", "SEQUENCE", "TYPE", "SHELL TYPE", "DOMAIN"),
    *_FUNCTION_KINDS,
)


@dataclass(frozen=True, kw_only=True)
class Before:
    """The contents of the live database before a restore in place.

    Arguments:
        restore_id: the restore.
        dump: the safety dump.
        tables: the oid of each table.
        restored: the tables of the backup; empty if its manifest does not list them.
    """

    restore_id: str
    dump: Path
    tables: Mapping[str, int]
    restored: frozenset[str]

    @classmethod
    def load(cls, dump: Path, restore_id: str) -> Before | None:
        """Load the saved state of a restore, or None if the dump is incomplete or another restore's.

        Raises:
            RepositoryError: the state cannot be read.
        """
        if not dump.exists():
            return None
        try:
            record = json.loads(_record(dump).read_bytes())
            found = cls(
                restore_id=record["restore_id"],
                dump=dump,
                tables={normal_name(name): number for name, number in record["tables"].items()},
                restored=frozenset(map(normal_name, record["restored"])),
            )
        except (OSError, ValueError, KeyError) as error:
            raise RepositoryError(
                f"cannot read {_record(dump)}: {error}", hint="it belongs to the safety dump beside it"
            ) from error
        return found if found.restore_id == restore_id else None

    @classmethod
    def save(
        cls,
        target: DatabaseTarget,
        dump: Path,
        restored: Iterable[str],
        *,
        restore_id: str,
        runner: ProcessRunner,
        bin_dir: Path | None,
    ) -> Before:
        """Dump the live database; the file appears only when it is completely on the disk.

        Arguments:
            dump: the path of the dump; another restore's file there is replaced.
            restored: the tables of the backup; empty if its manifest does not list them.

        Raises:
            SourceError: the database cannot be dumped.
            RepositoryError: the file cannot be written.
        """
        numbers = _table_numbers(target)
        before = cls(restore_id=restore_id, dump=dump, tables=numbers, restored=frozenset(restored))
        record = {"restore_id": restore_id, "tables": numbers, "restored": sorted(before.restored)}
        try:
            dump.unlink(missing_ok=True)
            write_durably(_record(dump), json.dumps(record).encode())
            _write_dump(target, dump, runner, bin_dir)
        except OSError as error:
            room = "it needs as much room as the database"
            raise explain(error, "cannot write the safety dump", dump, hint=room) from error
        return before

    def remove(self) -> None:
        """Remove the safety dump and its description."""
        self.dump.unlink(missing_ok=True)
        _record(self.dump).unlink(missing_ok=True)

    @property
    def brought(self) -> frozenset[str]:
        """The tables that the restore created."""
        return self.restored - self.tables.keys()

    def is_replaced(self, target: DatabaseTarget) -> bool:
        """True if the live database was restored over since the safety dump."""
        now = _table_numbers(target)
        if not self.restored:
            return any(now.get(table) != number for table, number in self.tables.items())
        replaced = self.restored & self.tables.keys()
        if not replaced:
            return bool(self.brought & now.keys())
        return all(now.get(table) != self.tables[table] for table in replaced)


def replace_contents(
    target: DatabaseTarget, dump: Path, *, restorer: Restorer, restore_id: str, brought: frozenset[str] = frozenset()
) -> None:
    """Restore over the live database: everything or nothing.

    Arguments:
        target: the live database; the restore's sessions have the restore id as application name.
        brought: tables missing in the dump, to be dropped in the same transaction.

    Raises:
        OpsError: the restore failed, and the live database is unchanged.
    """
    owner = objects_owner(target)
    role = owner if owner != target.user else None
    with connect(target) as connection, restoring_errors(target):
        drop = _drop([table for table in list_tables(connection) if table.name in brought])
    contents = wanted_entries(target, read_file_contents(dump).entries, role)
    with ending_blockers(target, restore_id):
        restorer.replace(dump, target, role=role, contents=contents, drop=drop)


def roll_back(target: DatabaseTarget, before: Before, *, restorer: Restorer, restore_id: str) -> None:
    """Restore the safety dump in place: everything or nothing.

    Tables that the restore created are dropped first, because they may refer to tables that the safety dump replaces.

    Raises:
        OpsError: the rollback failed and can be repeated; the live database is unchanged.
    """
    replace_contents(target, before.dump, restorer=restorer, restore_id=restore_id, brought=before.brought)


def wanted_entries(target: DatabaseTarget, entries: Sequence[Entry], role: str | None = None) -> list[Entry]:
    """Leave out dump entries that must not be dropped: existing extensions, their schemas, schemas with newer objects.

    Also left out: for users who are not superusers, whatever only a superuser creates; the contents of tables that
    belong to an existing extension, with their sequences; the planner's statistics, which are gathered anew; and the
    comment on a schema ``public`` that the restoring role does not own. Event triggers come last: where they cannot be
    silenced, they would note that materialized views are filled.
    """
    with connect(target) as connection, restoring_errors(target):
        extensions = {str(name) for (name,) in connection.execute(_EXTENSIONS)}
        kept_schemas = _kept_schemas(connection, entries)
        me = read_me(connection)
        entries = without_comment_on_public(connection, entries, role or me.name)
        tables = {(str(schema), str(name)) for schema, name in connection.execute(_EXTENSION_TABLES)}
        sequences = {(str(schema), str(name)) for schema, name in connection.execute(_THEIR_SEQUENCES)}
    kept = {
        entry.number
        for entry in entries
        if entry.kind == STATISTICS
        or (entry.kind == EXTENSION and entry.name in extensions)
        or (entry.kind == "SCHEMA" and entry.name in kept_schemas)
        or (entry.kind == "TABLE DATA" and (entry.schema, entry.name) in tables)
        or (entry.kind in _SEQUENCE_KINDS and (entry.schema, entry.name) in sequences)
        or (entry.kind != EXTENSION and not me.superuser and needs_administrator(entry))
    }
    wanted = [
        entry for entry in entries if entry.number not in kept and not (entry.kind == "COMMENT" and entry.needs & kept)
    ]
    acting = {entry.number for entry in wanted if entry.kind == EVENT_TRIGGER}
    wanted.sort(key=lambda entry: entry.number in acting or bool(entry.needs & acting))
    return partitions_first(wanted)


def _kept_schemas(connection: Connection, entries: Sequence[Entry]) -> set[str]:
    """The schemas that contain extensions, or objects that the dump does not know."""
    known = {
        (entry.schema, entry.name.partition("(")[0] if entry.kind in _FUNCTION_KINDS else entry.name)
        for entry in entries
        if entry.kind in _OBJECT_KINDS
    }
    kept = {str(schema) for (schema,) in connection.execute(_EXTENSION_SCHEMAS)}
    return kept | {str(schema) for schema, name in connection.execute(_OBJECTS) if (schema, name) not in known}


def _drop(tables: list[Table]) -> Composed | None:
    if not tables:
        return None
    return SQL("DROP TABLE IF EXISTS {}").format(SQL(", ").join(table.identifier for table in tables))


def _table_numbers(target: DatabaseTarget) -> dict[str, int]:
    with connect(target) as connection, restoring_errors(target):
        return {table.name: table.oid for table in list_tables(connection)}


def _record(dump: Path) -> Path:
    return dump.with_name(f"{dump.name}.tables.json")


def _write_dump(target: DatabaseTarget, dump: Path, runner: ProcessRunner, bin_dir: Path | None) -> None:
    with open_dump(
        target, runner=runner, bin_dir=bin_dir, timeout_seconds=_DUMP_SECONDS, lock_timeout_seconds=target.lock_seconds
    ) as source:
        write_durably(dump, _content(source))


def _content(source: DatabaseDump) -> Iterator[bytes]:
    """The dump's bytes; raises an error at the end if the dump failed."""
    yield from iter(lambda: source.stdout.read(_READ_BYTES), b"")
    source.finish()


def no_safety_dump() -> RestoreError:
    """The error for a rollback in place without its dump."""
    return RestoreError(
        "there is no safety dump to go back to: the live database was not changed, or the dump was removed",
        hint=f"{Advice.LIST_ARCHIVES} shows the archives that can be restored instead",
    )
