"""Room for fetched archives: a check of free space, and temporary directories."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from portal.ops.errors import DiskFullError, OpsError
from portal.ops.repository.durable import make_hidden
from portal.ops.repository.faults import disk_full, explain, is_full
from portal.ops.repository.locks import try_lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.repository.repository import Repository

_PREFIX: Final = "verify-"
_DISK_RESERVE: Final = 64 << 20


def check_space(repository: Repository, needed: int) -> None:
    """Make sure that the disk has room.

    Arguments:
        needed: bytes that will be written.

    Raises:
        DiskFullError: it has not enough.
    """
    free = shutil.disk_usage(repository.path).free
    if needed and free < needed + _DISK_RESERVE:
        raise DiskFullError(
            f"{repository.path} has {free >> 20} MiB free, and the fetch needs {needed >> 20} MiB",
            hint="Make room, or set BACKUP_LOCAL_PATH to a larger disk.",
        )


def unwritable(repository: Repository, error: OSError) -> OpsError:
    """The error for a file that cannot be written."""
    return disk_full(repository.path) if is_full(error) else explain(error, "cannot write to", repository.path)


@contextmanager
def own_place(directory: Path) -> Iterator[Path]:
    """A temporary directory in the repository, removed at the end; those of killed processes are removed too.

    It stays locked while in use: process ids mean nothing if several containers use one repository.

    Raises:
        OSError: it cannot be created.
    """
    import tempfile  # imported late: a fetch needs no temporary directory

    make_hidden(directory)
    gate = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)  # otherwise another process might remove it before it is locked
        for left in directory.glob(f"{_PREFIX}*"):
            _remove_unused(left)
        place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=directory))
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(gate)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(descriptor)


def _remove_unused(place: Path) -> None:
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return  # another process has removed it, or it is another user's
    try:
        if try_lock(descriptor, fcntl.LOCK_EX):
            shutil.rmtree(place, ignore_errors=True)
    finally:
        os.close(descriptor)
