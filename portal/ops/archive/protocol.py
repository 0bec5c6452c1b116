"""The protocol of every opened archive: one with an index, one made by tar and gzip, and a chain read as one tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TypeGuard

    from portal.ops.archive.index import Contents, Member
    from portal.ops.archive.reader import Layer
    from portal.ops.manifest import Manifest


class Archive(Protocol):
    """An archive that is open for reading; everything that it returns was checked, or an error is raised."""

    path: Path
    backup_id: str

    @property
    def has_index(self) -> bool:
        """True if single members can be read without the rest, and whether each has a SHA-256."""

    def close(self) -> None:
        """Close its files."""

    def manifest(self) -> Manifest:
        """The manifest.

        Raises:
            NotIntactError: it is damaged.
        """

    def members(self) -> Iterator[Member]:
        """All members in the order of the tar; an archive without an index is read through for them.

        Raises:
            NotIntactError: the archive is damaged.
        """

    def contents(self, jobs: int, *, below: str | None = None) -> Contents:
        """Every member with its content, in the order of the tar.

        Arguments:
            jobs: how many threads decompress.
            below: only the member of this path and those below it.

        Raises:
            NotIntactError: the archive is damaged.
        """


class IndexedArchive(Archive, Protocol):
    """An archive whose members can be read one by one, or a chain of such archives."""

    def find(self, path: str) -> Member | None:
        """The member of that path."""

    def extract(self, member: Member) -> Iterator[memoryview]:
        """The content of one file, piece by piece; reads the frames that hold it and no others.

        Raises:
            NotIntactError: the file is damaged; what has been returned until then must not be used.
        """

    def layers(self) -> Iterator[Layer]:
        """The archives that hold the tree, the oldest first."""


def is_indexed_archive(archive: Archive) -> TypeGuard[IndexedArchive]:
    """Whether the archive is one whose members can be read one by one."""
    return archive.has_index
