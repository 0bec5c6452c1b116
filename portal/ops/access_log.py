"""The access log: who did what with the backups, when, and how it ended; `.access.jsonl` in the repository.

It is only ever appended to. Each line holds the hash of the one before and its own, the SHA-256 of its canonical JSON,
so a line that is changed, removed, put in or moved is found. That the end was cut off cannot be seen in the file, so
the number and hash of the last line are kept in a second one, `.access.head`.

A crash may leave the last line torn. Whoever appends next ends it, and says in the new line what was torn: so it is
known from a line that somebody has tampered with. Writing the log never breaks the work that is logged.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import socket
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import OpsError, RepositoryError
from portal.ops.job import utc_now
from portal.ops.logs import engine_log
from portal.ops.repository import give_to_owner, try_lock, write_durably

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from portal.ops.job import Clock
    from portal.ops.repository import Repository

log = engine_log("portal.ops.access_log")

NAME: Final = ".access.jsonl"
HEAD_NAME: Final = ".access.head"
START: Final = "0" * 64
"""What the first line has as the hash of the one before."""

_VERSION: Final = 1
_HINT: Final = "\n  hint: "
_LOCK_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.02
_TAIL_BYTES: Final = 64 << 10
_MOST_FAULTS: Final = 100


class Action(StrEnum):
    """What was done."""

    BACKUP = "backup"
    RESTORE = "restore"
    ROLLBACK = "rollback"
    FORGET = "forget"
    VERIFY = "verify"
    PRUNE = "prune"
    DRILL = "drill"
    PIN = "pin"
    UNPIN = "unpin"


class Outcome(StrEnum):
    """How it ended."""

    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"

    @classmethod
    def of(cls, exit_code: int) -> Outcome:
        """The outcome of what ends with that code: usage, no consent and a lock that somebody holds are refusals."""
        if exit_code == 0:
            return cls.DONE
        return cls.REFUSED if exit_code in (2, 3, 5) else cls.FAILED


@dataclass(frozen=True, kw_only=True)
class AccessEntry:
    """One line.

    Arguments:
        number: lines are counted from 1.
        who: the user, as whoever was asked to do it says.
        host: the machine on which it was done.
        subject: what it was done to: an archive, a restore, or the repository.
        details: what else there is to know; never a secret.
        previous: the hash of the line before.
        hash: the SHA-256 of this one without it.
        torn: the SHA-256 of the torn line before this one, where a crash has left one.
    """

    number: int
    moment: datetime
    who: str
    host: str
    action: Action
    subject: str
    outcome: Outcome
    details: Mapping[str, Any] = field(default_factory=dict)
    previous: str
    hash: str = ""
    torn: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The entry in the types of JSON."""
        return {
            "version": _VERSION,
            "number": self.number,
            "moment": self.moment.isoformat(),
            "who": self.who,
            "host": self.host,
            "action": self.action.value,
            "subject": self.subject,
            "outcome": self.outcome.value,
            "details": dict(self.details),
            "previous": self.previous,
            **({"torn": self.torn} if self.torn else {}),
            "hash": self.hash,
        }

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> AccessEntry:
        """The entry that `to_dict` made; ValueError, KeyError or TypeError where it makes no sense."""
        number, version = facts["number"], facts["version"]
        if type(number) is not int or number < 1 or version != _VERSION:
            raise ValueError("no number, or a later version")
        return cls(
            number=number,
            moment=datetime.fromisoformat(facts["moment"]),
            who=str(facts["who"]),
            host=str(facts["host"]),
            action=Action(facts["action"]),
            subject=str(facts["subject"]),
            outcome=Outcome(facts["outcome"]),
            details=dict(facts["details"]),
            previous=str(facts["previous"]),
            hash=str(facts["hash"]),
            torn=str(facts.get("torn", "")),
        )


Observer = Callable[[AccessEntry], None]
"""Is told of everything that is done, once it has ended."""


