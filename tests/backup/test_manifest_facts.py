"""What a manifest says of uploads and of what was unsteady in them, and when the memory of a chain is kept."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from portal.ops.archive.reader import ArchiveReader
from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.backup.loss import place_of
from portal.ops.backup.run import BackupRequest
from portal.ops.backup.strategy import ChainedFull
from portal.ops.manifest import WARNING_BYTES
from portal.ops.model import DELETED, BackupType, Component
from tests.support.events import Events
from tests.support.incrementals import Uploads, deleted, held, manifest_of, succeeded
from tests.support.kept import put_archive

if TYPE_CHECKING:
    import pytest

    from portal.ops.archive.index import Member
    from portal.ops.repository.pending import PendingArchive

NOON = datetime(2026, 1, 2, 12, 0, 0, 654_321, tzinfo=UTC)
SECOND = 1_000_000_000


def member(path: str, name: str) -> Member:
    with closing(ArchiveReader(Path(path))) as archive:
        found = archive.find(name)
    assert found is not None
    return found


def head(uploads: Uploads) -> list[Any]:
    with closing(sqlite3.connect(uploads.cache)) as connection:
        return connection.execute("SELECT backup_id FROM head").fetchall()


def test_a_manifest_describes_the_uploads(uploads: Uploads) -> None:
    """Everything of a base: what was read, when, and from where."""
    began = time.time_ns()
    base = succeeded(uploads.job().backup_media(moment=NOON))
    found = manifest_of(base)
    details = dict(found.details["media"])
    assert began <= details.pop("read_from_ns") <= time.time_ns()
    size = sum(path.stat().st_size for path in uploads.root.rglob("*") if path.is_file())
    assert details == {"bytes": size, "files": 3, "root": "directory", "source": place_of(uploads.root)}
    assert (found.type, found.timestamp, found.components) == ("media", "2026-01-02T12:00:00Z", (Component.MEDIA,))
    assert (found.hostname, found.db_name, found.warnings_total) == (socket.gethostname(), "", 0)
    assert (found.parent, found.parent_sha256, found.base, found.format_version) == (None, None, None, 1)
    assert member(base.destination_path, "manifest.json").mtime_ns == int(NOON.timestamp()) * SECOND


def test_a_manifest_describes_what_has_changed(uploads: Uploads) -> None:
    """With the totals of the whole tree, and what is gone."""
    base = uploads.base()
    uploads.write("new", b"x" * 1_000)
    uploads.write("tenant-2/scan.json", b"other")
    (uploads.root / "tenant-1/scan.json").unlink()
    began = time.time_ns()
    result = uploads.incremental()
    found = manifest_of(result)
    details = dict(found.details["media"])
    assert began <= details.pop("read_from_ns") <= time.time_ns()
    left = len(b"tenant-1/old/report.sarif")
    assert details == {
        "bytes": 1_005,
        "files": 2,
        "root": "directory",
        "source": place_of(uploads.root),
        "deleted": 1,
        "tree": {"bytes": 1_005 + left, "files": 3},
    }
    assert deleted(result) == ["media/tenant-1/scan.json"]
    assert (found.parent, found.base, found.parent_sha256) == (base.backup_id, base.backup_id, base.checksum)
    assert found.format_version == 2
    moment = member(result.destination_path, DELETED).mtime_ns
    assert moment % SECOND == 0
    assert began - SECOND < moment <= time.time_ns()
    uploads.write("new", b"y")
    again = manifest_of(uploads.incremental())
    assert (again.parent, again.base) == (result.backup_id, base.backup_id)
    assert again.details["media"]["tree"] == {"bytes": 6 + left, "files": 3}
    assert again.details["media"]["deleted"] == 0


def test_more_warnings_than_a_manifest_holds_are_counted(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit are in it, the first ones; each is logged."""
    events = Events(monkeypatch, "portal.ops.backup.collect")
    names = [f"{number:03}-{'n' * 200}" for number in range(300)]
    for name in names:
        os.mkfifo(uploads.root / name)
    result = uploads.base()
    found = manifest_of(result)
    assert found.warnings_total == 300
    assert 20 <= len(found.warnings) < 300
    assert sum(map(len, found.warnings)) < 2 * WARNING_BYTES
    told = [f"media/{name} is a socket, a FIFO or a device and was left out" for name in names]
    assert list(found.warnings) == list(result.warnings) == told[: len(found.warnings)]
    assert [
        facts["detail"] for level, event, facts in events.all if (level, event) == ("warning", "source_unsteady")
    ] == told
    phases = {event: facts for level, event, facts in events.all if level == "info"}
    assert phases["component_collected"]["component"] == "media"
    assert phases["component_collected"]["bytes"] == found.details["media"]["bytes"]
    assert phases["archive_finished"]["bytes"] == result.size_bytes
    assert all(0 <= facts["seconds"] == round(facts["seconds"], 3) for facts in phases.values())


