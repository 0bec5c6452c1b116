"""Cron expressions in a time zone: which slot was the last one, which is the next.

A slot is a moment of time, given in UTC. Where the clocks are changed it is as cron does it: a slot in the hour that is
skipped comes once, right after it, and one in the hour that comes twice comes the first time only; an expression that
starts its hours or minutes with a star goes by the time that passes, and knows no such hours.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from cronsim import CronSim

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import tzinfo

_MARGIN: Final = timedelta(hours=25)
"""More than any clock was ever changed by: so far the order on the wall may differ from the order in time."""


def last_slot(expression: str, zone: tzinfo, now: datetime) -> datetime | None:
    """The newest slot that is not after `now`; nothing where there was none in fifty years."""
    later = _slots(expression, now.astimezone(zone) + _MARGIN, is_backwards=True)
    return next((slot for slot in later if slot <= now), None)


def next_slot(expression: str, zone: tzinfo, now: datetime) -> datetime | None:
    """The first slot after `now`; nothing where there will be none in fifty years."""
    earlier = _slots(expression, now.astimezone(zone) - _MARGIN, is_backwards=False)
    return next((slot for slot in earlier if slot > now), None)


def newest_slot(expressions: Iterable[str], zone: tzinfo, now: datetime) -> datetime | None:
    """The newest slot of several expressions that is not after `now`."""
    return max(filter(None, (last_slot(one, zone, now) for one in expressions)), default=None)


def _slots(expression: str, start: datetime, *, is_backwards: bool) -> Iterator[datetime]:
    for slot in CronSim(expression, start, reverse=is_backwards):
        yield slot.astimezone(UTC)
