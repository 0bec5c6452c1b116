"""A compact table of the names in a tree and their kinds, for millions of names."""

from __future__ import annotations

from array import array
from enum import IntEnum
from typing import Final

_KIND_BITS: Final = 3
_KINDS: Final = (1 << _KIND_BITS) - 1
_WORD: Final = (1 << 64) - 1
_SLOTS: Final = 1 << 10


class Kind(IntEnum):
    """The kinds of entries; `IMPLIED` is a directory known only as a part of other names."""

    NOTHING = 0
    IMPLIED = 1
    DIRECTORY = 2
    FILE = 3
    SYMLINK = 4


_KIND_OF: Final = tuple(Kind)


class Names:
    """A table of names that takes 16 to 32 bytes for each, whatever its length.

    Of each name it keeps 61 bits of Python's hash, whose key differs from process to process. With a million names, two
    of them collide in about one process of five million, and almost never again when the process is repeated.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * _SLOTS))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def kind(self, name: str) -> Kind:
        """The kind of a name."""
        return _KIND_OF[self._slots[self._find(hash(name) << _KIND_BITS & _WORD)] & _KINDS]

    def add(self, name: str, kind: Kind) -> Kind:
        """Set the kind of a new name; return the kind that it had before."""
        key = hash(name) << _KIND_BITS & _WORD
        at = self._find(key)
        if there := self._slots[at] & _KINDS:
            return _KIND_OF[there]
        self._slots[at] = key | kind
        self._count += 1
        if 2 * self._count > len(self._slots):
            self._grow()
        return Kind.NOTHING

    def change(self, name: str, kind: Kind) -> None:
        """Change the kind of a name that is in the table."""
        key = hash(name) << _KIND_BITS & _WORD
        self._slots[self._find(key)] = key | kind

    def _find(self, key: int) -> int:
        """The slot of a key, or the free slot for it."""
        slots, last = self._slots, len(self._slots) - 1
        at = key >> _KIND_BITS & last
        while (found := slots[at]) and (found ^ key) > _KINDS:
            at = at + 1 & last
        return at

    def _grow(self) -> None:
        full, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
        for entry in filter(None, full):
            self._slots[self._find(entry & ~_KINDS)] = entry
