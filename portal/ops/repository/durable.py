"""Durable writes: a small file is there whole or not at all, and belongs to whoever its directory belongs to.

Whatever is made in a repository by root, who may run the first command there, is given to the repository's owner: its
own later commands could not use it otherwise.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_UNFINISHED: Final = re.compile(r"\..+\.\d+\.tmp")


def write_durably(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file so that it is there whole or not at all, with its name, whatever happens.

    Arguments:
        data: the content; pieces of it where it is large.

    Raises:
        OSError: it cannot be written; an older file of that name stays.
    """
    write_whole(path, data)
    sync_directory(path.parent)


def write_whole(path: Path, data: bytes | Iterable[bytes]) -> None:
    """As `write_durably`, but whoever calls this puts the name on the disk, or can do without."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
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


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of an open file, which has no name for it, that of the file."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def open_own(path: Path, flags: int = os.O_RDWR) -> int:
    """Open a file of the repository's own, and make it where there is none: for its owner alone.

    Arguments:
        flags: how to open it; never through a link.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        give_to_owner(descriptor, path.parent)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def give_to_owner(descriptor: int, directory: Path) -> None:
    """Give what root has made in a directory to whom the directory belongs, who could not use it otherwise.

    A file that has other names is left alone: it may have been put there for root to give away.
    """
    if os.geteuid() != 0:
        return
    found, owner = os.fstat(descriptor), os.stat(directory)
    if found.st_uid == 0 != owner.st_uid and (found.st_nlink == 1 or stat.S_ISDIR(found.st_mode)):
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def make_hidden(path: Path, *, is_new: bool = False) -> None:
    """Make a directory in a repository durably, unless it is there: its owner's, and nobody else's.

    Arguments:
        is_new: there must be none.

    Raises:
        OSError: it cannot be made.
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
    """Make a directory for its owner alone, with those above it; each belongs to whom the one above it belongs.

    Raises:
        OSError: it cannot be made.
    """
    if not path.is_dir():
        if path.parent != path:
            make_directories(path.parent)
        make_hidden(path)


def _give_directory(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # a link that its owner has put there: nothing that we have made
        return
    try:
        give_to_owner(descriptor, path.parent)
    finally:
        os.close(descriptor)


def unfinished(directory: Path) -> list[Path]:
    """The hidden files of writes that have not come to their end, or never will."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, PermissionError):
        return []
    return [directory / name for name in sorted(names) if _UNFINISHED.fullmatch(name)]


def sync_directory(path: Path) -> None:
    """Put the names in a directory on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
