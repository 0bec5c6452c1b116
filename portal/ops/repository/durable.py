"""Durable writes: a small file is there whole or not at all, and belongs to whom its directory belongs."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path


_UNFINISHED: Final = re.compile(r"\..+\.\d+\.tmp")


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file so that it is there whole or not at all, whatever happens."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            give_to_owner(descriptor, path.parent)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def give_to_owner(descriptor: int, directory: Path) -> None:
    """Give what root has made in a directory to whom the directory belongs, who could not use it otherwise.

    A file that has other names is left alone: it may have been put there for root to give away.
    """
    if os.geteuid() != 0:
        return
    found, owner = os.fstat(descriptor), os.stat(directory)
    if found.st_uid == 0 != owner.st_uid and (found.st_nlink == 1 or stat.S_ISDIR(found.st_mode)):
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def make_hidden(path: Path) -> None:
    """Make a directory of records in a repository, unless it is there: its owner's, and nobody else's.

    Raises:
        OSError: it cannot be made.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() == 0:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
