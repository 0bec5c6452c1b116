"""Checks a server before a dump: version and size, and whether the user can read everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg.sql import Identifier

from portal.ops.errors import AccessDeniedError

if TYPE_CHECKING:
    from portal.ops.postgres.connection import Connection

_NAMED_IN_MESSAGE = 5
_READ_ALL_ROLE_SINCE = 14

_FACTS = "SELECT current_setting('server_version'), pg_database_size(current_database()), pg_is_in_recovery()"

# What pg_dump locks or reads: neither the system's schemas, nor objects of extensions.
_DUMPED = """
    SELECT format('%I.%I', n.nspname, c.relname)
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relpersistence <> 't'
      AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
"""
_UNREADABLE = f"""
    {_DUMPED} AND c.relkind IN ('r', 'p', 'S') AND NOT (
        has_schema_privilege(n.oid, 'USAGE')
        AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege(c.oid, 'SELECT')
                           ELSE has_table_privilege(c.oid, 'SELECT') END)
    ORDER BY 1
"""
_HIDDEN_BY_POLICY = f"{_DUMPED} AND c.relkind IN ('r', 'p') AND row_security_active(c.oid) ORDER BY 1"


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """The facts about a server and its database.

    Arguments:
        version: the server's version string, such as ``17.10``.
        size_bytes: size of the database on the server's disk, indexes included.
        in_recovery: whether it is a standby.
    """

    version: str
    major: int
    size_bytes: int
    in_recovery: bool


def read_facts(connection: Connection) -> ServerFacts:
    """Query facts about the connected server."""
    row = connection.execute(_FACTS).fetchone()
    assert row is not None
    major = connection.info.server_version // 10000
    return ServerFacts(version=row[0], major=major, size_bytes=row[1], in_recovery=row[2])


def check_readable(connection: Connection) -> None:
    """Make sure that the user can read everything that pg_dump reads.

    Raises:
        AccessDeniedError: it names some unreadable objects, and the statement that grants access.
    """
    row = connection.execute("SELECT current_user").fetchone()
    assert row is not None
    role = row[0]
    user = Identifier(role).as_string(connection)
    # ALTER ROLE … SET role and ALTER DATABASE … SET role make a session another role's.
    who = role if role == connection.info.user else f"{connection.info.user}, who acts as role {role},"
    unreadable = [name for (name,) in connection.execute(_UNREADABLE)]
    if unreadable:
        raise AccessDeniedError(
            f"user {who} may not read {_some(unreadable)}",
            hint=f"as an administrator: {_grant(user, connection.info.server_version // 10000)}",
        )
    hidden = [name for (name,) in connection.execute(_HIDDEN_BY_POLICY)]
    if hidden:
        raise AccessDeniedError(
            f"row security hides rows from user {who} in {_some(hidden)}",
            hint=f"as an administrator: ALTER ROLE {user} BYPASSRLS",
        )


def _grant(user: str, server_major: int) -> str:
    if server_major >= _READ_ALL_ROLE_SINCE:
        return f"GRANT pg_read_all_data TO {user}"
    kinds = ("TABLES", "SEQUENCES")
    return "; ".join(f"GRANT SELECT ON ALL {kind} IN SCHEMA public TO {user}" for kind in kinds)


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED_IN_MESSAGE
    return ", ".join(names[:_NAMED_IN_MESSAGE]) + (f" and {more} more" if more > 0 else "")
