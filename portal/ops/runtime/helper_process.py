"""Helper processes: the same Python in another process, which reads messages from its standard input.

One process runs Python on one core only. Helpers work under every kind of Celery pool; multiprocessing does not. A
helper ends when its standard input does, so none stays long after its parent was killed; if it is just answering then,
it ends by SIGPIPE, without a word.
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
# Otherwise glibc returns the memory of each frame to the kernel, which clears it again for the next one.
_ALLOCATOR: Final = {"MALLOC_TRIM_THRESHOLD_": str(64 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}


_PROGRAM: Final = "import signal; signal.signal(signal.SIGPIPE, signal.SIG_DFL); from {} import main; main()"


class Helper(NamedTuple):
    """A helper process, and the pipes to it and from it."""

    process: subprocess.Popen[bytes]
    requests: BinaryIO
    answers: BinaryIO


def start_helper(entry: str, *arguments: str, descriptors: Sequence[int] = ()) -> Helper:
    """Start a helper.

    Arguments:
        entry: the name of a module with a function `main`.
        arguments: its arguments.
        descriptors: open files to inherit, with the same numbers.
    """
    # -P removes the current directory from the path; our path is passed on, so that the helper finds the same modules.
    environment = {**os.environ, **_ALLOCATOR, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM.format(entry), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        pass_fds=descriptors,
    )
    with suppress(PermissionError):  # the kernel limits the size of a user's pipes
        fcntl.fcntl(cast("BinaryIO", process.stdout), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return Helper(process, cast("BinaryIO", process.stdin), cast("BinaryIO", process.stdout))


def end_helpers(helpers: Sequence[Helper]) -> None:
    """Let helpers end, and wait for them; those that do not end in time are killed."""
    for helper in helpers:
        with suppress(BrokenPipeError):
            helper.requests.close()
    for helper in helpers:
        helper.answers.close()
        try:
            helper.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:  # for instance because its disk does not respond
            helper.process.kill()
            helper.process.wait()
