"""Plans a database restore: what it would do, and every obstacle. It changes nothing."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, LiteralString

from psycopg.errors import LockNotAvailable

from portal.ops.errors import (
    BusyError,
    ClientToolError,
    DiskFullError,
    NotIntactError,
    OpsError,
)
from portal.ops.hints import Advice
from portal.ops.postgres.client_tools import find_client
from portal.ops.postgres.connection import connect
from portal.ops.postgres.dump_contents import PUBLICATIONS, SUBSCRIPTIONS, needs_administrator
from portal.ops.postgres.locks import lock_holders
from portal.ops.postgres.pg_restore import find_restorer
from portal.ops.postgres.row_counts import count_rows, list_tables
from portal.ops.postgres.server import list_marked, maintenance, refuse_prepared, restoring_errors
from portal.ops.postgres.source_facts import extension_tables
from portal.ops.postgres.surroundings import create_roles
from portal.ops.restore.database.means import (
    creation_obstacles,
    database_absent,
    decide,
    in_place_obstacles,
    look_at_means,
    missing_psql,
    swap_obstacles,
)
from portal.ops.restore.database.model import DatabasePlan, RestoreMode
from portal.ops.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from portal.ops.postgres.connection import Connection
    from portal.ops.postgres.identity import DatabaseIdentity
    from portal.ops.postgres.pg_restore import Restorer
    from portal.ops.postgres.server import DatabaseFacts
    from portal.ops.postgres.source_facts import ExtensionTable
    from portal.ops.postgres.toc import Entry
    from portal.ops.restore.database.means import Means
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.settings.database_url import DatabaseTarget

UNKNOWN_ROWS: Final = "the manifest does not say how many rows there were: nothing is held against it"

_COUNTED_UP_TO_BYTES: Final = 2_000_000_000
_COPY_PER_DUMP_BYTE: Final = 1.3
_EMPTY_DATABASE_BYTES: Final = 8_000_000
_RESERVE: Final = 1.1
_LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
_PORT_LINE: Final = 3
_LOCK_PATIENCE: Final = "2s"
_NAMED: Final = 5

_SLOTS: Final = "SELECT slot_name FROM pg_replication_slots WHERE database = %s ORDER BY slot_name"
_ROLES: Final = "SELECT rolname FROM pg_roles"
_ESTIMATES: Final = """
    SELECT oid::bigint, greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = ANY(%s::bigint[]::oid[])
"""
_UNREADABLE: Final = """
    SELECT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = ANY(%s::bigint[]::oid[])
                   AND NOT (has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(c.relnamespace, 'USAGE')))
