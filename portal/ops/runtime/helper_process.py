"""Helper processes: the same Python in a process of its own, which takes messages on its standard input.

One process runs Python on one core only. Helpers work under every kind of Celery pool, which multiprocessing does
not. A helper ends when its standard input does, so none outlives for long a process that was killed.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

_PIPE_BYTES: Final = 1 << 20
_END_SECONDS: Final = 60.0
# glibc would give the memory of each frame back, and have the kernel clear it anew for the next one.
_ALLOCATOR: Final = {"MALLOC_TRIM_THRESHOLD_": str(64 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}


class Helper(NamedTuple):
    """A helper process, and the pipes to it and from it."""

    process: subprocess.Popen[bytes]
    requests: BinaryIO
    answers: BinaryIO


def start_helper(entry: str, *arguments: str, descriptors: Sequence[int] = ()) -> Helper:
    """Start a helper.

    Arguments:
        entry: what it runs: the name of a module that has a function `main`.
        arguments: its arguments.
        descriptors: open files that it has too, by the same numbers.
    """
    # -P keeps the current directory off the path; our own path is handed on, so the helper finds what we found.
    environment = {**os.environ, **_ALLOCATOR, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", f"from {entry} import main; main()", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        pass_fds=descriptors,
    )
    with suppress(PermissionError):  # the kernel limits what one user may have in pipes
        fcntl.fcntl(cast("BinaryIO", process.stdout), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return Helper(process, cast("BinaryIO", process.stdin), cast("BinaryIO", process.stdout))


def end_helpers(helpers: Sequence[Helper]) -> None:
    """Let helpers end, and wait for them; one that does not end in time is killed."""
    for helper in helpers:
        with suppress(BrokenPipeError):
            helper.requests.close()
    for helper in helpers:
        helper.answers.close()
        try:
            helper.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:  # whose disk does not answer, for instance
            helper.process.kill()
            helper.process.wait()
