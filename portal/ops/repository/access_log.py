"""The access log: who did what with the backups, when, and with what result; `.access.jsonl` in the repository.

Lines are only appended. Each holds the hash of the line before and its own, the SHA-256 of its canonical JSON, so
changed, removed, inserted and moved lines are found. The file itself does not show a truncation, so a second file,
`.access.head`, holds the number and hash of the last line.

A crash may tear the last line. The next append ends it, and records in the new line what was torn, which distinguishes
it from tampering. An error in writing the log never breaks the logged operation.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import signal
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from portal.ops.errors import BusyError, OpsError
from portal.ops.repository.access_check import Check
from portal.ops.repository.access_entry import (
    START,
    VERSION,
    AccessEntry,
    AccessReport,
    Action,
    Found,
    Observer,
    Outcome,
    canonical,
    decode,
    sealed,
)
from portal.ops.repository.durable import append_line, open_own, write_durably
from portal.ops.repository.faults import explain
from portal.ops.repository.locks import holder, lock_within
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import utc_now

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from portal.ops.repository.repository import Repository
    from portal.ops.runtime.progress import Clock

log = engine_log("portal.ops.repository.access_log")

__all__ = [
    "START",
    "AccessEntry",
    "AccessLog",
    "AccessReport",
    "Action",
    "Observer",
    "Outcome",
    "Witness",
    "process_user",
    "sudo_user",
]

NAME: Final = ".access.jsonl"
HEAD_NAME: Final = ".access.head"

_HINT: Final = "\n  hint: "
_AGAIN: Final = (
    "Start it again to have it done; what was not finished has been undone, or the next one goes on with it."
)
_LOCK_SECONDS: Final = 10.0
_TAIL_BYTES: Final = 64 << 10
_MOST_TAIL_BYTES: Final = 4 << 20
"""If more bytes than this follow the recorded last line, the end is not examined."""


class AccessLog:
    """The access log of a repository."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.path = repository.path / NAME
        self.head_path = repository.path / HEAD_NAME

    def append(
        self,
        action: Action,
        subject: str,
        outcome: Outcome,
        *,
        who: str,
        host: str,
        moment: datetime,
        **details: Any,
    ) -> AccessEntry | None:
        """Append a line durably; return it, or None if it could not be written, which is only logged."""
        entry = _unlogged(action, subject, outcome, who=who, host=host, moment=moment, details=details)
        try:
            self._repository.refuse_absent()
            with self._locked() as descriptor:
                entry = self._next(descriptor, entry)
                self._write(descriptor, entry)
        except (OpsError, OSError) as error:
            log.warning("access_unlogged", action=action.value, error=str(error))
            return None
        return entry

    def entries(self) -> Iterator[AccessEntry]:
        """Every valid line, oldest first.

        Raises:
            RepositoryError: the log cannot be read.
        """
        for line in self._lines():
            if entry := decode(line):
                yield entry

    def recent(self, most_bytes: int = 4 << 20) -> list[AccessEntry]:
        """The valid lines in the last part of the log, of the given size in bytes, oldest first.

        Raises:
            RepositoryError: the log cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                start = max(0, os.fstat(file.fileno()).st_size - most_bytes)
                file.seek(start)
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise explain(error, "cannot read", self.path) from error
        return [entry for line in lines[1 if start else 0 :] if (entry := decode(line))]

    def newest_first(self) -> Iterator[AccessEntry]:
        """Every valid line, newest first; only as much is read as is asked for.

        Raises:
            RepositoryError: the log cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                end, rest = os.fstat(file.fileno()).st_size, b""
                while end:
                    start = max(0, end - _TAIL_BYTES)
                    first, *lines = (os.pread(file.fileno(), end - start, start) + rest).split(b"\n")
                    yield from (entry for line in reversed(lines) if (entry := decode(line)))
                    end, rest = start, first
                if entry := decode(rest):
                    yield entry
        except FileNotFoundError:
            return
        except OSError as error:
            raise explain(error, "cannot read", self.path) from error

    def verify(self) -> AccessReport:
        """Check that every line is unchanged and none is missing.

        Raises:
            RepositoryError: the log cannot be read.
        """
        check = Check()
        for line in self._lines():
            check.line(line)
        try:
            head = self._head()
        except ValueError:
            head = None
            check.fault(f"{self.head_path.name} is invalid, so a truncated log cannot be noticed")
        else:
            check.head(head, self.head_path.name)
        return check.report()

    # -- writing ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[int]:
        descriptor = open_own(self.path, os.O_RDWR | os.O_APPEND)
        try:
            if not lock_within(descriptor, fcntl.LOCK_EX, _LOCK_SECONDS):
                raise BusyError(f"{self.path} is locked by {holder(descriptor)}", hint="Look at that process.")
            yield descriptor
        finally:
            os.close(descriptor)

    def _next(self, descriptor: int, entry: AccessEntry) -> AccessEntry:
        """The entry as the line after the last one; a truncated or exchanged end is left for the check to find."""
        try:
            head = self._head()
        except ValueError:
            head = None
        end = _last(descriptor, head[0] if head else 0)
        number, previous, torn = end.number, end.hash, end.torn
        found = _found(end, head)
        if head and (head[0] > number or (head[0] == number and found)):
            number, previous = head
        torn_hash = sha256(torn).hexdigest() if torn else ""
        return sealed(replace(entry, number=number + 1, previous=previous, torn=torn_hash, found=found))

    def _write(self, descriptor: int, entry: AccessEntry) -> None:
        append_line(descriptor, canonical(entry.to_dict()) + b"\n")
        text = json.dumps({"version": VERSION, "number": entry.number, "hash": entry.hash})
        write_durably(self.head_path, text.encode("ascii") + b"\n")

    # -- reading ----------------------------------------------------------------------------------------------------

    def _lines(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                yield from file
        except FileNotFoundError:
            return
        except OSError as error:
            raise explain(error, "cannot read", self.path) from error

    def _head(self) -> tuple[int, str] | None:
        """The recorded number and hash of the last line; ValueError if the record is invalid."""
        try:
            found = json.loads(self.head_path.read_bytes())
            number, own = int(found["number"]), str(found["hash"])
        except FileNotFoundError:
            return None
        except (ArithmeticError, KeyError, RecursionError, TypeError, OSError) as error:
            raise ValueError(str(error)) from error
        return number, own


@dataclass(kw_only=True)
class Seen:
    """The entry that a witness will write about an operation in progress.

    Arguments:
        subject: the object, as far as known.
        outcome: the outcome; success by default unless an exception is raised.
    """

    subject: str
    outcome: Outcome = Outcome.DONE
    details: dict[str, Any]

    def note(self, outcome: Outcome, **details: Any) -> None:
        """Set the outcome."""
        self.outcome = outcome
        self.details |= details


@dataclass(frozen=True, kw_only=True)
class Witness:
    """Records what one person or program does with a repository.

    Arguments:
        repository: holds the log.
        who: the requester; by default the user of this process.
        clock: returns the current time.
        observer: also receives each entry, even if it could not be written; it must not raise.
    """

    repository: Repository
    who: str | None = None
    clock: Clock = utc_now
    observer: Observer | None = None

    def saw(self, action: Action, subject: str, outcome: Outcome, **details: Any) -> None:
        """Record an action, its object and its outcome; unknown details are left out."""
        error, _, hint = (details.pop("error", None) or "").partition(_HINT)
        details |= {"error": error, "hint": hint}
        known = {name: value for name, value in details.items() if value not in (None, "")}
        who, host, moment = self.name, socket.gethostname(), self.clock()
        logged = AccessLog(self.repository).append(action, subject, outcome, who=who, host=host, moment=moment, **known)
        if self.observer is not None:
            self.observer(
                logged or _unlogged(action, subject, outcome, who=who, host=host, moment=moment, details=known)
            )

    @contextmanager
    def watching(self, action: Action, subject: str, **details: Any) -> Iterator[Seen]:
        """Record the operation in this context, whether it succeeds or not."""
        seen = Seen(subject=subject, details=details)
        started = time.monotonic()
        try:
            yield seen
        except BaseException as error:
            code = error.exit_code if isinstance(error, OpsError) else 1
            seen.note(Outcome.of(code), error=_why(error))
            raise
        finally:
            seen.details["seconds"] = round(time.monotonic() - started, 3)
            self.saw(action, seen.subject, seen.outcome, **seen.details)

    @property
    def name(self) -> str:
        """The requester."""
        return self.who or process_user()


def _unlogged(
    action: Action, subject: str, outcome: Outcome, *, who: str, host: str, moment: datetime, details: Mapping[str, Any]
) -> AccessEntry:
    """An entry that has no place in the log yet."""
    return AccessEntry(
        number=0,
        moment=moment,
        who=who,
        host=host,
        action=action,
        subject=subject,
        outcome=outcome,
        details=details,
        previous=START,
    )


def _why(error: BaseException) -> str:
    """The text of an exception; some have only a number or a type."""
    if isinstance(error, OpsError):
        return str(error)
    number = getattr(error, "number", None)  # raised by a signal handler, as commands install it
    if isinstance(number, int) and number in set(signal.Signals):
        return f"stopped by {signal.Signals(number).name}{_HINT}{_AGAIN}"
    if isinstance(error, KeyboardInterrupt):
        return f"stopped by SIGINT{_HINT}{_AGAIN}"
    if isinstance(error, SystemExit):
        return f"the process was asked to end{_HINT}A worker that is started begins it again; otherwise start it again."
    if type(error).__name__ == "SoftTimeLimitExceeded":  # a worker's exception, unknown to the engine
        return f"it took longer than a task may{_HINT}Find out what it waited for, or raise BACKUP_TASK_TIMEOUT."
    return f"{str(error) or type(error).__name__}{_HINT}Look at the log of that time, and start it again."


def brief(error: str | None) -> str:
    """An error without its hint."""
    return (error or "").partition(_HINT)[0]


def process_user() -> str:
    """The name of the user of this process, or its number if it has no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def sudo_user(environ: Mapping[str, str] = os.environ) -> str | None:
    """The user who called sudo, if any, for entry points to pass on."""
    return environ.get("SUDO_USER") or None


class _End(NamedTuple):
    """The end of the log.

    Arguments:
        number: the number of the last valid line.
        hash: its hash.
        torn: what follows the last line end.
        known: the hash of the line with the number of the recorded last one, if it is near the end.
    """

    number: int
    hash: str
    torn: bytes
    known: str = ""


def _found(end: _End, head: tuple[int, str] | None) -> Found | None:
    """What is wrong at the end of the log; the number of the next line shows a truncation."""
    if head is None:
        return Found.HEAD_MISSING if end.number > 1 else None
    number, own = head
    if number > end.number:
        return None
    if end.known and end.known != own:
        return Found.REPLACED
    return Found.HEAD_BEHIND if number < end.number else None


def _last(descriptor: int, known: int) -> _End:
    """Examine the end of the log.

    Arguments:
        known: the number of the recorded last line.
    """
    size, window = os.fstat(descriptor).st_size, _TAIL_BYTES
    while True:
        start = max(0, size - window)
        *lines, torn = os.pread(descriptor, size - start, start).split(b"\n")
        if entry := decode(torn):  # complete but for the line end
            lines.append(torn)
            torn = b""
        entries = [entry for line in lines[1 if start else 0 :] if (entry := decode(line))]
        if entries and (start == 0 or entries[0].number <= known or window > _MOST_TAIL_BYTES):
            hashes = {entry.number: entry.hash for entry in entries}
            return _End(entries[-1].number, entries[-1].hash, torn, hashes.get(known, ""))
        if start == 0:
            return _End(0, START, torn)
        window *= 8
