"""Queries a server's databases, roles and sessions from a database other than the live one.

A session cannot rename the database that it is connected to, so all of this uses the maintenance database:
``postgres``, or ``template1`` if that does not exist.
"""

from __future__ import annotations

import shlex
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, LiteralString

import psycopg
from psycopg.rows import class_row
from psycopg.sql import SQL, Identifier, Literal

from portal.ops.errors import (
    AccessDeniedError,
    BusyError,
    DatabaseAbsentError,
    DiskFullError,
    LoginRefusedError,
    OpsError,
)
from portal.ops.hints import Advice
from portal.ops.postgres.connection import connect
from portal.ops.postgres.database_names import Marked
from portal.ops.postgres.explained import explained_errors
from portal.ops.postgres.identity import DatabaseIdentity
from portal.ops.units import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.postgres.connection import Connection
    from portal.ops.settings.database_url import DatabaseTarget

_MAINTENANCE: Final = ("postgres", "template1")

# As JSON, because the locale's columns are named differently in different versions.
_DATABASE: Final = """
    SELECT d.oid::bigint AS oid, d.datname AS name, pg_get_userbyid(d.datdba) AS owner,
           pg_encoding_to_char(d.encoding) AS encoding, d.datcollate AS collate, d.datctype AS ctype,
           coalesce(j ->> 'datlocprovider', 'c') AS provider,
           coalesce(j ->> 'datlocale', j ->> 'daticulocale') AS locale, j ->> 'daticurules' AS icu_rules,
           t.spcname AS tablespace, d.datallowconn AS allows_connections,
           CASE WHEN has_database_privilege(d.oid, 'CONNECT') THEN pg_database_size(d.oid) END AS size_bytes
    FROM pg_database AS d JOIN pg_tablespace AS t ON t.oid = d.dattablespace, to_jsonb(d) AS j
    WHERE d.datname = %s
"""
_ME: Final = """
    SELECT rolname AS name, rolsuper AS superuser, rolcreatedb OR rolsuper AS creates_databases
    FROM pg_roles WHERE rolname = current_user
"""
MAY_END: Final[LiteralString] = """
    (SELECT me.rolsuper OR NOT other.rolsuper AND (
        pg_has_role(other.oid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE'))
     FROM pg_roles AS me, pg_roles AS other WHERE me.rolname = current_user AND other.oid = a.usesysid)
"""
"""SQL: whether we may end session `a` of ``pg_stat_activity``."""

_SESSIONS: Final[LiteralString] = f"""
    SELECT a.pid, coalesce(a.application_name, '') AS application, a.usename AS user,
           coalesce(a.state, '') AS state, {MAY_END} AS can_be_ended
    FROM pg_stat_activity AS a
    WHERE a.datname = %s AND a.usesysid IS NOT NULL AND a.pid <> pg_backend_pid()
    ORDER BY a.pid
"""  # noqa: S608  (both parts are constants)
_PREPARED: Final = "SELECT gid FROM pg_prepared_xacts WHERE database = %s ORDER BY gid"
_END_ORPHANS: Final[LiteralString] = f"""
    SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity AS a
    WHERE a.application_name = %s AND a.pid <> pg_backend_pid() AND {MAY_END}
"""  # noqa: S608  (both parts are constants)
_PROVIDERS: Final = {"c": "libc", "i": "icu", "b": "builtin"}
_PROVIDER_SINCE: Final = 150000
_ORPHAN_LOOKS: Final = 500
_ORPHAN_PAUSE_SECONDS: Final = 0.02
_DEFAULT_TABLESPACE: Final = "pg_default"
_NO_SUCH_LOCALE: Final = (
    psycopg.errors.WrongObjectType,
    psycopg.errors.InvalidParameterValue,
    psycopg.errors.FeatureNotSupported,
    psycopg.errors.InvalidObjectDefinition,
    psycopg.errors.SyntaxError,  # an option that a newer server has
)


@dataclass(frozen=True, kw_only=True)
class DatabaseFacts:
    """A database's entry in the server's catalog.

    Arguments:
        provider: the provider of its collation, by the letter in the catalog.
        locale: the locale of that provider, if it is not libc.
        size_bytes: bytes on the server's disk; None if the user may not see that.
    """

    oid: int
    name: str
    owner: str
    encoding: str
    collate: str
    ctype: str
    provider: str
    locale: str | None
    icu_rules: str | None
    tablespace: str
    allows_connections: bool
    size_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Me:
    """The user that restores."""

    name: str
    superuser: bool
    creates_databases: bool


