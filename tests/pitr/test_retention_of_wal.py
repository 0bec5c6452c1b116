"""Base backups and WAL are pruned together: what can be recovered to afterwards is what the settings promise."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from portal.ops.model import SUFFIX
from portal.ops.pitr import base_chain
from portal.ops.pitr.plan import OutsideWindowError, plan_recovery
from portal.ops.pitr.prune_wal import prune_wal
from portal.ops.pitr.recovery import recovered
from portal.ops.repository.catalogue import Catalogue
from portal.ops.retention.policy import RetentionPolicy, RetentionRule
from portal.ops.retention.prune import PruneJob
from portal.ops.runtime.process import SystemRunner
from tests.support.sessions import session
from tests.support.wal_servers import WalPortal, a_moment, wal_portal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POLICY = RetentionPolicy(rule=RetentionRule(days=30, count=1), pitr_days=3)


@pytest.fixture(scope="module")
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WalPortal]:
    """A server that summarizes its WAL, received into a repository."""
    with wal_portal(tmp_path_factory.mktemp("pruned"), summarize_wal="on") as made:
        with made.postgres.connect() as connection:
            connection.execute("CREATE TABLE stamped (number int)")
        with made.receiving():
            yield made


def write(portal: WalPortal, number: int) -> datetime:
    """Write a row, and end a segment with it; a moment after it."""
    with portal.postgres.connect() as connection:
        connection.execute("INSERT INTO stamped VALUES (%s)", [number])
        moment = a_moment()
        connection.execute("SELECT pg_switch_wal()")
    return moment


def base(portal: WalPortal) -> tuple[str, str | None]:
    """A base backup; its name, and what it follows."""
    result = portal.job().backup_base()
    assert result.success, result.error
    portal.wait_until_covered()
    return result.backup_id, result.parent


def numbers(portal: WalPortal, moment: datetime) -> list[int]:
    recovering = recovered(
        portal.repository,
        plan_recovery(portal.repository, moment),
        runner=SystemRunner(),
        bin_dir=portal.bin_dir,
        jobs=2,
        lock_timeout=5,
    )
    with recovering as server, session(server.target("postgres")) as connection:
        rows = connection.execute("SELECT number FROM stamped ORDER BY 1").fetchall()
    return [number for (number,) in rows]


def first_segments(portal: WalPortal) -> list[int]:
    archive = portal.look().archive
    assert archive is not None
    return sorted(segment.number for name in archive.files() if (segment := archive.segment(name)))


def test_base_goes_with_its_wal_and_a_chain_stays_together(portal: WalPortal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes, with the WAL before the chain whose incremental one begins the promised window."""
    oldest, _ = base(portal)
    early = write(portal, 1)
    with monkeypatch.context() as patched:
        patched.setattr(base_chain, "MOST_INCREMENTALS", 0)
        full, parent = base(portal)
    assert parent is None
    between = write(portal, 2)
    child, parent = base(portal)
    assert parent == full
    late = write(portal, 3)
    portal.wait_until_covered()
    ended = {one.name: one.ended for one in portal.look().bases}
    segments = first_segments(portal)
    modified = {entry.name: entry.modified for entry in Catalogue(portal.repository).entries()}
    now = modified[child] + timedelta(days=POLICY.pitr_days, seconds=1)
    job = PruneJob(portal.repository, POLICY, clock=lambda: now)
    assert job.may_remove()
    result = job.run()
    assert result.error is None
    assert oldest in [one.entry.name for one in result.removed]
    assert {path.name.removesuffix(SUFFIX) for path in portal.repository.path.glob("base_*.gz")} == {full, child}
    assert result.wal_bytes > 0
    kept = first_segments(portal)
    archive = portal.look().archive
    assert archive is not None
    begin = min(one.start_lsn for one in portal.look().bases) // archive.cluster.segment_bytes
    assert kept == [number for number in segments if number >= begin]
    assert kept[0] > segments[0]
    window = portal.look().window
    assert window is not None
    assert (window.start, window.gaps) == (ended[full], ())
    with pytest.raises(OutsideWindowError):
        plan_recovery(portal.repository, early)
    assert [numbers(portal, moment) for moment in (between, late)] == [[1, 2], [1, 2, 3]]


def test_base_that_cannot_be_read_keeps_all_wal(portal: WalPortal) -> None:
    """Nobody knows where it begins."""
    base(portal)
    place: Path = portal.repository.path / f"base_20200101_000000_abcdef{SUFFIX}"
    place.write_bytes(b"no archive")
    before = first_segments(portal)
    try:
        assert prune_wal(portal.repository, datetime.now(UTC)) == 0
    finally:
        place.unlink()
    assert first_segments(portal) == before


def test_window_that_is_too_old_for_the_settings_is_still_no_gap(
    portal: WalPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However old everything is, the newest chain and its WAL stay."""
    with monkeypatch.context() as patched:
        patched.setattr(base_chain, "MOST_INCREMENTALS", 0)
        newest, _ = base(portal)
    now = max(entry.modified for entry in Catalogue(portal.repository).entries()) + timedelta(days=400)
    removed = PruneJob(portal.repository, POLICY, clock=lambda: now).run().removed
    assert newest not in [one.entry.name for one in removed]
    assert (portal.repository.path / f"{newest}{SUFFIX}").exists()
    window = portal.look().window
    assert window is not None
    assert window.gaps == ()
