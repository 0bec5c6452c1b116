"""Layers: the archives that a tree is read from, the oldest first. Mostly that is one; of a chain there are several."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from portal.ops.archive.reader import ArchiveReader


class Layer(NamedTuple):
    """What a tree has of one archive.

    Arguments:
        archive: it, opened.
        most: how many members that is, at the most.
        holds: whether the tree has it from this archive, by its path: a later one may have replaced or removed it.
        named: a context in which the error of a damage is told with the archive's name, where there are several.
    """

    archive: ArchiveReader
    most: int
    holds: Callable[[str], bool]
    named: Callable[[], AbstractContextManager[None]]
