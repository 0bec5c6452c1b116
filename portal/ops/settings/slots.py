"""Cron expressions in a time zone: the last slot, and the next one.

A slot is a moment in UTC. Clock changes are handled as by cron: a slot in the skipped hour comes once, right after it;
a slot in the repeated hour comes the first time only; an expression whose hours or minutes start with a star follows
elapsed time and is not affected.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from cronsim import CronSim

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import tzinfo

_MARGIN: Final = timedelta(hours=25)
"""Longer than any change of clocks: within this time, local times may not be in the order of moments."""


def last_slot(expression: str, zone: tzinfo, now: datetime) -> datetime | None:
    """The newest slot up to `now`, or None if there was none in fifty years."""
    later = _slots(expression, now.astimezone(zone) + _MARGIN, is_backwards=True)
    return next((slot for slot in later if slot <= now), None)


def next_slot(expression: str, zone: tzinfo, now: datetime) -> datetime | None:
    """The first slot after `now`, or None if there is none in fifty years."""
    earlier = _slots(expression, now.astimezone(zone) - _MARGIN, is_backwards=False)
    return next((slot for slot in earlier if slot > now), None)


def newest_slot(expressions: Iterable[str], zone: tzinfo, now: datetime) -> datetime | None:
    """The newest slot of several expressions, up to `now`."""
    return max(filter(None, (last_slot(one, zone, now) for one in expressions)), default=None)


def _slots(expression: str, start: datetime, *, is_backwards: bool) -> Iterator[datetime]:
    for slot in CronSim(expression, start, reverse=is_backwards):
        yield slot.astimezone(UTC)
