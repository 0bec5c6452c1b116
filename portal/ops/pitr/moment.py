"""Parses moments as a person writes them: ``2026-11-28 14:03:07+00:00``, ``10 minutes ago``, ``latest``. Pure.

A moment without an offset is in the time zone `BACKUP_TIMEZONE`, in every command.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from portal.ops.errors import ConfigurationError

LATEST: Final = "latest"

_AGO: Final = re.compile(r"(\d{1,9})\s*(s|seconds?|m|min|minutes?|h|hours?|d|days?)\s+ago", re.IGNORECASE)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_moment(text: str, now: datetime, zone: tzinfo = UTC) -> datetime | None:
    """Parse a moment; return it in UTC, or None for the latest possible one.

    Arguments:
        now: the time from which ``… ago`` counts.
        zone: the time zone of a moment without an offset.

    Raises:
        ConfigurationError: the text is no moment, or is ambiguous because clocks were set back.
    """
    wanted = text.strip()
    if wanted.lower() == LATEST:
        return None
    if found := _AGO.fullmatch(wanted):
        try:
            return now.astimezone(UTC) - timedelta(**{_UNITS[found[2][0].lower()]: int(found[1])})
        except OverflowError:
            raise _no_moment(text) from None
    return _absolute(wanted, zone).astimezone(UTC)


def with_offset(text: str, zone: tzinfo) -> str:
    """The text with its offset added, for a machine that may have another time zone.

    Raises:
        ConfigurationError: the text is no moment, or is ambiguous.
    """
    wanted = text.strip()
    if wanted.lower() == LATEST or _AGO.fullmatch(wanted):
        return wanted
    return _absolute(wanted, zone).isoformat(sep=" ")


def shown(moment: datetime, zone: tzinfo) -> str:
    """Show a moment with its offset, and in UTC if that differs."""
    local = moment.astimezone(zone).replace(microsecond=0)
    text = local.isoformat(sep=" ")
    return text if not local.utcoffset() else f"{text} ({moment.astimezone(UTC):%H:%M:%S} UTC)"


def _absolute(text: str, zone: tzinfo) -> datetime:
    try:
        written = datetime.fromisoformat(text)
        moment = written if written.tzinfo else _in_zone(written, zone)
        moment.astimezone(UTC)  # UTC has no moment before the year 1 or after 9999
    except (OverflowError, ValueError):
        raise _no_moment(text) from None
    return moment


def _no_moment(text: str) -> ConfigurationError:
    return ConfigurationError(
        f"{text!r} is no moment", hint="Write '2026-11-28 14:03:07+00:00', '10 minutes ago' or 'latest'."
    )


def _in_zone(moment: datetime, zone: tzinfo) -> datetime:
    """The moment at which clocks of a zone show a local time.

    Raises:
        ConfigurationError: they show it twice or never.
    """
    first, second = moment.replace(tzinfo=zone, fold=0), moment.replace(tzinfo=zone, fold=1)
    if first.utcoffset() == second.utcoffset():
        return first
    if first.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != moment:
        raise ConfigurationError(
            f"there was no {moment} in {zone}: clocks were set forward", hint="Name another moment, or its offset."
        )
    raise ConfigurationError(
        f"{moment} was twice in {zone}: clocks were set back",
        hint=f"Name the offset: '{first.isoformat(sep=' ')}' or '{second.isoformat(sep=' ')}'.",
    )
