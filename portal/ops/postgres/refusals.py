"""Explains refused connections to people.

For a failed connection libpq gives no SQLSTATE, only text, and the server writes that text in its own language
(``lc_messages``). So this module looks for English phrases; a refusal in another language is quoted unchanged.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portal.ops.errors import (
    AccessDeniedError,
    ConfigurationError,
    ConnectionFailedError,
    DatabaseAbsentError,
    LoginRefusedError,
    PoolerError,
    SessionEndedError,
    SourceError,
)
from portal.ops.units import first_line

if TYPE_CHECKING:
    import psycopg

    from portal.ops.settings.load import DatabaseTarget

_PASSWORD_SOURCES = "DD_DATABASE_PASSWORD, DD_DATABASE_PASSWORD_FILE or ~/.pgpass"  # noqa: S105

POOLER_HINT = (
    "set DD_DATABASE_HOST and DD_DATABASE_PORT (or DD_DATABASE_URL, or BACKUP_REPLICATION_URL), for backups and "
    "restores, to the PostgreSQL server itself; the portal goes on using the pooler"
)

_CREATE_USER = "createuser --host={host} --port={port} --pwprompt {user}"


@dataclass(frozen=True, kw_only=True)
class _Refusal:
    """The meaning of a phrase in the server's answer; the target's fields are inserted into `message` and `hint`."""

    phrase: re.Pattern[str]
    error: type[SourceError | ConfigurationError]
    message: str
    hint: str


def _refusal(phrase: str, error: type[SourceError | ConfigurationError], message: str, hint: str) -> _Refusal:
    return _Refusal(phrase=re.compile(phrase), error=error, message=message, hint=hint)


_REFUSALS = (
    _refusal(  # no server says any of this; first, since some of it sounds like one
        "unsupported startup parameter|pgbouncer cannot connect|no such (database|user)|bouncer config error|"
        "FATAL: *SASL authentication|max_client_conn|query_wait_timeout|server_login_retry|"
        "invalid command '.*SHOW HELP",
        PoolerError,
        "what answers at {host}:{port} is a connection pooler, and it refused: {reason}",
        POOLER_HINT,
    ),
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
        "just been dropped or renamed|terminating connection due to administrator command",
        SessionEndedError,
        "the server at {host}:{port} replaced database {name}, or ended the session, while it was being opened",
        "a restore may have replaced it, or the server is stopping: try again",
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


def explain_refusal(target: DatabaseTarget, error: psycopg.OperationalError) -> SourceError | ConfigurationError:
    """The error for a refused connection."""
    text = str(error)
    refusal = next(refusal for refusal in _REFUSALS if refusal.phrase.search(text))
    plain = {"host": target.host, "port": target.port, "user": target.user, "name": target.name}
    quoted = {name: shlex.quote(str(value)) for name, value in plain.items()}
    return refusal.error(refusal.message.format(**plain, reason=reason_of(text)), hint=refusal.hint.format(**quoted))


def reason_of(text: str) -> str:
    """The first line of libpq's text that gives a reason, without the address in front."""
    line = first_line(text)
    return line.rpartition(" failed: ")[2].removeprefix("FATAL:").strip()
