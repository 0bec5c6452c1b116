"""Checks the hash chain of an audit log: is the restored log unbroken, and does the live log continue it?

An audit log is JSON lines, each with the hash of the line before. The portal specifies neither the key nor what is
hashed, so several are accepted: the key is one of `LINK_KEYS`, its value either the SHA-256 of the previous line (its
bytes without the line end) or that line's own `hash`. The first line may refer to anything, since logs are rotated.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINK_KEYS: Final = ("prev_hash", "previous_hash", "prev", "previous")
OWN_KEYS: Final = ("hash", "entry_hash")
LINE_BYTES: Final = 1 << 20
"""A longer line, in bytes, is not an entry."""


class Chain(StrEnum):
    """The state of the hash chain in a file."""

    UNBROKEN = "unbroken"
    BROKEN = "broken"
    ABSENT = "absent"
    EMPTY = "empty"


class Continuation(StrEnum):
    """The relation of the live log to the restored one."""

    SAME = "same"
    CONTINUED = "continued"
    FOLLOWS = "follows"
    OLDER = "older"
    DIFFERENT = "different"
    NO_LIVE_LOG = "no_live_log"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, kw_only=True)
class ChainReport:
    """The result for one restored log.

    Arguments:
        name: the file's name.
        chain: whether each line has the hash of the line before.
        entries: the number of lines.
        broken_at: the number, from 1, of the first line that does not follow the one before.
        continuation: whether the live log continues the restored one.
    """

    name: str
    chain: Chain
    entries: int
    broken_at: int | None
    continuation: Continuation

    def lines(self) -> list[str]:
        """The report in plain words."""
        said = {
            Chain.UNBROKEN: f"its hash chain is unbroken over {self.entries:,} entries",
            Chain.BROKEN: f"its hash chain is broken at line {self.broken_at}",
            Chain.EMPTY: "it is empty",
            Chain.ABSENT: "its entries carry no hash of the one before, so nothing can be said of a chain",
        }[self.chain]
        return [f"{self.name}: {said}; {_CONTINUATIONS[self.continuation]}."]

    def warnings(self) -> list[str]:
        """Warnings for people: a broken chain, or a live log that does not continue this one, or cannot be read."""
        log = f"the audit log {self.name}"
        found = []
        if self.chain is Chain.BROKEN:
            found.append(f"{log} as it is in the backup: its hash chain is broken at line {self.broken_at}")
        if self.continuation in _DOUBTFUL:
            found.append(f"{log}, held against the restored one: {_CONTINUATIONS[self.continuation]}")
        return found


_DOUBTFUL: Final = frozenset({Continuation.OLDER, Continuation.DIFFERENT, Continuation.UNREADABLE})
_CONTINUATIONS: Final = {
    Continuation.SAME: "the live log is the same",
    Continuation.CONTINUED: "the live log starts with it and goes on",
    Continuation.FOLLOWS: "the live log starts with the entry that follows its last",
    Continuation.OLDER: "it starts with the live log and goes on: the live log lacks its last entries",
    Continuation.DIFFERENT: "the live log does not continue it",
    Continuation.NO_LIVE_LOG: "there is no live log of that name",
    Continuation.UNREADABLE: "the live log cannot be read, so they could not be compared",
}


def check_logs(restored: Path, live: Path) -> list[ChainReport]:
    """Check a restored log, or each log in a directory.

    Arguments:
        restored: the file or directory that was restored.
        live: the live file or directory at that place.

    Raises:
        OSError: the restored one cannot be read.
    """
    if not restored.is_dir():
        return [check_log(restored, live, name=live.name)]
    files = sorted(path for path in restored.rglob("*") if path.is_file() and not path.is_symlink())
    names = [path.relative_to(restored) for path in files]
    return [check_log(path, live / name, name=str(name)) for path, name in zip(files, names, strict=True)]


def check_log(restored: Path, live: Path, *, name: str) -> ChainReport:
    """Check a restored log against the live one; both are read line by line."""
    links = _Links()
    last = b""
    for line in _lines(restored):
        links.add(line)
        last = line
    return ChainReport(
        name=name,
        chain=links.chain(),
        entries=links.entries,
        broken_at=links.broken_at,
        continuation=_continuation(restored, live, last),
    )


class _Links:
    """Follows a hash chain line by line."""

    def __init__(self) -> None:
        self.entries = 0
        self.broken_at: int | None = None
        self._linked = 0
        self._before: frozenset[str] = frozenset()

    def add(self, line: bytes) -> None:
        """Check the next line."""
        self.entries += 1
        entry = _entry(line)
        link = _link(entry)
        self._linked += link is not None
        follows = link in self._before if self.entries > 1 else entry is not None
        if not follows and self.broken_at is None:
            self.broken_at = self.entries
        self._before = _hashes(line, entry)

    def chain(self) -> Chain:
        """The state of the chain."""
        if not self.entries:
            return Chain.EMPTY
        if not self._linked:
            return Chain.ABSENT
        return Chain.UNBROKEN if self.broken_at is None else Chain.BROKEN


class _UnreadableError(Exception):
    """The live log cannot be read."""


def _continuation(restored: Path, live: Path, last: bytes) -> Continuation:
    """Compare with the live log; that it cannot be read may be the reason for the restore, and is no error."""
    try:
        return _compared(restored, live, last) if os.path.isfile(live) else Continuation.NO_LIVE_LOG
    except _UnreadableError:
        return Continuation.UNREADABLE


def _compared(restored: Path, live: Path, last: bytes) -> Continuation:
    ours, theirs = _lines(restored), _live_lines(live)
    first = next(theirs, None)
    if first is not None and _link(_entry(first)) in _hashes(last, _entry(last)):
        return Continuation.FOLLOWS
    theirs = _live_lines(live)
    for line in ours:
        other = next(theirs, None)
        if other is None:
            return Continuation.OLDER
        if other != line:
            return Continuation.DIFFERENT
    return Continuation.SAME if next(theirs, None) is None else Continuation.CONTINUED


def _lines(path: Path) -> Iterator[bytes]:
    """The lines without their ends; a line over the length limit comes in pieces."""
    with path.open("rb") as file:
        while line := file.readline(LINE_BYTES):
            yield line.rstrip(b"\r\n")


def _live_lines(path: Path) -> Iterator[bytes]:
    try:
        yield from _lines(path)
    except OSError as error:
        raise _UnreadableError from error


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _link(entry: dict[str, Any] | None) -> str | None:
    """The hash of the previous entry that an entry contains, or None if it has no such key."""
    for key in LINK_KEYS:
        if entry and key in entry:
            return str(entry[key] or "").removeprefix("sha256:").lower()
    return None


def _hashes(line: bytes, entry: dict[str, Any] | None) -> frozenset[str]:
    """The values by which the next entry may refer to this one."""
    own = {str(entry[key]).removeprefix("sha256:").lower() for key in OWN_KEYS if entry and entry.get(key)}
    return frozenset({sha256(line).hexdigest(), *own})
