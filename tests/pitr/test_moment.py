"""A moment as a person writes it, in the time zone of the settings."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

import pytest

from portal.ops.errors import ConfigurationError
from portal.ops.pitr.moment import parse_moment, shown, with_offset

BERLIN: Final = ZoneInfo("Europe/Berlin")
NOW: Final = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("2026-11-28 11:00:00+00:00", 11),
        ("2026-11-28 11:00:00", 10),
        ("2026-11-28T11:00", 10),
        ("2026-07-28 11:00", 9),
        ("2 hours ago", 10),
        ("120m ago", 10),
    ],
)
def test_zone_counts_where_no_offset_is_named(text: str, hour: int) -> None:
    """An offset in the text is what counts; otherwise the time zone of the settings, with its summer time."""
    moment = parse_moment(text, NOW, BERLIN)
    assert moment is not None
    assert (moment.hour, moment.tzinfo) == (hour, UTC)


def test_latest_is_no_moment() -> None:
    """The latest moment is found by whoever plans."""
    assert parse_moment(" Latest ", NOW, BERLIN) is None


def test_hour_that_there_was_twice_is_refused() -> None:
    """The hint names both offsets, and with one of them the moment is taken."""
    with pytest.raises(ConfigurationError, match="was twice in Europe/Berlin") as caught:
        parse_moment("2026-10-25 02:30:00", NOW, BERLIN)
    assert "2026-10-25 02:30:00+02:00" in (caught.value.hint or "")
    assert "2026-10-25 02:30:00+01:00" in (caught.value.hint or "")
    moment = parse_moment("2026-10-25 02:30:00+01:00", NOW, BERLIN)
    assert moment == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


def test_hour_that_there_never_was_is_refused() -> None:
    """Nobody's clock has shown it."""
    with pytest.raises(ConfigurationError, match="there was no 2026-03-29 02:30:00 in Europe/Berlin"):
        parse_moment("2026-03-29 02:30:00", NOW, BERLIN)


@pytest.mark.parametrize("text", ["teatime", "999999999 days ago", "0001-01-01 00:30", "9999-12-31 23:30-05:00"])
def test_nonsense_is_refused(text: str) -> None:
    """The hint shows what a moment looks like."""
    with pytest.raises(ConfigurationError, match="is no moment") as caught:
        parse_moment(text, NOW, BERLIN)
    assert "10 minutes ago" in (caught.value.hint or "")


def test_another_machine_gets_the_offset() -> None:
    """A worker may have another time zone."""
    assert with_offset("2026-11-28 11:00:00", BERLIN) == "2026-11-28 11:00:00+01:00"
    assert with_offset("2026-11-28 11:00:00+05:00", BERLIN) == "2026-11-28 11:00:00+05:00"
    assert with_offset("10 minutes ago", BERLIN) == "10 minutes ago"


def test_it_is_shown_with_its_offset() -> None:
    """And in UTC besides, where that is another time of day."""
    assert shown(NOW, UTC) == "2026-11-28 12:00:00+00:00"
    assert shown(NOW, BERLIN) == "2026-11-28 13:00:00+01:00 (12:00:00 UTC)"
