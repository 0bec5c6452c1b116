"""What was reported as done is on the disk: contents, names, and the directories that they are in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from portal.ops.drill.scratch import Scratch
from portal.ops.model import RESTORE_DIRECTORY, BackupId, BackupType, VerifyLevel
from portal.ops.offsite.layout import parse_stem
from portal.ops.offsite.ledger import CopyRecord, Ledger
from portal.ops.pitr import archive_index, data_dir
from portal.ops.pitr.scratch import scratch_directory
from portal.ops.pitr.wal_archive import Cluster, WalArchive
from portal.ops.repository.access_log import AccessLog, Action, Outcome
from portal.ops.repository.durable import make_directories, write_durably
from portal.ops.repository.pins import Pins
from portal.ops.repository.repository import Repository
from portal.ops.repository.verifications import Verifications
from portal.ops.restore.config import RestoreConfig
from portal.ops.restore.database.newcomer import Newcomer
from portal.ops.restore.job import RestoreJob
from portal.ops.restore.journal import RestoreRecord, RestoreRecords
from portal.ops.retention.policy import RetentionPolicy, RetentionRule
from portal.ops.retention.prune import PruneJob
from portal.ops.settings.database_url import DatabaseTarget
from portal.ops.settings.destination import parse_destinations
from portal.ops.storage.age_keys import generate
from portal.ops.storage.directory import DirectoryBackend
from tests.support.incrementals import Uploads
from tests.support.kept import finding, put_archive
from tests.support.strict_disk import StrictDisk, strict
from worker.authorization import Authorizations
from worker.keys import TaskKeys
from worker.operations import RESTORE_ARCHIVE

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["strict"]

SEGMENTS: Final = [f"00000001000000000000000{number}" for number in (1, 2, 3)]
NOW: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)
VOLATILE: Final = (".lock", ".chain.lock", ".cache", "*.partial", "*.tmp", ".index.lock")
"""What may be lost: locks, copies, and what was on its way."""


@pytest.fixture
def repository(tmp_path: Path, strict: StrictDisk) -> Repository:
    """An empty repository that is on the disk."""
    found = Repository(tmp_path / "archives")
    found.prepare()
    assert not strict.lost("*.tmp")
    return found


def assert_kept(disk: StrictDisk) -> None:
    """Everything is as it would be after a power cut, and no name came before its content."""
    assert disk.lost(*VOLATILE) == set()
    assert disk.too_early == []


class TestSmallFiles:
    """What is written beside the archives."""

    def test_a_small_file_and_the_directories_above_it(self, tmp_path: Path, strict: StrictDisk) -> None:
        """A file in a new directory of a new directory is there, and so is its replacement."""
        make_directories(tmp_path / "one" / "two")
        for content in (b"old", b"new"):
            write_durably(tmp_path / "one" / "two" / "file", content)
            assert_kept(strict)

    def test_pins(self, repository: Repository, strict: StrictDisk) -> None:
        """A pin is there when that was said, and gone when that was said."""
        pins = Pins(repository)
        pins.pin("full_20260101_000000_aaaaaa", reason="", who="ada", moment=NOW)
        assert_kept(strict)
        assert pins.unpin("full_20260101_000000_aaaaaa")
        assert_kept(strict)

    def test_findings(self, repository: Repository, strict: StrictDisk) -> None:
        """What a verification has found is there."""
        name = put_archive(repository.path, BackupType.FULL, NOW)
        strict.settle()
        Verifications(repository).record(finding(repository.path, name, VerifyLevel.DUMP), NOW)
        assert_kept(strict)

    def test_the_access_log(self, repository: Repository, strict: StrictDisk) -> None:
        """Each line is there, and so is the note of the last one, which would look like a manipulation otherwise."""
        log = AccessLog(repository)
        for subject in ("one", "two"):
            log.append(Action.VERIFY, subject, Outcome.DONE, who="ada", host="here", moment=NOW)
            assert_kept(strict)

    def test_records_of_restores(self, repository: Repository, strict: StrictDisk) -> None:
        """A record is there before anything is done, and gone when it was removed."""
        records = RestoreRecords(repository)
        record = RestoreRecord(
            restore_id="restore_1", number=1, backup_id="one", backup_file="one", started="now", changed="now"
        )
        records.save(record)
        assert_kept(strict)
        records.remove(record)
        assert_kept(strict)

    def test_a_new_database_that_was_noted(self, repository: Repository, strict: StrictDisk) -> None:
        """The number of a database is there before the database gets the live name."""
        Newcomer(path=repository.path / ".restores" / "restore_1" / "newcomer.json", restore_id="restore_1").note(7)
        assert_kept(strict)

    def test_keys(self, repository: Repository, strict: StrictDisk) -> None:
        """A key that has signed something is there, the first one and the next."""
        keys = TaskKeys(repository.path)
        keys.current()
        assert_kept(strict)
        keys.rotate()
        assert_kept(strict)

    def test_authorizations(self, repository: Repository, strict: StrictDisk) -> None:
        """One that was granted is there; one that was withdrawn or used up does not come back."""
        authorizations = Authorizations(repository.path)
        for remove in (authorizations.withdraw, authorizations.use_up):
            authorizations.grant(RESTORE_ARCHIVE, "one", {})
            assert_kept(strict)
            remove("one")
            assert_kept(strict)

    def test_the_place_of_a_drill(self, repository: Repository, strict: StrictDisk) -> None:
        """It is there before a database is created, and gone when that was said."""
        scratch = Scratch(drill_id="drill_20260101_000000_aaaaaa", directory=repository.path / ".drills" / "one")
        scratch.make(1)
        assert_kept(strict)
        scratch.throw_away(DatabaseTarget(host="nowhere", port=1, name="none", user="nobody", password=None))
        assert_kept(strict)

    def test_the_place_of_a_scratch_server(self, repository: Repository, tmp_path: Path, strict: StrictDisk) -> None:
        """What names the directory is there before the directory is."""
        with scratch_directory(repository, None, 1, parent=tmp_path) as place:
            assert strict.lost(*VOLATILE) == {place.name}


class TestArchives:
    """Archives, from their commit to their end."""

    def test_a_commit(self, repository: Repository, strict: StrictDisk) -> None:
        """Archive and sidecar have their names, and had their contents before."""
        with repository.pending(BackupId.of(BackupType.FULL, NOW, "one")) as pending:
            assert pending is not None
            pending.out.write(b"content")
            pending.commit(pending.out.finish())
            assert_kept(strict)

    @pytest.mark.parametrize("incremental", [False, True])
    def test_a_backup(self, tmp_path: Path, strict: StrictDisk, incremental: bool) -> None:
        """A backup in a new repository, and the next one."""
        uploads = Uploads(directory=tmp_path)
        for content in (b"one", b"two"):
            uploads.write("tenant/file", content)
            strict.settle()
            assert uploads.job().backup_media(incremental=incremental).success
            assert_kept(strict)

    def test_a_prune(self, repository: Repository, strict: StrictDisk) -> None:
        """Archives are gone before anything that belongs to them, and before that was logged."""
        for age in range(3):
            name = put_archive(repository.path, BackupType.FULL, NOW - timedelta(days=40 + age))
            Verifications(repository).record(finding(repository.path, name, VerifyLevel.DUMP), NOW)
        strict.settle()
        policy = RetentionPolicy(rule=RetentionRule(days=1, count=1))
        pruned = PruneJob(repository, policy, clock=lambda: NOW, actor="ada").run()
        assert len(pruned.removed) == 2
        assert_kept(strict)


class TestRestores:
    """Restores of files."""

    def test_a_restore_and_its_rollback(self, tmp_path: Path, strict: StrictDisk) -> None:
        """What was restored is there, what was replaced can be brought back, and was."""
        uploads = Uploads(directory=tmp_path)
        for name in ("one", "two"):
            uploads.write(f"tenant/{name}", b"restored")
        backup_id = uploads.base().backup_id
        uploads.write("tenant/one", b"replaced")
        strict.settle()
        job = RestoreJob(RestoreConfig(local_path=uploads.archives, media_path=uploads.root))
        assert job.restore_media(backup_id).success
        assert (uploads.root / "tenant/one").read_bytes() == b"restored"
        assert_kept(strict)
        assert job.rollback().success
        assert (uploads.root / "tenant/one").read_bytes() == b"replaced"
        assert strict.lost(*VOLATILE, RESTORE_DIRECTORY) == set()  # remains of it would be removed later


class TestElsewhere:
    """WAL, and what was copied off-site."""

    def test_wal(self, repository: Repository, strict: StrictDisk) -> None:
        """A segment that the server need not keep any more is there; one that was removed is gone."""
        archive = WalArchive.prepare(repository, Cluster(system_identifier="7", segment_bytes=1 << 24, major=17))
        assert_kept(strict)
        for name in SEGMENTS[:2]:
            (archive.receiving / name).write_bytes(b"received")
            archive.publish(archive.receiving / name, covered=NOW, until=NOW)
            assert_kept(strict)
        archive.take(SEGMENTS[2], b"fetched", covered=NOW, until=NOW)
        assert_kept(strict)

    def test_wal_is_gone_before_its_line(
        self, repository: Repository, strict: StrictDisk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is there is always known: the lines of the index go when the files are gone for good."""
        archive = WalArchive.prepare(repository, Cluster(system_identifier="7", segment_bytes=1 << 24, major=17))
        for name in SEGMENTS:
            archive.take(name, b"fetched", covered=NOW, until=NOW)
        rewrite, lost = archive_index.rewrite, []

        def rewritten(*arguments: Any) -> None:
            lost.append(strict.lost(*VOLATILE))
            rewrite(*arguments)

        monkeypatch.setattr(archive_index, "rewrite", rewritten)
        assert archive.remove({SEGMENTS[0]}) > 0
        assert lost == [set()]
        assert set(archive.files()) == set(SEGMENTS[1:])
        assert_kept(strict)

    def test_a_recovered_cluster(self, tmp_path: Path, strict: StrictDisk) -> None:
        """Every file of it is there, under the name that was asked for."""
        (tmp_path / "data" / "base").mkdir(parents=True)
        (tmp_path / "data" / "base" / "file").write_bytes(b"page")
        (tmp_path / "cluster").mkdir()
        data_dir._sync(tmp_path / "data")
        data_dir._move(tmp_path / "data", tmp_path / "cluster")
        assert_kept(strict)

    def test_copies_in_a_directory(self, tmp_path: Path, strict: StrictDisk) -> None:
        """An object is there with the directories above it."""
        backend = DirectoryBackend(tmp_path)
        backend.put("one/two/object", b"segment", "")
        assert_kept(strict)

    def test_an_identity(self, tmp_path: Path, strict: StrictDisk) -> None:
        """A key that copies are encrypted for is there: nothing else can read them."""
        generate(tmp_path / "identity")
        assert_kept(strict)

    def test_the_memory_of_copies(self, repository: Repository, strict: StrictDisk) -> None:
        """A copy that is known is known for ever, how far one is, too."""
        (destination,) = parse_destinations("file:///elsewhere")
        ledger = Ledger(repository, destination)
        ledger.prepare()
        stem = parse_stem("full_20260101_000000_aaaaaa")
        assert stem is not None
        record = CopyRecord(stem=stem, copied=NOW, archive_sha256="0" * 64, stored_bytes=1)
        ledger.add(record)
        assert_kept(strict)
        ledger.replace([record])
        assert_kept(strict)
        ledger.save_pending("one", {"segments": 1})
        assert_kept(strict)
        ledger.forget_pending("one")
        assert_kept(strict)
