"""A tree of files as a source: what there is to back up, in the order in which it goes into an archive.

Symlinks are recorded, never followed: each directory is opened by its name in the one above it. Sockets, FIFOs and
devices have no content and are left out with a warning. A directory is followed by all that is in it, and by nothing
else before that: tar sets a directory's time when it leaves it. A file with several names (hard links) has its content
under the first one met. The rollback data that a restore keeps at the top of the tree is passed over.
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
"""Device and inode: what a directory is, whichever name or mount it is reached by."""


def identity(path: Path) -> Identity:
    """The identity of a file or directory; symlinks are followed."""
    found = path.stat()
    return found.st_dev, found.st_ino


class FileTree:
    """One directory, or one file, to be archived below `prefix`; a context manager.

    Arguments:
        root: the directory or the file; symlinks in this path are followed.
        prefix: its name in the archive, such as ``media``.
        excluded: directories that are passed over, wherever below the root they turn up.
        tally: what the writer found vanished; what is special is added here.

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
        self._names: dict[Identity, Item] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.tree.close()

    def items(self) -> Iterator[tuple[Item, int]]:
        """Everything there is, each with its size in bytes at this moment.

        Raises:
            SourceError: a directory cannot be read.
        """
        if self._file is None:
            yield from self._below()
            return
        found = self.tree.look(self._file)
        yield (f"{self.prefix}/{self._file}", "file", ""), found.st_size if found else 0

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
                    raise unreadable(self.tree.name(source_of(path)), error.errno or 0) from error
                # the directory itself is in the archive, empty: that is what it was last
            todo += reversed(deeper)

    def _entries(self, path: str) -> Iterator[os.DirEntry[str]]:
        check_length(path)
        with self.tree.entries(source_of(path)) as found:
            found.sort(key=lambda entry: os.fsencode(entry.name))
            yield from found

    def _is_passed_over(self, path: str, found: os.stat_result) -> bool:
        return (found.st_dev, found.st_ino) in self.excluded or path == f"{self.prefix}/{RESTORE_DIRECTORY}"

    def _gone(self, path: str, error: OSError) -> None:
        if error.errno not in GONE:
            raise unreadable(self.tree.name(source_of(path)), error.errno or 0) from error
        self.tally.vanished.append(path)

    def _linked(self, item: Item, found: os.stat_result) -> Item:
        """A file with several names: the first one names itself as the link, the others the first."""
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
    """The tree of a source; for a source that is one file, the tree that the file is in, and its name.

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
    """Refuse a directory whose path is longer than an index takes.

    Raises:
        SourceError: it is.
    """
    if len(path) > PATH_BYTES // 4 and len(encode_name(path)) > PATH_BYTES:
        raise SourceError(
            f"the path of a directory is longer than {PATH_BYTES:,} bytes: {path[:100]}…",
            hint="No program needs such a path: move the directory up, or remove it; then start the backup again.",
        )


def tree_bytes(root: Path, excluded: frozenset[Identity] = frozenset()) -> int:
    """About how many bytes the files of a tree have: for a progress bar, so what cannot be looked at is left out."""
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
