"""Which moments a backup may be asked for."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from portal.ops.settings.load import load_settings
from worker.errors import RefusedError
from worker.moments import check_moment
from worker.operations import BACKUP_DATABASE, BACKUP_FULL, BACKUP_MEDIA, Operation, Requester

SIGNED = datetime(2026, 11, 22, 9, 10, tzinfo=UTC)
NIGHT = datetime(2026, 11, 22, 2, tzinfo=UTC)
SCHEDULES = load_settings({}, lambda _: "").schedules


def check(operation: Operation, moment: datetime, requester: Requester) -> None:
    check_moment(operation, moment, requester, SIGNED, SCHEDULES)


@pytest.mark.parametrize(
    ("operation", "requester", "moment"),
    [
        (BACKUP_FULL, Requester.BEAT, NIGHT),
        (BACKUP_DATABASE, Requester.BEAT, SIGNED.replace(minute=0)),
        (BACKUP_DATABASE, Requester.BEAT, SIGNED.replace(hour=8, minute=0)),
        (BACKUP_FULL, Requester.COMMAND, SIGNED - timedelta(hours=2)),
        (BACKUP_FULL, Requester.COMMAND, SIGNED + timedelta(minutes=4)),
        (BACKUP_FULL, Requester.COMMAND, SIGNED - timedelta(hours=23)),
        (BACKUP_DATABASE, Requester.FLOWER, SIGNED - timedelta(hours=3)),
        (BACKUP_MEDIA, Requester.WATCHER, SIGNED - timedelta(days=6)),
        (BACKUP_MEDIA, Requester.BEAT, SIGNED - timedelta(days=6)),
    ],
)
def test_what_could_have_been_sent_is_done(operation: Operation, requester: Requester, moment: datetime) -> None:
    """Beat's newest slot, one that passed on the way, what waited for a broker, and clocks that differ a little."""
    check(operation, moment, requester)


@pytest.mark.parametrize(
    ("operation", "requester", "moment"),
    [
        (BACKUP_FULL, Requester.BEAT, NIGHT - timedelta(days=1)),
        (BACKUP_DATABASE, Requester.BEAT, SIGNED.replace(hour=7, minute=0)),
        (BACKUP_FULL, Requester.COMMAND, SIGNED - timedelta(days=2)),
        (BACKUP_MEDIA, Requester.WATCHER, SIGNED - timedelta(days=8)),
        (BACKUP_MEDIA, Requester.FLOWER, SIGNED - timedelta(days=30)),
    ],
)
def test_what_could_not_is_refused(operation: Operation, requester: Requester, moment: datetime) -> None:
    """An earlier slot, or a time longer ago than any request waits, would name an archive for what it does not hold."""
    with pytest.raises(RefusedError, match="does not hold"):
        check(operation, moment, requester)


@pytest.mark.parametrize("requester", [one for one in Requester if one is not Requester.BEAT])
def test_how_long_a_request_may_wait(requester: Requester) -> None:
    """The watcher's a week, since it keeps them while the broker is away, and any other a day; not a minute more."""
    longest = timedelta(days=7 if requester is Requester.WATCHER else 1)
    check(BACKUP_MEDIA, SIGNED - longest + timedelta(minutes=1), requester)
    with pytest.raises(RefusedError, match="does not hold"):
        check(BACKUP_MEDIA, SIGNED - longest - timedelta(minutes=1), requester)


def test_what_beat_sent_before_its_schedule_was_turned_off_is_done() -> None:
    """Within a week: there is no slot any more that would say more."""
    off = replace(SCHEDULES, full=None)
    check_moment(BACKUP_FULL, SIGNED - timedelta(days=7), Requester.BEAT, SIGNED, off)
    with pytest.raises(RefusedError, match="does not hold"):
        check_moment(BACKUP_FULL, SIGNED - timedelta(days=7, seconds=1), Requester.BEAT, SIGNED, off)


def test_the_future_is_refused() -> None:
    """It would be the newest archive until then; clocks may differ by five minutes."""
    check(BACKUP_FULL, SIGNED + timedelta(minutes=5), Requester.BEAT)
    for late in (timedelta(minutes=5, seconds=1), timedelta(hours=1)):
        with pytest.raises(RefusedError, match="to come"):
            check(BACKUP_FULL, SIGNED + late, Requester.BEAT)
