"""Work that is done as a user without any rights, also where the tests are run as root."""

from __future__ import annotations

import os
import subprocess
import traceback
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

NOBODY: Final = 65534


def run_as_nobody(command: list[str | Path], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command as a user without any rights; this process has to be root's."""
    return subprocess.run(
        command,
        env=environ,
        cwd="/",
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )


def done_by_nobody(directory: Path, work: Callable[[], Any], *, but: Path | None = None) -> None:
    """Do some work in a process of its own, in a directory that is given to its user with all that is in it.

    The work names files relative to the directory: what is above it may be closed to that user.

    Arguments:
        but: a path that stays whose it is.
    """
    if os.geteuid() == 0:
        for path in {directory, *directory.rglob("*")} - {but}:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    child = os.fork()
    if child == 0:
        _work_and_end(directory, work)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def _work_and_end(directory: Path, work: Callable[[], Any]) -> None:
    try:
        os.chdir(directory)
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        work()
    except BaseException:  # whatever it is, this process must not become a second run of the tests
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
