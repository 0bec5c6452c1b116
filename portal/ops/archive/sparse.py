"""Files with holes in an archive: GNU's sparse format 1.0, which GNU tar, bsdtar and Python read.

The data of such a member are a table of the file's extents, in decimal and padded to whole blocks, followed by the data
of each extent. Reading such a member returns the file itself; holes are pieces of one shared block of zeros, so that a
reader can tell them from data by identity.
"""

from __future__ import annotations

import mmap
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from portal.ops.archive.tar import BLOCK, padding

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from portal.ops.filesystem.extents import Extents

_HOLE_BYTES: Final = 64 << 20
_MOST: Final = 1 << 63


@lru_cache(maxsize=16)
def table_of(extents: Extents) -> bytes:
    """The table of extents that precedes the data."""
    numbers = [len(extents), *(number for extent in extents for number in extent)]
    text = "".join(f"{number}\n" for number in numbers).encode("ascii")
    return text + bytes(padding(len(text)))


def payload_bytes(size: int, extents: Extents) -> int:
    """The number of bytes of a file's data in the archive, before padding.

    Arguments:
        size: the size of the file, in bytes.
        extents: the extents; empty for a file without holes.
    """
    if not extents:
        return size
    return len(table_of(extents)) + sum(length for _, length in extents)


def are_possible(extents: Extents, size: int) -> bool:
    """True if the extents are ordered, lie within the file, and fit into a tar header."""
    end, length = 0, 0
    for start, count in extents:
        if start < end or count < 0 or length % BLOCK:
            return False
        end, length = start + count, count
    return end <= size < _MOST


@lru_cache(maxsize=1)
def _zeros() -> memoryview:
    return memoryview(mmap.mmap(-1, _HOLE_BYTES, prot=mmap.PROT_READ))  # never written to, so it takes no memory


def hole(length: int) -> Iterator[memoryview]:
    """A hole, in pieces that `is_hole` recognises."""
    zeros = _zeros()
    while length:
        piece = zeros[:length]
        length -= len(piece)
        yield piece


def is_hole(piece: memoryview) -> bool:
    """True if a piece of content is part of a hole."""
    return piece.obj is _zeros().obj


class NoSuchTableError(Exception):
    """Raised if the table before the data does not match the extents."""


def expanded(
    payload: Generator[memoryview, None, str], size: int, extents: Extents
) -> Generator[memoryview, None, str]:
    """Expand a payload to the file; returns what the payload's generator returns.

    Raises:
        NoSuchTableError: the payload's table does not match the extents.
    """
    table, coming = table_of(extents), iter(extents)
    at = left = 0
    while True:
        try:
            piece = next(payload)
        except StopIteration as end:
            yield from hole(size - at)
            return str(end.value)
        if table:
            count = min(len(table), len(piece))
            if piece[:count] != table[:count]:
                raise NoSuchTableError
            table, piece = table[count:], piece[count:]
        while piece:
            while not left:
                start, left = next(coming)
                yield from hole(start - at)
                at = start
            part = piece[:left]
            yield part
            at, left, piece = at + len(part), left - len(part), piece[len(part) :]


class SparsePayload:
    """Reads a file with holes as its payload: the table of extents, then their data.

    Arguments:
        descriptor: the open file.
        extents: the parts of the file that hold data.
    """

    def __init__(self, descriptor: int, extents: Extents) -> None:
        self._descriptor = descriptor
        self._table = memoryview(table_of(extents))
        self._coming = iter(extents)
        self._at = self._left = 0
        self.is_short = False

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer or its start; return the number of bytes. Data that the file has lost reads as zeros."""
        if self._table:
            count = min(len(self._table), len(buffer))
            buffer[:count] = self._table[:count]
            self._table = self._table[count:]
            return count
        while not self._left:
            extent = next(self._coming, None)
            if extent is None:
                return 0
            self._at, self._left = extent
        wanted = min(self._left, len(buffer))
        count = os.preadv(self._descriptor, [buffer[:wanted]], self._at)
        if not count:
            buffer[:wanted] = bytes(wanted)
            self.is_short, count = True, wanted
        self._at, self._left = self._at + count, self._left - count
        return count
