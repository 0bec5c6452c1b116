"""All errors that the engine raises deliberately.

    OpsError                       exit 1   something did not work
    ├── ConfigurationError         exit 2   a setting or an argument is invalid
    │   ├── SettingsError          exit 2   settings are invalid; the message has a line for each
    │   ├── UnsupportedError       exit 2   it is valid, but unsupported by this release
    │   └── IdentityError          exit 2   an age identity is missing, or does not fit
    ├── NotConfirmedError          exit 3   not confirmed
    ├── NotIntactError             exit 4   an archive is damaged, incomplete or hostile
    ├── BusyError                  exit 5   another process holds a lock            (retry)
    ├── SourceError                exit 1   a source cannot be read
    │   ├── ClientToolError        exit 1   pg_dump or pg_restore is missing, or too old for the server
    │   ├── ConnectionFailedError  exit 1   the server cannot be reached            (retry)
    │   │   └── SessionEndedError  exit 1   the server ended the session            (retry)
    │   ├── AccessDeniedError      exit 1   the server refused the user, or access to an object
    │   │   └── LoginRefusedError  exit 1   wrong password, or no such user
    │   ├── DatabaseAbsentError    exit 1   the server has no such database
    │   ├── PoolerError            exit 1   a connection pooler answers, not a server
    │   ├── DumpFailedError        exit 1   pg_dump started and did not finish      (retry)
    │   │   └── SchemaChangedError exit 1   tables changed meanwhile                (retry)
    │   └── UnsteadyError          exit 1   files vanished during the backup        (retry)
    ├── RepositoryError            exit 1   the directory of archives cannot be read or written
    │   ├── DiskFullError          exit 1   no space left
    │   ├── RepositoryAbsentError  exit 1   the repository used at a path is absent
    │   └── ArchiveAbsentError     exit 2   no archive of that name
    ├── StorageError               exit 1   an off-site store cannot be read or written
    │   ├── StoreUnreachableError  exit 1   the store does not answer               (retry)
    │   ├── StoreDeniedError       exit 1   the store refused the credentials, or the request
    │   ├── StoreFullError         exit 1   the store has no space left
    │   ├── ObjectExistsError      exit 1   an object of that name exists
    │   └── ObjectAbsentError      exit 1   no object of that name
    ├── CommandFailedError         exit 1   the operator's command before the work failed, so it was not started
    └── RestoreError               exit 1   a restore stopped; the live data is unchanged

A message says what happened, a hint what to do next. Only entry points turn an error into an exit. As text, message and
hint are one line each, except for settings; control characters in them, for instance from a file name, are escaped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence


def _one_line(text: str) -> str:
    """The text with control characters escaped, like `units.printable`, which must not be imported here."""
    return text if text.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


class OpsError(Exception):
    """The root of the error tree.

    Arguments:
        message: what happened, in one sentence without a full stop.
        hint: what a person can do; required for errors that reach a person.
    """

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        message, hint = (_one_line(text) for text in (self.message, self.hint))
        return f"{message}\n  hint: {hint}" if hint else message


class ConfigurationError(OpsError):
    """A setting or an argument is invalid."""

    exit_code = 2


class SettingsError(ConfigurationError):
    """Some settings are invalid.

    Arguments:
        faults: what is wrong, one for each setting.
    """

    def __init__(self, faults: Sequence[str], *, hint: str) -> None:
        super().__init__("some settings cannot be used: " + "; ".join(faults), hint=hint)
        self.faults = tuple(faults)

    def __str__(self) -> str:
        lines = ["some settings cannot be used:", *map(_one_line, self.faults), f"hint: {_one_line(self.hint)}"]
        return "\n  ".join(lines)


class UnsupportedError(ConfigurationError):
    """A valid request that this release cannot carry out."""


class IdentityError(ConfigurationError):
    """An age identity is missing, damaged, or cannot decrypt the data."""


class NotConfirmedError(OpsError):
    """A step that changes live data was not confirmed; nothing was changed."""

    exit_code = 3


class NotIntactError(OpsError):
    """An archive is damaged, incomplete, or not what it claims to be."""

    exit_code = 4


class BusyError(OpsError):
    """Another process holds a lock that is needed."""

    exit_code = 5
    retryable = True


class SourceError(OpsError):
    """Something that should be backed up cannot be read."""


class ClientToolError(SourceError):
    """A PostgreSQL client program is missing, or too old for the server."""


class ConnectionFailedError(SourceError):
    """The database server cannot be reached."""

    retryable = True


class SessionEndedError(ConnectionFailedError):
    """The server ended the session, as when a restore replaces the database."""


class AccessDeniedError(SourceError):
    """The server refused user or password, or the user cannot read a table."""


class LoginRefusedError(AccessDeniedError):
    """The server refused the password, or has no such user."""


class DatabaseAbsentError(SourceError):
    """The server has no such database."""


class PoolerError(SourceError):
    """A connection pooler answers where a server should."""


class DumpFailedError(SourceError):
    """pg_dump started and did not finish."""

    retryable = True


class SchemaChangedError(DumpFailedError):
    """Tables were created or dropped while pg_dump was reading the schema."""


class UnsteadyError(SourceError):
    """The source changed so much during the backup that the data read is inconsistent."""

    retryable = True


class RepositoryError(OpsError):
    """The directory of archives cannot be read or written."""


class DiskFullError(RepositoryError):
    """There is no space left where it is needed."""


class RepositoryAbsentError(RepositoryError):
    """The repository used at this path before is absent; its volume may not be mounted."""


class ArchiveAbsentError(RepositoryError):
    """The repository has no archive of that name."""

    exit_code = 2


class StorageError(OpsError):
    """An off-site store cannot be read or written."""


class StoreUnreachableError(StorageError):
    """The store does not answer, or the connection was lost."""

    retryable = True


class StoreDeniedError(StorageError):
    """The store refused the credentials, or they do not permit the request."""


class StoreFullError(StorageError):
    """The store has no space left."""


class ObjectExistsError(StorageError):
    """An object of that name exists; objects are never overwritten."""


class ObjectAbsentError(StorageError):
    """The store has no object of that name."""


class CommandFailedError(OpsError):
    """The operator's command before the work failed, so the work was not started."""


class RestoreError(OpsError):
    """A restore stopped; the live data is unchanged."""
