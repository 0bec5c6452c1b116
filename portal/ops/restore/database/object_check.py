"""Compares indexes, constraints and triggers of a restored database with those of the source.

Every object that the dump lists must exist by name. The counts recorded at the time of the backup also show whether the
dump lists all of them. An index that was invalid in the source may be invalid here: an unfinished index of a
partitioned table is dumped as such, and other invalid indexes are in no dump.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, LiteralString

from portal.ops.postgres.source_facts import count_objects
from portal.ops.postgres.table_names import table_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from portal.ops.postgres.connection import Connection
    from portal.ops.postgres.toc import Entry

_NAMED: Final = 8
_OURS: Final[LiteralString] = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
_INDEXES: Final[LiteralString] = f"""
    SELECT n.nspname, c.relname, i.indisvalid AND i.indisready, c.relkind = 'I'
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE {_OURS} ORDER BY 1, 2
"""  # noqa: S608  (the parts are constants)
_CONSTRAINTS: Final[LiteralString] = f"""
    SELECT n.nspname, c.relname, k.conname, k.convalidated, k.conparentid = 0
    FROM pg_constraint AS k JOIN pg_class AS c ON c.oid = k.conrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE {_OURS} ORDER BY 1, 2, 3
"""  # noqa: S608
_TRIGGERS: Final[LiteralString] = f"""
    SELECT n.nspname, c.relname, t.tgname
    FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE {_OURS} AND NOT t.tgisinternal
"""  # noqa: S608
_CONSTRAINT_KINDS: Final = ("CONSTRAINT", "CHECK CONSTRAINT", "FK CONSTRAINT")
_ONE: Final = {"indexes": "index", "constraints": "constraint", "triggers": "trigger"}


@dataclass(frozen=True, kw_only=True)
class SourceObjects:
    """The objects of the source database, as recorded by its backup.

    Arguments:
        counts: the numbers of indexes, constraints and triggers.
        invalid_indexes: the invalid indexes, as `table_name` writes them.
        unvalidated: constraints that were not validated, with their tables.
        server_version: the version of the source's server.
    """

    counts: Mapping[str, int]
    invalid_indexes: frozenset[str] = frozenset()
    unvalidated: frozenset[str] = frozenset()
    server_version: str = ""


@dataclass(frozen=True, kw_only=True)
class ObjectCheck:
    """The result of the comparison.

    Arguments:
        indexes: the number of indexes that were checked; likewise `constraints`.
        wrong: differences from the source.
        warnings: facts that match the source and are worth knowing.
    """

    indexes: int
    constraints: int
    wrong: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The indexes with their validity and partitioning, and the unvalidated constraints.

    The server chose the names of those that follow from an object of a parent table.
    """

    indexes: Mapping[str, tuple[bool, bool]]
    constraints: int
    unvalidated: Mapping[str, bool]
    listed: frozenset[tuple[str, str, str]]


def check_objects(connection: Connection, entries: Iterable[Entry], source: SourceObjects | None) -> ObjectCheck:
    """Compare a restored database with its dump and with the recorded source.

    Arguments:
        entries: the dump's table of contents.
        source: the manifest's record; None if an older release wrote the archive.
    """
    found = _look(connection)
    invalid = {name: is_root for name, (is_valid, is_root) in found.indexes.items() if not is_valid}
    known = source.invalid_indexes if source else frozenset(name for name, is_root in invalid.items() if is_root)
    broken = [f"index {name} is not valid" for name in sorted(invalid.keys() - known)]
    said = []
    if as_before := sorted(invalid.keys() & known):
        said.append(f"indexes that were not finished in the source, and are not here: {_some(as_before)}")
    allowed = source.unvalidated if source else found.unvalidated.keys()
    broken += [
        f"constraint {name} is not validated"
        for name, is_own in found.unvalidated.items()
        if is_own and name not in allowed
    ]
    if lasting := [name for name, is_own in found.unvalidated.items() if name in allowed or not is_own]:
        said.append(f"constraints that were never validated: {_some(lasting)}")
    return ObjectCheck(
        indexes=len(found.indexes),
        constraints=found.constraints,
        wrong=(*_missing(entries, found), *broken, *_differing(connection, source)),
        warnings=tuple(said),
    )


def _look(connection: Connection) -> _Found:
    indexes = connection.execute(_INDEXES).fetchall()
    constraints = connection.execute(_CONSTRAINTS).fetchall()
    triggers = connection.execute(_TRIGGERS).fetchall()
    listed = {("index", schema, name) for schema, name, *_ in indexes}
    listed |= {("constraint", schema, f"{table} {name}") for schema, table, name, *_ in constraints}
    listed |= {("trigger", schema, f"{table} {name}") for schema, table, name in triggers}
    return _Found(
        indexes={table_name(schema, name): (is_valid, is_root) for schema, name, is_valid, is_root in indexes},
        constraints=len(constraints),
        unvalidated={
            f"{name} of {table_name(schema, table)}": is_own
            for schema, table, name, is_valid, is_own in constraints
            if not is_valid
        },
        listed=frozenset(listed),
    )


def _missing(entries: Iterable[Entry], found: _Found) -> list[str]:
    """Listed objects that are missing; a constraint or trigger is listed after the name of its table.

    Names that are not ASCII are only counted: with the encoding SQL_ASCII they can be read in two ways.
    """
    kinds = {"INDEX": "index", "TRIGGER": "trigger", **dict.fromkeys(_CONSTRAINT_KINDS, "constraint")}
    return [
        f"{kinds[entry.kind]} {entry.name} in schema {entry.schema} is missing"
        for entry in entries
        if entry.kind in kinds
        and (kinds[entry.kind], entry.schema, entry.name) not in found.listed
        and not _is_of_domain(entry)
        and f"{entry.schema}{entry.name}".isascii()
    ]


def _is_of_domain(entry: Entry) -> bool:
    return entry.definition.lstrip().startswith("ALTER DOMAIN")


def _differing(connection: Connection, source: SourceObjects | None) -> list[str]:
    """Counts that differ from the source's; another major version may count differently."""
    if source is None or _major(source.server_version) != connection.info.server_version // 10000:
        return []
    now = Counter(count_objects(connection))
    return [
        f"{now[kind]:,} {kind if now[kind] != 1 else _ONE[kind]}, not {count:,} as in the source"
        for kind, count in source.counts.items()
        if kind in _ONE and now[kind] != count
    ]


def _major(version: str) -> int:
    digits = version.partition(".")[0].strip()
    return int(digits) if digits.isdecimal() else 0


def _some(names: Iterable[str]) -> str:
    named = list(names)
    more = len(named) - _NAMED
    return ", ".join(named[:_NAMED]) + (f" and {more} more" if more > 0 else "")
