"""Checks which server privileges a restore needs, and which restore modes they permit.

A missing privilege is an error with the smallest grant that helps. A swap needs a database next to the live one: the
privilege to create it, permission to connect to it, and either a superuser or a dump in which only trusted extensions
need an administrator. In place, the user must own what is replaced, and one transaction locks every object.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from psycopg.sql import SQL, Identifier

from portal.ops.errors import (
    AccessDeniedError,
    BusyError,
    ClientToolError,
    DatabaseAbsentError,
    OpsError,
    RestoreError,
    UnsupportedError,
)
from portal.ops.postgres.connection import connect
from portal.ops.postgres.database_names import Names, Role
from portal.ops.postgres.dump_contents import EXTENSION, STATISTICS, needs_administrator
from portal.ops.postgres.server import (
    create_command,
    find_database,
    list_sessions,
    maintenance,
    owns,
    read_me,
    restoring_errors,
)
from portal.ops.postgres.supported import refuse_old_destination
from portal.ops.postgres.surroundings import Surroundings, look_around
from portal.ops.postgres.table_names import table_name
from portal.ops.postgres.toc import Entry, Section
from portal.ops.restore.database.model import RestoreMode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from portal.ops.postgres.connection import Connection
    from portal.ops.postgres.pg_restore import Restorer
    from portal.ops.postgres.server import DatabaseFacts, Me, Session
    from portal.ops.settings.database_url import DatabaseTarget

_NAMED: Final = 5
_IN_PLACE: Final = "; or restore with --mode in-place"
_SOME_RESTORE: Final = "restore_20000101_000000_000000"
"""The id of a restore that never existed, so that its database does not exist either."""

_IN_RECOVERY: Final = "SELECT pg_is_in_recovery()"
_LOCKS: Final = """
    SELECT current_setting('max_locks_per_transaction')::bigint
           * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint)
"""
_INSTALLED: Final = "SELECT extname FROM pg_extension"
_LARGE_OBJECTS: Final = "SELECT count(*) FROM pg_largeobject_metadata"
_MAY_CREATE: Final = "SELECT has_database_privilege(current_database(), 'CREATE')"
# Schemas in which we may create nothing, and whether a dump has anything of them.
_CLOSED: Final = """
    SELECT nspname, EXISTS (
        SELECT FROM (
            SELECT relnamespace, oid, 'pg_class'::regclass FROM pg_class
            UNION ALL SELECT pronamespace, oid, 'pg_proc'::regclass FROM pg_proc
        ) AS o (namespace, oid, class)
        WHERE o.namespace = n.oid AND NOT EXISTS (
            SELECT FROM pg_depend AS d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype IN ('e', 'i')))
    FROM pg_namespace AS n
    WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' AND NOT has_schema_privilege(oid, 'CREATE')
"""
_WITH_ARGUMENTS: Final = ("FUNCTION", "PROCEDURE", "AGGREGATE")
# Relations, functions and types that belong neither to the system, nor to an extension, nor to us. The functions that
# make a range belong to the server's first user, whoever made the type: they come and go with it.
_FOREIGN: Final = """
    SELECT n.nspname, o.name FROM (
        SELECT relnamespace AS namespace, relname AS name, relowner AS owner, oid, 'pg_class'::regclass AS class
        FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
        UNION ALL SELECT pronamespace, proname, proowner, oid, 'pg_proc'::regclass FROM pg_proc
        UNION ALL SELECT typnamespace, typname, typowner, oid, 'pg_type'::regclass FROM pg_type
        WHERE typtype IN ('d', 'e', 'r')
    ) AS o JOIN pg_namespace AS n ON n.oid = o.namespace
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT pg_has_role(o.owner, 'USAGE')
      AND NOT EXISTS (
          SELECT FROM pg_depend AS d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype IN ('e', 'i'))
    ORDER BY 1, 2
