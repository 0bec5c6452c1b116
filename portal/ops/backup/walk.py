"""Walks a tree of files as a source, in the order of an archive.

Symlinks are recorded, never followed: each directory is opened by name in the one above. Sockets, FIFOs and devices
have no content and are left out with a warning. A directory is followed directly by everything in it, since tar sets a
directory's time when it leaves it. A file with several names (hard links) has its content under the first name met. A
restore's rollback data at the top of the tree is left out.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from portal.ops.archive.index import PATH_BYTES, encode_name
from portal.ops.archive.packer import Item, source_of
from portal.ops.archive.writer import Tally
from portal.ops.errors import SourceError
from portal.ops.filesystem.refusals import unreadable
from portal.ops.filesystem.tree import GONE, Tree, portable
from portal.ops.model import RESTORE_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Identity = tuple[int, int]
"""Device and inode, which identify a directory whatever its name or mount."""


def identity(path: Path) -> Identity:
    """The identity of a file or directory, following symlinks."""
    found = path.stat()
    return found.st_dev, found.st_ino


class FileTree:
    """A directory or file to be archived below `prefix`; a context manager.

    Arguments:
        root: the directory or file; symlinks in this path are followed.
        prefix: its name in the archive, such as ``media``.
        excluded: directories to skip, wherever below the root they are.
        tally: receives special files, and has those that vanished.

    Raises:
        SourceError: the root is neither directory nor file, or cannot be read.
    """

    def __init__(
        self, *, root: Path, prefix: str, excluded: frozenset[Identity] = frozenset(), tally: Tally | None = None
    ) -> None:
        self.prefix = prefix
        self.excluded = excluded
        self.tally = tally or Tally()
        self.tree, self._file = open_root(root)
        self._at_top: set[str] = set()
        self._names: dict[Identity, Item] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.tree.close()

    def items(self) -> Iterator[tuple[Item, int]]:
        """Everything in the tree, each entry with its present size in bytes.

        Raises:
            SourceError: a directory cannot be read.
        """
        if self._file is None:
            yield from self._below()
            return
        found = self.tree.look(self._file)
        yield (f"{self.prefix}/{self._file}", "file", ""), found.st_size if found else 0

    def appeared(self) -> Iterator[tuple[Item, int]]:
        """Files at the top with a name that was not there before, such as logs that were rotated while they were read.

        Raises:
            SourceError: the directory cannot be read.
        """
        if self._file is not None:
            return
        before = frozenset(self._at_top)
        try:
            names = [portable(entry.name) for entry in self._entries(self.prefix) if entry.name not in before]
        except OSError as error:
            if error.errno not in GONE:
                raise unreadable(self.tree.name(source_of(self.prefix)), error) from error
            return
        for name in names:
            path = f"{self.prefix}/{name}"
            found = self.tree.look(source_of(path))
            if found is not None and stat.S_ISREG(found.st_mode):
                item = (path, "file", "")
                yield (item if found.st_nlink == 1 else self._linked(item, found)), found.st_size

    def _below(self) -> Iterator[tuple[Item, int]]:
        todo = [self.prefix]
        while todo:
            path = todo.pop()
            yield (path, "directory", ""), 0
            deeper = []
            try:
                for entry in self._entries(path):
                    name = f"{path}/{portable(entry.name)}"
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except OSError as error:
                        self._gone(name, error)
                        continue
                    mode = found.st_mode
                    if stat.S_ISREG(mode):
                        item = (name, "file", "")
                        yield (item if found.st_nlink == 1 else self._linked(item, found)), found.st_size
                    elif stat.S_ISDIR(mode):
                        if not self._is_passed_over(name, found):
                            deeper.append(name)
                    elif stat.S_ISLNK(mode):
                        yield (name, "symlink", ""), 0
                    else:
                        self.tally.special.append(name)
            except OSError as error:
                if error.errno not in GONE:
                    raise unreadable(self.tree.name(source_of(path)), error) from error
                # the directory itself is archived as empty, which it was when last seen
            todo += reversed(deeper)

    def _entries(self, path: str) -> Iterator[os.DirEntry[str]]:
        check_length(path)
        with self.tree.entries(source_of(path)) as found:
            found.sort(key=lambda entry: os.fsencode(entry.name))
            if path == self.prefix:
                self._at_top.update(entry.name for entry in found)
            yield from found

    def _is_passed_over(self, path: str, found: os.stat_result) -> bool:
        return (found.st_dev, found.st_ino) in self.excluded or path == f"{self.prefix}/{RESTORE_DIRECTORY}"

    def _gone(self, path: str, error: OSError) -> None:
        if error.errno not in GONE:
            raise unreadable(self.tree.name(source_of(path)), error) from error
        self.tally.vanished.append(path)

    def _linked(self, item: Item, found: os.stat_result) -> Item:
        """A file with several names: the first one has itself as its link, the others have the first."""
        path = item[0]
        file = found.st_dev, found.st_ino
        first = self._names.setdefault(file, (path, "file", path))
        if first[0] != path and self._is_still(first[0], file):
            return path, "hardlink", first[0]
        self._names[file] = path, "file", path
        return self._names[file]

    def _is_still(self, path: str, file: Identity) -> bool:
        found = self.tree.look(source_of(path))
        return found is not None and (found.st_dev, found.st_ino) == file


def open_root(root: Path) -> tuple[Tree, str | None]:
    """The tree of a source and, if the source is a single file, the tree above it and its name.

    Raises:
        SourceError: it is neither directory nor file.
        OSError: it cannot be opened.
    """
    top = os.path.realpath(root)
    mode = os.stat(top).st_mode
    if stat.S_ISDIR(mode):
        return Tree(top), None
    if not stat.S_ISREG(mode):
        raise SourceError(
            f"{root} is neither a directory nor a file",
            hint="Correct the variable that names it, PORTAL_UPLOAD_DIR or PORTAL_AUDIT_DIR.",
        )
    return Tree(os.path.dirname(top)), portable(os.path.basename(top))


def check_length(path: str) -> None:
    """Refuse a directory with a path too long for an index.

    Raises:
        SourceError: the path is too long.
    """
    if len(path) > PATH_BYTES // 4 and len(encode_name(path)) > PATH_BYTES:
        raise SourceError(
            f"the path of a directory is longer than {PATH_BYTES:,} bytes: {path[:100]}…",
            hint="No program needs such a path: move the directory up, or remove it; then start the backup again.",
        )


def tree_bytes(root: Path, excluded: frozenset[Identity] = frozenset()) -> int:
    """About how many bytes the files of a tree have, for a progress bar; unreadable parts do not count."""
    if not root.is_dir():
        return root.stat().st_size
    total = 0
    with Tree(str(root)) as tree:
        todo = [""]
        while todo:
            directory = todo.pop()
            with suppress(OSError), tree.entries(directory) as entries:
                for entry in entries:
                    found = entry.stat(follow_symlinks=False)
                    path = f"{directory}/{portable(entry.name)}" if directory else portable(entry.name)
                    if stat.S_ISREG(found.st_mode):
                        total += found.st_size
                    elif (
                        stat.S_ISDIR(found.st_mode)
                        and path != RESTORE_DIRECTORY
                        and (found.st_dev, found.st_ino) not in excluded
                    ):
                        todo.append(path)
    return total
