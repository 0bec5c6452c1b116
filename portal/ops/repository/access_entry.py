"""One line of the access log: its content, and the hash that links it to the line before. This module is pure."""

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
"""The previous hash in the first line."""

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
    """The name of the discard action in earlier releases."""
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
        """The outcome for an exit code: usage errors, missing confirmation and locks held by others are refusals."""
        if exit_code == 0:
            return cls.DONE
        return cls.REFUSED if exit_code in (2, 3, 5) else cls.FAILED


class Found(StrEnum):
    """What was found at the end of the log before a line was appended."""

    REPLACED = "replaced"
    """The last line is not the recorded last line."""
    HEAD_MISSING = "head_missing"
    """There was no record of the last line, so a truncation could not be noticed."""
    HEAD_BEHIND = "head_behind"
    """There were lines after the recorded last one: not recorded in a crash or on a full disk, or inserted."""


@dataclass(frozen=True, kw_only=True)
class AccessEntry:
    """One line.

    Arguments:
        number: lines count from 1.
        who: the requesting user, as reported by the program that was called.
        host: the machine on which it was done.
        subject: the object: an archive, a restore, or the repository.
        details: further facts; never a secret.
        previous: the hash of the line before.
        hash: the SHA-256 of this line without it.
        torn: the SHA-256 of the torn line before this one, if there was one.
        found: what was wrong at the end of the log before this line; None if nothing.
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
        """The entry as types of JSON, without absent marks."""
        facts = codec.encode(self)
        return {"version": VERSION, **{name: value for name, value in facts.items() if name not in _MARKS or value}}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> AccessEntry:
        """The entry from the output of `to_dict`; raises ValueError, KeyError or TypeError if it is invalid."""
        entry = codec.decode(cls, facts, beside=_ENVELOPE)
        if entry.number < 1 or facts["version"] != VERSION:
            raise ValueError("no number, or a later version")
        return entry


Observer = Callable[[AccessEntry], None]
"""Receives every result when an operation has ended."""


@dataclass(frozen=True, kw_only=True)
class AccessReport:
    """The result of checking the whole log.

    Arguments:
        entries: the number of valid lines.
        last: number and hash of the last line; kept elsewhere, they prove later that no earlier line was changed.
        faults: changed, removed, inserted or moved lines; at most a hundred.
        notes: irregularities with an explanation, such as a line torn by a crash.
    """

    entries: int
    last: tuple[int, str]
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def intact(self) -> bool:
        """True if the log shows no tampering."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """The report as types of JSON."""
        return {
            "intact": self.intact,
            "entries": self.entries,
            "last_number": self.last[0],
            "last_hash": self.last[1],
            "faults": list(self.faults),
            "notes": list(self.notes),
        }


def sealed(entry: AccessEntry) -> AccessEntry:
    """The entry with its own hash added."""
    facts = entry.to_dict()
    del facts["hash"]
    return replace(entry, hash=sha256(canonical(facts)).hexdigest())


def canonical(facts: Mapping[str, Any]) -> bytes:
    """The canonical JSON of facts, which is hashed and written."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def decode(line: bytes) -> AccessEntry | None:
    """Decode a line; None if it is invalid."""
    try:
        return AccessEntry.from_dict(json.loads(line))
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None
