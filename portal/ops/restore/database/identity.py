"""What belongs to a database's name and not to its contents, and so is in no dump: carried from one to another.

Owner, rights, settings (of the database, and of roles in it), connection limit, comment and security labels. A right
that somebody else than the owner has granted comes from the owner afterwards.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.sql import SQL, Composed, Identifier, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.postgres.connection import Connection

_IDENTITY: Final = """
    SELECT pg_get_userbyid(datdba), datconnlimit, shobj_description(oid, 'pg_database'), datacl IS NOT NULL
    FROM pg_database WHERE datname = %s
"""
_RIGHTS: Final = """
    SELECT CASE WHEN grantee = 0 THEN NULL ELSE pg_get_userbyid(grantee) END, privilege_type, is_grantable
    FROM pg_database, aclexplode(datacl) WHERE datname = %s
"""
_SETTINGS: Final = """
    SELECT CASE WHEN setrole = 0 THEN NULL ELSE pg_get_userbyid(setrole) END, setting
    FROM pg_db_role_setting AS s JOIN pg_database AS d ON d.oid = s.setdatabase, unnest(setconfig) AS setting
    WHERE d.datname = %s
"""
_LABELS: Final = """
    SELECT provider, label FROM pg_shseclabel JOIN pg_database AS d ON d.oid = objoid
    WHERE classoid = 'pg_database'::regclass AND d.datname = %s
"""
_RIGHT_NAMES: Final = {"CREATE": SQL("CREATE"), "CONNECT": SQL("CONNECT"), "TEMPORARY": SQL("TEMPORARY")}
# The server keeps these as lists of quoted names, and wants them back one by one.
_LISTS_OF_NAMES: Final = frozenset(
    [
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    ]
)
_NAME_IN_LIST: Final = re.compile(r'"((?:[^"]|"")*)"|([^\s,"]+)')


def carry_over(connection: Connection, source: str, destination: str) -> tuple[str, ...]:
    """Give a new database what another one has, as a part of the transaction that is open.

    Returns:
        a warning for each statement that the user may not run, with the statement.
    """
    warnings = []
    for statement in [*_identity(connection, source, destination), *_settings(connection, source, destination)]:
        try:
            with connection.transaction():
                connection.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            warnings.append(f"not carried over, for want of privileges; as an administrator: {_text(statement)}")
    return tuple(text.replace(f'"{destination}"', f'"{source}"') for text in warnings)


def _identity(connection: Connection, source: str, destination: str) -> Iterator[Composed]:
    row = connection.execute(_IDENTITY, [source]).fetchone()
    assert row is not None
    owner, limit, comment, has_rights = row
    name = Identifier(destination)
    yield SQL("ALTER DATABASE {} OWNER TO {}").format(name, Identifier(owner))
    yield SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(name, Literal(limit))
    if comment is not None:
        yield SQL("COMMENT ON DATABASE {} IS {}").format(name, Literal(comment))
    for provider, label in connection.execute(_LABELS, [source]).fetchall():
        yield SQL("SECURITY LABEL FOR {} ON DATABASE {} IS {}").format(Identifier(provider), name, Literal(label))
    if has_rights:
        yield SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC, {}").format(name, Identifier(owner))
        yield from _grants(connection, source, name)


def _grants(connection: Connection, source: str, name: Identifier) -> Iterator[Composed]:
    for grantee, right, grantable in connection.execute(_RIGHTS, [source]).fetchall():
        whom = SQL("PUBLIC") if grantee is None else Identifier(grantee)
        option = SQL(" WITH GRANT OPTION" if grantable else "")
        yield SQL("GRANT {} ON DATABASE {} TO {}{}").format(_RIGHT_NAMES[right], name, whom, option)


def _settings(connection: Connection, source: str, destination: str) -> Iterator[Composed]:
    for role, setting in connection.execute(_SETTINGS, [source]).fetchall():
        name, _, value = setting.partition("=")
        database = Identifier(destination)
        where = (
            SQL("ALTER DATABASE {}").format(database)
            if role is None
            else SQL("ALTER ROLE {} IN DATABASE {}").format(Identifier(role), database)
        )
        yield SQL("{} SET {} TO {}").format(where, Identifier(*name.split(".")), _value(name, value))


def _value(name: str, value: str) -> Composed:
    if name.lower() not in _LISTS_OF_NAMES:
        return Composed([Literal(value)])
    names = [quoted.replace('""', '"') or plain for quoted, plain in _NAME_IN_LIST.findall(value)]
    return SQL(", ").join(map(Literal, names or [""]))


def _text(statement: Composed) -> str:
    return statement.as_string(None)
