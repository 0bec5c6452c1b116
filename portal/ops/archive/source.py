"""The source of an archive's bytes: a file, or anything that can read at an offset."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from portal.ops.errors import RepositoryError
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from pathlib import Path


class Source(Protocol):
    """Gives random access to the bytes of an archive."""

    size: int

    def read_at(self, length: int, offset: int) -> bytes:
        """Read bytes at an offset; fewer than requested at the end of the archive.

        Raises:
            OSError: they cannot be read; it names the file.
        """

    def close(self) -> None:
        """Close the source."""


class FileSource:
    """Reads an archive from a file.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        self._is_open = True
        self.size = os.fstat(self._descriptor).st_size

    def read_at(self, length: int, offset: int) -> bytes:
        """Read bytes at an offset; see `Source.read_at`."""
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._descriptor

    def close(self) -> None:
        """Close the file; may be called more than once."""
        if self._is_open:
            self._is_open = False
            os.close(self._descriptor)


def unreadable(path: Path, error: OSError) -> RepositoryError:
    """The error for an archive that cannot be read at all."""
    return RepositoryError(
        f"cannot read {path}: {system_reason(error)}", hint="Look at its name, its permissions and the disk it is on."
    )
