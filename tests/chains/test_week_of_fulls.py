"""A week of daily full backups: what it takes, complete and chained, and that each gives its day back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

from portal.ops.backup.strategy import complete_since
from portal.ops.repository.repository import Repository
from tests.support.archives import tree_on_disk
from tests.support.incrementals import tree_of_chain, without_ours
from tests.support.portal import succeeded

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.support.archives import Tree
    from tests.support.portal import Portal

DAYS = 7
FILES = 300
CHANGED = 3


def size_of(archives: Path) -> int:
    return sum(archive.size for archive in Repository(archives).archives())


def test_days_take_what_has_changed(portal: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A week that begins with a complete one: several times less than complete ones, and every day comes back."""
    from portal.ops.backup import strategy

    random = Random(1)
    tenant = portal.uploads / "week"
    tenant.mkdir()
    for number in range(FILES):
        (tenant / f"{number}.sarif").write_bytes(random.randbytes(20_000))
    weekly = {0}
    days: dict[Path, Tree] = {}
    for day in range(DAYS):
        for number in random.sample(range(FILES), CHANGED):
            (tenant / f"{number}.sarif").write_bytes(random.randbytes(20_000))
        since = datetime.now(UTC) if day in weekly else None
        monkeypatch.setattr(strategy, "complete_since", lambda *_, since=since: since)
        result = portal.job(full_uploads="chain").backup_full()
        assert (result.parent is None) == (day in weekly)
        days[succeeded(result)] = without_ours(tree_on_disk(portal.uploads))
    complete = succeeded(portal.job(local_path=portal.directory / "one").backup_full()).stat().st_size
    assert size_of(portal.archives) * 4 < complete * DAYS
    for archive, tree in days.items():
        assert tree_of_chain(archive) == tree


def test_a_slot_counts_from_its_time_on(portal: Portal) -> None:
    """Sunday at two: until then the slot of the week before counts, from then on that of today."""
    config = portal.config(schedule_complete="0 2 * * 0")
    sunday = datetime(2026, 11, 22, 2, tzinfo=UTC)
    assert complete_since(config, sunday) == sunday
    assert complete_since(config, sunday - timedelta(minutes=1)) == sunday - timedelta(days=7)
    assert complete_since(config, sunday + timedelta(days=6)) == sunday
    assert complete_since(portal.config(), sunday) is None
