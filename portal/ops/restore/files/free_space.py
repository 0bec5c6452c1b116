"""The usable space of a file system: its free space minus a small reserve."""

from __future__ import annotations

import os
from typing import Final

from portal.ops.errors import DiskFullError

_RESERVE_BYTES: Final = 64 << 20
_STEP_BYTES: Final = 4 << 20
"""The free space is queried again after so many bytes, since other processes write to the same file system."""


def room(directory: str | int) -> int:
    """The usable bytes in a directory's file system; the directory is given by path or descriptor."""
    found = os.statvfs(directory)
    reserve = min(_RESERVE_BYTES, found.f_blocks * found.f_frsize // 100)
    return max(0, found.f_bavail * found.f_frsize - reserve)


class Room:
    """Tracks the usable space in a directory's file system.

    Arguments:
        descriptor: the open directory.
        name: the name of the directory in errors.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self._name = name
        self._left = 0

    def take(self, count: int) -> None:
        """Reserve `count` bytes.

        Raises:
            DiskFullError: there is not enough room.
        """
        self._left -= count
        if self._left < 0:
            self._left = min(_STEP_BYTES, room(self._descriptor) - count)
        if self._left < 0:
            raise DiskFullError(
                f"no space left for the stage in {self._name}",
                hint="Make room there, then start the restore again; the unfinished one is removed.",
            )
