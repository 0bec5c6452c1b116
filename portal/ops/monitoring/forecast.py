"""The forecast of disk space: daily use by archives, space freed by retention, and the day it runs out.

It is based on whole weeks, since a week contains every kind of scheduled backup, and on their medians, so that one
large archive or a day without any changes little.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST_DAYS: Final = 3
"""The least days of history for a forecast."""

_WEEK: Final = 7
_RECENT_DAYS: Final = 28
_TREND_DAYS: Final = 60
_HORIZON_DAYS: Final = 3650


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The space used by archives with the same retention.

    Arguments:
        daily: the present bytes of each day's archives, oldest first, without today.
        kept_days: days after which they are removed; None for never.
    """

    daily: tuple[int, ...]
    kept_days: int | None = None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The forecast of the space.

    Arguments:
        added_per_day: bytes of new archives on a typical day.
        days_left: days until the disk is full; None for more than ten years.
    """

    added_per_day: int
    days_left: int | None


def forecast(usages: Sequence[Usage], *, free: int) -> Forecast | None:
    """Forecast the disk space; None if there is too little history.

    Arguments:
        usages: all archives of the repository, for the same days.
        free: free bytes.
    """
    if not usages or len(usages[0].daily) < LEAST_DAYS:
        return None
    paces = [_pace(usage) for usage in usages]
    return Forecast(
        added_per_day=sum(usual for usual, _ in paces),
        days_left=_days_left(usages, paces, free),
    )


def _pace(usage: Usage) -> tuple[int, float]:
    """Bytes of a typical day, and their daily growth; days past the retention are thinned out and not used."""
    whole = usage.daily if usage.kept_days is None else usage.daily[-max(1, usage.kept_days) :]
    return round(median(_smoothed(whole[-_RECENT_DAYS:]))), _trend(_smoothed(whole[-_TREND_DAYS:]))


def _smoothed(daily: Sequence[int]) -> list[float]:
    """The daily use, averaged over the week that ends with each day; over all days if they are few."""
    if len(daily) < _WEEK:
        return [sum(daily) / len(daily)]
    return [sum(daily[end - _WEEK : end]) / _WEEK for end in range(_WEEK, len(daily) + 1)]


def _trend(series: Sequence[float]) -> float:
    """The median slope between any two days (Theil and Sen); a negative one counts as 0."""
    slopes = [(later - earlier) / (j - i) for (i, earlier), (j, later) in combinations(enumerate(series), 2)]
    return max(0.0, median(slopes)) if len(series) > _WEEK else 0.0


def _days_left(usages: Sequence[Usage], paces: Sequence[tuple[int, float]], free: int) -> int | None:
    """Simulate day after day: each adds archives, and removes those of the day whose retention ends."""
    histories = [_counted_on(usage) for usage in usages]
    left = free
    for day in range(_HORIZON_DAYS):
        for usage, (usual, trend), history in zip(usages, paces, histories, strict=True):
            history.append(round(usual + trend * day))
            left -= history[-1]
            if usage.kept_days is not None and len(history) > usage.kept_days:
                left += history[-1 - usage.kept_days]
        if left < 0:
            return day
    return None


def _counted_on(usage: Usage) -> list[int]:
    """The archives that retention will remove; overdue ones are kept for a reason and not counted."""
    overdue = 0 if usage.kept_days is None else max(0, len(usage.daily) - usage.kept_days)
    return [0] * overdue + list(usage.daily[overdue:])
