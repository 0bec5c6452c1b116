"""A moment as a person writes it: ``2026-11-28 14:03:07+00:00``, ``10 minutes ago``, ``latest``. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from portal.ops.errors import ConfigurationError

LATEST: Final = "latest"

_AGO: Final = re.compile(r"(\d{1,9})\s*(s|seconds?|m|min|minutes?|h|hours?|d|days?)\s+ago", re.IGNORECASE)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_moment(text: str, now: datetime, zone: tzinfo = UTC) -> datetime | None:
    """The moment that is meant, in UTC; nothing for the latest one that there is.

    Arguments:
        now: what ``… ago`` counts from.
        zone: of a moment that names none.

    Raises:
        ConfigurationError: it is no moment.
    """
    wanted = text.strip()
    if wanted.lower() == LATEST:
        return None
    if found := _AGO.fullmatch(wanted):
        return now.astimezone(UTC) - timedelta(**{_UNITS[found[2][0].lower()]: int(found[1])})
    try:
        moment = datetime.fromisoformat(wanted)
    except ValueError:
        raise ConfigurationError(
            f"{text!r} is no moment", hint="Write '2026-11-28 14:03:07+00:00', '10 minutes ago' or 'latest'."
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)
