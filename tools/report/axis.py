"""The common time axis of all drawings: positions, ticks and slices. This module is pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MOST_TICKS: Final = 6
"""The most labels, which fit on a phone."""

_DAY: Final = timedelta(days=1)
_STEPS: Final = (
    *(timedelta(minutes=minutes) for minutes in (1, 5, 10, 15, 30)),
    *(timedelta(hours=hours) for hours in (1, 2, 3, 6, 12)),
    *(timedelta(days=days) for days in (1, 2, 7, 14)),
)
_MONTHS: Final = (1, 2, 3, 6, 12, 24, 60, 120)


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A label on the axis.

    Arguments:
        position: the position, in percent of the axis.
    """

    position: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A period, drawn from 0 to 100 percent.

    Arguments:
        start: its left end.
        end: its right end, after `start`.
    """

    start: datetime
    end: datetime

    @property
    def length(self) -> timedelta:
        """Its length."""
        return self.end - self.start

    def position(self, moment: datetime) -> float:
        """The position of a moment, in percent; moments outside are moved to the nearest end."""
        return min(100.0, max(0.0, 100 * ((moment - self.start) / self.length)))

    def slice_of(self, moment: datetime, count: int) -> int | None:
        """The number of the slice of a moment, of `count` slices; None if it is outside."""
        if not self.start <= moment <= self.end:
            return None
        return min(count - 1, int((moment - self.start) / self.length * count))

    def ticks(self) -> list[Tick]:
        """Labels at round times: hours, days, months or years, whichever fit."""
        return [Tick(position=self.position(moment), label=label) for moment, label in _labelled(self)]


def _labelled(axis: Axis) -> Iterator[tuple[datetime, str]]:
    step = next((step for step in _STEPS if axis.length / step <= MOST_TICKS), None)
    if step is None:
        yield from _months(axis)
        return
    moment = _first(axis.start, step)
    day = None
    while moment <= axis.end:
        if step >= _DAY:
            yield moment, f"{moment.day} {moment:%b}"
        else:
            date, time = f"{moment.day} {moment:%b}", f"{moment:%H:%M}"
            yield moment, time if moment.date() == day else date if time == "00:00" else f"{date} {time}"
        day = moment.date()
        moment += step


def _first(start: datetime, step: timedelta) -> datetime:
    """The first round moment of a step at or after the start; weeks begin on Monday."""
    epoch = datetime(2024, 1, 1, tzinfo=UTC)  # a Monday
    return epoch + -((epoch - start) // step) * step


def _months(axis: Axis) -> Iterator[tuple[datetime, str]]:
    months = axis.length / timedelta(days=30.44)
    step = next((step for step in _MONTHS if months / step <= MOST_TICKS), _MONTHS[-1])
    number = axis.start.year * 12 + axis.start.month - 1
    number += -number % step
    year = None
    while (moment := datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC)) <= axis.end:
        if moment >= axis.start:
            yield moment, f"{moment:%Y}" if step >= 12 else f"{moment:%b}" if moment.year == year else f"{moment:%b %Y}"
            year = moment.year
        number += step


def even_top(greatest: float, evens: Iterable[float]) -> float:
    """The smallest round number that is not below any value."""
    return next((even for even in evens if even >= greatest), greatest)