"""
_DEFAULT_PRIVILEGES: Final = "SELECT EXISTS (SELECT FROM pg_default_acl)"


@dataclass(frozen=True, kw_only=True)
class BackedUp:
    """Facts about the database in an archive, besides the row counts.

    Arguments:
        entries: the dump's table of contents; empty if it was not read, as of a dump that is yet to be made.
        server_major: the major version of the server that was dumped; 0 if it is unknown.
        identity: owner, locale and privileges; None if an older release made the archive.
        database_bytes: the size of the database on its server; 0 if unknown.
        large_objects: the number of large objects.
    """

    entries: tuple[Entry, ...] = ()
    server_major: int = 0
    identity: DatabaseIdentity | None = None
    database_bytes: int = 0
    large_objects: int = 0


@dataclass(frozen=True, kw_only=True)
class Request:
    """The request for a plan.

    Arguments:
        target: the live database.
        create_database: whether the database may be created.
        owner: the future owner of everything; None for the owner of the live database, or else the one that the backup
            names.
        dump_major: the major version of the pg_dump that wrote the dump; None if it is no dump.
        dump_bytes: the size of the dump, uncompressed.
        row_counts: rows by table in the manifest.
    """

    target: DatabaseTarget
    mode: RestoreMode
    create_database: bool
    owner: str | None = None
    dump_major: int | None
    dump_bytes: int
    row_counts: Mapping[str, int]
    backed_up: BackedUp = field(default_factory=BackedUp)
    runner: ProcessRunner
    bin_dir: Path | None


def make_plan(request: Request) -> DatabasePlan:
    """Examine everything that a restore needs.

    Raises:
        SourceError: the server cannot be reached, or refuses the user.
    """
    target, backed_up = request.target, request.backed_up
    with maintenance(target) as connection:
        means = look_at_means(target, connection, backed_up.entries or None)
        contents = _look_inside(target, means.live)
        restorer, misfit = _restorer(request, connection.info.server_version // 10000)
        swap = swap_obstacles(means)
        in_place = [
            *in_place_obstacles(means, request.row_counts, backed_up.large_objects),
            *missing_psql(request.row_counts, contents.rows, restorer),
        ]
        mode, reason = decide(request.mode, means, swap, in_place)
        needed = _needed_bytes(request, means)
        free = free_bytes(connection, target)
        against = swap if mode is RestoreMode.SWAP else [*in_place, *_no_safety_dump(request, connection)]
        return DatabasePlan(
            database=target.name,
            host=target.host,
            port=target.port,
            exists=means.live is not None,
            mode=mode,
            reason=reason,
            server_version=connection.info.parameter_status("server_version") or "",
            pg_restore_version=restorer.tool.version if restorer else None,
            rows_now=contents.rows,
            rows_are_estimated=contents.estimated,
            rows_in_backup=request.row_counts,
            needed_bytes=needed,
            free_bytes=free,
            sessions=means.sessions,
            leftovers=tuple(list_marked(connection, target.name)),
            blockers=(
                *_absence(request, means, mode),
                *against,
                *misfit,
                *_short_of_room(needed, free),
                *_prepared(connection, target),
            ),
            warnings=(
                *means.around.warnings(),
                *_warnings(connection, request, means, contents, mode),
                *_warnings_of_versions(connection, request),
            ),
        )


def _absence(request: Request, means: Means, mode: RestoreMode) -> list[OpsError]:
    """The obstacle if there is no live database and nothing may create it; those to a swap include it."""
    if means.live is not None:
        return []
    if not request.create_database:
        return [database_absent(request.target, may_create=means.me.creates_databases)]
    return [] if mode is RestoreMode.SWAP else creation_obstacles(means)


def _no_safety_dump(request: Request, connection: Connection) -> list[OpsError]:
    """The error if there is no pg_dump for the dump that a restore in place makes first."""
    try:
        find_client("pg_dump", connection.info.server_version // 10000, runner=request.runner, bin_dir=request.bin_dir)
    except ClientToolError as error:
        return [error]
    return []


def is_local(target: DatabaseTarget) -> bool:
    """True if the server's address is this machine."""
    return target.host.startswith("/") or target.host in _LOCAL_HOSTS


def free_bytes(connection: Connection, target: DatabaseTarget) -> int | None:
    """The free bytes on the server's disk, or None unless it is certain that this machine sees the same disk.

    The server tells its directory only to superusers and members of pg_read_all_settings, and only the account that it
    runs as can read the file that proves the directory is the same.
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
class _Contents:
    """Facts about the contents of the live database; `locked` are the sessions that lock its tables."""

    rows: Mapping[str, int]
    estimated: bool = False
    has_default_privileges: bool = False
    locked: tuple[str, ...] = ()
    of_extensions: tuple[ExtensionTable, ...] = ()


def _look_inside(target: DatabaseTarget, live: DatabaseFacts | None) -> _Contents:
    if live is None or not live.allows_connections:
        return _Contents(rows={})
    with connect(target) as connection, restoring_errors(target):
        tables = list_tables(connection)
        names, numbers = {table.oid: table.name for table in tables}, [table.oid for table in tables]
        locked: tuple[str, ...] = ()
        rows: dict[str, int] | None = None
        of_extensions: tuple[ExtensionTable, ...] = ()
        if not _is_so(connection, _UNREADABLE, numbers) and (live.size_bytes or 0) <= _COUNTED_UP_TO_BYTES:
            connection.execute("SELECT set_config('lock_timeout', %s, false)", [_LOCK_PATIENCE])
            try:
                rows = count_rows(connection, tables)
                of_extensions = tuple(extension_tables(connection))
            except LockNotAvailable:
                rows, locked = None, tuple(map(str, lock_holders(connection)))
        estimated = rows is None
        if rows is None:
            rows = {names[oid]: number for oid, number in connection.execute(_ESTIMATES, [numbers])}
        return _Contents(
            rows=rows,
            estimated=estimated,
            has_default_privileges=_is_so(connection, _DEFAULT_PRIVILEGES),
            locked=locked,
            of_extensions=of_extensions,
        )


def _is_so(connection: Connection, query: LiteralString, *parameters: object) -> bool:
    row = connection.execute(query, parameters or None).fetchone()
    return row is not None and bool(row[0])


def _restorer(request: Request, server_major: int) -> tuple[Restorer | None, list[OpsError]]:
    try:
        found = find_restorer(server_major, request.dump_major, runner=request.runner, bin_dir=request.bin_dir)
    except (ClientToolError, NotIntactError) as error:
        return None, [error]
    return found, []


def _needed_bytes(request: Request, means: Means) -> int:
    """About how many bytes a second copy takes: by the source's size, the live database's, or the dump's."""
    by_dump = _EMPTY_DATABASE_BYTES + round(request.dump_bytes * _COPY_PER_DUMP_BYTE)
    if request.backed_up.database_bytes:
        return max(round(request.backed_up.database_bytes * _RESERVE), by_dump)
    return max(by_dump, means.live.size_bytes or 0) if means.live is not None else by_dump


