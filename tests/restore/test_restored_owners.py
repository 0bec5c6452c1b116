"""Whose restored files are: where root restores, they belong to whom they belonged."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.model import RESTORE_DIRECTORY
from portal.ops.monitoring.doctor.check import State
from portal.ops.monitoring.doctor.files import FileChecks
from portal.ops.restore.job import RestoreConfig, RestoreJob
from tests.support.portal import succeeded
from tests.support.unprivileged import NOBODY, done_by_nobody

if TYPE_CHECKING:
    from collections.abc import Iterator

OWNERS = {"": (12345, 54321), "tenant-a": (12346, 54322), "tenant-a/scan.sarif": (12347, 54323), "link": (12348, 54324)}


def owners(uploads: Path) -> dict[str, tuple[int, int]]:
    """User and group of each of the paths; of a link its own."""
    found = {name: os.lstat(uploads / name) for name in OWNERS}
    return {name: (one.st_uid, one.st_gid) for name, one in found.items()}


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """Uploads of several users, backed up."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files to others")
    uploads = tmp_path / "uploads"
    (uploads / "tenant-a").mkdir(parents=True)
    (uploads / "tenant-a" / "scan.sarif").write_text("{}")
    (uploads / "link").symlink_to("tenant-a")
    for name, (user, group) in OWNERS.items():
        os.chown(uploads / name, user, group, follow_symlinks=False)
    succeeded(BackupJob(BackupConfig(local_path=tmp_path / "archives", media_path=uploads)).backup_media())
    return uploads


def restore(uploads: Path, place: Path) -> None:
    """Restore the uploads as the user of this process."""
    job = RestoreJob(RestoreConfig(local_path=uploads.parent / "archives", media_path=place))
    job_result = job.restore_media("latest")
    assert job_result.error is None


def test_root_restores_whose_they_were(uploads: Path, tmp_path: Path) -> None:
    """Into an empty place: every file, directory and link belongs to whom it belonged, and the top as well."""
    restore(uploads, tmp_path / "elsewhere")
    assert owners(tmp_path / "elsewhere") == OWNERS


def test_an_owner_alone_is_a_change(uploads: Path) -> None:
    """A file that is the same but for its owner is given back to the old one."""
    for name in OWNERS:
        os.chown(uploads / name, 0, 0, follow_symlinks=False)
    restore(uploads, uploads)
    assert owners(uploads) == OWNERS


class TestRestoresByRoot:
    """The portal's user goes on with what root has restored."""

    @pytest.fixture
    def portal(self) -> Iterator[Path]:
        """Uploads and a repository of the portal's user, who is not root, changed since the backup."""
        if os.geteuid() != 0:
            pytest.skip("only root can give files to others")
        with tempfile.TemporaryDirectory(prefix="kekkai-owners-", dir="/tmp") as directory:
            place = Path(directory)
            scans = place / "uploads" / "tenant-a"
            scans.mkdir(parents=True)
            (place / "archives").mkdir()
            (scans / "scan.sarif").write_text("old")
            (scans / "gone.sarif").write_text("old")
            os.chmod(place, 0o755)  # noqa: S103  (the portal's user passes through it)
            config = BackupConfig(local_path=place / "archives", media_path=place / "uploads")
            for path in (place / "uploads", scans, *scans.iterdir(), place / "archives"):
                os.chown(path, NOBODY, NOBODY)
            succeeded(BackupJob(config).backup_media())
            (scans / "scan.sarif").write_text("new")
            (scans / "gone.sarif").unlink()
            (scans / "more").mkdir()
            (scans / "more" / "later.sarif").write_text("new")
            for path in (scans / "more", scans / "more" / "later.sarif"):
                os.chown(path, NOBODY, NOBODY)
            yield place

    def test_they_are_rolled_back(self, portal: Path) -> None:
        """Nothing in the uploads is root's: neither what was restored nor what the rollback takes."""
        job = RestoreJob(RestoreConfig(local_path=portal / "archives", media_path=portal / "uploads", exact=True))
        assert job.restore_media("latest").error is None
        scans = portal / "uploads" / "tenant-a"
        assert {path.name: path.read_text() for path in scans.iterdir()} == {"scan.sarif": "old", "gone.sarif": "old"}
        assert [path for path in (portal / "uploads").rglob("*") if path.lstat().st_uid != NOBODY] == []

        def look_and_roll_back() -> None:
            checks = FileChecks(uploads=portal / "uploads", audit=None, environ={}).all()
            assert {check.name for check in checks if check.look().state is State.FAULT} == set()
            assert job.rollback().error is None

        done_by_nobody(portal, look_and_roll_back)
        assert (scans / "scan.sarif").read_text() == "new"
        assert not (scans / "gone.sarif").exists()
        assert (scans / "more" / "later.sarif").read_text() == "new"
        assert not (portal / "uploads" / RESTORE_DIRECTORY).exists()

    def test_one_of_an_earlier_release_is_in_nobodys_way(self, portal: Path) -> None:
        """Its directory stayed root's. The portal's user restores all the same, and the doctor sees no fault."""
        closed = portal / "uploads" / RESTORE_DIRECTORY / "restore_20260101_000000_aaaaaa"
        closed.mkdir(mode=0o700, parents=True)

        def look_and_restore() -> None:
            checks = FileChecks(uploads=portal / "uploads", audit=None, environ={}).all()
            assert {check.name for check in checks if check.look().state is State.FAULT} == set()
            config = RestoreConfig(local_path=portal / "archives", media_path=portal / "uploads", exact=True)
            assert RestoreJob(config).restore_media("latest").error is None

        done_by_nobody(portal, look_and_restore, but=closed)
        assert (portal / "uploads" / "tenant-a" / "scan.sarif").read_text() == "old"

    def test_a_directory_that_is_closed_is_named_with_its_whole_path(self, portal: Path) -> None:
        """Root's directory in the uploads is in the way of a plan; the error says where it is, and who can help."""
        closed = portal / "uploads" / "tenant-a" / "closed"
        closed.mkdir(mode=0o700)

        def restore_in_vain() -> None:
            config = RestoreConfig(local_path=portal / "archives", media_path=portal / "uploads", exact=True)
            error = RestoreJob(config).restore_media("latest").error
            assert error is not None
            assert error.startswith(f"cannot use {closed}: permission denied")
            assert "as root, or as the user whose it is" in error

        done_by_nobody(portal, restore_in_vain, but=closed)
