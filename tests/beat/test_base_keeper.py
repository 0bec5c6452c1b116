"""When the WAL service requests a base backup, and how seldom it looks at everything for that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from beat.base_keeper import BaseKeeper
from portal.ops.pitr.look import PitrLook
from portal.ops.pitr.lsn import Segment
from portal.ops.pitr.wal_archive import Cluster, WalArchive
from portal.ops.pitr.window import Base, Span, Wal, Window
from portal.ops.repository.repository import Repository

if TYPE_CHECKING:
    from pathlib import Path

SEGMENT: Final = 1 << 20
NOON: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)
BASE: Final = Base(name="base", timeline=1, start_lsn=0, end_lsn=100, ended=NOON)


class Kept:
    """A keeper of base backups, with a clock and looks of the test's own."""

    def __init__(self, directory: Path) -> None:
        repository = Repository(directory)
        repository.prepare()
        cluster = Cluster(system_identifier="7000000000000000001", segment_bytes=SEGMENT, major=17)
        self.archive = WalArchive.prepare(repository, cluster)
        self.seconds = 0.0
        self.asked = 0
        self.looks = 0
        self.has_base = True
        self.problem: str | None = None
        self.keeper = BaseKeeper(repository, self._ask, steady=lambda: self.seconds, look=self._look)

    def check(self, *, after: float = 5) -> None:
        """Let the keeper check; the clock has moved on by then, and so has the covered moment."""
        self.seconds += after
        self.keeper.check(self.archive, self._state())

    def receive(self, number: int) -> None:
        """A segment arrives, and the one before is complete."""
        name = Segment(1, number).name(SEGMENT)
        (self.archive.receiving / f"{name}.partial").write_bytes(b"")
        for old in self.archive.partials()[:-1]:
            old.unlink()

    def _state(self) -> dict[str, Any]:
        covered = NOON + timedelta(seconds=self.seconds)
        return {"covered_to": covered.isoformat(), "received": 100, "problem": self.problem}

    def _ask(self) -> None:
        self.asked += 1

    def _look(self, _: Repository) -> PitrLook:
        self.looks += 1
        state = self._state()
        end = datetime.fromisoformat(state["covered_to"]) if self.has_base else NOON - timedelta(hours=1)
        span = Span(base=BASE, timeline=1, start=NOON - timedelta(days=1), end=end, segments=1)
        return PitrLook(
            archive=self.archive,
            bases=(BASE,),
            wal=Wal(segment_bytes=SEGMENT, pieces=()),
            spans=(span,),
            window=Window(start=span.start, end=end),
            state=state,
        )


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_at_rest_everything_is_looked_at_once(kept: Kept) -> None:
    """The covered moment moves on every second; that alone is no reason to read every base backup and segment."""
    for _ in range(1000):
        kept.check()
    assert (kept.looks, kept.asked) == (1, 0)


def test_a_busy_server_is_looked_at_twice_a_minute(kept: Kept) -> None:
    """However often a segment is complete."""
    for number in range(1, 121):
        kept.receive(number)
        kept.check(after=5)
    assert 10 <= kept.looks <= 21
    assert kept.asked == 0


def test_a_lost_base_backup_is_noticed_within_half_a_minute(kept: Kept) -> None:
    """Its file is gone; after the patience with an interruption, another is requested, and again after five minutes."""
    archive = kept.archive.repository.path / "base_20261129_120000_abcdef.tar.gz"
    archive.write_bytes(b"")
    kept.check()
    archive.unlink()
    kept.has_base = False
    while not kept.asked and kept.seconds < 100:
        kept.check()
    assert kept.seconds <= 50
    at = kept.seconds
    while kept.asked < 2 and kept.seconds < at + 1000:
        kept.check()
    assert at + 300 <= kept.seconds <= at + 310


def test_while_one_is_missing_every_change_is_looked_at(kept: Kept) -> None:
    """So that a base backup that has been made is noticed at once."""
    kept.has_base = False
    kept.check()
    for number in range(1, 4):
        kept.receive(number)
        kept.check()
    assert kept.looks == 4
    kept.has_base = True
    kept.receive(4)
    kept.check()
    for _ in range(100):
        kept.check()
    assert kept.looks == 5
    assert kept.asked == 1


def test_a_problem_that_is_over_is_looked_at_again(kept: Kept) -> None:
    """While WAL is not received, no base backup would help; then it may."""
    kept.has_base, kept.problem = False, "the server is away"
    for _ in range(20):
        kept.check()
    assert kept.asked == 0
    kept.problem = None
    for _ in range(10):
        kept.check()
    assert kept.asked == 1
