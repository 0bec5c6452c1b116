"""The protocol of opened archives: with an index, made by tar and gzip, or a chain read as one tree."""

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
    """An archive that is open for reading. Everything it returns has been checked."""

    path: Path
    backup_id: str

    @property
    def has_index(self) -> bool:
        """True if each member has a SHA-256 and can be read without the rest."""

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
            below: return only the member of this path and those below it.

        Raises:
            NotIntactError: the archive is damaged.
        """


class IndexedArchive(Archive, Protocol):
    """An archive, or a chain of archives, whose members can be read one by one."""

    def find(self, path: str) -> Member | None:
        """The member with that path, or None."""

    def extract(self, member: Member) -> Iterator[memoryview]:
        """The content of one file in pieces, read from no frames but its own.

        Raises:
            NotIntactError: the file is damaged; the pieces returned so far must not be used.
        """

    def layers(self) -> Iterator[Layer]:
        """The archives that hold the tree, oldest first."""


def is_indexed_archive(archive: Archive) -> TypeGuard[IndexedArchive]:
    """True if the members of the archive can be read one by one."""
    return archive.has_index
