"""Incremental base backups: what they hold, what they need, and recoveries from them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.chains.lineage import line_of
from portal.ops.drill.job import DrillJob
from portal.ops.drill.moments import drill_moments
from portal.ops.errors import ClientToolError, NotIntactError
from portal.ops.model import CLUSTER_VERSION, SUFFIX, VerifyLevel
from portal.ops.offsite.fetch import FetchJob
from portal.ops.offsite.prune import OffsitePruneJob
from portal.ops.pitr import base_chain
from portal.ops.pitr.base_chain import FullBaseNeededError, find_parent
from portal.ops.pitr.combine import find_combiner
from portal.ops.pitr.plan import plan_recovery
from portal.ops.pitr.replication import read_settings
from portal.ops.repository.catalogue import Catalogue
from portal.ops.retention.plan import plan as plan_retention
from portal.ops.retention.policy import RetentionPolicy, RetentionRule
from portal.ops.runtime.process import SystemRunner
from portal.ops.runtime.progress import utc_now
from portal.ops.verify.verify import Verifier
from tests.support.offsite import offsite_at, policy
from tests.support.wal_servers import WalPortal, wal_portal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.backup.config import BackupResult


@pytest.fixture(scope="module")
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WalPortal]:
    """A server that summarizes its WAL, with a full base backup and two incremental ones."""
    with wal_portal(tmp_path_factory.mktemp("bases"), summarize_wal="on") as made:
        made.write("CREATE TABLE stamped (number int, filler text)")
        made.write("INSERT INTO stamped SELECT 0, repeat(md5(g::text), 8) FROM generate_series(1, 20000) g")
        with made.receiving():
            base(made)
            made.write("INSERT INTO stamped VALUES (1)")
            base(made)
            made.write("INSERT INTO stamped VALUES (2)")
            base(made)
            made.write("INSERT INTO stamped VALUES (3)")
            made.wait_until_covered()
            yield made


def base(portal: WalPortal) -> BackupResult:
    result = portal.job().backup_base()
    assert result.success, result.error
    return result


def bases(portal: WalPortal) -> list[Path]:
    """The base backups, oldest first."""
    return sorted(portal.repository.path.glob(f"base_*{SUFFIX}"), key=lambda path: path.stat().st_mtime)


def test_it_names_what_it_follows_and_is_small(portal: WalPortal) -> None:
    """Each follows the one before, by its SHA-256, and takes less than half of the full one's room."""
    line = line_of(bases(portal)[2])
    assert [ancestor.path for ancestor in line] == bases(portal)[:3]
    assert line[2].manifest.format_version == CLUSTER_VERSION
    assert line[2].manifest.base == line[0].name
    assert line[1].path.stat().st_size < line[0].path.stat().st_size / 2


def test_it_is_verified_with_what_it_needs(portal: WalPortal) -> None:
    """Its contents are held against the server's own list; where one that it needs is away, it is not intact."""
    first, second, third = bases(portal)[:3]
    found = portal.job().verify(str(third), VerifyLevel.CONTENTS)
    assert found.intact, found.message
    hidden = second.with_name("elsewhere")
    second.rename(hidden)
    try:
        assert not Verifier().verify(third, VerifyLevel.CHECKSUM).intact
        entries = {entry.name: entry.fault for entry in Catalogue(portal.repository).entries()}
        assert second.name.removesuffix(SUFFIX) in entries[third.name.removesuffix(SUFFIX)]
        assert {one.name for one in portal.look().bases} == {first.name.removesuffix(SUFFIX)}
    finally:
        hidden.rename(second)


def test_plan_counts_the_whole_chain(portal: WalPortal) -> None:
    """The latest moment takes two incremental base backups, the full one, and the room to combine them."""
    plan = plan_recovery(portal.repository, None)
    assert len(plan.line) == 3
    assert plan.needed_bytes > plan.cluster_bytes + plan.combined_bytes


def test_chain_is_copied_fetched_and_pruned_as_one(portal: WalPortal, tmp_path: Path) -> None:
    """Off-site too: the last one brings what it follows, in order, and an age that all have passed removes none."""
    (tmp_path / "disk").mkdir()
    here = offsite_at(tmp_path, f"file://{tmp_path}/disk", BACKUP_LOCAL_PATH=str(portal.repository.path))
    first, second, third = (path.name.removesuffix(SUFFIX) for path in bases(portal)[:3])
    assert [name for _, name in here.copied(third).copied] == [first, second, third]
    there = here.elsewhere()
    fetched = FetchJob(there.config()).run(third)
    assert fetched.fetched == (first, second, third)
    assert [ancestor.name for ancestor in line_of(fetched.path)] == [first, second, third]
    assert Verifier().verify(fetched.path, VerifyLevel.CHECKSUM).intact
    rule = RetentionRule(days=1, count=1)
    pruned = OffsitePruneJob(there.config(), policy(rule), clock=lambda: utc_now() + timedelta(days=90)).run()
    assert (pruned.error, pruned.removed) == (None, ())