@dataclass(frozen=True, kw_only=True)
class AccessReport:
    """What a look at the whole log has found.

    Arguments:
        entries: how many lines make sense.
        last: number and hash of the last one: written down elsewhere, they prove later that nothing before changed.
        faults: lines that are changed, removed, put in or moved; at most a hundred of them.
        notes: what is odd and explained, such as a line that a crash has torn.
    """

    entries: int
    last: tuple[int, str]
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def intact(self) -> bool:
        """Whether nothing was tampered with, as far as the log can tell."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """The finding in the types of JSON."""
        return {
            "intact": self.intact,
            "entries": self.entries,
            "last_number": self.last[0],
            "last_hash": self.last[1],
            "faults": list(self.faults),
            "notes": list(self.notes),
        }


class AccessLog:
    """The access log of a repository."""

    def __init__(self, repository: Repository) -> None:
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
        """Add a line, durably; nothing where it could not be written, which is logged and breaks nothing."""
        try:
            with self._locked() as descriptor:
                entry = self._next(descriptor, action, subject, outcome, who, host, moment, details)
                self._write(descriptor, entry)
        except (OpsError, OSError) as error:
            log.warning("access_unlogged", action=action.value, error=str(error))
            return None
        return entry

    def entries(self) -> Iterator[AccessEntry]:
        """Every line that makes sense, the oldest first.

        Raises:
            RepositoryError: the log cannot be read.
        """
        for line in self._lines():
            if entry := _decode(line):
                yield entry

    def recent(self, most_bytes: int = 4 << 20) -> list[AccessEntry]:
        """The last lines that make sense, the oldest first: so many bytes of them.

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
            raise self._unreadable(error) from error
        return [entry for line in lines[1 if start else 0 :] if (entry := _decode(line))]

    def verify(self) -> AccessReport:
        """Whether every line is as it was written, and none is missing.

        Raises:
            RepositoryError: the log cannot be read.
        """
        check = _Check()
        for line in self._lines():
            check.line(line)
        try:
            head = self._head()
        except ValueError:
            head = None
            check.fault(f"{self.head_path.name} makes no sense, so that a cut at the end cannot be noticed")
        else:
            check.head(head, self.head_path.name)
        return check.report()

    # -- writing ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[int]:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            give_to_owner(descriptor, self.path.parent)
            deadline = time.monotonic() + _LOCK_SECONDS
            while not try_lock(descriptor, fcntl.LOCK_EX):
                if time.monotonic() >= deadline:
                    raise RepositoryError(f"{self.path} is locked by another process", hint="Look at that process.")
                time.sleep(_POLL_SECONDS)
            yield descriptor
        finally:
            os.close(descriptor)

    def _next(
        self,
        descriptor: int,
        action: Action,
        subject: str,
        outcome: Outcome,
        who: str,
        host: str,
        moment: datetime,
        details: Mapping[str, Any],
    ) -> AccessEntry:
        """The line that follows the last one; where the end was cut off, the gap is left to be seen."""
        number, previous, torn = _last(descriptor)
        try:
            head = self._head()
        except ValueError:
            head = None
        if head and head[0] > number:
            number, previous = head
        entry = AccessEntry(
            number=number + 1,
            moment=moment,
            who=who,
            host=host,
            action=action,
            subject=subject,
            outcome=outcome,
            details=details,
            previous=previous,
            torn=sha256(torn).hexdigest() if torn else "",
        )
        return _sealed(entry)

    def _write(self, descriptor: int, entry: AccessEntry) -> None:
        size = os.fstat(descriptor).st_size
        is_ended = size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
        data = (b"" if is_ended else b"\n") + _canonical(entry.to_dict()) + b"\n"
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, size)
            raise
        text = json.dumps({"version": _VERSION, "number": entry.number, "hash": entry.hash})
        write_durably(self.head_path, text.encode("ascii") + b"\n")

    # -- reading ----------------------------------------------------------------------------------------------------

    def _lines(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                yield from file
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> RepositoryError:
        return RepositoryError(
            f"cannot read {self.path}: {error.strerror}", hint="Run this as the user that the backups belong to."
        )

    def _head(self) -> tuple[int, str] | None:
        """Number and hash of the last line, as they were written down; ValueError where that makes no sense."""
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
    """What a witness will say of something that is being done.

    Arguments:
        subject: what it is done to, as far as that is known.
        outcome: how it ended; where nothing else is noted, and nothing raised, it is done.
    """

    subject: str
    outcome: Outcome = Outcome.DONE
    details: dict[str, Any] = field(default_factory=dict)

    def note(self, outcome: Outcome, **details: Any) -> None:
        """Say how it ended."""
        self.outcome = outcome
        self.details |= details


@dataclass(frozen=True, kw_only=True)
class Witness:
    """Writes down what one person or program does with a repository.

    Arguments:
        repository: the log is there.
        who: who it is; the user of this process by default.
        clock: what time it is.
        observer: is told too, also where nothing could be written down; raises nothing.
    """

    repository: Repository
    who: str | None = None
    clock: Clock = utc_now
    observer: Observer | None = None

    def saw(self, action: Action, subject: str, outcome: Outcome, **details: Any) -> None:
        """Write down what was done, to what, and how it ended; what is unknown of the details is left out."""
        error, _, hint = (details.pop("error", None) or "").partition(_HINT)
        details |= {"error": error, "hint": hint}
        known = {name: value for name, value in details.items() if value not in (None, "")}
        who, host, moment = self.name, socket.gethostname(), self.clock()
        logged = AccessLog(self.repository).append(action, subject, outcome, who=who, host=host, moment=moment, **known)
        if self.observer is not None:
            unlogged = AccessEntry(
                number=0,
                moment=moment,
                who=who,
                host=host,
                action=action,
                subject=subject,
                outcome=outcome,
                details=known,
                previous=START,
            )
            self.observer(logged or unlogged)

    @contextmanager
    def watching(self, action: Action, subject: str, **details: Any) -> Iterator[Seen]:
        """Write down what is done in this context, whether it ends well or not."""
        seen = Seen(subject=subject, details=details)
        started = time.monotonic()
        try:
            yield seen
        except BaseException as error:
            code = error.exit_code if isinstance(error, OpsError) else 1
            seen.note(Outcome.of(code), error=str(error) or type(error).__name__)
            raise
        finally:
            seen.details["seconds"] = round(time.monotonic() - started, 3)
            self.saw(action, seen.subject, seen.outcome, **seen.details)

    @property
    def name(self) -> str:
        """Who it is."""
        return self.who or process_user()


def brief(error: str | None) -> str:
    """An error without its hint."""
    return (error or "").partition(_HINT)[0]


def process_user() -> str:
    """The name of the user that this process runs as; the number where it has no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def sudo_user(environ: Mapping[str, str] = os.environ) -> str | None:
    """Who is at the keyboard, where sudo made another user of that person; for entry points to pass on."""
    return environ.get("SUDO_USER") or None


class _Check:
    """Goes through the lines, and says which do not follow from the one before."""

    def __init__(self) -> None:
        self._line = 0
        self._entries = 0
        self._last = (0, START)
        self._odd: tuple[int, bytes] | None = None  # a line that makes no sense, and may have been torn by a crash
        self._faults: list[str] = []
        self._notes: list[str] = []

    def line(self, line: bytes) -> None:
        """Look at the next line."""
        self._line += 1
        entry = _decode(line)
        if entry is None:
            self._settle_odd("")
            self._odd = (self._line, line)
            return
        self._settle_odd(entry.torn)
        if line.removesuffix(b"\n") != _canonical(_sealed(entry).to_dict()):
            self.fault(f"line {self._line}: entry {entry.number} was changed: its hash is not that of what it says")
        self._follow(entry)
        self._entries += 1
        self._last = (entry.number, entry.hash)

    def head(self, head: tuple[int, str] | None, name: str) -> None:
        """Hold the last line against what was written down of it."""
        self._settle_end()
        number, own = self._last
        if head is None:
            if number > 1:
                self.fault(f"{name} is missing, so that a cut at the end cannot be noticed")
        elif head[0] > number:
            self.fault(f"the end is cut off: {_missing(number + 1, head[0])}")
        elif head[0] == number and head[1] != own:
            self.fault(f"line {self._line}: entry {number} is not the one that was written, by {name}")
        elif head[0] < number:
            self._notes.append(f"{name} knows the entries up to {head[0]} only: a crash or a full disk kept it back")

    def fault(self, text: str) -> None:
        """Note what cannot be explained."""
        if len(self._faults) < _MOST_FAULTS:
            self._faults.append(text)

    def report(self) -> AccessReport:
        """All that was found."""
        return AccessReport(
            entries=self._entries, last=self._last, faults=tuple(self._faults), notes=tuple(self._notes)
        )

    def _follow(self, entry: AccessEntry) -> None:
        number, previous = self._last
        if entry.number == number + 1 and entry.previous != previous:
            self.fault(f"line {self._line}: entry {entry.number} does not follow the one before: one was exchanged")
        elif entry.number > number + 1:
            self.fault(f"line {self._line}: {_missing(number + 1, entry.number - 1)} before it")
        elif entry.number <= number:
            self.fault(f"line {self._line}: entry {entry.number} after {number} was put in, or moved")

    def _settle_odd(self, torn: str) -> None:
        """Say of the odd line before what it is: torn, where the line after it says so."""
        if self._odd is None:
            if torn:
                self.fault(f"line {self._line}: the torn line before it is missing")
            return
        number, text = self._odd
        self._odd = None
        if torn == sha256(text.removesuffix(b"\n")).hexdigest():
            self._notes.append(f"line {number} was torn by a crash; the next says so, and goes on from the one before")
        else:
            self.fault(f"line {number} makes no sense: it was changed or put in")

    def _settle_end(self) -> None:
        """Say of the last line what it is, where it makes no sense: without an end, a crash has torn it."""
        if self._odd and not self._odd[1].endswith(b"\n"):
            self._notes.append(f"line {self._odd[0]}, the last one, was torn by a crash")
            self._odd = None
        self._settle_odd("")


def _missing(first: int, last: int) -> str:
    return f"entry {first} is missing" if first == last else f"entries {first} to {last} are missing"


def _sealed(entry: AccessEntry) -> AccessEntry:
    """The entry with its own hash."""
    facts = entry.to_dict()
    del facts["hash"]
    return replace(entry, hash=sha256(_canonical(facts)).hexdigest())


def _canonical(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _decode(line: bytes) -> AccessEntry | None:
    try:
        return AccessEntry.from_dict(json.loads(line))
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None


def _last(descriptor: int) -> tuple[int, str, bytes]:
    """Number and hash of the last line that makes sense, and what is torn after the last end of a line."""
    size, window = os.fstat(descriptor).st_size, _TAIL_BYTES
    while True:
        start = max(0, size - window)
        tail = os.pread(descriptor, size - start, start)
        *lines, torn = tail.split(b"\n")
        if entry := _decode(torn):  # whole, but for the end of the line
            return entry.number, entry.hash, b""
        for line in reversed(lines if start == 0 else lines[1:]):
            if entry := _decode(line):
                return entry.number, entry.hash, torn
        if start == 0:
            return 0, START, torn
        window *= 8
