"""Which names a tree has, and what each is: a table that is small enough for millions of them."""

from __future__ import annotations

from array import array
from enum import IntEnum
from typing import Final

_KIND_BITS: Final = 3
_KINDS: Final = (1 << _KIND_BITS) - 1
_WORD: Final = (1 << 64) - 1
_SLOTS: Final = 1 << 10


class Kind(IntEnum):
    """The kinds of entries; `IMPLIED` is a directory that has been seen only as a part of other names."""

    NOTHING = 0
    IMPLIED = 1
    DIRECTORY = 2
    FILE = 3
    SYMLINK = 4


_KIND_OF: Final = tuple(Kind)


class Names:
    """A table of names, with 16 to 32 bytes for each, however long it is.

    Of a name it keeps 61 bits of Python's own hash, which is keyed anew in each process: with a million names, two of
    them are taken for one in one process of five million, and hardly in the next one.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * _SLOTS))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def kind(self, name: str) -> Kind:
        """The present kind of the name."""
        return _KIND_OF[self._slots[self._find(hash(name) << _KIND_BITS & _WORD)] & _KINDS]

    def add(self, name: str, kind: Kind) -> Kind:
        """Let a name stand for something, if it stands for nothing so far; what it stood for before."""
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
        """Let a name that stands for something stand for something else."""
        key = hash(name) << _KIND_BITS & _WORD
        self._slots[self._find(key)] = key | kind

    def _find(self, key: int) -> int:
        """The slot that has the key, or the free one where it belongs."""
        slots, last = self._slots, len(self._slots) - 1
        at = key >> _KIND_BITS & last
        while (found := slots[at]) and (found ^ key) > _KINDS:
            at = at + 1 & last
        return at

    def _grow(self) -> None:
        full, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
        for entry in filter(None, full):
            self._slots[self._find(entry & ~_KINDS)] = entry
