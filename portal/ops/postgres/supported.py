"""The versions of PostgreSQL that are known well enough: a server older than that is refused before it is asked more.

Newer versions are not refused here: the client programs decide (`client_tools`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from portal.ops.errors import UnsupportedError

if TYPE_CHECKING:
    from psycopg import Connection

OLDEST_SOURCE: Final = 12
"""The oldest version that is backed up, so that its database can move to a newer server."""

OLDEST: Final = 13
"""The oldest version that is restored to, and whose WAL is received."""


def refuse_old_source(connection: Connection) -> None:
    """Make sure that a server is not too old to be read; raises `UnsupportedError`."""
    _refuse(connection, OLDEST_SOURCE, "cannot be backed up", "upgrade the server, for example with pg_upgrade")


def refuse_old_destination(connection: Connection) -> None:
    """Make sure that a server is not too old to be restored to; raises `UnsupportedError`."""
    hint = "restore to a newer server: set DD_DATABASE_HOST and DD_DATABASE_PORT to it"
    _refuse(connection, OLDEST, "can be backed up, but not restored to", hint)


def refuse_old_wal(connection: Connection) -> None:
    """Make sure that a server is not too old for its WAL to be received; raises `UnsupportedError`."""
    _refuse(connection, OLDEST, "can be backed up, but its WAL is not received", "set BACKUP_WAL=off, or upgrade it")


def _refuse(connection: Connection, oldest: int, what: str, hint: str) -> None:
    if connection.info.server_version // 10000 < oldest:
        host, port = connection.info.host, connection.info.port
        version = connection.info.parameter_status("server_version")
        raise UnsupportedError(
            f"the server at {host}:{port} has PostgreSQL {version}, which {what}: at least {oldest} is needed",
            hint=hint,
        )
