"""Ensures that one delivery of a task runs at a time, and counts deliveries that were begun and not finished.

A message can be delivered twice, at once or an hour later, and a process can be killed at any instant. So a worker
locks a file named after the task, `.deliveries/<task_id>` in the repository. It adds a byte to the file at each start,
and removes the file when the work ends in good order: its length is the number of unfinished starts. If the lock is
free, the process that held it is gone, since the kernel then releases it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from portal.ops.errors import BusyError
from portal.ops.repository.durable import make_directories, make_hidden, open_own
from portal.ops.repository.locks import holders, lock_alone_by_name, try_lock, wait_for
from portal.ops.runtime.logs import engine_log
from portal.ops.units import duration
from worker.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = engine_log("worker.delivery")

DIRECTORY: Final = ".deliveries"

TASK_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]{0,199}")
_POLL_SECONDS: Final = 0.1


@contextmanager
def sole_delivery(repository: Path, task_id: str, seconds: float) -> Iterator[int]:
    """Wait until no other process runs the task, then exclude others; yields the number of starts, with this one.

    Arguments:
        repository: the repository's directory.
        task_id: the task's id.
        seconds: how long to wait; no process may run a task for longer.

    Raises:
        BusyError: another process runs it, and did not end in time.
        RefusedError: the task's id cannot be a file name.
        OSError: the repository cannot be written.
    """
    path = _path(repository, task_id)
    make_directories(path.parent)
    make_hidden(path.parent)
    descriptor = _lock(path, seconds)
    try:
        _count(descriptor)
        yield max(1, os.fstat(descriptor).st_size)
    finally:  # reached at any end of the work, unless the process is killed
        try:
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _count(descriptor: int) -> None:
    """Add a byte; on a full disk nothing is counted, since a prune has to be possible."""
    try:
        os.write(descriptor, b".")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def is_abandoned(repository: Path, task_id: str) -> bool:
    """True if a process began the task and is gone."""
    try:
        descriptor = os.open(_path(repository, task_id), os.O_RDWR)
    except (OSError, RefusedError):
        return False
    try:
        return try_lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def is_begun(repository: Path, task_id: str) -> bool:
    """True if a process runs the task, or did so when it was killed."""
    try:
        return _path(repository, task_id).exists()
    except (OSError, RefusedError):
        return False


def forget_old(repository: Path, seconds: float) -> None:
    """Remove files of tasks that nobody has started again for this long."""
    limit = time.time() - seconds
    with suppress(OSError), os.scandir(repository / DIRECTORY) as entries:
        for entry in entries:
            if entry.stat().st_mtime < limit and is_abandoned(repository, entry.name):
                os.unlink(entry.path)


def _path(repository: Path, task_id: str) -> Path:
    if not TASK_ID.fullmatch(task_id):
        raise RefusedError(
            "the task's id is none that a command, beat or the watcher gives", hint="Start the work with backup.sh."
        )
    return repository / DIRECTORY / task_id


def _lock(path: Path, seconds: float) -> int:
    """A locked descriptor of the present file of that name, which may have been replaced meanwhile."""

    def attempt() -> int | None:
        descriptor = open_own(path, os.O_WRONLY | os.O_APPEND)
        try:
            if lock_alone_by_name(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    found = attempt()
    if found is None:
        log.info("delivery_waits", task_id=path.name, holder=_holder(path), longest_seconds=seconds)
        found = wait_for(attempt, seconds, pause=_POLL_SECONDS)
    if found is None:
        raise BusyError(
            f"task {path.name} is being worked on by {_holder(path)}, which has not ended within {duration(seconds)}",
            hint="End that process if it hangs: what it began is undone, and the task can be requested again.",
        )
    return found


def _holder(path: Path) -> str:
    """A description of the process that runs a task."""
    return ", ".join(holders([path]).get(path, ())) or "another process"
