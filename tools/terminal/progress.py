"""The progress of a command: a bar for work counted in bytes, and a line for other long work."""

from __future__ import annotations

import os
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
_BASIS_SECONDS: Final = 2.0
"""Seconds of observation before a remaining time is estimated."""

_TURN: Final = "|/-\\"


class Pace:
    """The rate of a job, observed from the first byte on, so that waiting for locks or workers does not count."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._before = self._done = self._seconds = 0.0

    def note(self, done: int, now: float) -> None:
        """Note the bytes done at a time; a smaller number starts another part with its own rate.

        Arguments:
            done: bytes.
            now: seconds on the monotonic clock.
        """
        if self._since is None or done < self._done or not self._done:
            self._since, self._before = now, done
        self._done, self._seconds = done, now - self._since

    @property
    def rate(self) -> float | None:
        """Bytes a second, once some are done."""
        count = self._done - self._before
        return count / self._seconds if count > 0 and self._seconds > 0 else None

    def seconds_left(self, total: int) -> float | None:
        """The seconds left at this rate, once it has been observed long enough."""
        rate = self.rate
        return (total - self._done) / rate if rate and self._seconds >= _BASIS_SECONDS else None


class Bar:
    """Shows progress: a bar with rate and time left on a terminal, otherwise a log line from time to time.

    Arguments:
        log: writes the log line; its method is looked up at each use, since logging is configured later.
    """

    def __init__(self, log: Any, *, line_seconds: float = _LINE_SECONDS) -> None:
        self._log = log
        self._terminal = sys.stderr.isatty()
        self._interval = _REDRAW_SECONDS if self._terminal else line_seconds
        self._last = time.monotonic()
        self._pace = Pace()

    def __call__(self, step: Step) -> None:
        """Show a step; cheap enough to be called for every block."""
        now = time.monotonic()
        self._pace.note(step.done, now)
        if now - self._last < self._interval:
            return
        self._last = now
        phase, done, total, rate = step.phase, step.done, step.expect(), self._pace.rate
        if not self._terminal:
            facts = {"total": total, "bytes_per_second": rate and int(rate)}
            known = {name: value for name, value in facts.items() if value is not None}
            self._log.info("job_progressed", phase=phase, bytes=done, **known)
        elif output.is_lively():
            self._draw(phase, done, total)

    def clear(self) -> None:
        """Clear the bar."""
        if self._terminal:
            output.clear_line()

    def _draw(self, phase: str, done: int, total: int | None) -> None:
        from portal.ops.model import Component
        from portal.ops.units import duration, human_bytes

        name = Component(phase).spoken if phase in set(Component) else phase
        if not done and total is None:  # work that is not counted in bytes
            output.draw_line(f"{name} ...")
            return
        text = f"{name:<10} {human_bytes(done):>8}"
        text += f"  {human_bytes(self._pace.rate)}/s" if self._pace.rate else ""
        if total and done <= total:
            width = max(10, min(40, output.width() - 60))
            full = width * done // total
            text += f"  [{'#' * full}{'.' * (width - full)}] {100 * done // total:3d} %"
            left = self._pace.seconds_left(total)
            text += f"  {duration(left)} left" if left is not None else ""
        output.draw_line(text)


class BarAwareStream:
    """Standard error, on which the bar is cleared before a line is written."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def write(self, text: str) -> int:
        """Clear the bar and write."""
        self._bar.clear()
        output.tell(text)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        """True if it is a terminal."""
        return sys.stderr.isatty()


class Activity:
    """A line on the terminal that says what a command does, shown when nothing was written for a second.

    A thread draws it, since the work does not know that it is slow. A context manager.

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
            output.draw_line(f"{_TURN[turn % len(_TURN)]} {self._doing} ... {seconds} s", "dim")
            self._drawn = output.last_write
            turn += 1
        if self._drawn == output.last_write:
            output.clear_line()


def _foreground() -> int:
    try:
        return os.tcgetpgrp(sys.stderr.fileno())
    except OSError:  # a terminal of another session
        return os.getpgrp()
