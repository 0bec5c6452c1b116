"""A directory tree that is accessed only from its top, step by step, without following symlinks.

Whatever a path contains, and whatever others put into the tree meanwhile, an operation happens below the top or not at
all: each directory on the way is opened by name in the one above. So paths may also be longer than the 4,096 bytes that
the kernel accepts at once.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""Errors of opening a file if the name, or a directory above it, has just been replaced."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_MOST_OPEN: Final = 64
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_IS_UTF8: Final = sys.getfilesystemencoding() == "utf-8"


class Tree:
    """A directory and everything below it. Paths are relative to it, with `/` between names; the empty path is the top.

    Arguments:
        top: its path, in which symlinks are followed.
        descriptor: the directory, if it is open already; closed with the tree.
    """

    def __init__(self, top: str, descriptor: int | None = None) -> None:
        self.top = top
        self._root = os.open(top, os.O_RDONLY | os.O_DIRECTORY) if descriptor is None else descriptor
        self._open: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all descriptors."""
        self.forget()
        os.close(self._root)

    def again(self) -> Tree:
        """The same directory with new descriptors, for another thread."""
        return Tree(self.top, os.dup(self._root))

    def fileno(self) -> int:
        """The descriptor of the top."""
        return self._root

    def name(self, path: str) -> str:
        """The name of a path in messages."""
        return f"{self.top}/{path}" if path else self.top

    def forget(self) -> None:
        """Close the directories below the top, since one of them is about to be renamed."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def place(self, path: str, *, make: bool = False) -> tuple[str, int]:
        """The last name of a path, and a descriptor of its directory; valid until the next call.

        Arguments:
            make: create missing directories on the way. What root makes is given to the owner of the directory above.

        Raises:
            OSError: a directory on the way is missing, or is no directory.
        """
        parent, _, name = path.rpartition("/")
        return name if _IS_UTF8 else _native(name), self.directory(parent, make=make)

    def directory(self, path: str, *, make: bool = False) -> int:
        """A descriptor of a directory; valid until the next call, like `place`."""
        known, missing = path, []
        while known and known not in self._open:
            known, _, name = known.rpartition("/")
            missing.append(name)
        descriptor = self._open[known] if known else self._root
        for name in reversed(missing):
            native = name if _IS_UTF8 else _native(name)
            above, is_made = descriptor, make and _made(native, above=descriptor)
            known = f"{known}/{name}" if known else name
            try:
                descriptor = os.open(native, _DIRECTORY, dir_fd=above)
            except OSError as error:
                error.filename = self.name(known)
                raise
            if is_made:
                give_away(descriptor, os.fstat(above))
            if len(self._open) >= _MOST_OPEN:
                self.forget()
            self._open[known] = descriptor
        return descriptor

    def look(self, path: str) -> os.stat_result | None:
        """The `stat` result of a path, without following symlinks; None if it does not exist."""
        try:
            if not path:
                return os.fstat(self._root)
            name, above = self.place(path)
            return os.stat(name, dir_fd=above, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:  # a symlink on the way: the path is not in this tree
                return None
            raise

    def open_file(self, path: str) -> int:
        """Open a file for reading, without blocking on a FIFO.

        Raises:
            OSError: it cannot be opened, or is a symlink, or below one.
        """
        name, above = self.place(path)
        return os.open(name, _FILE, dir_fd=above)

    def link(self, path: str) -> str:
        """The target of a symlink.

        Raises:
            FileNotFoundError: something else now has its name.
            OSError: it cannot be read.
        """
        name, above = self.place(path)
        try:
            return portable(os.readlink(name, dir_fd=above))
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise FileNotFoundError(errno.ENOENT, "it is no symbolic link any more", path) from error
            raise

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        with os.scandir(self.directory(path)) as found:
            return sorted(portable(entry.name) for entry in found)

    @contextmanager
    def entries(self, path: str) -> Iterator[list[os.DirEntry[str]]]:
        """The entries of a directory, unsorted; their `stat` works while the context lasts."""
        descriptor = os.dup(self.directory(path))
        try:
            with os.scandir(descriptor) as found:
                yield list(found)
        finally:
            os.close(descriptor)

    def below(self, path: str, *, unopened: str = "") -> Iterator[tuple[str, os.stat_result]]:
        """Everything below a directory with its `stat` result; a directory precedes its contents.

        Arguments:
            unopened: a directory whose contents are left out.
        """
        todo = [path]
        while todo:
            directory = todo.pop()
            deeper = []
            try:
                descriptor = self.directory(directory)
            except OSError as error:
                if directory == path or error.errno not in GONE:
                    raise
                continue  # something else now has its name
            with os.scandir(descriptor) as entries:
                found = [(portable(entry.name), entry.stat(follow_symlinks=False)) for entry in entries]
            for name, what in sorted(found):
                inner = f"{directory}/{name}" if directory else name
                yield inner, what
                if stat.S_ISDIR(what.st_mode) and inner != unopened:
                    deeper.append(inner)
            todo += reversed(deeper)

    def remove(self, path: str) -> None:
        """Remove a directory with its contents, even if permissions of directories in it forbid that.

        Raises:
            OSError: it does not exist, or something in it belongs to another user.
        """
        todo = [(path, False)]
        while todo:
            directory, is_empty = todo.pop()
            name, above = self.place(directory)
            if is_empty:
                os.rmdir(name, dir_fd=above)
                if (descriptor := self._open.pop(directory, None)) is not None:
                    os.close(descriptor)
                continue
            todo.append((directory, True))
            todo += [(inner, False) for inner in self._emptied(directory, name, above)]

    def _emptied(self, directory: str, name: str, above: int) -> list[str]:
        """Remove everything in a directory but its subdirectories, and return these."""
        try:
            descriptor = self.directory(directory)
        except PermissionError:
            os.chmod(name, 0o700, dir_fd=above)
            descriptor = self.directory(directory)
        with os.scandir(descriptor) as found:
            entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
        if entries:
            with suppress(PermissionError):
                os.fchmod(descriptor, 0o700)
        for inner, is_directory in entries:
            if not is_directory:
                os.unlink(inner, dir_fd=descriptor)
        return [f"{directory}/{portable(inner)}" for inner, is_directory in entries if is_directory]

    def sync(self) -> None:
        """Sync the whole file system.

        One call for the file system replaces tens of thousands of waits for single files.

        Raises:
            OSError: writing failed.
        """
        if _LIBC.syncfs(self._root) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), self.top)


def move(source: Tree, target: Tree, path: str, new: str | None = None, *, make: bool = False) -> None:
    """Move an entry to the same path, or another one, of another tree on the same file system.

    Arguments:
        make: create missing directories in `target`.
    """
    old_name, old_above = source.place(path)
    new_name, new_above = target.place(path if new is None else new, make=make)
    os.rename(old_name, new_name, src_dir_fd=old_above, dst_dir_fd=new_above)


def remove_tree(path: Path) -> None:
    """Remove a directory with its contents, even if permissions of directories in it forbid that.

    Raises:
        OSError: it does not exist, or something in it belongs to another user.
    """
    with Tree(str(path.parent)) as tree:
        tree.remove(path.name)


def give_away(descriptor: int, to: os.stat_result) -> None:
    """Give what root has made to the owner of something else, if the file system has owners.

    Otherwise only root could use it from now on.
    """
    if os.geteuid() == 0 and to.st_uid != 0 and os.fstat(descriptor).st_uid == 0:
        with suppress(OSError):
            os.fchown(descriptor, to.st_uid, to.st_gid)


def portable(name: str) -> str:
    """A name that the system has returned, as archives have it: UTF-8, other bytes as lone surrogates (PEP 383)."""
    return name if _IS_UTF8 else os.fsencode(name).decode("utf-8", "surrogateescape")


def _made(name: str, *, above: int) -> bool:
    """Create a directory, unless there is something of that name."""
    try:
        os.mkdir(name, 0o700, dir_fd=above)
    except FileExistsError:
        return False
    return True


def _native(name: str) -> str:
    """A name as the functions of `os` take it, where the locale is not UTF-8."""
    return os.fsdecode(name.encode("utf-8", "surrogateescape"))
