"""Compares the stage with the live tree, entry by entry, and lists the changes that a restore makes."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from io import FileIO
from typing import TYPE_CHECKING, Final

from portal.ops.errors import RestoreError
from portal.ops.filesystem.attributes import Attributes
from portal.ops.filesystem.xattrs import TooManyXattrsError, read_xattrs
from portal.ops.restore.files.journal import Do, Step

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from portal.ops.filesystem.tree import Tree
    from portal.ops.filesystem.xattrs import Xattrs

OURS: Final = ".kekkai-"
"""Entries at the top of a tree whose name starts with this are never moved."""

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_BLOCK: Final = 1 << 20


@dataclass(kw_only=True)
class Changes:
    """The steps from the live tree to the staged one, and counts of each kind.

    Arguments:
        live: the present tree.
        stage: the staged tree.
        attributes: attributes of the staged directories that the archive describes.
        root: attributes of the live tree's top before the restore.
        exact: move aside what is not staged.
        partial: only some files are restored; existing directories keep their attributes.
        protected: paths in the live tree that must not be moved.
    """

    live: Tree
    stage: Tree
    attributes: Mapping[str, Attributes]
    root: Attributes
    exact: bool
    partial: bool
    protected: frozenset[str]
    new: int = 0
    replaced: int = 0
    same: int = 0
    aside: int = 0
    bytes_placed: int = 0
    _made: set[str] = field(default_factory=set)
    _kept: dict[str, Attributes] = field(default_factory=dict)
    _touched: set[str] = field(default_factory=set)

    def steps(self) -> Iterator[Step]:
        """All steps, in the order in which they must be taken.

        Raises:
            RestoreError: a protected path is in the way.
        """
        self._kept[""] = self.root
        yield from self._strangers("")
        for path, found in self.stage.below(""):
            if stat.S_ISDIR(found.st_mode):
                yield from self._directory(path)
            else:
                yield from self._entry(path, found)
        yield from self._attribute_steps()

    def _directory(self, path: str) -> Iterator[Step]:
        live = self._live(path)
        if live is not None and stat.S_ISDIR(live.st_mode):
            self._kept[path] = Attributes.of(live, _xattrs(self.live, path))
            yield from self._strangers(path)
            return
        if live is not None:
            yield self._move_aside(path, live)
        self._made.add(path)
        self._touch(path)
        yield Step(Do.MAKE, path)

    def _entry(self, path: str, staged: os.stat_result) -> Iterator[Step]:
        live = self._live(path)
        if live is not None and self._is_same(path, staged, live):
            self.same += 1
            return
        if live is None:
            self.new += 1
        else:
            self.replaced += 1
            yield self._move_aside(path, live)
        self._touch(path)
        self.bytes_placed += staged.st_size
        yield Step(Do.PLACE, path, staged.st_ino, staged.st_size, staged.st_mtime_ns)

    def _strangers(self, directory: str) -> Iterator[Step]:
        """Entries of a live directory that are not in the stage; an exact restore moves them aside."""
        if not self.exact:
            return
        for name in self.live.names(directory):
            path = f"{directory}/{name}" if directory else name
            if path in self.protected or (not directory and name.startswith(OURS)):
                continue
            if self.stage.look(path) is not None:
                continue
            if self._holds_protected(path):
                yield from self._strangers(path)
                continue
            found = self.live.look(path)
            if found is not None:
                self.aside += 1
                self._touch(path)
                yield self._move_aside(path, found)

    def _move_aside(self, path: str, found: os.stat_result) -> Step:
        if path in self.protected or self._holds_protected(path):
            raise must_stay(path, self.live.top)
        return Step(Do.ASIDE, path, found.st_ino, found.st_size, found.st_mtime_ns)

    def _attribute_steps(self) -> Iterator[Step]:
        for path in sorted(self._made, reverse=True):
            after = self.attributes.get(path, self.root._replace(mode=self.root.mode | stat.S_IRWXU, xattrs=None))
            yield Step(Do.ATTRIBUTES, path, after=after)
        for path in sorted(self._kept, reverse=True):
            before = self._kept[path]
            said = None if self.partial else self.attributes.get(path)
            if said and said.xattrs is None:  # an archive of an earlier release does not say
                said = said._replace(xattrs=before.xattrs)
            if not path and path not in self._touched:
                said = said or before  # creating the restore's own directory has changed its time
            if not path or path in self._touched or said not in (None, before):
                yield Step(Do.ATTRIBUTES, path, before=before, after=said)

    def _touch(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent not in self._kept and parent not in self._made:
            found = self.live.look(parent)
            assert found is not None
            self._kept[parent] = Attributes.of(found, _xattrs(self.live, parent))
        self._touched.add(parent)

    def _live(self, path: str) -> os.stat_result | None:
        return None if path.rpartition("/")[0] in self._made else self.live.look(path)

    def _holds_protected(self, path: str) -> bool:
        return any(inner.startswith(f"{path}/") for inner in self.protected)

    def _is_same(self, path: str, staged: os.stat_result, live: os.stat_result) -> bool:
        if stat.S_IFMT(staged.st_mode) != stat.S_IFMT(live.st_mode) or staged.st_nlink > 1:
            return False
        if staged.st_size != live.st_size or Attributes.of(staged) != Attributes.of(live):
            return False
        if stat.S_ISLNK(staged.st_mode):
            return _target(self.stage, path) == _target(self.live, path)
        return _same_content(self.stage, self.live, path)


def protected_paths(top: str, protected: Iterator[str]) -> frozenset[str]:
    """Those of the protected paths that lie in a tree, relative to it; all paths are real.

    Raises:
        RestoreError: the whole tree lies in one of them.
    """
    inside = set()
    for path in protected:
        if os.path.commonpath([path, top]) == path:
            raise RestoreError(
                f"{top} lies in {path}, which must not be changed", hint="Restore the files to another directory."
            )
        if os.path.commonpath([path, top]) == top:
            inside.add(os.path.relpath(path, top))
    return frozenset(inside)


def must_stay(path: str, top: str) -> RestoreError:
    """The error for a protected path that is in the way."""
    return RestoreError(
        f"{path} in {top} is in the way, and must not be moved: the backups are there",
        hint="Move BACKUP_LOCAL_PATH out of the directory that is restored, or restore to another one.",
    )


def _target(tree: Tree, path: str) -> str:
    name, above = tree.place(path)
    return os.readlink(name, dir_fd=above)


def _same_content(one: Tree, other: Tree, path: str) -> bool:
    with _opened(one, path) as first, _opened(other, path) as second:
        if (staged := _xattrs_of(first.fileno())) and staged != _xattrs_of(second.fileno()):
            return False
        while True:
            block = first.read(_BLOCK)
            if block != second.read(_BLOCK):
                return False
            if not block:
                return True


def _xattrs(tree: Tree, path: str) -> Xattrs | None:
    return _xattrs_of(tree.directory(path))


def _xattrs_of(descriptor: int) -> Xattrs | None:
    """The extended attributes of an open file or directory; None if there are more than an archive takes."""
    try:
        return read_xattrs(descriptor)
    except TooManyXattrsError:
        return None


def _opened(tree: Tree, path: str) -> FileIO:
    name, above = tree.place(path)
    return FileIO(os.open(name, _READ, dir_fd=above))
