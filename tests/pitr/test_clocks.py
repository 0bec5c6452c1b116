"""The clock of the database server may differ from ours: moments are by its clock, the times of files are by ours."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from portal.ops.backup.config import BackupConfig
from portal.ops.backup.job import BackupJob
from portal.ops.pitr.health import PitrFacts
from portal.ops.pitr.plan import clock_offset
from portal.ops.pitr.wal_archive import Cluster, WalArchive
from portal.ops.pitr.window import Window
from portal.ops.repository.repository import Repository
from portal.ops.restore.config import RestoreConfig, RestoreScope
from portal.ops.restore.moment import MomentArchive, choose_moment

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=[90, -90], ids=["ahead", "behind"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> WalArchive:
    """What the WAL service has said of a server whose clock is an hour and a half off."""
    repository = Repository(tmp_path / "repository")
    repository.prepare()
    found = WalArchive.prepare(repository, Cluster(system_identifier="1", segment_bytes=16 << 20, major=17))
    now = datetime.now(UTC)
    clock = now + timedelta(minutes=request.param)
    found.save_state({"server_clock": clock.isoformat(), "updated": now.isoformat(), "problem": None})
    return found


def test_ago_counts_by_the_servers_clock(archive: WalArchive, tmp_path: Path) -> None:
    """A minute ago is a minute before the server's now; uploads are those that were there a minute ago by our clock."""
    uploads, repository = tmp_path / "uploads", archive.repository
    uploads.mkdir()
    (uploads / "one.sarif").write_text("one")
    backup = BackupJob(BackupConfig(local_path=repository.path, media_path=uploads))
    first = backup.backup_media()
    (uploads / "two.sarif").write_text("two")
    second = backup.backup_media(incremental=True)
    assert first.success
    assert second.success
    config = RestoreConfig(local_path=repository.path, media_path=uploads)
    now = datetime.now(UTC) + timedelta(minutes=1)
    choice = choose_moment(repository, config, RestoreScope.MEDIA, "60 seconds ago", now)
    assert choice.moment == now + clock_offset(archive) - timedelta(minutes=1)
    assert choice.media is not None
    assert choice.media.name.startswith(second.backup_id)
    opened = MomentArchive(choice)
    try:
        assert {"media/one.sarif", "media/two.sarif"} <= {member.path for member in opened.members()}
    finally:
        opened.close()


def test_age_of_the_window_is_by_our_clock(archive: WalArchive) -> None:
    """A server whose clock is off is no data loss, and hides none."""
    ahead = clock_offset(archive)
    now = datetime.now(UTC)
    window = Window(start=now + ahead - timedelta(hours=1), end=now + ahead - timedelta(seconds=3))
    facts = PitrFacts(window=window, state=archive.state(), ahead=ahead)
    assert facts.lag_seconds(now) == pytest.approx(3)


def test_clock_is_forgotten_while_the_server_is_away(archive: WalArchive) -> None:
    """A difference that was measured before a fault says nothing about now."""
    archive.save_state(archive.state() | {"problem": "the server refuses"})
    assert clock_offset(archive) == timedelta(0)
