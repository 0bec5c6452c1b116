"""The services passed to every job: a clock, a progress callback, and a reader of secrets' files."""

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
"""Is told of every number of bytes that were worked on; cheap enough to be called for every block."""


def utc_now() -> datetime:
    """The clock that is used where no other is passed in."""
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class Step:
    """The progress of a job.

    Arguments:
        phase: what it works on, such as a component's name.
        done: bytes of content so far, over all components.
        expect: how many there will be, about; asked only by who wants to know, since finding out takes a moment.
    """

    phase: str
    done: int
    expect: Callable[[], int | None] = field(default=lambda: None, compare=False)


def read_text(path: str) -> str:
    """Read the file that holds a secret."""
    return Path(path).read_text("utf-8")


class Meter:
    """Adds up what was read, and tells it on.

    `phase` and `expect` go into each step.
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done = 0
        self.phase = ""
        self.expect: Callable[[], int | None] = lambda: None

    def advance(self, count: int) -> None:
        """So many bytes more."""
        self._done += count
        if self._progress:
            self._progress(Step(phase=self.phase, done=self._done, expect=self.expect))


def available_cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0))
