"""One line of the access log: what it says, and the hash that binds it to the line before. Values in, values out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime  # noqa: TC003  (the codec reads the annotations)
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final

from portal.ops import codec

START: Final = "0" * 64
"""What the first line has as the hash of the one before."""

VERSION: Final = 1
_ENVELOPE: Final = frozenset(["version"])
_MARKS: Final = ("torn", "found")


class Action(StrEnum):
    """The actions."""

    BACKUP = "backup"
    RESTORE = "restore"
    ROLLBACK = "rollback"
    DISCARD = "discard"
    FORGET = "forget"
    """What earlier releases called the discarding of rollback data."""
    VERIFY = "verify"
    PRUNE = "prune"
    DRILL = "drill"
    PIN = "pin"
    UNPIN = "unpin"
    OFFSITE_COPY = "offsite.copy"
    OFFSITE_VERIFY = "offsite.verify"
    OFFSITE_FETCH = "offsite.fetch"
    OFFSITE_READ = "offsite.read"
    OFFSITE_PRUNE = "offsite.prune"


class Outcome(StrEnum):
    """The outcomes."""

    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"

    @classmethod
    def of(cls, exit_code: int) -> Outcome:
        """The outcome of what ends with that code: usage, no consent and a lock that somebody holds are refusals."""
        if exit_code == 0:
            return cls.DONE
        return cls.REFUSED if exit_code in (2, 3, 5) else cls.FAILED


class Found(StrEnum):
    """The state of the log's end, as found before a line was appended."""

    REPLACED = "replaced"
    """An entry is not the one that was written down as the last."""
    HEAD_MISSING = "head_missing"
    """It was not written down which entry was the last, so that a cut could not be noticed."""
    HEAD_BEHIND = "head_behind"
    """Entries were there that were not written down: a crash or a full disk kept that back, or they were put in."""


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
        found: what was not as it should be at the end that this line follows; nothing where all was.
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
    found: Found | None = None

    def to_dict(self) -> dict[str, Any]:
        """The entry in the types of JSON, without the marks that it does not have."""
        facts = codec.encode(self)
        return {"version": VERSION, **{name: value for name, value in facts.items() if name not in _MARKS or value}}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> AccessEntry:
        """The entry that `to_dict` made; ValueError, KeyError or TypeError where it is invalid."""
        entry = codec.decode(cls, facts, beside=_ENVELOPE)
        if entry.number < 1 or facts["version"] != VERSION:
            raise ValueError("no number, or a later version")
        return entry


Observer = Callable[[AccessEntry], None]
"""Is told of everything that is done, once it has ended."""


@dataclass(frozen=True, kw_only=True)
class AccessReport:
    """The result of verifying the whole log.

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
        """True if nothing was tampered with, as far as the log can tell."""
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


def sealed(entry: AccessEntry) -> AccessEntry:
    """The entry with its own hash."""
    facts = entry.to_dict()
    del facts["hash"]
    return replace(entry, hash=sha256(canonical(facts)).hexdigest())


def canonical(facts: Mapping[str, Any]) -> bytes:
    """The one text that facts have in JSON: what is hashed, and written."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def decode(line: bytes) -> AccessEntry | None:
    """The entry of a line; nothing where it is invalid."""
    try:
        return AccessEntry.from_dict(json.loads(line))
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None
