"""Decides which part of a dump is restored when, by which role, and by which of several programs.

This module is pure: it selects from the entries of a table of contents.

    before       types, tables, functions: everything that precedes rows
    rows         shared among several programs
    after        indexes, constraints, triggers
    privileges   after the rows, since they may forbid a table's owner to fill it
    views        materialized views, filled one by one
    statistics   the planner's statistics of the source, which only servers from 18 on accept
    last         entries that act by themselves: event triggers, publications, subscriptions
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from portal.ops.postgres.table_names import normal_name, table_name
from portal.ops.postgres.toc import Section

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from portal.ops.postgres.toc import Entry

    _Predicate = Callable[[Entry], bool]

MOST_SHARES: Final = 4
"""The most programs that read one dump: the dump is decompressed for each of them."""

SUBSCRIPTIONS: Final = ("SUBSCRIPTION", "SUBSCRIPTION TABLE")
PUBLICATIONS: Final = ("PUBLICATION", "PUBLICATION TABLE", "PUBLICATION TABLES IN SCHEMA")
EVENT_TRIGGER: Final = "EVENT TRIGGER"
EXTENSION: Final = "EXTENSION"
STATISTICS: Final = "STATISTICS DATA"

_WORTH_MOVING: Final = 20
"""A table smaller than one part in this number is not moved to another program."""

_TABLE_DATA: Final = "TABLE DATA"
_REFRESH: Final = "MATERIALIZED VIEW DATA"
_PRIVILEGES: Final = ("ACL", "DEFAULT ACL")
_LAST: Final = (EVENT_TRIGGER, *PUBLICATIONS, *SUBSCRIPTIONS)
_ABOUT_OTHERS: Final = ("ACL", "COMMENT", "SECURITY LABEL")
_OF_THE_DATABASE: Final = ("DATABASE", "DATABASE PROPERTIES")
_ADMINISTRATORS: Final = frozenset(
    [
        EVENT_TRIGGER,
        *SUBSCRIPTIONS,
        "ACCESS METHOD",
        "FOREIGN DATA WRAPPER",
        "OPERATOR CLASS",
        "OPERATOR FAMILY",
        "PROCEDURAL LANGUAGE",
        "SHELL TYPE",
        "TEXT SEARCH PARSER",
        "TEXT SEARCH TEMPLATE",
    ]
)
_ADMINISTRATORS_CODE: Final = re.compile(r'\bLANGUAGE "?(c|internal)\b')
_BASE_TYPE: Final = re.compile(r"^CREATE TYPE .* \(\s+INTERNALLENGTH", re.DOTALL)
_EVERY_TABLE: Final = re.compile(r"\bFOR ALL TABLES\b")

_BEHIND_ALL_ROWS: Final = ("STATISTICS", "RULE", "TRIGGER", "CHECK CONSTRAINT")
_NOT_VALID: Final = re.compile(r"\bNOT VALID;\s*\Z")

_ROLE: Final = r'"(?:[^"]|"")+"|[^\s",;]+'
_GRANTEE: Final = re.compile(rf"\b(?:TO|FROM) ({_ROLE})(?: WITH GRANT OPTION)?(?: GRANTED BY (?:{_ROLE}))?;?$")
_OTHER_ROLES: Final = re.compile(rf"^SET SESSION AUTHORIZATION ({_ROLE});?$|\bDEFAULT PRIVILEGES FOR ROLE ({_ROLE})")
_POLICY: Final = re.compile(rf"\bTO ((?:{_ROLE})(?:, (?:{_ROLE}))*)(?: USING | WITH CHECK |;)")
_EACH_ROLE: Final = re.compile(_ROLE)
_STATEMENT_END: Final = re.compile(r";\n+")
_RESET: Final = "RESET SESSION AUTHORIZATION"


@dataclass(frozen=True, kw_only=True)
class Run:
    """Entries that one program restores in order.

    Arguments:
        as_administrator: whether to restore them as the connected user, and not as the future owner.
    """

    entries: tuple[Entry, ...]
    as_administrator: bool


@dataclass(frozen=True, kw_only=True)
class Division:
    """The parts of a dump.

    Arguments:
        roleless: entries that name a missing role; no other part has them.
    """

    before: tuple[Run, ...]
    rows: tuple[Entry, ...]
    after: tuple[Entry, ...]
    privileges: tuple[Entry, ...]
    views: tuple[Entry, ...]
    statistics: tuple[Entry, ...]
    last: tuple[Run, ...]
    roleless: tuple[Entry, ...]


def divide(
    entries: Iterable[Entry],
    *,
    missing_roles: Collection[str] = (),
    trusted: Collection[str] = (),
    without: Collection[str] = (),
) -> Division:
    """Divide a dump into parts.

    Arguments:
        missing_roles: roles that the dump names and the server lacks.
        trusted: extensions that can be created without a superuser.
        without: kinds of entries to leave out, with a warning for each.
    """
    chosen = [entry for entry in entries if entry.kind not in _OF_THE_DATABASE]
    lost = _with_followers(chosen, lambda entry: entry.kind in without)
    chosen = [entry for entry in chosen if entry.number not in lost]
    late = _with_followers(chosen, lambda entry: entry.kind in _LAST)
    roleless = {entry.number for entry in chosen if set(roles_of(entry)) & set(missing_roles)}
    kept = [entry for entry in chosen if entry.number not in roleless]
    administrators = _with_followers(chosen, lambda entry: needs_administrator(entry, trusted))

    def runs(wanted: Iterable[Entry]) -> tuple[Run, ...]:
        return _runs(wanted, administrators)

    early = [entry for entry in kept if entry.number not in late]
    ordinary = [entry for entry in early if entry.kind not in (*_PRIVILEGES, _REFRESH, STATISTICS)]
    return Division(
        before=runs(entry for entry in ordinary if entry.section is Section.PRE_DATA),
        rows=tuple(entry for entry in ordinary if entry.section is Section.DATA),
        after=tuple(entry for entry in ordinary if entry.section is Section.POST_DATA),
        privileges=tuple(entry for entry in early if entry.kind in _PRIVILEGES),
        views=tuple(entry for entry in early if entry.kind == _REFRESH),
        statistics=tuple(entry for entry in early if entry.kind == STATISTICS),
        last=runs(entry for entry in kept if entry.number in late),
        roleless=tuple(entry for entry in chosen if entry.number in roleless),
    )


def split_after(after: Iterable[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Split what follows the rows: what may be made while other tables are loaded, and what has to wait for all rows.

    pg_restore waits for the rows of the table that an entry names. But constraints and triggers of a domain or a
    partitioned table act on rows of other tables: unvalidated constraints would refuse them, triggers would fire.
    Statistics and rules wait too, since the future owner makes them.
    """
    entries = list(after)
    waiting = _with_followers(
        entries, lambda entry: entry.kind in _BEHIND_ALL_ROWS or _NOT_VALID.search(entry.definition) is not None
    )
    return (
        [entry for entry in entries if entry.number not in waiting],
        [entry for entry in entries if entry.number in waiting],
    )