def test_chain_whose_copy_has_a_gap_is_not_fetched(portal: WalPortal, tmp_path: Path) -> None:
    """It is said before anything is downloaded; what stands before the gap is fetched."""
    (tmp_path / "disk").mkdir()
    here = offsite_at(tmp_path, f"file://{tmp_path}/disk", BACKUP_LOCAL_PATH=str(portal.repository.path))
    first, second, third = (path.name.removesuffix(SUFFIX) for path in bases(portal)[:3])
    here.copied(third)
    (commit,) = (tmp_path / "disk").glob(f"{second}*.json")
    commit.unlink()
    there = here.elsewhere()
    with pytest.raises(NotIntactError, match=f"{third} needs {second}"):
        there.fetch(third)
    assert not there.uploads.archives.exists()
    assert there.fetch(first).exists()


def test_drill_recovers_from_a_chain(portal: WalPortal) -> None:
    """To the latest moment from all three, and to the first of the window from the full one alone; nothing is left."""
    config = portal.restore_config()
    shown = drill_moments(portal.repository, config, runner=SystemRunner(), chance=lambda: 0.0)
    assert shown.problems == []
    latest, first = shown.checks
    assert "recovered to the latest moment: 20,003 rows in 1 tables" in latest
    assert "20,000 rows in 1 tables" in first
    assert list((portal.repository.path / ".scratch").iterdir()) == []


def test_no_drill_restores_a_base_backup_by_itself(portal: WalPortal) -> None:
    """It would have nothing to compare, and succeed: neither the full one nor one that follows it."""
    for path in (bases(portal)[0], bases(portal)[2]):
        report = DrillJob(portal.restore_config()).run(path)
        assert not report.success
        assert "base backup" in (report.error or "")


def test_programs_of_another_version_combine_nothing(portal: WalPortal) -> None:
    """It is said which version is needed, and how to get it."""
    archive = portal.look().archive
    assert archive is not None
    major = archive.cluster.major
    assert find_combiner(major, runner=SystemRunner(), bin_dir=portal.bin_dir).name == "pg_combinebackup"
    for other in (major - 1, major + 1):
        with pytest.raises(ClientToolError, match=rf"pg_combinebackup.* {other}\b") as caught:
            find_combiner(other, runner=SystemRunner(), bin_dir=portal.bin_dir)
        assert str(other) in (caught.value.hint or "")


def test_retention_keeps_a_chain_together(portal: WalPortal) -> None:
    """However old the full one is: what the newest needs stays."""
    entries = [entry for entry in Catalogue(portal.repository).entries() if entry.name.startswith("base_")]
    kept = {one.entry.name: one for one in plan_retention(entries, RetentionPolicy(), entries[0].moment).decisions}
    old = [entry._replace(modified=entry.modified.replace(year=2020), read=None) for entry in entries[1:]]
    decided = plan_retention([entries[0], *old], RetentionPolicy(), entries[0].moment)
    assert decided.removals == ()
    assert len(kept) == len(decided.decisions)
    assert any("chain" in reason for one in decided.decisions for reason in one.reasons)


def test_changed_parent_is_refused(portal: WalPortal) -> None:
    """A chain is bound by digests: another archive under the parent's name is not taken for it, and a recovery takes
    an older base backup, and more WAL.
    """
    child, parent = bases(portal)[2], bases(portal)[1]
    sidecar = Path(f"{parent}.sha256")
    text = sidecar.read_text()
    sidecar.write_text("0" * 64 + text[64:])
    try:
        with pytest.raises(NotIntactError, match="is not the archive that"):
            line_of(child)
        plan = plan_recovery(portal.repository, None)
        assert plan.path == parent
        assert child not in plan.line
    finally:
        sidecar.write_text(text)


def test_full_one_is_made_where_little_would_be_saved(portal: WalPortal) -> None:
    """After a rewrite of most blocks an incremental one is given up for a full one, in the same backup."""
    portal.write("UPDATE stamped SET filler = filler || '!' WHERE number = 0")
    result = base(portal)
    assert result.parent is None
    assert [ancestor.name for ancestor in find_parent(portal.repository).line] == [result.backup_id]
    assert portal.job().verify(result.destination_path, VerifyLevel.CONTENTS).intact


def test_full_one_follows_some_incremental_ones(portal: WalPortal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain does not grow for ever."""
    monkeypatch.setattr(base_chain, "MOST_INCREMENTALS", 1)
    assert base(portal).parent
    with pytest.raises(FullBaseNeededError, match="1 incremental ones already"):
        find_parent(portal.repository)


def test_server_decides_whether_a_chain_can_go_on(portal: WalPortal) -> None:
    """Not where it is too old, keeps no summaries, or is another cluster."""
    parent = find_parent(portal.repository)
    with portal.postgres.connect() as connection:
        settings = read_settings(connection)
    parent.check(settings)
    for changed, why in (
        (replace(settings, cluster=replace(settings.cluster, major=16)), "full base backups only"),
        (replace(settings, summarizes_wal=False), "summarize_wal is off"),
        (replace(settings, cluster=replace(settings.cluster, system_identifier="1")), "another cluster"),
    ):
        with pytest.raises(FullBaseNeededError, match=why):
            parent.check(changed)
