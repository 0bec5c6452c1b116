"""Limits that a user, a service or a container has: how they show, and what to raise."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_THREAD: Final = "can't start new thread"
_PROCESSES: Final = (
    "This user, service or container may start no more processes and threads: raise 'ulimit -u', TasksMax= of the unit "
    "or pids_limit of the container. BACKUP_JOBS=1 takes the fewest."
)
_MEMORY: Final = (
    "There is no more memory for this process: see 'free -m', 'ulimit -v', MemoryMax= of the unit or mem_limit of the "
    "container. BACKUP_JOBS=1 takes the least."
)
_HINTS: Final = {
    errno.EMFILE: "This process may open no more files: raise 'ulimit -n', or LimitNOFILE= of the unit.",
    errno.ENFILE: "The machine may open no more files: see which process has so many ('lsof'), or raise fs.file-max.",
    errno.EFBIG: "A file may not become larger: raise 'ulimit -f' or LimitFSIZE= of the unit, or use a file system "
    "without such a limit (FAT has one of 4 GB).",
    errno.EAGAIN: _PROCESSES,
    errno.ENOMEM: _MEMORY,
}


def limit_hint(error: OSError) -> str:
    """What to raise, if a limit is the reason of an error; empty if it is another one."""
    return _HINTS.get(error.errno or 0, "")


@contextmanager
def system_errors() -> Iterator[None]:
    """Raise a lack of memory or of threads as the operating system's errors that they are; Python has others."""
    try:
        yield
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
    except RuntimeError as error:
        if _NO_THREAD not in str(error):
            raise
        raise OSError(errno.EAGAIN, "no more threads can be started") from error
