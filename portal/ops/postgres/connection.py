"""Connections to the portal's database, and what a refused one means in words a person understands.

libpq gives no SQLSTATE for a connection that fails, only text, and the server writes that text in its own language
(``lc_messages``). So English phrases are looked for, and a refusal in another language is quoted as it came.
"""

from __future__ import annotations

import re
import shlex
from contextlib import contextmanager
from dataclasses import dataclass
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import make_conninfo

from portal.ops.errors import (
    AccessDeniedError,
    ConfigurationError,
    ConnectionFailedError,
    DatabaseAbsentError,
    LoginRefusedError,
    SourceError,
)
from portal.ops.postgres.client_tools import client_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.settings.load import DatabaseTarget

Connection = psycopg.Connection[tuple[Any, ...]]

_CONNECTION_SETTINGS = {
    "connect_timeout": "10",
    "application_name": "kekkai-backup",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}
# A limit that was set for the role must not end our session half way; rows that a policy hides must not go unnoticed;
# and the server should see within seconds that we are gone. Older servers lack some of these.
_SESSION_SETTINGS = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "client_connection_check_interval": "10s",
    "row_security": "off",
}
_APPLY_SETTINGS = """
    SELECT set_config(name, value, false)
    FROM unnest(%s::text[], %s::text[]) AS wanted (name, value) JOIN pg_settings AS known USING (name)
"""
_PASSWORD_SOURCES = "DD_DATABASE_PASSWORD, DD_DATABASE_PASSWORD_FILE or ~/.pgpass"  # noqa: S105

_CREATE_USER = "createuser --host={host} --port={port} --pwprompt {user}"


@dataclass(frozen=True, kw_only=True)
class _Refusal:
    """What a phrase of the server's answer means; `message` and `hint` are filled in with the target's fields."""

    phrase: re.Pattern[str]
    error: type[SourceError | ConfigurationError]
    message: str
    hint: str


def _refusal(phrase: str, error: type[SourceError | ConfigurationError], message: str, hint: str) -> _Refusal:
    return _Refusal(phrase=re.compile(phrase), error=error, message=message, hint=hint)


_REFUSALS = (
    _refusal(
        "no password supplied",
        AccessDeniedError,
        "the server at {host}:{port} wants a password of user {user}, and there is none",
        f"put it in {_PASSWORD_SOURCES}",
    ),
    _refusal(
        "(Peer|Ident) authentication failed",
        AccessDeniedError,
        "the server at {host}:{port} takes user {user} only from the account of the same name",
        "run this as that account, or connect over TCP with a password: DD_DATABASE_HOST=127.0.0.1",
    ),
    _refusal(
        "authentication failed",
        LoginRefusedError,
        "the server at {host}:{port} refused the password of user {user}",
        f"check {_PASSWORD_SOURCES}, and DD_DATABASE_USER: the answer is the same when there is no such user; "
        f"an administrator creates it: {_CREATE_USER}",
    ),
    _refusal(
        'role ".*" does not exist',
        LoginRefusedError,
        "the server at {host}:{port} has no user {user}",
        f"check DD_DATABASE_USER; an administrator creates the user: {_CREATE_USER}",
    ),
    _refusal(
        'role ".*" is not permitted to log in',
        AccessDeniedError,
        "user {user} may not log in at {host}:{port}",
        "as an administrator: ALTER ROLE {user} LOGIN",
    ),
    _refusal(
        "permission denied for database",
        AccessDeniedError,
        "user {user} may not connect to database {name}",
        "as an administrator: GRANT CONNECT ON DATABASE {name} TO {user}",
    ),
    _refusal(
        'database ".*" does not exist',
        DatabaseAbsentError,
        "the server at {host}:{port} has no database {name}",
        "check DD_DATABASE_NAME, or create it: createdb --host={host} --port={port} --owner={user} {name}",
    ),
    _refusal(
        "no pg_hba.conf entry.*(no encryption|SSL off)",
        AccessDeniedError,
        "the server at {host}:{port} does not take user {user} for database {name} without encryption",
        "ask for encryption (?sslmode=require in DD_DATABASE_URL), or allow this machine in the server's pg_hba.conf",
    ),
    _refusal(
        "no pg_hba.conf entry|pg_hba.conf rejects",
        AccessDeniedError,
        "the server at {host}:{port} does not take user {user} for database {name} from this machine",
        "allow this machine in the server's pg_hba.conf",
    ),
    _refusal(
        "server does not support SSL",
        ConfigurationError,
        "the server at {host}:{port} has no encryption, but sslmode asks for it",
        "turn on ssl in the server, or use sslmode=prefer",
    ),
    _refusal(
        "certificate",
        ConfigurationError,
        "the certificates do not fit the server at {host}:{port}: {reason}",
        "check sslmode and sslrootcert (or sslcert and sslkey)",
    ),
    _refusal(
        "too many (clients|connections)|remaining connection slots",
        ConnectionFailedError,
        "the server at {host}:{port} has no free connection for user {user}",
        "try again later; a backup takes 3 connections, see max_connections and the limits of role and database",
    ),
    _refusal(
        "starting up|shutting down|recovery mode|not (yet )?accepting connections",
        ConnectionFailedError,
        "the server at {host}:{port} is not ready: {reason}",
        "try again in a moment",
    ),
    _refusal(
        "FATAL",
        ConnectionFailedError,
        "the server at {host}:{port} refused the connection: {reason}",
        "the reason is in the server's own words; its log may say more",
    ),
    _refusal(
        "",
        ConnectionFailedError,
        "no PostgreSQL server answers at {host}:{port}: {reason}",
        "is it running, and are DD_DATABASE_HOST and DD_DATABASE_PORT right?",
    ),
)


