"""Slots of cron expressions: in time zones, where the clocks are changed, and whatever the time is."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.ops.settings.slots import last_slot, next_slot

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    "America/Sao_Paulo",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Asia/Beirut",
    "Pacific/Apia",
]
EXPRESSIONS = [
    "0 2 * * *",
    "30 2 * * *",
    "0 * * * *",
    "*/7 * * * *",
    "0,30 2,3 * * *",
    "15 0 * * 1",
    "59 23 * * *",
    "0 0 1 * *",
    "5 */3 * * *",
]
CHANGES = [
    datetime(2011, 12, 30, 10, tzinfo=UTC),  # Apia leaves out a day
    datetime(2018, 11, 4, 3, tzinfo=UTC),  # São Paulo
    datetime(2024, 10, 5, 15, 30, tzinfo=UTC),  # Lord Howe: half an hour
    datetime(2026, 3, 8, 7, tzinfo=UTC),  # New York
    datetime(2026, 3, 28, 22, tzinfo=UTC),  # Beirut, at midnight
    datetime(2026, 3, 29, 1, tzinfo=UTC),  # Berlin
    datetime(2026, 10, 25, 1, tzinfo=UTC),
    datetime(2026, 11, 1, 6, tzinfo=UTC),
]

zones = st.sampled_from(ZONES).map(ZoneInfo)
expressions = st.sampled_from(EXPRESSIONS)
moments = st.one_of(
    st.datetimes(datetime(2000, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC)),
    st.builds(
        lambda change, seconds: change + timedelta(seconds=seconds),
        st.sampled_from(CHANGES),
        st.integers(-200_000, 200_000),
    ),
)


def slots(expression: str, zone: str, start: datetime, end: datetime) -> list[str]:
    """The slots of a time, on the wall of the zone."""
    found, now = [], start
    while (slot := next_slot(expression, ZoneInfo(zone), now)) and slot < end:
        found.append(slot)
        now = slot
    return [f"{slot.astimezone(ZoneInfo(zone)):%d %H:%M %Z}" for slot in found]


SPRING = (datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 3, 30, 10, tzinfo=UTC))
AUTUMN = (datetime(2026, 10, 24, 12, tzinfo=UTC), datetime(2026, 10, 26, 10, tzinfo=UTC))


def test_a_slot_in_the_hour_that_is_skipped_comes_once_right_after_it() -> None:
    """Half past two does not exist on that day, so it is three."""
    assert slots("30 2 * * *", "Europe/Berlin", *SPRING) == ["29 03:00 CEST", "30 02:30 CEST"]


def test_a_slot_in_the_hour_that_comes_twice_comes_the_first_time_only() -> None:
    """Half past two is there twice on that day."""
    assert slots("30 2 * * *", "Europe/Berlin", *AUTUMN) == ["25 02:30 CEST", "26 02:30 CET"]


@pytest.mark.parametrize("span", [SPRING, AUTUMN])
def test_an_hourly_slot_comes_once_an_hour_whatever_the_clocks_show(span: tuple[datetime, datetime]) -> None:
    """The hour that is skipped is none, the one that comes twice is two."""
    hours = int((span[1] - span[0]) / timedelta(hours=1)) - 1
    assert len(slots("0 * * * *", "Europe/Berlin", *span)) == hours


@given(expressions, zones, moments)
def test_last_and_next_slot_are_neighbours_with_now_between_them(
    expression: str, zone: ZoneInfo, now: datetime
) -> None:
    """Whatever the time is, the two agree on where the slots are."""
    last, following = last_slot(expression, zone, now), next_slot(expression, zone, now)
    assert last and following and last <= now < following
    assert next_slot(expression, zone, last) == following
    assert last_slot(expression, zone, following) == following
    assert last_slot(expression, zone, following - timedelta(seconds=1)) == last


@given(st.sampled_from(["0 2 * * *", "30 2 * * *", "59 23 * * *"]), zones, moments)
def test_a_daily_slot_comes_once_on_each_day_of_the_calendar(expression: str, zone: ZoneInfo, now: datetime) -> None:
    """No day has two, but for the one after a day that was left out of the calendar: it has that one's slot as well."""
    found = [now]
    for _ in range(5):
        slot = next_slot(expression, zone, found[-1])
        assert slot
        found.append(slot)
    days = [slot.astimezone(zone).date() for slot in found[1:]]
    left_out = zone.key == "Pacific/Apia" and date(2011, 12, 31) in days
    assert all(timedelta() < later - earlier <= timedelta(days=2) or left_out for earlier, later in pairwise(days))


def test_a_slot_may_be_years_away() -> None:
    """29 February is the rarest there is."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert next_slot("0 0 29 2 *", ZoneInfo("UTC"), now) == datetime(2028, 2, 29, tzinfo=UTC)
    assert last_slot("0 0 29 2 *", ZoneInfo("UTC"), now) == datetime(2024, 2, 29, tzinfo=UTC)
