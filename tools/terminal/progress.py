"""How far a command is: a bar for work that is counted in bytes, and a line for everything else that takes a while."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Self

from tools.terminal import output

if TYPE_CHECKING:
    from portal.ops.runtime.progress import Step

_REDRAW_SECONDS: Final = 0.1
_LINE_SECONDS: Final = 10.0
_SILENT_SECONDS: Final = 1.0
_CLEAR_LINE: Final = "\r\x1b[K"
_TURN: Final = "|/-\\"


class Bar:
    """How far a job is: a bar with rate and time left on a terminal, a log line now and then elsewhere.

    Arguments:
        log: what writes the line where there is no terminal. It is asked for its method each time: it is set up later.
    """

    def __init__(self, log: Any, *, line_seconds: float = _LINE_SECONDS) -> None:
        self._log = log
        self._terminal = sys.stderr.isatty()
        self._interval = _REDRAW_SECONDS if self._terminal else line_seconds
        self._started = self._last = time.monotonic()
        self._done = 0

    def __call__(self, step: Step) -> None:
        """Show the state; cheap enough to be called for every block."""
        now = time.monotonic()
        if step.done < self._done:  # another part of the job, with a rate of its own
            self._started = now
        self._done = step.done
        if now - self._last < self._interval:
            return
        self._last = now
        phase, done, total = step.phase, step.done, step.expect()
        rate = done / max(now - self._started, 0.001)
        if not self._terminal:
            self._log.info("job_progressed", phase=phase, bytes=done, total=total, bytes_per_second=int(rate))
        elif output.is_lively():
            self._draw(phase, done, total, rate)

    def clear(self) -> None:
        """Take the bar off the screen."""
        if self._terminal:
            output.tell(_CLEAR_LINE)

    def _draw(self, phase: str, done: int, total: int | None, rate: float) -> None:
        from portal.ops.units import duration, human_bytes

        text = f"{phase:<10} {human_bytes(done):>8}  {human_bytes(rate)}/s"
        columns = shutil.get_terminal_size().columns
        if total and done <= total:
            width = max(10, min(40, columns - 60))
            full = width * done // total
            text += f"  [{'#' * full}{'.' * (width - full)}] {100 * done // total:3d} %"
            text += f"  {duration((total - done) / max(rate, 1))} left"
        output.tell(_CLEAR_LINE + text[: columns - 1])


class BarAwareStream:
    """Standard error, with the bar taken away before a line is written."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def write(self, text: str) -> int:
        """Write over the bar."""
        self._bar.clear()
        output.tell(text)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        """Whether a person is there."""
        return sys.stderr.isatty()


class Activity:
    """A line on the terminal that says what a command does, as soon as nothing was written for a second.

    A thread draws it, since the work does not know that it is slow. Use it as a context manager.

    Arguments:
        doing: what the command does, such as ``reading the archives``.
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._ended = threading.Event()
        self._drawn = -1.0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if output.is_lively() and os.getpgrp() == _foreground():
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()

    def _watch(self) -> None:
        started = time.monotonic()
        turn = 0
        while not self._ended.wait(_REDRAW_SECONDS):
            if not output.is_lively():
                continue
            if (
                output.last_write != self._drawn
                and time.monotonic() - max(output.last_write, started) < _SILENT_SECONDS
            ):
                continue
            seconds = int(time.monotonic() - started)
            columns = shutil.get_terminal_size().columns
            line = f"{_TURN[turn % len(_TURN)]} {self._doing} ... {seconds} s"
            output.tell(_CLEAR_LINE + output.coloured(line[: columns - 1], "dim", sys.stderr))
            self._drawn = output.last_write
            turn += 1
        if self._drawn == output.last_write:
            output.tell(_CLEAR_LINE)


def _foreground() -> int:
    try:
        return os.tcgetpgrp(sys.stderr.fileno())
    except OSError:  # a terminal that is not this session's own
        return os.getpgrp()
