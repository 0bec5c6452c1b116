"""Opens an archive of either kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from portal.ops.archive.reader import ArchiveReader, is_indexed
from portal.ops.errors import RepositoryError

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.archive.plain import PlainArchive


def open_archive(path: Path) -> ArchiveReader | PlainArchive:
    """Open an archive that has an index, or that tar and gzip made.

    Raises:
        NotIntactError: it is damaged where it has to be read first, or no archive at all.
        RepositoryError: it cannot be read.
    """
    check_readable(path)
    if is_indexed(path):
        return ArchiveReader(path)

    from portal.ops.archive.plain import PlainArchive

    return PlainArchive(path)


def check_readable(path: Path) -> None:
    """Make sure that an archive can be read at all.

    Raises:
        RepositoryError: it cannot.
    """
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise RepositoryError(
            f"cannot read {path}: {error.strerror}", hint="Look at its name, its permissions and the disk it is on."
        ) from error
