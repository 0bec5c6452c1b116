"""Writes the files of a stage from the content in an archive: only new files, with holes as holes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from portal.ops.archive.index import MemberType
from portal.ops.archive.sparse import is_hole
from portal.ops.errors import NotIntactError
from portal.ops.filesystem.attributes import SPECIAL_BITS, Attributes
from portal.ops.hints import another_archive
from portal.ops.restore.files.writers import ALIGNMENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.archive.index import Member
    from portal.ops.filesystem.tree import Tree
    from portal.ops.restore.files.free_space import Room
    from portal.ops.restore.files.writers import Writers, WrittenFile
    from portal.ops.runtime.progress import Advance

HOLE_BYTES: Final = 1 << 16
"""A run of zeros with this length and alignment, in bytes, becomes a hole."""

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_ZEROS: Final = bytes(HOLE_BYTES)


class FileMaker:
    """Creates files one after the other.

    Arguments:
        tree: the stage.
        writers: writes the larger files; they are on the disk when its context has ended.
        room: the free space of the file system.
        advance: called with the number of content bytes after each write, holes included.
    """

    def __init__(
        self,
        tree: Tree,
        writers: Writers,
        room: Room,
        *,
        advance: Advance = lambda _: None,
    ) -> None:
        self._tree = tree
        self._writers = writers
        self._room = room
        self._advance = advance
        self._born: Attributes | None = None

    def make(self, path: str, member: Member, content: Iterator[memoryview]) -> None:
        """Create a file, and missing directories above it.

        Raises:
            NotIntactError: the path exists already, or the content does not match the archive's index.
            DiskFullError: the disk is full.
            OSError: the operating system refused, for this file or an earlier one.
        """
        is_large = member.size >= HOLE_BYTES
        try:
            name, above = self._tree.place(path, make=True)
            descriptor = os.open(name, _CREATE | (self._writers.open_flags if is_large else 0), 0o600, dir_fd=above)
        except (FileExistsError, NotADirectoryError) as error:
            raise twice(member) from error
        self._born = self._born or Attributes.of(os.fstat(descriptor))  # all files of a stage start with the same mode
        attributes = attributes_of(member)
        pieces = self._exactly(member, content)
        if is_large:
            self._write_large(self._writers.file(descriptor, attributes, self._born), member.size, pieces)
        else:
            self._write(descriptor, attributes, pieces)

    def _write(self, descriptor: int, attributes: Attributes, pieces: Iterator[memoryview]) -> None:
        try:
            for piece in pieces:
                self._room.take(len(piece))
                _write_all(descriptor, piece)
            attributes.give_to(descriptor, self._born)
        finally:
            os.close(descriptor)

    def _write_large(self, file: WrittenFile, whole: int, pieces: Iterator[memoryview]) -> None:
        size = 0
        for piece in pieces:
            end = size + len(piece)
            if is_hole(piece) and not size % ALIGNMENT and (end == whole or not end % ALIGNMENT):
                file.skip(len(piece))
                size = end
                continue
            for part in _parts(piece, size):
                if part == _ZEROS:
                    file.skip(len(part))
                else:
                    self._room.take(len(part))
                    file.write(part)
            size += len(piece)
        file.finish()

    def _exactly(self, member: Member, content: Iterator[memoryview]) -> Iterator[memoryview]:
        """The content, which must be exactly as long as the archive says."""
        size = 0
        for piece in content:
            size += len(piece)
            if size > member.size:
                raise NotIntactError(f"{member.path} is longer than the archive says", hint=another_archive())
            yield piece
            self._advance(len(piece))
        if size != member.size:
            raise NotIntactError(f"{member.path} is shorter than the archive says", hint=another_archive())


def attributes_of(member: Member) -> Attributes:
    """The attributes to restore for a member: without setuid and setgid bits, which no file of a portal needs."""
    mode = member.mode & ~SPECIAL_BITS if member.type is MemberType.FILE else member.mode
    return Attributes(mode, member.uid, member.gid, member.mtime_ns, member.xattrs or None)


def drain(content: Iterator[memoryview]) -> None:
    """Read content to its end, which checks it."""
    for _ in content:
        pass


def _parts(piece: memoryview, start: int) -> Iterator[memoryview]:
    """The piece, split where holes can begin and end; whole if there can be none."""
    first = -start % HOLE_BYTES
    runs = [piece[at : at + HOLE_BYTES] for at in range(first, len(piece), HOLE_BYTES)]
    if _ZEROS not in runs:
        yield piece
        return
    if first:
        yield piece[:first]
    yield from runs


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def twice(member: Member) -> NotIntactError:
    """The error for a path that exists already."""
    return NotIntactError(
        f"{member.path} comes twice, or as a file and as a directory, or in two spellings that this file system "
        "takes for one",
        hint=another_archive(),
    )


def no_file(member: Member) -> NotIntactError:
    """The error for a hard link whose target is missing."""
    return NotIntactError(
        f"{member.path} is a link to {member.link}, which is no file before it", hint=another_archive()
    )
