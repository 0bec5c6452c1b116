"""A directory tree that is only ever reached from its top, step by step, without following a symlink.

Whatever a path of an archive says, and whatever somebody puts into the tree meanwhile, an operation happens below the
top or not at all: each directory on the way is opened by its name in the one above it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from portal.ops.errors import AccessDeniedError, DiskFullError, NotIntactError, OpsError, RestoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_OPEN: Final = 64
_LIBC: Final = ctypes.CDLL(None, use_errno=True)

IS_ROOT: Final = os.geteuid() == 0
SPECIAL_BITS: Final = stat.S_ISUID | stat.S_ISGID


class Attributes(NamedTuple):
    """What a file or directory has beside its content: permission bits, owner, and time in nanoseconds since 1970."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Attributes:
        """The attributes that a `stat` tells."""
        return cls(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns)

    def give_to(self, descriptor: int, born: Attributes | None = None) -> None:
        """Set them on an open file or directory; the owner where that is allowed.

        Arguments:
            born: what it was made with: of that nothing has to be set that is right already.
        """
        if IS_ROOT and not (born and (born.uid, born.gid) == (self.uid, self.gid)):
            os.fchown(descriptor, self.uid, self.gid)
        if not (born and born.mode == self.mode):
            os.fchmod(descriptor, self.mode)
        os.utime(descriptor, ns=(self.mtime_ns, self.mtime_ns))


class Tree:
    """A directory and what is below it; paths are relative to it, with `/` between names, and empty for itself.

    Arguments:
        top: where it is; symlinks in this path are followed.
    """

    def __init__(self, top: str) -> None:
        self.top = top
        self._root = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptors back."""
        self.forget()
        os.close(self._root)

    def fileno(self) -> int:
        """The descriptor of the top."""
        return self._root

    def forget(self) -> None:
        """Let go of the directories below the top: one of them is about to be renamed."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def place(self, path: str, *, make: bool = False) -> tuple[str, int]:
        """The last name of a path, and a descriptor of the directory that it is in; valid until the next call.

        Arguments:
            make: create the directories on the way that are missing.

        Raises:
            OSError: a directory on the way is missing, or something else than a directory.
        """
        parent, _, name = path.rpartition("/")
        return name, self.directory(parent, make=make)

    def directory(self, path: str, *, make: bool = False) -> int:
        """A descriptor of a directory; valid until the next call, as with `place`."""
        known, missing = path, []
        while known and known not in self._open:
            known, _, name = known.rpartition("/")
            missing.append(name)
        descriptor = self._open[known] if known else self._root
        for name in reversed(missing):
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=descriptor)
            descriptor = os.open(name, _DIRECTORY, dir_fd=descriptor)
            if len(self._open) >= _MOST_OPEN:
                self.forget()
            known = f"{known}/{name}" if known else name
            self._open[known] = descriptor
        return descriptor

    def look(self, path: str) -> os.stat_result | None:
        """What is there; nothing where there is nothing. A symlink is looked at itself."""
        try:
            if not path:
                return os.fstat(self._root)
            name, above = self.place(path)
            return os.stat(name, dir_fd=above, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:  # a symlink on the way: nothing of this tree is behind it
                return None
            raise

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        with os.scandir(self.directory(path)) as found:
            return sorted(entry.name for entry in found)

    def below(self, path: str) -> Iterator[tuple[str, os.stat_result]]:
        """Everything below a directory, each with what `stat` says; a directory comes before what is in it."""
        todo = [path]
        while todo:
            directory = todo.pop()
            deeper = []
            with os.scandir(self.directory(directory)) as entries:
                found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
            for name, what in sorted(found):
                inner = f"{directory}/{name}" if directory else name
                yield inner, what
                if stat.S_ISDIR(what.st_mode):
                    deeper.append(inner)
            todo += reversed(deeper)

    def sync(self) -> None:
        """Put all that was written to this file system on the disk.

        One call for the whole file system, where one for each file would be tens of thousands of waits.

        Raises:
            OSError: something could not be written.
        """
        if _LIBC.syncfs(self._root) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), self.top)


def move(source: Tree, target: Tree, path: str, new: str | None = None, *, make: bool = False) -> None:
    """Rename what is at a path of one tree to the same path, or a new one, of another on the same file system.

    Arguments:
        make: create the directories in `target` that are missing.
    """
    old_name, old_above = source.place(path)
    new_name, new_above = target.place(path if new is None else new, make=make)
    os.rename(old_name, new_name, src_dir_fd=old_above, dst_dir_fd=new_above)


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it, also where the rights that directories have do not allow that.

    Raises:
        OSError: it is not there, or something in it is another user's.
    """
    try:
        shutil.rmtree(path)
    except PermissionError:
        _open_up(path)
        shutil.rmtree(path)


def _open_up(top: Path) -> None:
    """Let the owner of a directory do everything in it and below it."""
    os.chmod(top, 0o700)
    for directory, names, _ in os.walk(top):
        for path in (os.path.join(directory, name) for name in names):
            if not os.path.islink(path):
                os.chmod(path, 0o700)


def explained(error: OSError, doing: str, top: str) -> OpsError:
    """The error of this engine for one of the operating system."""
    reason = (error.strerror or "it refused").lower()
    if error.errno in _FULL:
        return DiskFullError(
            f"no space left in {top} {doing}",
            hint="Make room there, then start the restore again; what was written of this one is gone.",
        )
    if error.errno in _DENIED:
        return AccessDeniedError(
            f"{top} may not be changed {doing}: {reason}",
            hint="Run the restore as the portal's user or as root, or give this user the right to write there.",
        )
    if error.errno in _NAMES:
        return NotIntactError(
            f"the archive has a name that the file system of {top} does not take: {reason}",
            hint="Restore to another file system, or take another archive: './tools/backup.sh list' shows them.",
        )
    name = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, str | bytes) else ""
    return RestoreError(
        f"the operating system refused {doing} in {top}: {reason}{name}",
        hint="Look at the disk and its mounts: everything below the directory must be on one file system.",
    )


_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED: Final = frozenset({errno.EPERM, errno.EACCES, errno.EROFS})
_NAMES: Final = frozenset({errno.EINVAL, errno.ENAMETOOLONG, errno.EILSEQ})
