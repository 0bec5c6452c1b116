"""How long the space lasts: what archives take each day, what retention gives back, and the day it runs out.

Weeks, not archives, are compared: a week has everything that a schedule makes. The middle of the last weeks counts, not
their mean, so one large archive or a day without any changes little.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST_DAYS: Final = 3
"""Whole days of history below which nothing is foretold."""

_WEEK: Final = 7
_RECENT_DAYS: Final = 28
_TREND_DAYS: Final = 60
_HORIZON_DAYS: Final = 3650


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """How the space goes on.

    Arguments:
        added_per_day: bytes of new archives on a usual day.
        trend_per_day: bytes by which such a day grows, from one to the next.
        days_left: days until it runs out; nothing where it does not within ten years.
    """

    added_per_day: int
    trend_per_day: float
    days_left: int | None


def forecast(daily: Sequence[int], *, free: int, kept_days: int | None) -> Forecast | None:
    """Foretell how long the space lasts; nothing where there is too little history.

    Arguments:
        daily: bytes of the archives of each day that are there now, the oldest day first, without today.
        free: bytes.
        kept_days: days after which archives are removed; nothing where they never are.
    """
    if len(daily) < LEAST_DAYS:
        return None
    usual = round(median(_smoothed(daily[-_RECENT_DAYS:])))
    whole = daily[-max(LEAST_DAYS, min(_TREND_DAYS, kept_days or _TREND_DAYS)) :]  # older days may be thinned out
    trend = _trend(_smoothed(whole))
    return Forecast(
        added_per_day=usual, trend_per_day=trend, days_left=_days_left(daily, usual, trend, free, kept_days)
    )


def _smoothed(daily: Sequence[int]) -> list[float]:
    """What a day takes, in the mean of each week that ends with one of these days; of all days where they are few."""
    if len(daily) < _WEEK:
        return [sum(daily) / len(daily)]
    return [sum(daily[end - _WEEK : end]) / _WEEK for end in range(_WEEK, len(daily) + 1)]


def _trend(series: Sequence[float]) -> float:
    """The middle of the slopes between any two days (Theil and Sen); what shrinks counts as steady."""
    slopes = [(later - earlier) / (j - i) for (i, earlier), (j, later) in combinations(enumerate(series), 2)]
    return max(0.0, median(slopes)) if len(series) > _WEEK else 0.0


def _days_left(daily: Sequence[int], usual: int, trend: float, free: int, kept_days: int | None) -> int | None:
    """Live through day after day: each adds archives, and removes those of the day that is old enough."""
    history = list(daily)
    today = len(history)
    left = float(free)
    if kept_days is not None and today > kept_days:
        history[: today - kept_days] = [0] * (today - kept_days)  # overdue, or kept for a reason: not counted on
    for day in range(_HORIZON_DAYS):
        added = usual + trend * day
        history.append(round(added))
        left -= added
        leaving = today + day - (kept_days if kept_days is not None else today + day + 1)
        if leaving >= 0:
            left += history[leaving]
        if left < 0:
            return day
    return None