"""
# Objects in the next dump that only an administrator can create.
_NEEDS: Final = """
    SELECT 'EXTENSION', extname FROM pg_extension WHERE extname <> 'plpgsql'
    UNION ALL SELECT 'EVENT TRIGGER', evtname FROM pg_event_trigger AS t WHERE NOT EXISTS (
        SELECT FROM pg_depend AS d
        WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = t.oid AND d.deptype = 'e')
"""


@dataclass(frozen=True, kw_only=True)
class Inside:
    """Facts found inside the live database.

    Arguments:
        foreign: objects of other owners, by name.
        closed: schemas in which the user may create nothing, and whether a dump has anything of each.
        extensions: installed extensions.
    """

    foreign: tuple[str, ...] = ()
    closed: Mapping[str, bool] = field(default_factory=dict)
    extensions: frozenset[str] = frozenset()
    large_objects: int = 0
    may_create: bool = True


@dataclass(frozen=True, kw_only=True)
class Means:
    """The privileges and resources that the server offers for a restore.

    Arguments:
        is_outside: whether we can connect to another database, from which to rename the live one.
        beside: why we cannot connect to the database that a swap fills; None if we can.
        around: what the dump needs and the server does not have.
        locks: the number of locks that all transactions together can hold.
        entries: the table of contents of the dump.
        is_expected: whether that dump is yet to come, so that `entries` has only what needs an administrator.
    """

    target: DatabaseTarget
    me: Me
    live: DatabaseFacts | None
    owned: bool
    is_outside: bool
    beside: OpsError | None
    in_recovery: bool
    sessions: tuple[Session, ...]
    around: Surroundings
    locks: int
    inside: Inside
    entries: tuple[Entry, ...]
    is_expected: bool = False

    @property
    def user(self) -> str:
        """The restoring user, quoted for SQL."""
        return Identifier(self.me.name).as_string(None)

    @property
    def name(self) -> str:
        """The live database, quoted for SQL."""
        return Identifier(self.target.name).as_string(None)


def look_at_means(target: DatabaseTarget, connection: Connection, entries: Iterable[Entry] | None = None) -> Means:
    """Find out everything that decides which modes work; changes nothing.

    Arguments:
        connection: a connection to the maintenance database, or to the live one if that is refused.
        entries: the table of contents of the dump; None for that of a new dump of the live database.

    Raises:
        SourceError: the server cannot be queried.
        UnsupportedError: the server is too old.
    """
    refuse_old_destination(connection)
    live = find_database(connection, target.name)
    needed = tuple(_needs_of(target, live) if entries is None else entries)
    row, locks = connection.execute(_IN_RECOVERY).fetchone(), connection.execute(_LOCKS).fetchone()
    assert row is not None
    assert locks is not None
    me = read_me(connection)
    return Means(
        target=target,
        me=me,
        live=live,
        owned=live is None or owns(connection, live.owner),
        is_outside=connection.info.dbname != target.name,
        beside=_let_in_beside(target) if me.creates_databases else None,
        in_recovery=bool(row[0]),
        sessions=tuple(list_sessions(connection, target.name)),
        around=look_around(connection, needed),
        locks=int(locks[0]),
        inside=_look_inside(target, live),
        entries=needed,
        is_expected=entries is None,
    )


def decide(
    wanted: RestoreMode, means: Means, swap: Iterable[OpsError], in_place: Iterable[OpsError]
) -> tuple[RestoreMode, str]:
    """Decide what ``auto`` means: swap if possible, otherwise in place; with the reason."""
    if wanted is not RestoreMode.AUTO:
        return wanted, f"as requested; {MEANING[wanted]}"
    against = list(swap)
    if not against:
        mode, why = RestoreMode.SWAP, f"user {means.me.name} may create and rename databases"
    elif means.live is None and any(in_place):
        mode, why = RestoreMode.SWAP, "there is no live database"
    else:
        mode, why = RestoreMode.IN_PLACE, f"a swap is not possible here: {against[0].message}"
    return mode, f"{why}; {MEANING[mode]}"


MEANING: Final = {
    RestoreMode.SWAP: "a second database is filled and checked beside the live one, then they change names; the old "
    "one is kept",
    RestoreMode.IN_PLACE: "the live database is restored over in one transaction, and cannot be used meanwhile; a "
    "safety dump of it is made before",
}


def swap_obstacles(means: Means) -> list[OpsError]:
    """The obstacles to a swap, each with the smallest grant that removes it."""
    return [*_everywhere(means), *_creating(means), *_beside(means), *_administrators(means), *_immovable(means)]


def drill_obstacles(means: Means) -> list[OpsError]:
    """The obstacles to a drill, which fills a database next to the live one and drops it."""
    creating = [error for error in _creating(means, "") if not means.me.creates_databases]
    administrators = [
        AccessDeniedError(error.message, hint="drill as the server's administrator (DD_DATABASE_USER)")
        for error in _administrators(means)
    ]
    return [*_everywhere(means), *creating[:1], *_not_let_in(means), *administrators]


def in_place_obstacles(means: Means, row_counts: Mapping[str, int], large_objects: int) -> list[OpsError]:
    """The obstacles to a restore in place.

    Arguments:
        row_counts: the tables of the backup; empty if unknown.
        large_objects: the number of large objects in the backup.
    """
    return [
        *_everywhere(means),
        *_ownership(means, row_counts),
        *_missing_inside(means),
        *_too_many_locks(means, large_objects),
    ]


def creation_obstacles(means: Means) -> list[OpsError]:
    """The obstacle to creating a database, with the statement that an administrator creates it with."""
    return [] if means.me.creates_databases else list(_creating(means))


def database_absent(target: DatabaseTarget, *, may_create: bool = True) -> DatabaseAbsentError:
    """The error for a missing live database, with the command that creates it.

    Arguments:
        may_create: whether the user of the restore may do so.
    """
    ways = "restore with --create-database, or create it" if may_create else "as an administrator create it"
    return DatabaseAbsentError(
        f"the server at {target.host}:{target.port} has no database {target.name}",
        hint=f"{ways}: {create_command(target)}",
    )


def least_grants(means: Means) -> str:
    """SQL that lets the user swap, without changing anything for others."""
    statements = []
    if not means.me.creates_databases:
        statements.append(f"ALTER ROLE {means.user} CREATEDB")
    if means.live is not None and not means.owned:
        statements.append(_membership(means, means.live.owner))
    return "; ".join(statements)


def _everywhere(means: Means) -> Iterator[OpsError]:
    if means.in_recovery:
        yield UnsupportedError(
            f"the server at {means.target.host}:{means.target.port} is a standby, which cannot be written to",
            hint="restore to the primary server: set DD_DATABASE_HOST to it",
        )
    for name in means.around.missing_extensions:
        yield RestoreError(
            f"the backup needs extension {name}, which this server does not have",
            hint="install its package on the server's machine; CREATE EXTENSION is done by the restore",
        )


def _creating(means: Means, otherwise: str = _IN_PLACE) -> Iterator[OpsError]:
    if not means.me.creates_databases:
        if means.live is None:
            yield AccessDeniedError(
                f"user {means.me.name} may not create database {means.target.name}",
                hint=f"as an administrator: CREATE DATABASE {means.name} OWNER {means.user}",
            )
        else:
            yield AccessDeniedError(
                f"user {means.me.name} may not create databases",
                hint=f"as an administrator: ALTER ROLE {means.user} CREATEDB{otherwise}",
            )
    if means.live is not None and not means.owned:
        yield AccessDeniedError(
            f"user {means.me.name} may not rename database {means.target.name}, {means.live.owner} owns it",
            hint=f"as an administrator: {_membership(means, means.live.owner)}{otherwise}",
        )


def _beside(means: Means) -> Iterator[OpsError]:
    if not means.is_outside:
        yield AccessDeniedError(
            f"user {means.me.name} may connect neither to database postgres nor to template1, and a database is "
            "renamed from another one",
            hint=f"as an administrator: GRANT CONNECT ON DATABASE postgres TO {means.user}, and allow it in "
            f"pg_hba.conf{_IN_PLACE}",
        )
    yield from _not_let_in(means, _IN_PLACE)


def _not_let_in(means: Means, otherwise: str = "") -> Iterator[OpsError]:
    """The refusal of a database with another name; there is another way, or none."""
    if means.beside is not None:
        yield AccessDeniedError(
            f"user {means.me.name} is not let into a database beside {means.target.name}: {means.beside.message}",
            hint=f"in pg_hba.conf, allow user {means.me.name} all databases, or from version 16 those whose names "
            f'begin alike: "/^{means.target.name}"{otherwise}',
        )


def _administrators(means: Means) -> Iterator[OpsError]:
    """Objects in a new database that only a superuser can create."""
    if means.me.superuser:
        return
    for name in means.around.untrusted:
        yield AccessDeniedError(
            f"only an administrator can create extension {name}, which the backup needs in a new database",
            hint="restore as the server's administrator (DD_DATABASE_USER), or, where the live database has the "
            "extension, with --mode in-place",
        )
    others = [entry for entry in _administrators_entries(means) if entry.kind != EXTENSION]
    if others:
        yield AccessDeniedError(
            f"only an administrator can create {_some(f'{entry.kind.lower()} {entry.name}' for entry in others)}, "
            "which the backup holds",
            hint="restore as the server's administrator (DD_DATABASE_USER), or with --mode in-place, which leaves them "
            "as they are",
        )


def _immovable(means: Means) -> Iterator[OpsError]:
    found = [session for session in means.sessions if not session.can_be_ended]
    if found:
        yield BusyError(
            f"user {means.me.name} may not end {', '.join(map(str, found[:_NAMED]))}",
            hint=f"stop that application, or as an administrator: GRANT pg_signal_backend TO {means.user}",
        )


def _ownership(means: Means, row_counts: Mapping[str, int]) -> Iterator[OpsError]:
    """Objects of others that would be replaced; all of them, where the contents of the dump are unknown."""
    known = row_counts.keys() | (() if means.is_expected else set(map(_object_name, means.entries)))
    replaced = [name for name in means.inside.foreign if not known or name in known]
    if replaced:
        owners = f"; {_membership(means, means.live.owner)}" if means.live and not means.owned else ""
        yield AccessDeniedError(
            f"user {means.me.name} does not own {_some(replaced)}",
            hint=f"restore as the user that owns them, or as the server's administrator{owners}",
        )
    schemas = {entry.schema for entry in means.entries}
    closed = [one for one, is_used in means.inside.closed.items() if (is_used if means.is_expected else one in schemas)]
    for schema in sorted(closed):
        yield AccessDeniedError(
            f"user {means.me.name} may not create objects in schema {schema}, and the backup contains some",
            hint=f"as an administrator, in database {means.target.name}: "
            f"GRANT CREATE ON SCHEMA {Identifier(schema).as_string(None)} TO {means.user}",
        )
    if not means.inside.may_create:
        yield AccessDeniedError(
            f"user {means.me.name} may not create schemas and extensions in database {means.target.name}",
            hint=f"as an administrator: GRANT CREATE ON DATABASE {means.name} TO {means.user}",
        )


def _object_name(entry: Entry) -> str:
    """The name of an object, without the types that a function's name has in a dump."""
    name = entry.name.partition("(")[0] if entry.kind in _WITH_ARGUMENTS else entry.name
    return table_name(entry.schema, name)


