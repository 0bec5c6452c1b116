"""Holding single archives: whoever needs one keeps a prune away from it, and nobody else from anything.

A lock on the repository would make a prune wait for the longest backup there is. So a reader locks the archive that it
reads, shared; a prune locks what it is about to remove, alone, and passes over what somebody holds.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from portal.ops.errors import ArchiveAbsentError, BusyError, RepositoryError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_POLL_SECONDS: Final = 0.05


@contextmanager
def hold(archive: Path, timeout: float) -> Iterator[None]:
    """Keep a prune away from an archive; it takes no more than the right to read it.

    Arguments:
        timeout: seconds to wait for a prune that is just looking at it.

    Raises:
        ArchiveAbsentError: it has just been removed.
        BusyError: it did not become free in time.
        RepositoryError: it cannot be opened.
    """
    descriptor = _open(archive)
    try:
        deadline = time.monotonic() + timeout
        while not try_lock(descriptor, fcntl.LOCK_SH):
            if time.monotonic() >= deadline:
                raise BusyError(f"{archive.name} is locked by another process", hint="Wait for it, then try again.")
            time.sleep(_POLL_SECONDS)
        if not _is_still(descriptor, archive):
            raise _absent(archive)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def claim(archive: Path) -> Iterator[bool]:
    """Keep everybody away from an archive, to remove it; whether it is there, and nobody holds it.

    Raises:
        RepositoryError: it cannot be opened.
    """
    try:
        descriptor = _open(archive)
    except ArchiveAbsentError:
        yield False
        return
    try:
        yield try_lock(descriptor, fcntl.LOCK_EX) and _is_still(descriptor, archive)
    finally:
        os.close(descriptor)


def _open(archive: Path) -> int:
    try:
        return os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _absent(archive) from error
    except OSError as error:
        raise RepositoryError(
            f"cannot read {archive}: {(error.strerror or '').lower()}",
            hint="Run this as the user that the backups belong to.",
        ) from error


def _is_still(descriptor: int, archive: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(archive))
    except FileNotFoundError:
        return False


def _absent(archive: Path) -> ArchiveAbsentError:
    return ArchiveAbsentError(
        f"{archive.name} has just been removed", hint="'./tools/backup.sh list' shows what there is."
    )


@contextmanager
def locked_alone(directory: Path, busy: str) -> Iterator[None]:
    """Lock a directory itself, without waiting and without writing anything.

    Arguments:
        busy: what is said where another process has locked it.

    Raises:
        BusyError: another one has.
        OSError: there is no such directory, or it may not be read.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not try_lock(descriptor, fcntl.LOCK_EX):
            raise BusyError(busy, hint="Wait for it to end, then try again.")
        yield
    finally:
        os.close(descriptor)


def try_lock(descriptor: int, kind: int) -> bool:
    """Lock an open file, without waiting; whether that was possible.

    Arguments:
        kind: `fcntl.LOCK_SH` or `fcntl.LOCK_EX`.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
