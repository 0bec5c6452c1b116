"""Compares a restored tree of files with the backup, through directory descriptors."""

from __future__ import annotations

import errno
import os
import stat
from hashlib import sha256
from io import FileIO
from typing import TYPE_CHECKING, Final

from portal.ops.archive.damage import Damage, is_below
from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.sparse import SparsePayload
from portal.ops.filesystem.extents import data_extents
from portal.ops.filesystem.tree import Tree
from portal.ops.filesystem.xattrs import TooManyXattrsError, read_xattrs
from portal.ops.model import RESTORE_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.archive.protocol import Archive

_SPECIAL_BITS: Final = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
_BLOCK: Final = 1 << 20
_MOST_WARNINGS: Final = 5
_EVERYWHERE_NS: Final = (1 << 31) * 1_000_000_000
"""Every file system can store times closer to 1970 than this."""

_NAME_TAKEN: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""Errors of a look-up by name if another process has just replaced the entry."""


class FileComparison:
    """Compares restored files with an archive (content, mode, time, extended attributes), and finds other files.

    Arguments:
        archive: what was restored.
        prefix: the name of the component in the archive.
        place: the directory that was restored to.
    """

    def __init__(self, archive: Archive, prefix: str, place: Path) -> None:
        self._archive = archive
        self._prefix = prefix
        self._place = place
        self._lost: list[str] = []
        self.files = self.content_bytes = 0

    @property
    def warnings(self) -> list[str]:
        """Attributes that the drill's file system could not keep."""
        more = len(self._lost) - _MOST_WARNINGS
        return self._lost[:_MOST_WARNINGS] + ([f"{more:,} more differ in the same way"] if more > 0 else [])

    def damages(self) -> Iterator[Damage]:
        """The differences from the backup.

        Raises:
            NotIntactError: the archive is damaged.
        """
        expected: set[str] = set()
        is_there = self._place.is_dir()
        with Tree(str(self._place if is_there else self._place.parent)) as tree:
            for member in self._members():
                expected.add(self._below(member.path))
                self.files += member.type is not MemberType.DIRECTORY
                self.content_bytes += member.size
                what = self._difference(member, tree) if is_there else "it was not restored"
                if what:
                    yield Damage(what=what, path=member.path)
            for path, _ in tree.below("") if is_there else ():
                if path not in expected and path.partition("/")[0] != RESTORE_DIRECTORY:
                    yield Damage(what="it was restored, and is not in the backup", path=f"{self._prefix}/{path}")

    def _below(self, path: str) -> str:
        return path[len(self._prefix) + 1 :]

    def _members(self) -> Iterator[Member]:
        """The members of the component with their digests; without an index, the archive is read for them."""
        if self._archive.has_index:
            yield from (member for member in self._archive.members() if is_below(member.path, self._prefix))
            return
        for member, content in self._archive.contents(1, below=self._prefix):
            digest = sha256()
            for piece in content:
                digest.update(piece)
            yield member._replace(sha256=digest.hexdigest())

    def _difference(self, member: Member, tree: Tree) -> str:
        """How a restored member differs; empty if it does not."""
        try:
            return self._difference_now(member, tree)
        except OSError as error:
            if error.errno not in _NAME_TAKEN:
                raise
            return "something else took its name during the comparison"

    def _difference_now(self, member: Member, tree: Tree) -> str:
        path = self._below(member.path)
        found = tree.look(path)
        if found is None:
            return "it was not restored"
        if member.type is MemberType.SYMLINK:
            is_same = stat.S_ISLNK(found.st_mode) and tree.link(path) == member.link
            return "" if is_same else "it is another link"
        if member.type is MemberType.HARDLINK:
            other = tree.look(self._below(member.link))
            is_same = other is not None and os.path.samestat(found, other)
            return "" if is_same else f"it is no other name of {member.link}"
        if stat.S_ISDIR(found.st_mode) != (member.type is MemberType.DIRECTORY):
            return "it is something else than in the backup"
        if member.type is MemberType.DIRECTORY:
            return self._attribute_difference(member, tree.directory(path), found)
        descriptor = tree.open_file(path)
        try:
            return self._file_difference(member, descriptor, found)
        finally:
            os.close(descriptor)

    def _attribute_difference(self, member: Member, descriptor: int, found: os.stat_result) -> str:
        try:
            xattrs = read_xattrs(descriptor) if member.xattrs else ()
        except TooManyXattrsError:
            return "it has more extended attributes than in the backup"
        if set(xattrs) < set(member.xattrs):
            self._lost.append(
                f"{member.path} has lost extended attributes: this file system or user does not allow them"
            )
            return ""
        if xattrs != member.xattrs:
            return "its extended attributes are others"
        mode, wanted = (bits & 0o7777 & ~_SPECIAL_BITS for bits in (found.st_mode, member.mode))
        return f"its mode is {mode:o}, and was {wanted:o}" if mode != wanted else ""

    def _file_difference(self, member: Member, descriptor: int, found: os.stat_result) -> str:
        if what := self._attribute_difference(member, descriptor, found):
            return what
        if found.st_size != member.size:
            return f"it has {found.st_size} bytes, and had {member.size}"
        if found.st_mtime_ns != member.mtime_ns:
            if abs(member.mtime_ns) < _EVERYWHERE_NS:
                return "its time of change is another one"
            self._lost.append(f"{member.path} has another time: this file system cannot store that of the backup")
        digest = _digest(member, descriptor, found)
        return "" if digest == member.sha256 else f"its SHA-256 is {digest}, and was {member.sha256}"


def _digest(member: Member, descriptor: int, found: os.stat_result) -> str:
    """The digest of a restored file or, for a sparse member, of its payload, if its holes are empty."""
    file = FileIO(descriptor, closefd=False)
    source: FileIO | SparsePayload = file
    if member.sparse:
        if _has_data_in_holes(member, descriptor, found):
            return "that of a file with data in its holes"
        source = SparsePayload(descriptor, member.sparse)
    digest, buffer = sha256(), memoryview(bytearray(_BLOCK))
    while count := source.readinto(buffer):
        digest.update(buffer[:count])
    return digest.hexdigest()


def _has_data_in_holes(member: Member, descriptor: int, found: os.stat_result) -> bool:
    """True if the holes of the original file contain anything but zeros."""
    data = iter(data_extents(descriptor, found) or ((0, found.st_size),))
    ends = [0, *(start + length for start, length in member.sparse)]
    holes = [
        (end, start) for end, (start, _) in zip(ends, (*member.sparse, (member.size, 0)), strict=True) if end < start
    ]
    for start, length in data:
        for low, high in holes:
            at, stop = max(start, low), min(start + length, high)
            while at < stop:
                piece = os.pread(descriptor, min(_BLOCK, stop - at), at)
                if piece.strip(b"\0") or not piece:
                    return True
                at += len(piece)
    return False