def _missing_inside(means: Means) -> Iterator[OpsError]:
    """Extensions that only an administrator can install in the live database."""
    if means.me.superuser:
        return
    for name in means.around.untrusted:
        if name not in means.inside.extensions:
            extension = Identifier(name).as_string(None)
            yield AccessDeniedError(
                f"only an administrator can create extension {name}, which the backup needs",
                hint=f"as an administrator, in database {means.target.name}: CREATE EXTENSION {extension}",
            )


def _too_many_locks(means: Means, large_objects: int) -> Iterator[OpsError]:
    objects = sum(entry.section is not Section.DATA and entry.kind != STATISTICS for entry in means.entries)
    needed = large_objects + means.inside.large_objects + objects
    if means.live is not None and needed > means.locks:
        per_transaction = -(-needed * 64 // means.locks)
        yield UnsupportedError(
            f"in place, one transaction takes about {needed:,} locks ({large_objects:,} large objects in the backup, "
            f"{means.inside.large_objects:,} now), and the server has room for {means.locks:,}",
            hint=f"restore with --mode swap, or set max_locks_per_transaction = {max(128, per_transaction)} on the "
            "server and restart it",
        )


def missing_psql(row_counts: Mapping[str, int], tables: Iterable[str], restorer: Restorer | None) -> list[OpsError]:
    """The error if psql is missing: a rollback in place needs it to drop new tables in the same transaction.

    Every restore in place needs it on a server that does not have a setting of this pg_restore.

    Arguments:
        tables: the tables of the live database.
    """
    if restorer is None or not (restorer.trips_over_server or row_counts.keys() - set(tables)):
        return []
    try:
        restorer.find_psql()
    except ClientToolError as error:
        return [error]
    return []


def _administrators_entries(means: Means) -> list[Entry]:
    return [entry for entry in means.entries if needs_administrator(entry, means.around.trusted)]


def _membership(means: Means, owner: str) -> str:
    return SQL("GRANT {} TO {}").format(Identifier(owner), Identifier(means.me.name)).as_string(None)


def _let_in_beside(target: DatabaseTarget) -> OpsError | None:
    """Try to connect to a database that does not exist: the error shows whether we would be let in."""
    name = Names.of(target.name, _SOME_RESTORE).name(Role.RESTORING)
    try:
        connect(replace(target, name=name)).close()
    except DatabaseAbsentError:
        return None
    except AccessDeniedError as error:
        return error
    return None


def _needs_of(target: DatabaseTarget, live: DatabaseFacts | None) -> Iterator[Entry]:
    if live is None or not live.allows_connections:
        return
    with connect(target) as connection, restoring_errors(target):
        for number, (kind, name) in enumerate(connection.execute(_NEEDS).fetchall(), 1):
            yield Entry(number=number, kind=kind, name=name)


def _look_inside(target: DatabaseTarget, live: DatabaseFacts | None) -> Inside:
    if live is None or not live.allows_connections:
        return Inside()
    with connect(target) as connection, restoring_errors(target):
        foreign = [(str(schema), str(name)) for schema, name in connection.execute(_FOREIGN)]
        row, may_create = connection.execute(_LARGE_OBJECTS).fetchone(), connection.execute(_MAY_CREATE).fetchone()
        assert row is not None
        assert may_create is not None
        return Inside(
            foreign=tuple(dict.fromkeys(table_name(*names) for names in foreign)),
            extensions=frozenset(str(name) for (name,) in connection.execute(_INSTALLED)),
            closed={str(name): bool(is_used) for name, is_used in connection.execute(_CLOSED)},
            large_objects=int(row[0]),
            may_create=bool(may_create[0]),
        )


def choose_mode(target: DatabaseTarget) -> RestoreMode:
    """Choose the mode that works, for a restore without a plan.

    Raises:
        SourceError: the server cannot be queried.
    """
    with maintenance(target) as connection:
        means = look_at_means(target, connection)
    mode, _ = decide(RestoreMode.AUTO, means, swap_obstacles(means), in_place_obstacles(means, {}, 0))
    return mode


def _some(names: Iterable[str]) -> str:
    named = list(names)
    more = len(named) - _NAMED
    return ", ".join(named[:_NAMED]) + (f" and {more} more" if more > 0 else "")
