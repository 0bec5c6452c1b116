"""A look at the server before a restore: what it would do, and everything that is in the way. It touches nothing."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, LiteralString

from psycopg.sql import Identifier

from portal.ops.errors import (
    AccessDeniedError,
    BusyError,
    ClientToolError,
    DatabaseAbsentError,
    DiskFullError,
    NotIntactError,
    OpsError,
    UnsupportedError,
)
from portal.ops.postgres.connection import connect
from portal.ops.postgres.pg_restore import find_restorer
from portal.ops.postgres.row_counts import count_rows, list_tables
from portal.ops.postgres.server import (
    create_command,
    find_database,
    list_marked,
    list_sessions,
    maintenance,
    owns,
    read_me,
    refuse_prepared,
    restoring_errors,
)
from portal.ops.restore.database.model import DatabasePlan, RestoreMode, megabytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from portal.ops.postgres.connection import Connection
    from portal.ops.postgres.pg_restore import Restorer
    from portal.ops.postgres.server import DatabaseFacts, Me, Session
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.settings.database_url import DatabaseTarget

UNKNOWN_ROWS: Final = "the manifest does not say how many rows there were: nothing is held against it"

_COUNTED_UP_TO_BYTES: Final = 2_000_000_000
_COPY_PER_DUMP_BYTE: Final = 1.3
_NAMED_IN_MESSAGE: Final = 5
_LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
_PORT_LINE: Final = 3

_SLOTS: Final = "SELECT slot_name FROM pg_replication_slots WHERE database = %s ORDER BY slot_name"
_ESTIMATES: Final = """
    SELECT oid::bigint, greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = ANY(%s::bigint[]::oid[])
"""
_NOT_OURS: Final = """
    SELECT c.oid::bigint FROM pg_class AS c
    WHERE c.oid = ANY(%s::bigint[]::oid[]) AND NOT pg_has_role(c.relowner, 'USAGE')
"""
_DEFAULT_RIGHTS: Final = "SELECT EXISTS (SELECT FROM pg_default_acl)"
_MAY_CREATE: Final = "SELECT has_database_privilege(current_database(), 'CREATE')"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a plan is for.

    Arguments:
        target: the live database.
        create_database: whether it may be created.
        dump_major: version of the pg_dump that wrote the dump; nothing where it is no dump.
        dump_bytes: size of the dump, uncompressed.
        row_counts: the manifest's number of rows by table.
    """

    target: DatabaseTarget
    mode: RestoreMode
    create_database: bool
    dump_major: int | None
    dump_bytes: int
    row_counts: Mapping[str, int]
    runner: ProcessRunner
    bin_dir: Path | None


def make_plan(request: Request) -> DatabasePlan:
    """Look at everything a restore needs.

    Raises:
        SourceError: the server cannot be reached, or does not want the user.
    """
    target = request.target
    with maintenance(target) as connection:
        seen = _look(connection, request)
        contents = _look_inside(target, seen.live)
        restorer, misfit = _restorer(request, seen.major)
        needed = round(request.dump_bytes * _COPY_PER_DUMP_BYTE)
        free = free_bytes(connection, target)
        blockers = [*_blockers(request, seen, contents, restorer), *misfit, *_short_of_room(needed, free)]
        warnings = _warnings(connection, request, seen, contents, restorer)
        return DatabasePlan(
            database=target.name,
            host=target.host,
            port=target.port,
            exists=seen.live is not None,
            mode=seen.mode,
            reason=seen.reason,
            server_version=seen.version,
            pg_restore_version=restorer.tool.version if restorer else None,
            rows_now=contents.rows,
            rows_are_estimated=contents.estimated,
            rows_in_backup=request.row_counts,
            needed_bytes=needed,
            free_bytes=free,
            sessions=seen.sessions,
            leftovers=tuple(list_marked(connection, target.name)),
            blockers=(*blockers, *_prepared(connection, target)),
            warnings=tuple(warnings),
        )


def choose_mode(connection: Connection, target: DatabaseTarget, wanted: RestoreMode) -> tuple[RestoreMode, str]:
    """Decide between swap and in place, and say why."""
    if wanted is not RestoreMode.AUTO:
        return wanted, f"asked for; {_MEANING[wanted]}"
    me, live = read_me(connection), find_database(connection, target.name)
    if not me.creates_databases:
        mode, why = RestoreMode.IN_PLACE, f"user {me.name} may not create databases"
    elif live is not None and not owns(connection, live.owner):
        mode, why = RestoreMode.IN_PLACE, f"user {me.name} does not own the database, {live.owner} does"
    else:
        mode, why = RestoreMode.SWAP, f"user {me.name} may create and rename databases"
    return mode, f"{why}; {_MEANING[mode]}"