@dataclass(frozen=True, kw_only=True)
class Session:
    """A session connected to a database.

    Arguments:
        can_be_ended: whether the restoring user may end it.
    """

    pid: int
    application: str
    user: str
    state: str
    can_be_ended: bool

    def __str__(self) -> str:
        what = f"{self.application or 'an unnamed application'}, user {self.user}"
        return f"process {self.pid} ({what}{f', {self.state}' if self.state else ''})"


@dataclass(frozen=True, kw_only=True)
class OldDatabase:
    """A database that a restore left on the server.

    Arguments:
        marked: its role and the restore, by its name.
        size_bytes: bytes on the server's disk; None if the user may not see that.
    """

    marked: Marked
    size_bytes: int | None


@contextmanager
def maintenance(target: DatabaseTarget) -> Iterator[Connection]:
    """Connect to a database other than the live one, and translate its errors.

    If the user may connect to no other, this is the live one, which suffices for everything but renaming it.

    Raises:
        SourceError: the server cannot be reached, or the user may connect to no suitable database.
        DiskFullError: the server's disk is full.
        BusyError: a database that must be empty has sessions.
    """
    names = [name for name in _MAINTENANCE if name != target.name]
    with _connect_first(target, [*names, target.name]) as connection, restoring_errors(target):
        yield connection


@contextmanager
def restoring_errors(target: DatabaseTarget) -> Iterator[None]:
    """Translate errors like `explained_errors`, and those that only a restore meets."""
    with explained_errors(target):
        try:
            yield
        except psycopg.errors.DiskFull as error:
            raise disk_full(str(error)) from error
        except psycopg.errors.ObjectInUse as error:
            hint = "end what uses it (pg_stat_activity, pg_replication_slots, pg_prepared_xacts), and try again"
            raise BusyError(f"the server refuses: {_first_line(error)}", hint=hint) from error


def disk_full(reason: str) -> DiskFullError:
    """The error for a full disk on the server."""
    return DiskFullError(
        f"the server's disk is full: {first_line(reason)}",
        hint=f"free space on the server: {Advice.LIST_ROLLBACKS} shows the rollback data there",
    )


def end_orphans(target: DatabaseTarget, application: str) -> None:
    """End the server sessions of a killed process, and wait until they are gone.

    The server finishes a statement before it notices a lost client: until then, a database may still be created or
    renamed.

    Arguments:
        application: the application name of those sessions.

    Raises:
        BusyError: they do not end.
    """
    with maintenance(target) as connection:
        for _ in range(_ORPHAN_LOOKS):
            if not connection.execute(_END_ORPHANS, [application]).fetchall():
                return
            time.sleep(_ORPHAN_PAUSE_SECONDS)
    raise BusyError(
        f"the sessions of {application} do not end",
        hint="pg_stat_activity shows their queries; end them, and try again",
    )


def find_database(connection: Connection, name: str) -> DatabaseFacts | None:
    """A database's entry, or None."""
    with connection.cursor(row_factory=class_row(DatabaseFacts)) as cursor:
        return cursor.execute(_DATABASE, [name]).fetchone()


def read_me(connection: Connection) -> Me:
    """Query the connected user's name and privileges."""
    with connection.cursor(row_factory=class_row(Me)) as cursor:
        me = cursor.execute(_ME).fetchone()
    assert me is not None
    return me


def owns(connection: Connection, role: str) -> bool:
    """True if objects of a role are ours too."""
    row = connection.execute("SELECT pg_has_role(%s::name, 'USAGE')", [role]).fetchone()
    return row is not None and bool(row[0])


def list_sessions(connection: Connection, database: str) -> list[Session]:
    """The sessions of a database, except this connection."""
    with connection.cursor(row_factory=class_row(Session)) as cursor:
        return cursor.execute(_SESSIONS, [database]).fetchall()


def refuse_prepared(connection: Connection, database: str) -> None:
    """Make sure that no prepared transaction keeps a database in use: only a person can end one.

    Raises:
        BusyError: there is one.
    """
    found = [gid for (gid,) in connection.execute(_PREPARED, [database])]
    if found:
        commands = "; ".join(f"ROLLBACK PREPARED {Literal(gid).as_string(None)}" for gid in found)
        raise BusyError(
            f"database {database} has prepared transactions: {', '.join(found)}",
            hint=f"commit them, or roll them back, in that database: {commands}",
        )


