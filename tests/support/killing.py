"""A process that is gone at a chosen step: it kills itself when it is about to change a file the n-th time."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

CHANGES: Final = frozenset({"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.utime"})


def killed_at(step: int, work: Callable[[], Any]) -> bool:
    """Do some work in a process of its own that is killed before its n-th change of a file; whether it was.

    Arguments:
        step: from 1; a work of fewer changes comes to its end.
    """
    child = os.fork()
    if child == 0:
        _die_at(step, work)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"the process ended with {code}"
    return code != 0


def _die_at(step: int, work: Callable[[], Any]) -> None:
    changes = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event in CHANGES or (event == "open" and arguments[2] & (os.O_CREAT | os.O_TRUNC)):
            changes += 1
            if changes == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    try:
        work()
    except BaseException:  # whatever it is, this process must not become a second run of the tests
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
