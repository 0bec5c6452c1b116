"""Detects attributes of an archive that the stage's file system did not keep."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from portal.ops.filesystem.xattrs import TooManyXattrsError, read_xattrs, write_xattrs

if TYPE_CHECKING:
    from portal.ops.filesystem.attributes import Attributes

_NAMED: Final = 5


class LostAttributes:
    """Compares staged files with their intended attributes, and counts losses."""

    def __init__(self) -> None:
        self._xattrs: list[str] = []
        self._times: list[str] = []

    def file(self, descriptor: int, wanted: Attributes, path: str) -> None:
        """Compare a file whose attributes have been set."""
        self._compare(descriptor, wanted, path)
        if os.fstat(descriptor).st_mtime_ns != wanted.mtime_ns:
            self._times.append(path)

    def directory(self, descriptor: int, wanted: Attributes, path: str) -> None:
        """Test whether extended attributes can be set on a directory; its own are set last."""
        write_xattrs(descriptor, wanted.xattrs or (), exactly=False)
        self._compare(descriptor, wanted, path)
        write_xattrs(descriptor, (), exactly=True)  # files created in it must inherit nothing

    def warnings(self) -> list[str]:
        """The lost attributes, one sentence each."""
        return [
            *_told(self._xattrs, "extended attributes that this file system or user does not allow"),
            *_told(self._times, "a time that this file system cannot store"),
        ]

    def _compare(self, descriptor: int, wanted: Attributes, path: str) -> None:
        try:
            found = set(read_xattrs(descriptor))
        except TooManyXattrsError:
            return
        if not found.issuperset(wanted.xattrs or ()):
            self._xattrs.append(path)


def _told(paths: list[str], what: str) -> list[str]:
    told = [f"{path or 'the directory itself'} has {what}: restored without" for path in paths[:_NAMED]]
    more = len(paths) - len(told)
    return [*told, f"{more:,} more have {what}"] if more > 0 else told
