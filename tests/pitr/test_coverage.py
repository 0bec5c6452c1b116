"""Which moments the received WAL covers, also of commits that did not wait for their flush."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from portal.ops.pitr.wal_state import Coverage
from tests.support.wal_servers import wal_portal
from tests.support.wal_services import numbers_at

if TYPE_CHECKING:
    from pathlib import Path

NOON: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)
DELAY: Final = timedelta(seconds=0.6)


def at(seconds: float) -> datetime:
    """A moment so many seconds after noon."""
    return NOON + timedelta(seconds=seconds)


def test_clock_counts_with_the_position_of_the_next_look() -> None:
    """A commit that took its time before the first look may have been written after it."""
    covered = Coverage()
    covered.note(at(0), flushed=100, inserted=100, delay=DELAY)
    assert covered.at(100) is None
    covered.note(at(0.1), flushed=200, inserted=200, delay=DELAY)
    assert covered.at(199) is None
    assert covered.at(200) == at(0)


def test_clock_waits_while_the_server_has_more_than_is_flushed() -> None:
    """What is written may be a commit of that time, until the longest delay is over."""
    covered = Coverage()
    for second in (0.0, 0.2, 0.4):
        covered.note(at(second), flushed=100, inserted=300, delay=DELAY)
        assert covered.at(100) is None
    covered.note(at(0.6), flushed=200, inserted=300, delay=DELAY)
    assert covered.at(200) == at(0)
    covered.note(at(0.7), flushed=300, inserted=300, delay=DELAY)
    assert covered.at(200) == at(0)
    assert covered.at(300) == at(0.6)


def test_commit_that_did_not_wait_is_there_once_its_moment_is_covered(tmp_path: Path) -> None:
    """The second of two such commits waits for the WAL writer, which has just flushed the first and pauses."""
    with wal_portal(tmp_path, wal_writer_delay="3s") as portal:
        portal.write("CREATE TABLE stamped (number int)")
        with portal.receiving():
            assert portal.job().backup_base().success
            portal.wait_until_covered()
            portal.write(
                "SET synchronous_commit = off", "INSERT INTO stamped VALUES (1)", "INSERT INTO stamped VALUES (2)"
            )
            moment = portal.write("SET synchronous_commit = off", "INSERT INTO stamped VALUES (3)")
            portal.wait_until_covered(moment)
            assert numbers_at(portal, moment) == {1, 2, 3}