def partitions_first(entries: Sequence[Entry]) -> list[Entry]:
    """Put constraints of partitions before those of their tables, in the places that these constraints have together.

    pg_restore drops in reverse order, and a partition's constraint can only be dropped with that of its table.
    """
    by_number = {entry.number: entry for entry in entries if entry.kind == "CONSTRAINT"}
    parents: dict[int, int] = {}
    for attach in entries:
        if attach.kind == "INDEX ATTACH":
            # The constraint's name is preceded by its table's.
            bound = attach.needs & by_number.keys()
            own = {number for number in bound if _is_on(attach, by_number[number])}
            if len(own) == 1:
                parents |= {child: parent for child in own for parent in bound - own}
    bound_ones = parents.keys() | set(parents.values())

    def depth(entry: Entry) -> int:
        number, found = entry.number, 0
        while number in parents:
            number, found = parents[number], found + 1
        return found

    ordered = iter(sorted((entry for entry in entries if entry.number in bound_ones), key=depth, reverse=True))
    return [next(ordered) if entry.number in bound_ones else entry for entry in entries]


def needs_administrator(entry: Entry, trusted: Collection[str] = ()) -> bool:
    """True if only a superuser can create the entry.

    Arguments:
        trusted: extensions that can be created without a superuser.
    """
    if entry.kind == EXTENSION:
        return entry.name not in trusted
    if entry.kind == "FUNCTION":
        return _ADMINISTRATORS_CODE.search(entry.definition) is not None
    if entry.kind == "TYPE":
        return _BASE_TYPE.search(entry.definition) is not None
    if entry.kind == "PUBLICATION":
        return _EVERY_TABLE.search(entry.definition) is not None
    return entry.kind in _ADMINISTRATORS or entry.kind == "PUBLICATION TABLES IN SCHEMA"


