"""Connections to the portal's database that affect nobody else and never wait without a limit.

Of the caller's ``PG…`` variables only secrets and certificates are used. A connection pooler is refused: it shares
server connections, so the portal would get settings that pg_dump made. If the user may do that, event triggers on login
are disabled for our sessions.
"""

from __future__ import annotations

import select
import time
from dataclasses import replace
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from portal.ops.errors import ConfigurationError, ConnectionFailedError, PoolerError, SessionEndedError, SourceError
from portal.ops.postgres.environment import client_environment, only_our_variables
from portal.ops.postgres.refusals import POOLER_HINT, explain_refusal
from portal.ops.postgres.supported import refuse_old_source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from portal.ops.settings.load import DatabaseTarget

Connection = psycopg.Connection[tuple[Any, ...]]

_CONNECTION_SETTINGS: Final = {
    "connect_timeout": "10",
    "application_name": "kekkai-backup",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
# For the driver only: pg_dump writes a dump in the encoding set here, and should use the database's own.
_DRIVER_SETTINGS: Final = {"client_encoding": "UTF8", "hostaddr": "", "target_session_attrs": "any"}
# A time limit of the role must not end our session, row-level security must not hide rows silently, the server should
# notice within seconds that we are gone, and whoever may change the database's settings must not change the form in
# which it answers. Older servers lack some of these settings.
_SESSION_SETTINGS: Final = {
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "client_connection_check_interval": "10s",
    "row_security": "off",
    "default_transaction_read_only": "off",
    "array_nulls": "on",
    "bytea_output": "hex",
    "DateStyle": "ISO, YMD",
    "extra_float_digits": "1",
    "IntervalStyle": "postgres",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
}
# The database's owner can have functions and operators of his own found before the system's. They would run with our
# rights, which may be the administrator's: until this is done, each name has its schema, and no operator is used.
_SAFE_PATH: Final = b"SELECT pg_catalog.set_config('search_path', '', false)"
_APPLY_SETTINGS: Final = """
    SELECT set_config(name, value, false)
    FROM unnest(%s::text[], %s::text[]) AS wanted (name, value) JOIN pg_settings AS known USING (name)
"""
_OUR_PID: Final = b"SELECT pg_catalog.pg_backend_pid()"
_FIRST_ANSWER_SECONDS: Final = 30.0
_LONGEST_MILLISECONDS: Final = (1 << 31) - 1

# An encoding without conversion in the server and in Python: every byte is one character.
_BYTE_FOR_BYTE: Final = "LATIN1"
_NO_CONVERSION: Final = "conversion between UTF8"
_WITHOUT_CONVERSION: Final = ("SQL_ASCII", "MULE_INTERNAL")

_EVENT_TRIGGERS_OFF: Final = "-c event_triggers=off"
_EVENT_TRIGGERS_SINCE: Final = 170000
_MAY_SET: Final = "SELECT has_parameter_privilege('event_triggers', 'SET')"
_MAINTENANCE: Final = "postgres"
_PATIENCE_SECONDS: Final = 0.2
_REPLACED_PAUSES_SECONDS: Final = (0.02, 0.1, 0.4)
"""A session that waited for a swap is refused once; the next one reaches the new database."""

_silent: dict[tuple[str, int, str], bool] = {}
"""Whether a user of a server may disable event triggers, as far as known."""


def conninfo(target: DatabaseTarget, *, options: str = "") -> str:
    """Return libpq's connection string for a client program, without the password.

    Arguments:
        options: server settings of the session, as ``-c name=value``.

    Raises:
        ConfigurationError: the target has an option that libpq does not know.
    """
    given = {name: value for name, value in target.options.items() if name != "client_encoding"}
    return _conninfo(target, given, options)


def libpq_environment(target: DatabaseTarget) -> dict[str, str]:
    """Return the environment for a client program that connects to a database; it alone holds the password."""
    environment = client_environment()
    if target.password is not None:
        environment["PGPASSWORD"] = target.password.reveal()
    return environment


def connect(target: DatabaseTarget) -> Connection:
    """Open an autocommit connection that no time limit of the role or the database ends.

    It waits for a lock for at most `target.lock_seconds`. Where the database is being replaced, it connects to the new
    one.

    Raises:
        SessionEndedError: the server ended each of several sessions while it was opened (retryable).
        ConnectionFailedError: the server cannot be reached, or has no free connection (retryable).
        AccessDeniedError: the server refuses this user; `LoginRefusedError` if the role may not log in here.
        DatabaseAbsentError: the database does not exist.
        PoolerError: a connection pooler answers.
        ConfigurationError: the connection's options are invalid; `UnsupportedError` if the server is too old.
    """
    for pause in _REPLACED_PAUSES_SECONDS:
        try:
            return _connect(target)
        except SessionEndedError:
            time.sleep(pause)
    return _connect(target)


def _connect(target: DatabaseTarget) -> Connection:
    was_known = _key(target) in _silent
    options = silencing_options(target)
    try:
        return _open(target, options)
    except ConnectionFailedError as error:
        if was_known or isinstance(error, SessionEndedError):
            raise
        # The previous connection may still be closing, and count towards the user's connection limit.
        time.sleep(_PATIENCE_SECONDS)
        return _open(target, options)


def silencing_options(target: DatabaseTarget) -> str:
    """The server settings that disable event triggers for a session; empty if the user may not set them.

    They are needed before a session connects to the database, so another database of the server is asked once.

    Raises:
        ConnectionFailedError: the server cannot be reached.
    """
    key = _key(target)
    if key not in _silent and target.name != _MAINTENANCE:
        try:
            with _open(replace(target, name=_MAINTENANCE), "") as connection:
                _silent[key] = _may_silence(connection)
        except ConnectionFailedError:
            raise
        except (SourceError, ConfigurationError, psycopg.Error):  # opening the live database reports it
            _silent[key] = False
    return _EVENT_TRIGGERS_OFF if _silent.get(key, False) else ""


def _open(target: DatabaseTarget, options: str) -> Connection:
    password = None if target.password is None else target.password.reveal()
    connecting = _conninfo(target, {**target.options, **_DRIVER_SETTINGS, **_hostaddr(target)}, options)
    connection: Connection | None = None
    try:
        with only_our_variables():
            try:
                connection = psycopg.connect(connecting, password=password, autocommit=True)
            except psycopg.OperationalError as error:
                if _NO_CONVERSION not in str(error):
                    raise
                plain = make_conninfo(connecting, client_encoding=_BYTE_FOR_BYTE)
                connection = psycopg.connect(plain, password=password, autocommit=True)
        _settle(connection, target)
    except psycopg.OperationalError as error:
        if connection is not None:
            connection.close()
        raise explain_refusal(target, error) from error
    except BaseException as error:
        # After a signal, the traceback's frames keep a half-open connection alive. A server waiting for its password
        # would block DROP DATABASE in other sessions for a minute.
        clear_frames(error.__traceback__)
        if connection is not None:
            connection.close()
        raise
    return connection


def _settle(connection: Connection, target: DatabaseTarget) -> None:
    """Refuse a pooler before changing any setting; then make this session's settings."""
    if _process_that_answers(connection, target) != connection.info.backend_pid:
        raise PoolerError(
            f"what answers at {target.host}:{target.port} is a connection pooler, such as pgbouncer, and no server",
            hint=POOLER_HINT,
        )
    refuse_old_source(connection)
    connection.execute(_SAFE_PATH)
    settings = _SESSION_SETTINGS | {"lock_timeout": f"{milliseconds(target.lock_seconds)}ms"}
    if connection.info.parameter_status("server_encoding") in _WITHOUT_CONVERSION:
        settings["client_encoding"] = _BYTE_FOR_BYTE
    connection.execute(_APPLY_SETTINGS, [list(settings), list(settings.values())])


def milliseconds(seconds: float) -> int:
    """Milliseconds for a time limit of the server's: at least 1, since 0 means none, and at most what it takes."""
    return min(max(1, round(seconds * 1000)), _LONGEST_MILLISECONDS)


def _process_that_answers(connection: Connection, target: DatabaseTarget) -> int:
    """The number of the server's process, asked with a limit: a pooler lets a session wait for a free connection."""
    session, until = connection.pgconn, time.monotonic() + _FIRST_ANSWER_SECONDS
    ready = select.poll()
    ready.register(session.socket, select.POLLIN)
    session.send_query(_OUR_PID)
    while session.is_busy():
        if not ready.poll(max(0.0, until - time.monotonic()) * 1000):
            raise ConnectionFailedError(
                f"{target.host}:{target.port} took the connection, and has not answered for "
                f"{_FIRST_ANSWER_SECONDS:.0f} seconds",
                hint="the server is stuck: see its log. Or it is a connection pooler without a free connection: "
                f"{POOLER_HINT}",
            )
        session.consume_input()
    answer, value = session.get_result(), None
    if answer is not None and answer.status == psycopg.pq.ExecStatus.TUPLES_OK:
        value = answer.get_value(0, 0)
    elif answer is not None:
        raise psycopg.OperationalError(answer.get_error_message())
    while session.get_result() is not None:
        pass
    return int(value or 0)


def _conninfo(target: DatabaseTarget, given: Mapping[str, str], options: str) -> str:
    parameters = {**_CONNECTION_SETTINGS, **given}
    parameters["options"] = f"{given.get('options', '')} {options}".strip()
    try:
        return make_conninfo("", host=target.host, port=target.port, dbname=target.name, user=target.user, **parameters)
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(
            f"the database connection is invalid: {error}", hint="check the options of DD_DATABASE_URL"
        ) from error


def _hostaddr(target: DatabaseTarget) -> dict[str, str]:
    return {name: target.options[name] for name in ("hostaddr", "target_session_attrs") if name in target.options}


def _key(target: DatabaseTarget) -> tuple[str, int, str]:
    return target.host, target.port, target.user


def _may_silence(connection: Connection) -> bool:
    if connection.info.server_version < _EVENT_TRIGGERS_SINCE:
        return False
    row = connection.execute(_MAY_SET).fetchone()
    return row is not None and bool(row[0])
