"""Explains a failed pg_dump by the last lines of its output."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from portal.ops.errors import (
    AccessDeniedError,
    ClientToolError,
    DumpFailedError,
    SchemaChangedError,
    SessionEndedError,
    SourceError,
)

_LINES = 3
_CHARACTERS = 600


@dataclass(frozen=True, kw_only=True)
class _Cause:
    """A phrase in the output, and what it means."""

    phrase: re.Pattern[str]
    error: type[SourceError]
    hint: str


def _cause(phrase: str, error: type[SourceError], hint: str) -> _Cause:
    return _Cause(phrase=re.compile(phrase), error=error, hint=hint)


_CAUSES = (
    _cause(
        "permission denied for large object",
        AccessDeniedError,
        "large objects have owners of their own: dump as their owner, or GRANT SELECT ON LARGE OBJECT",
    ),
    _cause("permission denied", AccessDeniedError, "as an administrator: GRANT pg_read_all_data TO the backup's user"),
    _cause(
        "row-level security", AccessDeniedError, "as an administrator: ALTER ROLE … BYPASSRLS for the backup's user"
    ),
    _cause("server version mismatch", ClientToolError, "install the client programs of the server's major version"),
    _cause(
        "invalid memory alloc request size|Cannot enlarge string buffer|out of memory",
        DumpFailedError,
        "a value of more than about 500 MB cannot be dumped, since a bytea takes twice its size as text: find it with "
        "octet_length, and keep it in a file or as a large object",
    ),
    _cause(
        "LOCK TABLE|lock timeout",
        SchemaChangedError,
        "another session holds a lock, perhaps a migration: see pg_stat_activity, and try again when it is done",
    ),
    _cause(
        "out of shared memory|max_locks_per_transaction",
        DumpFailedError,
        "raise max_locks_per_transaction in the server's configuration",
    ),
    _cause(
        "could not read block|invalid page|missing chunk|unexpected chunk|checksum",
        DumpFailedError,
        "the server's own files are damaged: see its log, run pg_amcheck, and keep every older backup",
    ),
    _cause(
        "terminating connection due to administrator command|just been dropped or renamed|"
        "invalid snapshot identifier|snapshot .* does not exist|snapshot from a different database",
        SessionEndedError,
        "a restore replaced the database, an administrator ended the session, or the server is stopping: try again",
    ),
    _cause(
        "terminating connection|server closed the connection|connection to server|SSL SYSCALL|could not receive data",
        DumpFailedError,
        "the server went away: see its log, and try again when it is up",
    ),
    _cause(
        "does not exist|cache lookup failed|could not open relation|could not find",
        SchemaChangedError,
        "the schema changed while it was read: try again",
    ),
    _cause("", DumpFailedError, "the reason is in pg_dump's own words; the server's log may say more"),
)


def explain_dump_failure(returncode: int, stderr: str) -> SourceError:
    """Return the error for a pg_dump with a non-zero exit status.

    Arguments:
        returncode: its exit code, negative for a signal.
        stderr: the end of its standard error.
    """
    if returncode < 0:
        return DumpFailedError(
            f"pg_dump was ended by {signal.Signals(-returncode).name}",
            hint="a user ended it, or the kernel did because memory was short: see dmesg",
        )
    cause = next(cause for cause in _CAUSES if cause.phrase.search(stderr))
    return cause.error(f"pg_dump failed: {_last_words(stderr) or f'exit code {returncode}'}", hint=cause.hint)


def _last_words(stderr: str) -> str:
    """The first error with its details, or the last lines if there is none."""
    lines = [line.removeprefix("pg_dump: ").strip() for line in stderr.splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if line.startswith("error:")]
    said = lines[errors[0] :][:_LINES] if errors else lines[-_LINES:]
    return "; ".join(said)[:_CHARACTERS]
