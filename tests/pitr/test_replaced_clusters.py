"""WAL of a cluster that another one has replaced: it stays with its base backups, and goes after them."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.ops.pitr.look import look
from portal.ops.pitr.prune_wal import prune_wal
from portal.ops.pitr.replaced import YOUNG, ReplacedCluster, removable
from portal.ops.pitr.replaced_wal import find_replaced
from portal.ops.pitr.timeline import Timeline
from portal.ops.pitr.wal_archive import Cluster, WalArchive
from portal.ops.repository.repository import Repository

if TYPE_CHECKING:
    from pathlib import Path

NOW: Final = datetime(2026, 11, 28, 12, tzinfo=UTC)
OLD: Final = Cluster(system_identifier="7000", segment_bytes=1 << 20, major=17)
CURRENT: Final = replace(OLD, system_identifier="7001")
NAMES: Final = ("000000010000000000000001", "000000010000000000000002.partial", "00000002.history")

CLUSTERS: Final = st.lists(
    st.builds(
        ReplacedCluster,
        system_identifier=st.sampled_from(["1", "2", "3", "4"]),
        bytes=st.integers(0, 1 << 40),
        newest=st.timedeltas(timedelta(0), 3 * YOUNG).map(lambda age: NOW - age),
        has_base=st.booleans(),
    ),
    unique_by=lambda one: one.system_identifier,
)


@given(clusters=CLUSTERS, current=st.sampled_from([None, "1", "2", "9"]))
def test_only_what_leads_nowhere_goes(clusters: list[ReplacedCluster], current: str | None) -> None:
    """All but the current one, those with a base backup and young ones; where the current one is unknown, none."""
    kept = {
        one.system_identifier
        for one in clusters
        if current in (None, one.system_identifier) or one.has_base or NOW - one.newest <= YOUNG
    }
    assert removable(clusters, current, NOW) == {one.system_identifier for one in clusters} - kept


@given(clusters=CLUSTERS, later=st.timedeltas(timedelta(0), YOUNG))
def test_what_may_go_may_go_later_too(clusters: list[ReplacedCluster], later: timedelta) -> None:
    """And a base backup of one cluster changes nothing for the others."""
    gone = removable(clusters, "1", NOW)
    assert gone <= removable(clusters, "1", NOW + later)
    for one in clusters:
        others = [replace(one, has_base=True) if other is one else other for other in clusters]
        assert removable(others, "1", NOW) == gone - {one.system_identifier}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """WAL of two clusters, that of the replaced one written ten days before NOW."""
    made = Repository(tmp_path)
    made.prepare()
    for cluster in (OLD, CURRENT):
        archive = WalArchive.prepare(made, cluster)
        for name in NAMES:
            archive.take(name, b"x" * 1000, covered=None, until=None)
        (archive.receiving / "000000010000000000000003.partial").write_bytes(b"y" * 1000)
    age(tmp_path / "wal/7000", NOW - timedelta(days=10))
    return made


def age(directory: Path, moment: datetime) -> None:
    for path in (*directory.rglob("*"), directory):
        os.utime(path, (moment.timestamp(), moment.timestamp()))


def wal_of(repository: Repository) -> set[str]:
    return {path.name for path in (repository.path / "wal").iterdir() if path.is_dir()}


def test_prune_removes_it_a_week_after_its_last_wal(repository: Repository) -> None:
    """Not earlier; nothing of it is left, and the current cluster has everything."""
    before = sorted((repository.path / "wal/7001").rglob("*"))
    assert prune_wal(repository, NOW - timedelta(days=4)) == 0
    assert wal_of(repository) == {"7000", "7001"}
    assert prune_wal(repository, NOW) == 4000
    assert wal_of(repository) == {"7001"}
    assert sorted((repository.path / "wal/7001").rglob("*")) == before


def test_prune_that_was_killed_is_completed(repository: Repository) -> None:
    """What it had set aside is no WAL of a cluster any more, and the next one removes it."""
    (repository.path / "wal/7000").rename(repository.path / "wal/.removed-7000")
    assert look(repository).replaced == ()
    prune_wal(repository, NOW)
    assert wal_of(repository) == {"7001"}


def test_unreadable_base_backup_keeps_it(repository: Repository) -> None:
    """It may be one of that cluster."""
    (repository.path / "base_20200101_000000_abcdef.tar.gz").write_bytes(b"no archive")
    assert prune_wal(repository, NOW) == 0
    assert wal_of(repository) == {"7000", "7001"}
    (found,) = look(repository).replaced
    assert found.removable_from is None


def test_directory_that_somebody_uses_stays(repository: Repository) -> None:
    """A WAL service that receives into it, or files that are not ours."""
    with WalArchive(repository, OLD).receiving_alone():
        assert prune_wal(repository, NOW) == 0
    (repository.path / "wal/7000/notes.txt").write_text("by hand")
    assert prune_wal(repository, NOW) == 0
    assert wal_of(repository) == {"7000", "7001"}


def test_unknown_current_cluster_keeps_all(repository: Repository) -> None:
    """A damaged note of which cluster is received takes no WAL with it."""
    (repository.path / "wal/current.json").write_text("{")
    assert prune_wal(repository, NOW) == 0
    assert wal_of(repository) == {"7000", "7001"}


def test_until_then_it_is_named(repository: Repository) -> None:
    """With how much it is, and when it goes, or why it stays."""
    (found,) = look(repository).replaced
    assert (found.system_identifier, found.bytes, found.newest) == ("7000", 4000, NOW - timedelta(days=10))
    timeline = Timeline(window=None, archives=(), removals=(), replaced=(found,))
    assert "replaced cluster 7000" in timeline.lines()[-1]
    assert f"removes it after {NOW - timedelta(days=3):%Y-%m-%d}" in timeline.lines()[-1]
    assert timeline.to_dict()["replaced_clusters"] == [found.to_dict()]
    (kept,) = find_replaced(repository, {"7000"})
    assert "as long as its base backups" in str(kept)
