"""The id of a repository: a backup goes to the one that is meant, or nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.errors import RepositoryError
from portal.ops.repository.repository import LOCK_NAME, Repository
from tests.support.portal import succeeded

if TYPE_CHECKING:
    from pathlib import Path


def test_it_stays_the_same(config: BackupConfig, tmp_path: Path) -> None:
    """The first backup gives it; later ones, also of a repository of an earlier release, keep it."""
    first = Repository(tmp_path / "archives").id
    assert len(first) == 32
    succeeded(BackupJob(config).backup_media())
    assert Repository(tmp_path / "archives").id == first
    (tmp_path / "archives" / LOCK_NAME).write_bytes(b"")
    succeeded(BackupJob(config).backup_media())
    assert len(Repository(tmp_path / "archives").id) == 32


def test_a_volume_that_is_not_mounted_is_no_new_repository(config: BackupConfig, tmp_path: Path) -> None:
    """Where the id is known, neither an empty directory nor an absent one is taken for it."""
    meant = BackupConfig(
        local_path=tmp_path / "archives",
        media_path=tmp_path / "uploads",
        jobs=1,
        repository_id=Repository(tmp_path / "archives").id,
    )
    succeeded(BackupJob(meant).backup_media())
    (tmp_path / "archives").rename(tmp_path / "away")
    for is_there in (False, True):
        if is_there:
            (tmp_path / "archives").mkdir(exist_ok=True)
        result = BackupJob(meant).backup_media()
        assert "is not the repository" in str(result.error)
        assert "BACKUP_REPOSITORY_ID" in str(result.error)
    assert not [*(tmp_path / "archives").glob("*.tar.gz")]
    (tmp_path / "archives" / LOCK_NAME).unlink(missing_ok=True)
    for path in (tmp_path / "archives").iterdir():
        path.unlink()
    (tmp_path / "archives").rmdir()
    (tmp_path / "away").rename(tmp_path / "archives")
    succeeded(BackupJob(meant).backup_media())


def test_another_repository_is_refused(config: BackupConfig, tmp_path: Path) -> None:
    """Each has an id of its own, which the message names."""
    other = Repository(tmp_path / "other")
    other.prepare()
    with pytest.raises(RepositoryError, match=f"its id is {other.id}"):
        other.prepare_for_backup(Repository(tmp_path / "archives").id)
    assert config.repository_id == ""
