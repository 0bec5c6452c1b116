"""The usable space of a file system: its free space less a small reserve."""

from __future__ import annotations

import os
from typing import Final

from portal.ops.errors import DiskFullError

_RESERVE_BYTES: Final = 64 << 20
_STEP_BYTES: Final = 4 << 20
"""After so many bytes the file system is asked again: several processes write to it, and others as well."""


def room(directory: str | int) -> int:
    """The usable bytes of a directory's file system, given by its path or a descriptor."""
    found = os.statvfs(directory)
    reserve = min(_RESERVE_BYTES, found.f_blocks * found.f_frsize // 100)
    return max(0, found.f_bavail * found.f_frsize - reserve)


class Room:
    """The room in the file system of a directory, as it is used up.

    Arguments:
        descriptor: of the directory.
        name: what it is called in an error.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self._name = name
        self._left = 0

    def take(self, count: int) -> None:
        """Take room for so many bytes.

        Raises:
            DiskFullError: there is none.
        """
        self._left -= count
        if self._left < 0:
            self._left = min(_STEP_BYTES, room(self._descriptor) - count)
        if self._left < 0:
            raise DiskFullError(
                f"no space left for the stage in {self._name}",
                hint="Make room there, then start the restore again; the unfinished one is removed.",
            )
