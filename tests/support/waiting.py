"""Waiting for what other processes do."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


LONG_SECONDS: Final = 60.0
"""So long is waited at most for what happens at once on a quiet machine: a busy one may take its time."""


def wait_until(is_so: Callable[[], object], *, seconds: float = LONG_SECONDS) -> None:
    """Wait until a condition holds; an assertion fails where it does not in time."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, (
            f"{getattr(is_so, '__qualname__', is_so)} did not come true within {seconds:g} s"
        )
        time.sleep(0.02)


@contextmanager
def in_thread(work: Callable[[], None], stop: threading.Event) -> Iterator[None]:
    """Have a thread do some work until the context is left.

    Arguments:
        stop: set at the end; the work has to look at it.
    """
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def ends_soon(pid: int) -> bool:
    """Wait for a process, of whatever parent, to be gone or a zombie."""
    deadline = time.monotonic() + LONG_SECONDS
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.02)
    return False


def names_of(frame: FrameType | None) -> list[str]:
    """The functions that a thread is in."""
    found = []
    while frame:
        found.append(frame.f_code.co_name)
        frame = frame.f_back
    return found
