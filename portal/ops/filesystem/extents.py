"""The data and holes of an open file."""

from __future__ import annotations

import errno
import os
from typing import Final

Extents = tuple[tuple[int, int], ...]
"""Offset and length of data, in ascending order; a final extent of length 0 marks a hole at the end."""

ALIGNMENT: Final = 4096
WORTH_BYTES: Final = 1 << 20
"""With fewer bytes of holes than this, a file is treated as one without."""

_SMALLEST_HOLE: Final = 1 << 16
_MOST: Final = 1000
_SECTOR: Final = 512


def data_extents(descriptor: int, found: os.stat_result) -> Extents:
    """The extents of data in a file with holes; empty if it has none, or too few.

    Arguments:
        found: the `stat` result of the file.
    """
    size = found.st_size
    if found.st_blocks * _SECTOR + WORTH_BYTES > size:
        return ()
    extents = _scan(descriptor, size)
    hole = _SMALLEST_HOLE
    extents = _joined(extents, hole)
    while len(extents) > _MOST:
        hole *= 2
        extents = _joined(extents, hole)
    if sum(length for _, length in extents) + WORTH_BYTES > size:
        return ()
    if not extents or sum(extents[-1]) < size:
        extents.append((size, 0))
    return tuple(extents)


def _scan(descriptor: int, size: int) -> list[tuple[int, int]]:
    extents: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more data
                return extents
            return [(0, size)]
        start -= start % ALIGNMENT
        at = min(size, end + -end % ALIGNMENT)
        if start < at:
            extents.append((start, at - start))
    return extents


def _joined(extents: list[tuple[int, int]], hole: int) -> list[tuple[int, int]]:
    """The extents, with holes smaller than so many bytes removed."""
    joined: list[tuple[int, int]] = []
    for start, length in extents:
        if joined and start - sum(joined[-1]) < hole:
            first = joined[-1][0]
            joined[-1] = (first, start + length - first)
        else:
            joined.append((start, length))
    return joined
