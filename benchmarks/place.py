"""The working directory of benchmarks: the user's own, for one benchmark at a time."""

from __future__ import annotations

import fcntl
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def default_directory() -> Path:
    """Return a directory of our own on a disk, even if /tmp is in memory."""
    return Path(f"/var/tmp/kekkai-benchmark-{os.getuid()}")  # noqa: S108 - its owner is checked


def own_directory(path: Path) -> Path:
    """Create the directory; exit if it belongs to another user."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        sys.exit(f"{path} belongs to somebody else; choose another with --work-dir")
    return path.resolve()


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Hold the directory's lock; exit if another benchmark has it."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another benchmark works in {directory}; wait for it, or choose another with --work-dir")
    try:
        yield
    finally:
        os.close(handle)
