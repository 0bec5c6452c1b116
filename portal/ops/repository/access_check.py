"""Checks an access log: every line must follow from the one before, and the last must be the recorded last."""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from portal.ops.repository.access_entry import START, AccessEntry, AccessReport, Found, canonical, decode, sealed

_MOST_FAULTS: Final = 100


class Check:
    """Checks the lines in order, and reports those that do not follow from the one before."""

    def __init__(self) -> None:
        self._line = 0
        self._entries = 0
        self._last = (0, START)
        self._odd: tuple[int, bytes] | None = None  # an invalid line, which a crash may have torn
        self._faults: list[str] = []
        self._notes: list[str] = []

    def line(self, line: bytes) -> None:
        """Check the next line."""
        self._line += 1
        entry = decode(line)
        if entry is None:
            self._settle_odd("")
            self._odd = (self._line, line)
            return
        self._settle_odd(entry.torn)
        if line.removesuffix(b"\n") != canonical(sealed(entry).to_dict()):
            self.fault(f"line {self._line}: entry {entry.number} was changed: its hash is not that of what it says")
        self._follow(entry)
        self._recall(entry)
        self._entries += 1
        self._last = (entry.number, entry.hash)

    def head(self, head: tuple[int, str] | None, name: str) -> None:
        """Compare the last line with the record of it."""
        self._settle_end()
        number, own = self._last
        if head is None:
            if number > 1:
                self.fault(f"{name} is missing, so that a cut at the end cannot be noticed")
        elif head[0] > number:
            self.fault(f"the log is truncated: {_missing(number + 1, head[0])}")
        elif head[0] == number and head[1] != own:
            self.fault(f"line {self._line}: entry {number} is not the one that was written, by {name}")
        elif head[0] < number:
            self._notes.append(f"{name} knows the entries up to {head[0]} only: a crash or a full disk kept it back")

    def fault(self, text: str) -> None:
        """Add a fault without an innocent explanation."""
        if len(self._faults) < _MOST_FAULTS:
            self._faults.append(text)

    def report(self) -> AccessReport:
        """The findings."""
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

    def _recall(self, entry: AccessEntry) -> None:
        """Report what was found when a line was appended, even if the end looks right again."""
        if entry.found is None:
            return
        text = f"line {self._line}: when entry {entry.number} was written, {_FOUND[entry.found]}"
        if entry.found is Found.HEAD_BEHIND:
            self._notes.append(text)
        else:
            self.fault(text)

    def _settle_odd(self, torn: str) -> None:
        """Explain an invalid line: torn by a crash, if the next line says so; otherwise a fault."""
        if self._odd is None:
            if torn:
                self.fault(f"line {self._line}: the torn line before it is missing")
            return
        number, text = self._odd
        self._odd = None
        if torn == sha256(text.removesuffix(b"\n")).hexdigest():
            self._notes.append(f"line {number} was torn by a crash; the next says so, and goes on from the one before")
        else:
            self.fault(f"line {number} is invalid: it was changed or put in")

    def _settle_end(self) -> None:
        """Explain an invalid last line: torn by a crash, if it has no line end."""
        if self._odd and not self._odd[1].endswith(b"\n"):
            self._notes.append(f"line {self._odd[0]}, the last one, was torn by a crash")
            self._odd = None
        self._settle_odd("")


_FOUND: Final = {
    Found.REPLACED: "an entry before it was not the one that had been written",
    Found.HEAD_MISSING: "it was not known which entry had been the last, so that a cut could not be noticed",
    Found.HEAD_BEHIND: "the entries before it were not all written down: a crash or a full disk kept that back",
}


def _missing(first: int, last: int) -> str:
    return f"entry {first} is missing" if first == last else f"entries {first} to {last} are missing"
