"""Services for every job: a clock, a progress callback, a reader for files with secrets."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

PathLike = str | os.PathLike[str]
Clock = Callable[[], datetime]
Progress = Callable[["Step"], None]
Advance = Callable[[int], None]
"""Called with a number of processed bytes; cheap enough for every block."""


def utc_now() -> datetime:
    """The default clock."""
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class Step:
    """The progress of a job.

    Arguments:
        phase: the present work, such as a component's name.
        done: bytes of content so far, over all components.
        expect: returns about how many there will be; called only on demand, since it takes a moment.
    """

    phase: str
    done: int
    expect: Callable[[], int | None] = field(default=lambda: None, compare=False)


def read_text(path: str) -> str:
    """Read a file with a secret."""
    return Path(path).read_text("utf-8")


class Meter:
    """Adds up bytes and reports them.

    `phase` and `expect` are part of each report.
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done = 0
        self.phase = ""
        self.expect: Callable[[], int | None] = lambda: None

    def advance(self, count: int) -> None:
        """Add bytes."""
        self._done += count
        if self._progress:
            self._progress(Step(phase=self.phase, done=self._done, expect=self.expect))


def available_cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0))
