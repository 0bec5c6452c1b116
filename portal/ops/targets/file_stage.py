"""The stage: the files of an archive, written where nothing live is, so that renames are all that is left to do.

An archive is hostile until shown otherwise. Every name is created where nothing was, below a directory that was opened
step by step, and symlinks are made when all else has been written: so no name, link or order of members reaches out of
the stage. What would be trouble later is refused as well: symlinks that lead out of the tree, a name that comes twice,
more content than was announced, more than the disk holds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.reader import is_below
from portal.ops.errors import DiskFullError, NotIntactError
from portal.ops.targets.file_shape import HINT, SPECIAL_BITS, Shape, no_file, staged_path, twice
from portal.ops.targets.file_tree import IS_ROOT, Attributes, Tree
from portal.ops.targets.file_writers import Writers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from portal.ops.job import Advance
    from portal.ops.targets.file_writers import WrittenFile

HOLE_BYTES: Final = 1 << 16
"""A run of zeros of this length, on a multiple of it, becomes a hole."""

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ZEROS: Final = bytes(HOLE_BYTES)
_RESERVE_BYTES: Final = 64 << 20


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """What a stage holds.

    Arguments:
        files: how many files and links.
        directories: how many directories.
        content_bytes: bytes of content, holes included.
        warnings: what is not as the archive has it, or may be trouble elsewhere.
    """

    files: int
    directories: int
    content_bytes: int
    warnings: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Stage:
    """Writes the members of one component into an empty directory.

    Arguments:
        tree: the directory.
        prefix: the component's name in the archive.
        top: what stands in its place in the tree: nothing, or a name.
        allow_outside_links: restore symlinks that lead out of the tree.
        advance: called with every number of bytes of content that was written.
    """

    tree: Tree
    prefix: str
    top: str = ""
    allow_outside_links: bool = False
    advance: Advance = lambda _: None
    attributes: dict[str, Attributes] = field(default_factory=dict)
    _links: list[tuple[str, Member]] = field(default_factory=list)
    _files: int = 0
    _content_bytes: int = 0
    _room: int = 0
    _born: Attributes | None = None

    def __post_init__(self) -> None:
        self._shape = Shape(prefix=self.prefix, top=self.top, allow_outside_links=self.allow_outside_links)

    def fill(self, contents: Iterable[tuple[Member, Iterator[memoryview]]]) -> StageReport:
        """Write everything that belongs to the component, and put it on the disk.

        Raises:
            NotIntactError: the archive is damaged or hostile.
            DiskFullError: there is no room for it.
            OSError: the operating system refused.
        """
        self._room = room(self.tree.top)
        with Writers() as writers:
            for member, content in contents:
                if is_below(member.path, self.prefix):
                    self._add(member, content, writers)
                else:
                    _drain(content)
        for path, member in self._links:
            self._symlink(path, member)
        self.tree.sync()
        return StageReport(
            files=self._files,
            directories=len(self.attributes),
            content_bytes=self._content_bytes,
            warnings=self._shape.warnings(),
        )

    def _add(self, member: Member, content: Iterator[memoryview], writers: Writers) -> None:
        path = self._shape.add(member)
        if member.type is MemberType.DIRECTORY:
            _drain(content)
            self._directory(path, member)
            return
        self._files += 1
        if member.type is MemberType.FILE:
            self._file(path, member, content, writers)
            return
        _drain(content)
        if member.type is MemberType.HARDLINK:
            self._hardlink(path, member)
        else:
            self._links.append((path, member))

    def _directory(self, path: str, member: Member) -> None:
        if path in self.attributes:
            raise twice(member)
        try:
            self.tree.directory(path, make=True)
        except NotADirectoryError as error:
            raise twice(member) from error
        self.attributes[path] = Attributes(member.mode, member.uid, member.gid, member.mtime_ns)

    def _file(self, path: str, member: Member, content: Iterator[memoryview], writers: Writers) -> None:
        is_large = member.size >= HOLE_BYTES
        try:
            name, above = self.tree.place(path, make=True)
            descriptor = os.open(name, _CREATE | (writers.open_flags if is_large else 0), 0o600, dir_fd=above)
        except (FileExistsError, NotADirectoryError) as error:
            raise twice(member) from error
        self._born = self._born or Attributes.of(os.fstat(descriptor))  # every file of a stage is made alike
        attributes = self._file_attributes(member)
        pieces = self._exactly(member, content)
        if is_large:
            self._write_large(writers.file(descriptor, attributes, self._born), pieces)
        else:
            self._write(descriptor, attributes, pieces)
        self._content_bytes += member.size

    def _write(self, descriptor: int, attributes: Attributes, pieces: Iterator[memoryview]) -> None:
        try:
            for piece in pieces:
                self._take_room(len(piece))
                _write_all(descriptor, piece)
            attributes.give_to(descriptor, self._born)
        finally:
            os.close(descriptor)

    def _write_large(self, file: WrittenFile, pieces: Iterator[memoryview]) -> None:
        size = 0
        for piece in pieces:
            for part in _parts(piece, size):
                if part == _ZEROS:
                    file.skip(len(part))
                else:
                    self._take_room(len(part))
                    file.write(part)
            size += len(piece)
        file.finish()

    def _exactly(self, member: Member, content: Iterator[memoryview]) -> Iterator[memoryview]:
        """The content, which must be neither longer nor shorter than the archive says."""
        size = 0
        for piece in content:
            size += len(piece)
            if size > member.size:
                raise NotIntactError(f"{member.path} is longer than the archive says", hint=HINT)
            yield piece
            self.advance(len(piece))
        if size != member.size:
            raise NotIntactError(f"{member.path} is shorter than the archive says", hint=HINT)

    def _take_room(self, count: int) -> None:
        self._room -= count
        if self._room < 0:
            raise DiskFullError(
                f"no space left for the stage in {self.tree.top}",
                hint="Make room there, then start the restore again; what was written of this one is gone.",
            )

    def _file_attributes(self, member: Member) -> Attributes:
        return Attributes(member.mode & ~SPECIAL_BITS, member.uid, member.gid, member.mtime_ns)

    def _hardlink(self, path: str, member: Member) -> None:
        source, above = self.tree.place(staged_path(member.link, self.prefix, self.top))
        directory = os.dup(above)
        try:
            name, target = self.tree.place(path, make=True)
            os.link(source, name, src_dir_fd=directory, dst_dir_fd=target, follow_symlinks=False)
        except FileExistsError as error:
            raise twice(member) from error
        except OSError as error:
            raise no_file(member) from error
        finally:
            os.close(directory)

    def _symlink(self, path: str, member: Member) -> None:
        try:
            name, above = self.tree.place(path, make=True)
            os.symlink(member.link, name, dir_fd=above)
        except (FileExistsError, NotADirectoryError) as error:
            raise twice(member) from error
        if IS_ROOT:
            os.chown(name, member.uid, member.gid, dir_fd=above, follow_symlinks=False)
        os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=above, follow_symlinks=False)


def room(directory: str) -> int:
    """How many bytes may be written to the file system of a directory; a small reserve is not counted."""
    found = os.statvfs(directory)
    reserve = min(_RESERVE_BYTES, found.f_blocks * found.f_frsize // 100)
    return max(0, found.f_bavail * found.f_frsize - reserve)


def _parts(piece: memoryview, start: int) -> Iterator[memoryview]:
    """The piece, cut where holes can begin and end; whole where there can be none."""
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


def _drain(content: Iterator[memoryview]) -> None:
    for _ in content:
        pass