def roles_of(entry: Entry) -> list[str]:
    """The roles that a privilege or policy names."""
    if entry.kind == "POLICY":
        found = _POLICY.search(entry.definition)
        named = _EACH_ROLE.findall(found[1]) if found else []
    elif entry.kind in _PRIVILEGES:
        named = [role for statement in statements_of(entry) for role in _roles_in(statement)]
    else:
        return []
    return [_raw(role) for role in dict.fromkeys(named) if role != "PUBLIC"]


def statements_of(entry: Entry) -> list[str]:
    """The statements in a definition."""
    parts = (part.strip().rstrip(";") for part in _STATEMENT_END.split(entry.definition))
    return [part for part in parts if part]


def statements_without(entry: Entry, missing_roles: Collection[str]) -> tuple[list[str], list[str]]:
    """The statements of a privilege that can be executed, and those that name a missing role.

    A privilege granted by a missing role cannot be granted in its name.
    """
    possible: list[str] = []
    impossible: list[str] = []
    grantor_is_missing = False
    for statement in statements_of(entry):
        roles = {_raw(role) for role in _roles_in(statement)}
        if entry.kind == "POLICY":
            roles = set(roles_of(entry))
        if statement.startswith("SET SESSION AUTHORIZATION"):
            grantor_is_missing = bool(roles & set(missing_roles))
        if statement == _RESET and grantor_is_missing:
            grantor_is_missing = False
            continue
        is_lost = grantor_is_missing or bool(roles & set(missing_roles))
        (impossible if is_lost else possible).append(statement)
    return possible, impossible


def share_out(entries: Sequence[Entry], weights: Mapping[str, int], jobs: int) -> list[list[Entry]]:
    """Share the tables among programs that each read the whole dump, with about equal work for each.

    If one table is most of the dump, one program restores everything. Otherwise the first program restores everything
    but large tables, and also tables that depend on others or that others depend on, in the order of the dump.

    Arguments:
        weights: the size of each table's part, by the table's name.
        jobs: the most programs.

    Returns:
        the entries for each program; every entry occurs once.
    """
    total = sum(weights.values())
    large = {normal_name(name): weight for name, weight in weights.items() if 0 < total <= weight * _WORTH_MOVING}
    heavy = _movable(entries, large)
    count = min(jobs, MOST_SHARES, total // max(heavy.values(), default=total) if total else 1)
    loads = [total - sum(heavy.values()), *[0] * (count - 1)]
    shares: list[list[Entry]] = [[] for _ in loads]
    chosen: dict[int, int] = {}
    for number, weight in sorted(heavy.items(), key=lambda item: -item[1]):
        chosen[number] = loads.index(min(loads))
        loads[chosen[number]] += weight
    for entry in entries:
        shares[chosen.get(entry.number, 0)].append(entry)
    return [share for number, share in enumerate(shares) if share or not number]


def _movable(entries: Sequence[Entry], large: Mapping[str, int]) -> dict[int, int]:
    """The numbers of large tables without dependencies, with their weights."""
    rows = {entry.number: entry for entry in entries if entry.kind == _TABLE_DATA}
    bound = {number for entry in rows.values() for number in entry.needs & rows.keys()}
    bound |= {number for number, entry in rows.items() if entry.needs & rows.keys()}
    names = {number: table_name(entry.schema, entry.name) for number, entry in rows.items() if number not in bound}
    return {number: large[name] for number, name in names.items() if name in large}


def _is_on(attach: Entry, constraint: Entry) -> bool:
    return constraint.schema == attach.schema and constraint.name.endswith(f" {attach.name}")


def _with_followers(entries: Sequence[Entry], is_wanted: _Predicate) -> set[int]:
    """The numbers of entries with those of their comments and privileges."""
    wanted = {entry.number for entry in entries if is_wanted(entry)}
    return wanted | {entry.number for entry in entries if entry.kind in _ABOUT_OTHERS and entry.needs & wanted}


def _runs(entries: Iterable[Entry], administrators: Collection[int]) -> tuple[Run, ...]:
    found: list[list[Entry]] = []
    last: bool | None = None
    for entry in entries:
        is_administrators = entry.number in administrators
        if is_administrators is not last:
            found.append([])
        found[-1].append(entry)
        last = is_administrators
    return tuple(Run(entries=tuple(run), as_administrator=run[0].number in administrators) for run in found)


def _roles_in(statement: str) -> list[str]:
    grantee, others = _GRANTEE.search(statement), _OTHER_ROLES.search(statement)
    named = [grantee[1]] if grantee else []
    named += [role for role in others.groups() if role] if others else []
    return [role for role in named if role != "PUBLIC"]


def _raw(role: str) -> str:
    return role[1:-1].replace('""', '"') if role.startswith('"') else role