def conninfo(target: DatabaseTarget) -> str:
    """Return libpq's connection string for a database, without the password.

    Raises:
        ConfigurationError: the target has an option that libpq does not know.
    """
    parameters = _CONNECTION_SETTINGS | dict(target.options)
    try:
        return make_conninfo("", host=target.host, port=target.port, dbname=target.name, user=target.user, **parameters)
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(
            f"the database connection makes no sense: {error}", hint="check the options of DD_DATABASE_URL"
        ) from error


def libpq_environment(target: DatabaseTarget) -> dict[str, str]:
    """Return the environment for a client program that connects to a database; it alone holds the password."""
    environment = client_environment()
    if target.password is not None:
        environment["PGPASSWORD"] = target.password.reveal()
    return environment


def connect(target: DatabaseTarget) -> Connection:
    """Open an autocommit connection that no time limit of the role or the database ends.

    Raises:
        ConnectionFailedError: the server cannot be reached, or has no room (a retry can help).
        AccessDeniedError: the server does not want this user; a `LoginRefusedError` where there may be none.
        DatabaseAbsentError: it has no such database.
        ConfigurationError: the connection's options make no sense.
    """
    password = None if target.password is None else target.password.reveal()
    connecting = conninfo(target)
    connection: Connection | None = None
    try:
        connection = psycopg.connect(connecting, password=password, autocommit=True)
        connection.execute(_APPLY_SETTINGS, [list(_SESSION_SETTINGS), list(_SESSION_SETTINGS.values())])
    except psycopg.OperationalError as error:
        raise _explain(target, error) from error
    except BaseException as error:
        # A signal. What is half connected lives on in the frames of its traceback, and a server that waits for the
        # password lets no DROP DATABASE of another session finish for a minute.
        clear_frames(error.__traceback__)
        if connection is not None:
            connection.close()
        raise
    return connection


@contextmanager
def explained_errors(target: DatabaseTarget) -> Iterator[None]:
    """Turn what the driver raises on an open connection into errors of the engine.

    Raises:
        AccessDeniedError: the user lacks a privilege.
        ConnectionFailedError: the connection was lost (a retry can help).
        SourceError: anything else that the server does not do.
    """
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        hint = f"as an administrator: give user {target.user} what is missing"
        raise AccessDeniedError(f"the server refuses: {_reason(str(error))}", hint=hint) from error
    except psycopg.OperationalError as error:
        raise ConnectionFailedError(
            f"lost the server at {target.host}:{target.port}: {_reason(str(error))}",
            hint="see the server's log, and try again when it is up",
        ) from error
    except psycopg.Error as error:
        raise SourceError(f"the server refuses: {_reason(str(error))}", hint="see the server's log") from error


def _explain(target: DatabaseTarget, error: psycopg.OperationalError) -> SourceError | ConfigurationError:
    text = str(error)
    refusal = next(refusal for refusal in _REFUSALS if refusal.phrase.search(text))
    plain = {"host": target.host, "port": target.port, "user": target.user, "name": target.name}
    quoted = {name: shlex.quote(str(value)) for name, value in plain.items()}
    return refusal.error(refusal.message.format(**plain, reason=_reason(text)), hint=refusal.hint.format(**quoted))


def _reason(text: str) -> str:
    """Return the first line of libpq's text that says why, without the address that comes before it."""
    line = text.splitlines()[0]
    return line.rpartition(" failed: ")[2].removeprefix("FATAL:").strip()
