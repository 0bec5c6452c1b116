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
    """What a name stands for; `IMPLIED` is a directory that has been seen only as a part of other names."""

    NOTHING = 0
    IMPLIED = 1
    DIRECTORY = 2
    FILE = 3
    SYMLINK = 4


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
        """What the name stands for so far."""
        return Kind(self._slots[self._find(_key(name))] & _KINDS)

    def put(self, name: str, kind: Kind) -> None:
        """Let the name stand for something from now on."""
        key = _key(name)
        at = self._find(key)
        self._count += not self._slots[at]
        self._slots[at] = key | kind
        if 2 * self._count > len(self._slots):
            self._grow()

    def _find(self, key: int) -> int:
        """The slot that has the key, or the free one where it belongs."""
        slots, last = self._slots, len(self._slots) - 1
        at = key >> _KIND_BITS & last
        while (found := slots[at]) and found & ~_KINDS != key:
            at = at + 1 & last
        return at

    def _grow(self) -> None:
        full, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
        for entry in filter(None, full):
            self._slots[self._find(entry & ~_KINDS)] = entry


def _key(name: str) -> int:
    return hash(name) << _KIND_BITS & _WORD
