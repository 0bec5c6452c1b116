"""The identity of a database: properties of the database itself, which no dump without ``--create`` has.

These are owner, encoding and locale, privileges, settings (of the database, and of roles in it), connection limit,
comment and security labels. A backup records them in the manifest; a restore sets them on the database that it makes
live. Privileges granted by others are then granted by the owner.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.sql import SQL, Composed, Identifier, Literal

from portal.ops.errors import NotIntactError
from portal.ops.hints import another_archive

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from portal.ops.postgres.connection import Connection

OUR_SETTING: Final = "kekkai_backup.restored_by"
"""A setting of databases that a restore created where there was none, with the restore's id. No backup includes it."""

_DATABASE: Final = """
    SELECT pg_get_userbyid(d.datdba), pg_encoding_to_char(d.encoding), d.datcollate, d.datctype,
           coalesce(j ->> 'datlocprovider', 'c'), coalesce(j ->> 'datlocale', j ->> 'daticulocale'),
           j ->> 'daticurules', d.datconnlimit, shobj_description(d.oid, 'pg_database'), d.datacl IS NOT NULL
    FROM pg_database AS d, to_jsonb(d) AS j WHERE d.datname = %s
"""
_PRIVILEGES: Final = """
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
_PRIVILEGE_NAMES: Final = {"CREATE": SQL("CREATE"), "CONNECT": SQL("CONNECT"), "TEMPORARY": SQL("TEMPORARY")}
# The server stores these as lists of quoted names, and needs them back one by one.
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


@dataclass(frozen=True, kw_only=True)
class DatabaseIdentity:
    """The identity of one database.

    Arguments:
        provider: the provider of its collation, by the letter in the catalog.
        locale: the locale of that provider, if it is not libc.
        has_privileges: whether privileges were ever changed; otherwise the server's defaults apply.
        privileges: grantee (None for PUBLIC), privilege, and whether it can be granted on.
        settings: role (None for all), and ``name=value``.
        labels: provider and label.
    """

    owner: str
    encoding: str
    collate: str
    ctype: str
    provider: str
    locale: str | None
    icu_rules: str | None
    connection_limit: int
    comment: str | None
    has_privileges: bool
    privileges: tuple[tuple[str | None, str, bool], ...] = ()
    settings: tuple[tuple[str | None, str], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The identity as types of JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> DatabaseIdentity:
        """The identity from types of JSON.

        Raises:
            NotIntactError: the record is invalid.
        """
        try:
            known = {field.name: found[field.name] for field in fields(cls)}
            lists = {name: tuple(map(tuple, known[name])) for name in ("privileges", "settings", "labels")}
            made = cls(**(known | lists))
            list(identity_statements(made, "database"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise NotIntactError(
                "the manifest's record of the database is invalid",
                hint=another_archive(),
            ) from error
        return made

    def roles(self) -> tuple[str, ...]:
        """The roles named by privileges and settings."""
        pairs = [*((role, "") for role, *_ in self.privileges), *self.settings]
        named = [role for role, _ in pairs if role is not None]
        return tuple(dict.fromkeys(named))


def read_identity(connection: Connection, name: str) -> DatabaseIdentity | None:
    """The identity of a database, or None if it does not exist."""
    row = connection.execute(_DATABASE, [name]).fetchone()
    if row is None:
        return None
    owner, encoding, collate, ctype, provider, locale, icu_rules, limit, comment, has_privileges = row
    settings = [tuple(setting) for setting in connection.execute(_SETTINGS, [name])]
    return DatabaseIdentity(
        owner=owner,
        encoding=encoding,
        collate=collate,
        ctype=ctype,
        provider=provider,
        locale=locale,
        icu_rules=icu_rules,
        connection_limit=limit,
        comment=comment,
        has_privileges=has_privileges,
        privileges=tuple(tuple(privilege) for privilege in connection.execute(_PRIVILEGES, [name])),
        settings=tuple(setting for setting in settings if not setting[1].startswith(f"{OUR_SETTING}=")),
        labels=tuple(tuple(label) for label in connection.execute(_LABELS, [name])),
    )


def give_identity(
    connection: Connection, identity: DatabaseIdentity, destination: str, *, shown_as: str, owner: str | None = None
) -> tuple[str, ...]:
    """Give a database an identity, within the open transaction.

    Arguments:
        shown_as: the future name of the database, for warnings.
        owner: its owner; None for the owner in the identity.

    Returns:
        a warning with the statement, for each one that the server refused.
    """
    warnings = []
    for statement in identity_statements(identity, destination, owner=owner):
        try:
            with connection.transaction():
                connection.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            warnings.append(f"not carried over, for want of privileges; as an administrator: {_text(statement)}")
        except psycopg.errors.UndefinedObject as error:
            warnings.append(f"not carried over, {error.diag.message_primary}; when it is there: {_text(statement)}")
    return tuple(text.replace(_text(Identifier(destination)), _text(Identifier(shown_as))) for text in warnings)


def identity_statements(
    identity: DatabaseIdentity, destination: str, *, owner: str | None = None
) -> Iterator[Composed]:
    """The statements that give a database an identity."""
    name, owns = Identifier(destination), Identifier(owner or identity.owner)
    yield SQL("ALTER DATABASE {} OWNER TO {}").format(name, owns)
    yield SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(name, Literal(int(identity.connection_limit)))
    if identity.comment is not None:
        yield SQL("COMMENT ON DATABASE {} IS {}").format(name, Literal(identity.comment))
    for provider, label in identity.labels:
        yield SQL("SECURITY LABEL FOR {} ON DATABASE {} IS {}").format(Identifier(provider), name, Literal(label))
    if identity.has_privileges:
        yield SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC, {}").format(name, owns)
        yield from _grants(_owned_by(identity, owner), name)
    yield from _settings(identity.settings, name)


def _owned_by(identity: DatabaseIdentity, owner: str | None) -> Iterable[tuple[str | None, str, bool]]:
    """The privileges, with the recorded owner replaced by another."""
    for grantee, privilege, grantable in identity.privileges:
        yield (owner if owner and grantee == identity.owner else grantee), privilege, grantable


def _grants(privileges: Iterable[tuple[str | None, str, bool]], name: Identifier) -> Iterator[Composed]:
    for grantee, privilege, grantable in privileges:
        whom = SQL("PUBLIC") if grantee is None else Identifier(grantee)
        option = SQL(" WITH GRANT OPTION" if grantable else "")
        yield SQL("GRANT {} ON DATABASE {} TO {}{}").format(_PRIVILEGE_NAMES[privilege], name, whom, option)


def _settings(settings: Iterable[tuple[str | None, str]], database: Identifier) -> Iterator[Composed]:
    for role, setting in settings:
        name, _, value = setting.partition("=")
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


def _text(statement: Composed | Identifier) -> str:
    return statement.as_string(None)