def list_marked(connection: Connection, live: str) -> list[Marked]:
    """Databases that restores of a live one have made, oldest restore first."""
    names = connection.execute("SELECT datname FROM pg_database").fetchall()
    found = [marked for (name,) in names if (marked := Marked.parse(name, live))]
    return sorted(found, key=lambda marked: (marked.restore_id, marked.role))


def list_old_databases(target: DatabaseTarget) -> list[OldDatabase]:
    """Old databases left by restores on a server, oldest first.

    Raises:
        SourceError: the server cannot be queried.
    """
    with maintenance(target) as connection:
        found = [(marked, find_database(connection, marked.name)) for marked in list_marked(connection, target.name)]
    return [OldDatabase(marked=marked, size_bytes=facts.size_bytes) for marked, facts in found if facts]


def create_like(
    connection: Connection, name: str, model: DatabaseFacts | DatabaseIdentity | None, owner: str
) -> tuple[str, ...]:
    """Create an empty database.

    Arguments:
        model: the database with the encoding and locale to use, and the tablespace if it is on this server; None for
            the server's defaults.

    Returns:
        a warning if the server does not have the locale.
    """
    try:
        _create(connection, name, model, owner)
    except _NO_SUCH_LOCALE as error:
        if not isinstance(model, DatabaseIdentity):
            raise
        plain = replace(model, collate="C", ctype="C", provider="c", locale=None, icu_rules=None)
        _create(connection, name, plain, owner)
        return (
            f"this server does not have the backup's locale {model.locale or model.collate} ({_first_line(error)}); "
            "the database has the locale C, which orders texts by their bytes",
        )
    return ()


def _create(connection: Connection, name: str, model: DatabaseFacts | DatabaseIdentity | None, owner: str) -> None:
    parts = [SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0").format(Identifier(name), Identifier(owner))]
    if model is not None:
        options = _locale_options(connection, model)
        parts += [SQL("{} {}").format(SQL(option), Literal(value)) for option, value in options.items()]
        if (
            isinstance(model, DatabaseFacts) and model.tablespace != _DEFAULT_TABLESPACE
        ):  # only a superuser may set its name
            parts.append(SQL("TABLESPACE {}").format(Identifier(model.tablespace)))
    connection.execute(SQL(" ").join(parts))


def _locale_options(connection: Connection, model: DatabaseFacts | DatabaseIdentity) -> dict[LiteralString, str]:
    options: dict[LiteralString, str] = {
        "ENCODING": model.encoding,
        "LC_COLLATE": model.collate,
        "LC_CTYPE": model.ctype,
    }
    if connection.info.server_version >= _PROVIDER_SINCE:
        options["LOCALE_PROVIDER"] = _PROVIDERS[model.provider]
    if model.locale is not None:
        options["ICU_LOCALE" if model.provider == "i" else "BUILTIN_LOCALE"] = model.locale
    if model.icu_rules is not None:
        options["ICU_RULES"] = model.icu_rules
    return options


def _connect_first(target: DatabaseTarget, names: list[str]) -> Connection:
    """Connect to the first database that lets us in; otherwise raise the first refusal."""
    refusal: OpsError | None = None
    for name in names:
        try:
            return connect(replace(target, name=name))
        except (AccessDeniedError, DatabaseAbsentError) as error:
            refusal = refusal or error
    assert refusal is not None
    if isinstance(refusal, LoginRefusedError):
        raise LoginRefusedError(refusal.message, hint=f"{refusal.hint}; {_database_of_new_user(target)}") from refusal
    raise refusal


def create_command(target: DatabaseTarget) -> str:
    """The command with which an administrator creates the live database."""
    owner, name = shlex.quote(target.user), shlex.quote(target.name)
    return f"createdb --host={shlex.quote(target.host)} --port={target.port} --owner={owner} {name}"


def _database_of_new_user(target: DatabaseTarget) -> str:
    return (
        f"on a new server the database too: {create_command(target)}; "
        "or, where createuser was given --createdb as well, a restore with --create-database"
    )


def _first_line(error: psycopg.Error) -> str:
    return error.diag.message_primary or first_line(str(error))
