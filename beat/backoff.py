"""The delay before sending again: a failed task, or anything while the broker is away."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from portal.ops.codec import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_FIRST: Final = timedelta(minutes=5)
_LONGEST: Final = timedelta(hours=1)
_FIRST_OUTAGE_SECONDS: Final = 1.0
_LONGEST_OUTAGE_SECONDS: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How often and when a task was last sent."""

    times: int
    moment: datetime

    def may_be_repeated(self, now: datetime) -> bool:
        """True if the pause is over: 5, 10, 20, 40 minutes, then an hour; at once if the clock was set back."""
        pause = min(_FIRST * 2 ** min(self.times - 1, 10), _LONGEST)
        return not self.moment <= now < self.moment + pause


class Memory:
    """The tasks sent, as long as they are due.

    If it is lost, a failed task is sent again sooner.
    """

    def __init__(self, asked: Mapping[str, Asked] | None = None) -> None:
        self._asked = dict(asked or {})

    def times(self) -> dict[str, int]:
        """How often each task was sent."""
        return {task_id: asked.times for task_id, asked in self._asked.items()}

    def was_asked_since(self, task_id: str, moment: datetime) -> bool:
        """True if the task was sent at that moment or later."""
        return task_id in self._asked and self._asked[task_id].moment >= moment

    def may_ask(self, task_id: str, now: datetime) -> bool:
        """True if the task can be sent, for the first time or again."""
        asked = self._asked.get(task_id)
        return asked is None or asked.may_be_repeated(now)

    def note(self, task_id: str, now: datetime) -> None:
        """Record that the task was sent."""
        before = self._asked.get(task_id)
        self._asked[task_id] = Asked(times=before.times + 1 if before else 1, moment=now)

    def keep_only(self, task_ids: Iterable[str]) -> None:
        """Remove tasks that are no longer due."""
        self._asked = {task_id: self._asked[task_id] for task_id in task_ids if task_id in self._asked}

    def to_dict(self) -> dict[str, Any]:
        """The memory as types of JSON, without tasks sent only once, which may be many."""
        return {task_id: encode(asked) for task_id, asked in self._asked.items() if asked.times > 1}

    @classmethod
    def from_dict(cls, facts: object) -> Memory:
        """The memory from the output of `to_dict`, or an empty one if it is invalid."""
        try:
            return cls({str(task_id): decode(Asked, one) for task_id, one in dict(facts).items()})  # type: ignore[call-overload]
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
            return cls()


@dataclass(kw_only=True)
class Outage:
    """A time in which nothing can be sent: retried after 1 s, 2 s, 4 s and so on, then every minute.

    Arguments:
        failures: the number of failed attempts.
        began: the reading of a monotonic clock at the first one.
        again: the reading at which to try again.
    """

    failures: int = 0
    began: float = field(default=0.0)
    again: float = field(default=0.0)

    @property
    def lasts(self) -> bool:
        """True if the last attempt failed."""
        return self.failures > 0

    def fail(self, reading: float) -> bool:
        """Record a failed attempt; return whether it is the first one."""
        if not self.failures:
            self.began = reading
        pause = min(_FIRST_OUTAGE_SECONDS * 2 ** min(self.failures, 10), _LONGEST_OUTAGE_SECONDS)
        self.failures += 1
        self.again = reading + pause
        return self.failures == 1

    def end(self, reading: float) -> float | None:
        """Record a successful attempt; return the seconds that the outage lasted, or None if there was none."""
        seconds = reading - self.began if self.failures else None
        self.failures = 0
        return seconds