def _prepared(connection: Connection, target: DatabaseTarget) -> list[OpsError]:
    try:
        refuse_prepared(connection, target.name)
    except BusyError as error:
        return [error]
    return []


def _short_of_room(needed: int, free: int | None) -> list[OpsError]:
    if free is None or free >= needed:
        return []
    message = f"the server has {human_bytes(free)} free, and a second copy takes about {human_bytes(needed)}"
    return [DiskFullError(message, hint=f"{Advice.LIST_ROLLBACKS} shows the rollback data there")]


def _warnings(
    connection: Connection, request: Request, means: Means, contents: _Contents, mode: RestoreMode
) -> Iterator[str]:
    is_swap = mode is RestoreMode.SWAP
    slots = [slot for (slot,) in connection.execute(_SLOTS, [request.target.name])]
    if slots and is_swap:
        yield f"replication slots stay with the old database: {', '.join(slots)}"
    if not request.row_counts:
        yield UNKNOWN_ROWS
    newer = sorted(contents.rows.keys() - request.row_counts.keys()) if request.row_counts else []
    if newer:
        where = "go with the old database" if is_swap else "stay as they are"
        yield f"tables that are newer than the backup {where}: {', '.join(newer)}"
    if not is_swap and contents.has_default_privileges:
        yield "the live database's default privileges (\\ddp in psql) will be added to the rights of restored tables"
    if not is_swap and means.live is not None:
        yield "stop the portal: what it writes between the safety dump and the restore cannot be rolled back"
    if contents.locked:
        yield (
            f"tables are locked, so their rows are estimated: {'; '.join(contents.locked[:_NAMED])}; the restore ends "
            "such sessions, or names those that it may not end"
        )
    for table in contents.of_extensions:
        yield (
            f"the rows of {table.name} are in no dump, since it belongs to extension {table.extension}: those of today "
            f"{'are carried over' if is_swap else 'stay as they are'}"
        )
    yield from _replication(request, means, mode)
    yield from _identity(connection, request, means)


def _replication(request: Request, means: Means, mode: RestoreMode) -> Iterator[str]:
    entries = request.backed_up.entries
    subscriptions = [entry.name for entry in entries if entry.kind == SUBSCRIPTIONS[0]]
    publications = [entry.name for entry in entries if entry.kind == PUBLICATIONS[0]]
    if subscriptions:
        yield (
            f"subscriptions are restored disabled: {', '.join(subscriptions)}; the result says how to enable them again"
        )
    if publications:
        yield f"publications are restored, and their subscribers have to be looked at: {', '.join(publications)}"
    if mode is RestoreMode.IN_PLACE and not means.me.superuser:
        kept = [f"{entry.kind.lower()} {entry.name}" for entry in entries if needs_administrator(entry)]
        others = [what for what in kept if not what.startswith("extension ")]
        if others:
            yield f"objects that only an administrator creates stay as they are: {', '.join(others[:_NAMED])}"


def _identity(connection: Connection, request: Request, means: Means) -> Iterator[str]:
    """How owner and roles are set if the database is created anew."""
    identity = request.backed_up.identity
    if means.live is not None or identity is None:
        return
    roles = {str(name) for (name,) in connection.execute(_ROLES)}
    missing = [role for role in identity.roles() if role not in roles and role not in means.around.missing_roles]
    owner = request.owner or identity.owner
    if owner not in roles:
        yield (
            f"the owner {owner} is no role of this server, so everything will belong to {means.me.name}; to have it "
            f"otherwise, before the restore: {create_roles([owner])} LOGIN, or restore with --owner"
        )
        missing = [role for role in missing if role != owner]
    if missing:
        yield (
            f"{', '.join(missing)}: no such role on this server, and the database's privileges and settings name it; "
            f"before the restore, as an administrator: {create_roles(missing)}"
        )


def _warnings_of_versions(connection: Connection, request: Request) -> Iterator[str]:
    source, destination = request.backed_up.server_major, connection.info.server_version // 10000
    if source > destination:
        yield (
            f"the backup is from PostgreSQL {source}, and this server is older: {destination}; if the backup "
            "uses a feature that this version lacks, the restore fails and changes nothing"
        )
