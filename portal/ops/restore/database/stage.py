"""Fills the scratch database: creates it next to the live one, restores into it, checks and closes it.

    1 create an empty database like the live one, under a name that marks it as incomplete
    2 run pg_restore: see `fill`
    3 count its rows and compare them with the manifest; meanwhile give the planner its statistics: see `settle`
    4 close it to connections, and rename it: from then on it is complete

If a step fails, the scratch database is dropped.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from psycopg.sql import SQL, Identifier

from portal.ops.errors import OpsError
from portal.ops.postgres.connection import connect
from portal.ops.postgres.database_names import Role
from portal.ops.postgres.identity import give_identity
from portal.ops.postgres.removal import remove_database
from portal.ops.postgres.row_counts import list_tables, partition_roots
from portal.ops.postgres.server import create_like, find_database, maintenance, read_me, restoring_errors
from portal.ops.restore.database.carry import carry_rows
from portal.ops.restore.database.fill import filling
from portal.ops.restore.database.object_check import check_objects
from portal.ops.restore.database.row_check import RowCheck, check_rows
from portal.ops.restore.database.settle import settle

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from portal.ops.postgres.connection import Connection
    from portal.ops.postgres.database_names import Names
    from portal.ops.postgres.dump_file import Dump
    from portal.ops.postgres.identity import DatabaseIdentity
    from portal.ops.postgres.pg_restore import Restorer
    from portal.ops.postgres.toc import Entry
    from portal.ops.restore.database.object_check import SourceObjects
    from portal.ops.settings.database_url import DatabaseTarget

# The owner of most live tables, if it is a role that we can become.
_OWNER: Final = """
    SELECT pg_get_userbyid(c.relowner) FROM pg_class AS c
    WHERE c.oid = ANY(%s::bigint[]::oid[])
      AND pg_has_role(c.relowner, CASE WHEN current_setting('server_version_num')::int >= 160000
                                       THEN 'SET' ELSE 'MEMBER' END)
    GROUP BY c.relowner ORDER BY count(*) DESC, c.relowner LIMIT 1
"""
_MAY_BECOME: Final = """
    SELECT pg_has_role(oid, CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END)
    FROM pg_roles WHERE rolname = %s
"""


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A filled and checked database.

    Arguments:
        row_counts: the number of rows by table.
        warnings: differences from the source.
    """

    row_counts: Mapping[str, int]
    warnings: tuple[str, ...]


def stage(
    target: DatabaseTarget,
    names: Names,
    dump: Dump,
    row_counts: Mapping[str, int],
    *,
    restorer: Restorer,
    jobs: int,
    identity: DatabaseIdentity | None = None,
    owner: str | None = None,
    objects: SourceObjects | None = None,
) -> Staged:
    """Fill the scratch database and close it.

    Arguments:
        target: the live database, which need not exist.
        row_counts: rows by table in the manifest; if empty, nothing is compared.
        jobs: the number of connections.
        identity: the backup's facts about its database, used if there is no live one.
        objects: the backup's facts about indexes, constraints and triggers.
        owner: the owner of the objects; None for the owner of the live ones, or else the one that the backup names.

    Raises:
        OpsError: a step failed, and the scratch database was dropped.
    """
    owner = owner or objects_owner(target)
    with maintenance(target) as connection:
        for role in (Role.RESTORING, Role.STAGED):
            remove_database(connection, target, names.name(role))
        me, live = read_me(connection), find_database(connection, names.live)
        if live is None:
            owner = owner or known_owner(connection, identity)
        said = create_like(connection, names.name(Role.RESTORING), live or identity, owner or me.name)
    scratch = replace(target, name=names.name(Role.RESTORING))
    try:
        with filling(restorer, dump, scratch, jobs=jobs, role=owner) as work:
            work.fill()
            counted = settle(scratch, jobs, work.statistics)
            checked = check(scratch, counted, row_counts)
            checked.raise_wrong()
            if live is not None and live.allows_connections:
                said += tuple(carry_rows(target, scratch, kept_as=names.name(Role.BEFORE)))
            said += _differences(scratch, work.entries, objects)
            work.finish()
        said += _close(target, names, None if live else identity, owner or me.name)
    except BaseException:
        with suppress(OpsError), maintenance(target) as connection:
            remove_database(connection, target, names.name(Role.RESTORING))
        raise
    return Staged(row_counts=counted, warnings=(*said, *work.warnings, *checked.warnings()))


def _differences(scratch: DatabaseTarget, entries: Sequence[Entry], objects: SourceObjects | None) -> tuple[str, ...]:
    """Differences from the source that do not stop a portal from running."""
    with connect(scratch) as connection, restoring_errors(scratch):
        found = check_objects(connection, entries, objects)
    return (*(f"the restored database differs from the source: {what}" for what in found.wrong), *found.warnings)


def objects_owner(target: DatabaseTarget) -> str | None:
    """The role that owns the live tables and should own the restored ones, or None if unknown.

    Otherwise an administrator who restores would own them, and the portal could not use them.
    """
    with maintenance(target) as connection:
        live = find_database(connection, target.name)
    if live is None or not live.allows_connections:
        return None
    with connect(target) as connection, restoring_errors(target):
        row = connection.execute(_OWNER, [[table.oid for table in list_tables(connection)]]).fetchone()
    return None if row is None else str(row[0])


def check(target: DatabaseTarget, found: Mapping[str, int], expected: Mapping[str, int]) -> RowCheck:
    """Compare the row counts of a restored database with the manifest.

    Raises:
        SourceError: the server cannot be queried.
    """
    with connect(target) as connection, restoring_errors(target):
        return check_rows(found, expected, partition_roots(connection))


def known_owner(connection: Connection, identity: DatabaseIdentity | None) -> str | None:
    """The owner that the backup names, if the server has that role and we can create objects for it."""
    if identity is None:
        return None
    row = connection.execute(_MAY_BECOME, [identity.owner]).fetchone()
    return identity.owner if row is not None and row[0] else None


def _close(target: DatabaseTarget, names: Names, identity: DatabaseIdentity | None, owner: str) -> tuple[str, ...]:
    """Close the database and set the properties that the backup recorded; return warnings."""
    restoring, staged = names.name(Role.RESTORING), names.name(Role.STAGED)
    said: tuple[str, ...] = ()
    with maintenance(target) as connection, connection.transaction():
        if identity is not None:
            said = give_identity(connection, identity, restoring, shown_as=names.live, owner=owner)
        closing = SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(Identifier(restoring))
        connection.execute(closing)
        connection.execute(SQL("ALTER DATABASE {} RENAME TO {}").format(Identifier(restoring), Identifier(staged)))
    return said
