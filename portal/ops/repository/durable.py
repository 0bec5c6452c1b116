"""Durable writes: a small file is complete or absent, and has the same owner as its directory.

Root may run the first command in a repository. Everything that root creates there is given to the repository's owner,
whose own commands could not use it otherwise.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from portal.ops.filesystem.temporary import is_temporary, temporary_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


def write_durably(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file and its name durably; after a crash it is complete or as before.

    Arguments:
        data: the content, in pieces if it is large.

    Raises:
        OSError: writing failed; an existing file of that name is unchanged.
    """
    write_whole(path, data)
    sync_directory(path.parent)


def write_whole(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Like `write_durably`, but the name is not synced: the caller does that, or does not need it."""
    temporary = path.with_name(temporary_name(path.name))
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with naming(path), os.fdopen(descriptor, "wb") as file:
            give_to_owner(descriptor, path.parent)
            for piece in (data,) if isinstance(data, bytes) else data:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_line(descriptor: int, line: bytes) -> int:
    """Append a line durably, after ending one that a crash has cut short; return the size of the file before.

    Arguments:
        descriptor: an open file that only this process writes to.
        line: the line, with its end.

    Raises:
        OSError: writing failed; the file is unchanged.
    """
    size = os.fstat(descriptor).st_size
    is_ended = size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
    data = line if is_ended else b"\n" + line
    try:
        if os.pwrite(descriptor, data, size) != len(data):  # a disk that becomes full takes the first part
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fdatasync(descriptor)
    except BaseException:
        os.ftruncate(descriptor, size)
        raise
    return size


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's path to errors of an open file, which do not have it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def open_own(path: Path, flags: int = os.O_RDWR) -> int:
    """Open a file of the repository, and create it if necessary, accessible to its owner only.

    Arguments:
        flags: flags for opening; links are never followed.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        give_to_owner(descriptor, path.parent)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def give_to_owner(descriptor: int, directory: Path) -> None:
    """Give a file that root created to the owner of its directory.

    A file with several hard links is left alone: a user may have linked it there for root to give away.
    """
    if os.geteuid() != 0:
        return
    found, owner = os.fstat(descriptor), os.stat(directory)
    if found.st_uid == 0 != owner.st_uid and (found.st_nlink == 1 or stat.S_ISDIR(found.st_mode)):
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def make_hidden(path: Path, *, is_new: bool = False) -> None:
    """Create a hidden directory in a repository durably, if it does not exist; accessible to the owner only.

    Arguments:
        is_new: fail if it exists.

    Raises:
        OSError: it cannot be created.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if is_new or not path.is_dir():
            raise
    else:
        sync_directory(path.parent)
    if os.geteuid() == 0:
        _give_directory(path)


def make_directories(path: Path) -> None:
    """Create a directory and its parents, accessible to the owner only; each gets the owner of its parent.

    Raises:
        OSError: it cannot be created.
    """
    if not path.is_dir():
        if path.parent != path:
            make_directories(path.parent)
        make_hidden(path)


def _give_directory(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # a link made by the owner: not ours
        return
    try:
        give_to_owner(descriptor, path.parent)
    finally:
        os.close(descriptor)


def unfinished(directory: Path) -> list[Path]:
    """Temporary files of unfinished writes."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, PermissionError):
        return []
    return [directory / name for name in sorted(names) if is_temporary(name)]


def sync_directory(path: Path) -> None:
    """Sync a directory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
