"""A tree of files as a source: what there is to back up, in the order in which it goes into an archive.

Symlinks are recorded, never followed. Sockets, FIFOs and devices have no content and are left out with a warning. A
directory is followed by all that is in it, and by nothing else before that: tar sets a directory's time when it leaves
it. A file with several names (hard links) has its content under the first one met. What a restore keeps at the top of
the tree, to take itself back, is passed over.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from portal.ops.archive.index import decode_name
from portal.ops.archive.packer import GONE, Item
from portal.ops.archive.writer import Tally, unreadable
from portal.ops.errors import SourceError
from portal.ops.model import RESTORE_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Identity = tuple[int, int]
"""Device and inode: what a directory is, whichever name or mount it is reached by."""

_RESTORES: Final = os.fsencode(RESTORE_DIRECTORY)


def identity(path: Path) -> Identity:
    """The identity of a file or directory; symlinks are followed."""
    found = path.stat()
    return found.st_dev, found.st_ino


@dataclass(kw_only=True)
class FileTree:
    """One directory, or one file, to be archived below `prefix`.

    Arguments:
        root: the directory or the file.
        prefix: its name in the archive, such as ``media``.
        excluded: directories that are passed over, wherever below the root they turn up.
        tally: what the writer found vanished; what is special is added here.
    """

    root: Path
    prefix: str
    excluded: frozenset[Identity] = frozenset()
    tally: Tally = field(default_factory=Tally)
    _names: dict[Identity, Item] = field(default_factory=dict)

    def items(self) -> Iterator[tuple[Item, int]]:
        """Everything there is, each with its size in bytes at this moment.

        Raises:
            SourceError: a directory cannot be read, or the root is neither directory nor file.
        """
        top = os.path.realpath(os.fsencode(self.root))
        found = os.stat(top)
        if not stat.S_ISDIR(found.st_mode):
            if not stat.S_ISREG(found.st_mode):
                raise SourceError(
                    f"{self.root} is neither a directory nor a file",
                    hint="Correct the variable that names it, PORTAL_UPLOAD_DIR or PORTAL_AUDIT_DIR.",
                )
            yield (f"{self.prefix}/{decode_name(os.path.basename(top))}", top, "file", ""), found.st_size
            return
        yield from self._below(top, self.prefix)

    def _below(self, top: bytes, prefix: str) -> Iterator[tuple[Item, int]]:
        todo = [(top, prefix)]
        while todo:
            directory, path = todo.pop()
            yield (path, directory, "directory", ""), 0
            deeper = []
            for entry in self._entries(directory):
                name = f"{path}/{decode_name(entry.name)}"
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError as error:
                    self._gone(name, entry.path, error)
                    continue
                mode = found.st_mode
                if stat.S_ISREG(mode):
                    item = (name, entry.path, "file", "")
                    yield (item if found.st_nlink == 1 else self._linked(item, found)), found.st_size
                elif stat.S_ISDIR(mode):
                    excluded = (found.st_dev, found.st_ino) in self.excluded
                    if not excluded and (directory != top or entry.name != _RESTORES):
                        deeper.append((entry.path, name))
                elif stat.S_ISLNK(mode):
                    yield (name, entry.path, "symlink", ""), 0
                else:
                    self.tally.special.append(name)
            todo += reversed(deeper)

    def _entries(self, directory: bytes) -> list[os.DirEntry[bytes]]:
        try:
            with os.scandir(directory) as found:
                return sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            if error.errno in GONE:  # the directory itself is in the archive, empty: that is what it was last
                return []
            raise unreadable(directory, error.errno or 0) from error

    def _gone(self, path: str, source: bytes, error: OSError) -> None:
        if error.errno not in GONE:
            raise unreadable(source, error.errno or 0) from error
        self.tally.vanished.append(path)

    def _linked(self, item: Item, found: os.stat_result) -> Item:
        """A file with several names: the first one names itself as the link, the others the first."""
        path, source, _, _ = item
        file = found.st_dev, found.st_ino
        first = self._names.setdefault(file, (path, source, "file", path))
        if first[1] != source and _still(first[1], file):
            return path, source, "hardlink", first[0]
        self._names[file] = path, source, "file", path
        return self._names[file]


def tree_bytes(root: Path, excluded: frozenset[Identity] = frozenset()) -> int:
    """About how many bytes the files of a tree have: for a progress bar, so what cannot be looked at is left out."""
    if not root.is_dir():
        return root.stat().st_size
    total = 0
    top = os.fsencode(root)
    todo = [top]
    while todo:
        directory = todo.pop()
        with suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    found = entry.stat(follow_symlinks=False)
                    is_passed_over = directory == top and entry.name == _RESTORES
                    if not is_passed_over and (found.st_dev, found.st_ino) not in excluded:
                        todo.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def _still(source: bytes, file: Identity) -> bool:
    try:
        found = os.lstat(source)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == file