def test_a_manifest_that_has_more_than_its_room_is_written_if_it_can_be(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room is left for one that does not shrink; without any warnings to leave out, nobody waits for ever."""
    monkeypatch.setattr("portal.ops.backup.collect.room_for", lambda _: 0)
    result = uploads.base()
    assert manifest_of(result).details["media"]["files"] == 3
    assert uploads.job().verify(result.backup_id).intact


def test_a_base_is_remembered_where_others_follow(uploads: Uploads) -> None:
    """Where full backups follow archives, from the first one on; otherwise where incrementals were made."""
    uploads.base()
    assert not uploads.cache.exists()
    first = succeeded(uploads.job(full_uploads="chain").backup_media())
    assert head(uploads) == [(first.backup_id,)]
    second = uploads.base()
    assert head(uploads) == [(second.backup_id,)]
    log = uploads.write("../audit/log.jsonl")
    config = BackupConfig(local_path=uploads.archives, audit_log_path=log.parent, jobs=1)
    request = BackupRequest.of(BackupType.AUDIT_LOGS, NOON, None)
    assert request.backup_id.type is BackupType.AUDIT_LOGS
    assert succeeded(BackupJob(config)._run(BackupType.AUDIT_LOGS, NOON, None)).components == ("audit_logs",)
    assert head(uploads) == [(second.backup_id,)]


def test_the_first_full_backup_expects_nothing(uploads: Uploads) -> None:
    """Nobody knows how much its database has; complete ones are no measure of one that follows another."""
    job = uploads.job()
    job.repository.prepare()
    strategy = ChainedFull(
        repository=job.repository,
        config=job.config,
        components=(Component.MEDIA,),
        moment=NOON,
        pending=cast("PendingArchive", None),
        check_space=lambda _: None,
        advance=lambda _: None,
    )
    assert strategy.expected_bytes == 0
    put_archive(uploads.archives, BackupType.FULL, NOON)
    assert (strategy.expected_bytes, strategy.is_settled, strategy.warnings) == (0, False, ())


def test_a_request_is_known_by_its_moment_and_id(uploads: Uploads) -> None:
    """Without an id, each is another one."""
    one, other = (BackupRequest.of(BackupType.MEDIA, NOON, "one") for _ in range(2))
    assert one == other
    assert (one.incremental, one.changed, one.complete) == (False, None, False)
    assert BackupRequest.of(BackupType.MEDIA, NOON, "two").backup_id != one.backup_id
    assert BackupRequest.of(BackupType.MEDIA, NOON + timedelta(seconds=1), "one").backup_id != one.backup_id
    assert BackupRequest.of(BackupType.MEDIA, NOON, None) != BackupRequest.of(BackupType.MEDIA, NOON, None)


def test_what_is_named_twice_or_with_points_is_taken_once(uploads: Uploads) -> None:
    """A path in the uploads can be written in many ways; what lies beside it is not looked at."""
    uploads.base()
    assert uploads.incremental().unchanged  # the first one on a base looks everywhere
    uploads.write("tenant-1/new")
    uploads.write("tenant-2/other")
    found = uploads.incremental(["tenant-1/new", "./tenant-1//new", "absent/deep", "tenant-1"])
    assert set(held(found)) == {"tenant-1", "tenant-1/new"}
    assert manifest_of(found).details["media"]["tree"]["files"] == 4