_MEANING: Final = {
    RestoreMode.SWAP: "a second database is filled and checked beside the live one, then they change names; the old "
    "one is kept",
    RestoreMode.IN_PLACE: "the live database is restored over in one transaction, and cannot be used meanwhile; a "
    "safety dump of it is made before",
}


def is_local(target: DatabaseTarget) -> bool:
    """Whether the server runs on this machine, by its name."""
    return target.host.startswith("/") or target.host in _LOCAL_HOSTS


def free_bytes(connection: Connection, target: DatabaseTarget) -> int | None:
    """The room on the disk of the server; nothing unless it is certain that this disk can be seen from here.

    The server tells its directory to superusers and members of pg_read_all_settings only, and only the account that it
    runs as may read the file there that proves it.
    """
    if not is_local(target):
        return None
    row = connection.execute("SELECT setting FROM pg_settings WHERE name = 'data_directory'").fetchone()
    try:
        directory = Path(row[0] if row else "")
        lines = (directory / "postmaster.pid").read_text().splitlines()
        return shutil.disk_usage(directory).free if lines[_PORT_LINE] == str(target.port) else None
    except (OSError, IndexError):
        return None


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What is seen from outside of the live database; `owned` is whether it is the user's."""

    me: Me
    live: DatabaseFacts | None
    owned: bool
    mode: RestoreMode
    reason: str
    version: str
    major: int
    sessions: tuple[Session, ...]


@dataclass(frozen=True, kw_only=True)
class _Contents:
    """What is seen in it; `foreign` are tables of another owner."""

    rows: Mapping[str, int]
    estimated: bool = False
    foreign: tuple[str, ...] = ()
    may_create: bool = True
    has_default_rights: bool = False


def _look(connection: Connection, request: Request) -> _Seen:
    name = request.target.name
    mode, reason = choose_mode(connection, request.target, request.mode)
    row = connection.execute("SELECT current_setting('server_version')").fetchone()
    assert row is not None
    live = find_database(connection, name)
    return _Seen(
        me=read_me(connection),
        live=live,
        owned=live is None or owns(connection, live.owner),
        mode=mode,
        reason=reason,
        version=row[0],
        major=connection.info.server_version // 10000,
        sessions=tuple(list_sessions(connection, name)),
    )


def _look_inside(target: DatabaseTarget, live: DatabaseFacts | None) -> _Contents:
    if live is None or not live.allows_connections:
        return _Contents(rows={})
    with connect(target) as connection, restoring_errors(target):
        tables = list_tables(connection)
        names, numbers = {table.oid: table.name for table in tables}, [table.oid for table in tables]
        foreign = tuple(names[oid] for (oid,) in connection.execute(_NOT_OURS, [numbers]))
        estimated = bool(foreign) or (live.size_bytes or 0) > _COUNTED_UP_TO_BYTES
        rows = (
            {names[oid]: rows for oid, rows in connection.execute(_ESTIMATES, [numbers])}
            if estimated
            else count_rows(connection, tables)
        )
        return _Contents(
            rows=rows,
            estimated=estimated,
            foreign=foreign,
            may_create=_is_so(connection, _MAY_CREATE),
            has_default_rights=_is_so(connection, _DEFAULT_RIGHTS),
        )


def _is_so(connection: Connection, query: LiteralString) -> bool:
    row = connection.execute(query).fetchone()
    return row is not None and bool(row[0])


def _restorer(request: Request, server_major: int) -> tuple[Restorer | None, list[OpsError]]:
    try:
        found = find_restorer(server_major, request.dump_major, runner=request.runner, bin_dir=request.bin_dir)
    except (ClientToolError, NotIntactError) as error:
        return None, [error]
    return found, []


def _blockers(request: Request, seen: _Seen, contents: _Contents, restorer: Restorer | None) -> Iterator[OpsError]:
    user, name = Identifier(seen.me.name).as_string(None), Identifier(request.target.name).as_string(None)
    if seen.live is None and not request.create_database:
        yield database_absent(request.target)
    if seen.live is None and not seen.me.creates_databases:
        yield AccessDeniedError(
            f"user {seen.me.name} may not create database {request.target.name}",
            hint=f"as an administrator: CREATE DATABASE {name} OWNER {user}",
        )
    if seen.mode is RestoreMode.SWAP:
        yield from _swap_blockers(request, seen, user, name)
    else:
        yield from _in_place_blockers(request, seen, contents, restorer)


