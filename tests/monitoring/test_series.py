"""How often the status is read while one operation does the same with many archives."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from portal.ops.model import BackupType
from portal.ops.monitoring.observer import Observers
from portal.ops.repository.access_entry import START, AccessEntry, Action, Outcome
from tests.support.histories import NOW, History

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path


def an_end(action: Action, outcome: Outcome = Outcome.DONE) -> AccessEntry:
    """The end of an operation with one archive."""
    return AccessEntry(
        number=1,
        moment=NOW,
        who="beat",
        host="portal",
        action=action,
        subject="full_20261122_020000_abcdef",
        outcome=outcome,
        previous=START,
    )


class Watched:
    """An observer that writes metrics, and how often it has read the status for that."""

    def __init__(self, directory: Path) -> None:
        self.history = History(path=directory / "archives")
        self.history.path.mkdir()
        self.file = directory / "metrics.prom"
        self.reads = 0
        self.observer = Observers(self.history.settings(BACKUP_METRICS_FILE=str(self.file)), clock=self._now)

    def _now(self) -> datetime:
        self.reads += 1
        return NOW


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


@pytest.mark.parametrize("action", [Action.OFFSITE_COPY, Action.VERIFY, Action.OFFSITE_VERIFY])
@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.FAILED])
def test_a_series_reads_the_status_at_its_start_and_its_end(watched: Watched, action: Action, outcome: Outcome) -> None:
    """A thousand copies do not read all archives a thousand times; in the end the metrics are right."""
    for _ in range(1000):
        watched.observer(an_end(action, outcome))
    assert watched.reads == 1
    watched.history.archive(BackupType.FULL, timedelta(hours=1))
    watched.observer.settle()
    watched.observer.settle()
    assert watched.reads == 2
    assert "kekkai_backup_archives 1.0" in watched.file.read_text()


def test_one_alone_is_shown_at_once(watched: Watched) -> None:
    """There is nothing left to show in the end."""
    watched.observer(an_end(Action.OFFSITE_COPY))
    watched.observer.settle()
    assert watched.reads == 1


def test_what_is_no_series_is_shown_at_once(watched: Watched) -> None:
    """A backup after a series shows that too."""
    for action in (Action.OFFSITE_COPY, Action.OFFSITE_COPY, Action.BACKUP, Action.PRUNE):
        watched.observer(an_end(action))
    watched.observer.settle()
    assert watched.reads == 3
