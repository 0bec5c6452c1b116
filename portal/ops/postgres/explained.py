"""Turns a server's errors into errors of the engine, with hints."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg

from portal.ops.errors import AccessDeniedError, ConnectionFailedError, SessionEndedError, SourceError
from portal.ops.postgres.locks import locked_out
from portal.ops.postgres.refusals import reason_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.settings.load import DatabaseTarget


@contextmanager
def explained_errors(target: DatabaseTarget) -> Iterator[None]:
    """Turn errors of the driver on an open connection into errors of the engine.

    Raises:
        AccessDeniedError: the user lacks a privilege.
        BusyError: another session held a lock for too long (retryable).
        SessionEndedError: the server ended the session, as when a restore replaces the database (retryable).
        ConnectionFailedError: the connection was lost (retryable).
        SourceError: any other error of the server.
    """
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        hint = f"as an administrator: give user {target.user} the missing privileges"
        raise AccessDeniedError(f"the server refuses: {reason_of(str(error))}", hint=hint) from error
    except psycopg.errors.LockNotAvailable as error:
        raise locked_out(target) from error
    except psycopg.errors.AdminShutdown as error:
        raise SessionEndedError(
            f"the server at {target.host}:{target.port} ended the session: {reason_of(str(error))}",
            hint="a restore replaced the database, an administrator ended the session, or the server is stopping: "
            "try again",
        ) from error
    except psycopg.OperationalError as error:
        raise ConnectionFailedError(
            f"lost the server at {target.host}:{target.port}: {reason_of(str(error))}",
            hint="see the server's log, and try again when it is up",
        ) from error
    except psycopg.Error as error:
        raise SourceError(f"the server refuses: {reason_of(str(error))}", hint="see the server's log") from error