def _swap_blockers(request: Request, seen: _Seen, user: str, name: str) -> Iterator[OpsError]:
    if seen.live is not None and not seen.me.creates_databases:
        yield AccessDeniedError(
            f"user {seen.me.name} may not create databases",
            hint=f"as an administrator: ALTER ROLE {user} CREATEDB; or restore with --mode in-place",
        )
    if seen.live is not None and not seen.owned:
        yield AccessDeniedError(
            f"user {seen.me.name} may not rename database {request.target.name}, {seen.live.owner} owns it",
            hint=f"as an administrator: ALTER DATABASE {name} OWNER TO {user}; or restore with --mode in-place",
        )
    immovable = [session for session in seen.sessions if not session.can_be_ended]
    if immovable:
        yield BusyError(
            f"user {seen.me.name} may not end {', '.join(map(str, immovable[:_NAMED_IN_MESSAGE]))}",
            hint=f"stop that application, or as an administrator: GRANT pg_signal_backend TO {user}",
        )


def _in_place_blockers(
    request: Request, seen: _Seen, contents: _Contents, restorer: Restorer | None
) -> Iterator[OpsError]:
    user, name = Identifier(seen.me.name).as_string(None), Identifier(request.target.name).as_string(None)
    replaced = [table for table in contents.foreign if not request.row_counts or table in request.row_counts]
    if replaced:
        more = f" and {len(replaced) - _NAMED_IN_MESSAGE} more" if len(replaced) > _NAMED_IN_MESSAGE else ""
        yield AccessDeniedError(
            f"user {seen.me.name} does not own {', '.join(replaced[:_NAMED_IN_MESSAGE])}{more}",
            hint="restore as the user that owns them, or as the server's administrator",
        )
    if not contents.may_create:
        yield AccessDeniedError(
            f"user {seen.me.name} may not create schemas and extensions in database {request.target.name}",
            hint=f"as an administrator: GRANT CREATE ON DATABASE {name} TO {user}",
        )
    if restorer is not None and restorer.trips_over_server:
        yield UnsupportedError(
            f"pg_restore {restorer.tool.version} cannot restore in place on the older server {seen.version}",
            hint="restore with --mode swap, or upgrade the server",
        )
    if restorer is not None and request.row_counts.keys() - contents.rows.keys():
        # A rollback drops the tables that the restore brings, and only psql does that in the same transaction.
        try:
            restorer.find_psql()
        except ClientToolError as error:
            yield error


def database_absent(target: DatabaseTarget) -> DatabaseAbsentError:
    """The error for a live database that is not there, with the command that creates it."""
    return DatabaseAbsentError(
        f"the server at {target.host}:{target.port} has no database {target.name}",
        hint=f"restore with --create-database, or create it: {create_command(target)}",
    )


def _prepared(connection: Connection, target: DatabaseTarget) -> list[OpsError]:
    try:
        refuse_prepared(connection, target.name)
    except BusyError as error:
        return [error]
    return []


def _short_of_room(needed: int, free: int | None) -> list[OpsError]:
    if free is None or free >= needed:
        return []
    message = f"the server has {megabytes(free)} free, and a second copy takes about {megabytes(needed)}"
    return [DiskFullError(message, hint="'./tools/restore.sh --rollback --list' shows what restores have kept there")]


def _warnings(
    connection: Connection, request: Request, seen: _Seen, contents: _Contents, restorer: Restorer | None
) -> Iterator[str]:
    slots = [slot for (slot,) in connection.execute(_SLOTS, [request.target.name])]
    if slots and seen.mode is RestoreMode.SWAP:
        yield f"replication slots stay with the old database: {', '.join(slots)}"
    if not request.row_counts:
        yield UNKNOWN_ROWS
    if restorer and restorer.trips_over_server:
        yield f"the dump was written for PostgreSQL {request.dump_major}, and the server is older: {seen.version}"
    newer = sorted(contents.rows.keys() - request.row_counts.keys()) if request.row_counts else []
    if newer and seen.mode is RestoreMode.IN_PLACE:
        yield f"tables that are newer than the backup stay as they are: {', '.join(newer)}"
    if newer and seen.mode is RestoreMode.SWAP:
        yield f"tables that are newer than the backup go with the old database: {', '.join(newer)}"
    if seen.mode is RestoreMode.IN_PLACE and contents.has_default_rights:
        yield "the live database's default privileges (\\ddp in psql) will be added to the rights of restored tables"
    if seen.mode is RestoreMode.IN_PLACE and seen.live is not None:
        yield "stop the portal: what it writes between the safety dump and the restore cannot be taken back"
