"""Whose restored files are: where root restores, they belong to whom they belonged."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.restore.job import RestoreConfig, RestoreJob
from tests.support.portal import succeeded

if TYPE_CHECKING:
    from pathlib import Path

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
