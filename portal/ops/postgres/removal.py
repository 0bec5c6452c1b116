"""Drops a database that a restore or drill has made or kept, with its links to other servers.

A subscription prevents its database from being dropped. It is removed without contacting the publisher: the slot there
belongs to the live database's subscription of the same name. Replication slots in the database are dropped too, unless
one is in use.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from psycopg.sql import SQL, Identifier

from portal.ops.errors import AccessDeniedError, BusyError
from portal.ops.hints import Advice
from portal.ops.postgres.connection import connect
from portal.ops.postgres.database_names import Marked
from portal.ops.postgres.server import find_database, maintenance, restoring_errors

if TYPE_CHECKING:
    from portal.ops.postgres.connection import Connection
    from portal.ops.settings.database_url import DatabaseTarget

_SUBSCRIPTIONS: Final = """
    SELECT s.subname FROM pg_subscription AS s JOIN pg_database AS d ON d.oid = s.subdbid
    WHERE d.datname = %s ORDER BY 1
"""
_SLOTS: Final = """
    SELECT slot_name, coalesce(active_pid, 0) FROM pg_replication_slots WHERE database = %s ORDER BY 1
"""
_NOT_ENABLED: Final = """
    SELECT subname FROM pg_subscription AS s JOIN pg_database AS d ON d.oid = s.subdbid
    WHERE d.datname = current_database() AND NOT s.subenabled ORDER BY 1
"""


def drop_old(target: DatabaseTarget, name: str) -> tuple[str, ...]:
    """Drop a database that a restore has left; does nothing if there is none.

    Returns:
        warnings about dropped objects that others may use.

    Raises:
        BusyError: it is in use: another restore fills it, or a session is connected.
        SourceError: the server failed.
        AccessDeniedError: it is not a restore's database, so it is not dropped.
    """
    if Marked.parse(name, target.name) is None:
        raise AccessDeniedError(
            f"{name} is not a database that a restore of {target.name} has left",
            hint=f"{Advice.LIST_ROLLBACKS} shows those that can be dropped",
        )
    with maintenance(target) as connection:
        return _drop(connection, target, name, SQL("DROP DATABASE IF EXISTS {}"))


def remove_database(connection: Connection, target: DatabaseTarget, name: str) -> None:
    """Drop a database of ours and end its sessions; does nothing if there is none.

    Arguments:
        connection: a connection to another database of the server.
        target: user and password for connecting to it, needed if it has subscriptions.

    Raises:
        OpsError: the server failed.
    """
    _drop(connection, target, name, SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)"))


def disabled_subscriptions(target: DatabaseTarget) -> tuple[str, ...]:
    """A warning with the statements that enable the subscriptions in a database that a restore made live."""
    with connect(target) as connection, restoring_errors(target):
        names = [str(name) for (name,) in connection.execute(_NOT_ENABLED)]
    if not names:
        return ()
    enable = [SQL("ALTER SUBSCRIPTION {} ENABLE").format(Identifier(name)).as_string(None) for name in names]
    refresh = [
        SQL("ALTER SUBSCRIPTION {} REFRESH PUBLICATION WITH (copy_data = false)")
        .format(Identifier(name))
        .as_string(None)
        for name in names
    ]
    return (
        f"subscriptions are disabled: {', '.join(names)}; when its tables fit the publisher's again, in database "
        f"{target.name}: {'; '.join([*enable, *refresh])}",
    )


def _drop(connection: Connection, target: DatabaseTarget, name: str, statement: SQL) -> tuple[str, ...]:
    slots = connection.execute(_SLOTS, [name]).fetchall()
    active = [f"{slot} (process {pid})" for slot, pid in slots if pid]
    if active:
        raise BusyError(
            f"replication slots of database {name} are in use: {', '.join(active)}",
            hint="end the readers, or move them to the live database, and try again",
        )
    subscriptions = [str(subscription) for (subscription,) in connection.execute(_SUBSCRIPTIONS, [name])]
    if subscriptions and find_database(connection, name) is not None:
        _let_go(connection, replace(target, name=name), subscriptions)
    connection.execute(statement.format(Identifier(name)))
    said = [f"replication slot {slot} was in database {name}, and is gone with it" for slot, _ in slots]
    return tuple(said)


def _let_go(connection: Connection, database: DatabaseTarget, subscriptions: list[str]) -> None:
    """Remove subscriptions from a database without touching their slots."""
    allow = SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(Identifier(database.name))
    connection.execute(allow)
    with connect(database) as inside, restoring_errors(database):
        for name in subscriptions:
            for action in ("ALTER SUBSCRIPTION {} DISABLE", "ALTER SUBSCRIPTION {} SET (slot_name = NONE)"):
                inside.execute(action.format(Identifier(name).as_string(None)).encode())
            inside.execute(SQL("DROP SUBSCRIPTION {}").format(Identifier(name)))
