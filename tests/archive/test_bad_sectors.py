"""An archive on a disk that fails while it is read."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from portal.ops.archive.open import open_archive
from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.errors import NotIntactError, RepositoryError
from portal.ops.restore.job import RestoreConfig, RestoreJob
from tests.support.bad_disk import BLOCK_BYTES, bad_disk
from tests.support.portal import succeeded

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive of one upload of 1 MiB that cannot be compressed."""
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "scan.sarif").write_bytes(Random(1).randbytes(1 << 20))
    return succeeded(BackupJob(BackupConfig(local_path=tmp_path / "archives", media_path=uploads)).backup_media())


@pytest.mark.parametrize("readable", [0, 500, -1], ids=["its start", "its middle", "its end"])
def test_an_archive_on_a_bad_sector(tmp_path: Path, archive: Path, readable: int) -> None:
    """Verification and restore name the archive and what the system says, wherever the sector is."""
    content = archive.read_bytes()
    blocks = readable if readable >= 0 else len(content) // BLOCK_BYTES
    with bad_disk(tmp_path / "disk", archive.name, content, good_blocks=blocks) as bad:
        said = f"cannot read {bad}: input/output error"
        with pytest.raises(RepositoryError, match=said):
            BackupJob(BackupConfig(local_path=archive.parent)).verify(bad)
        config = RestoreConfig(local_path=archive.parent, media_path=tmp_path / "uploads", allow_unverified=True)
        assert said in str(RestoreJob(config).restore_media(bad).error)


def test_an_index_on_a_bad_sector(tmp_path: Path, archive: Path) -> None:
    """It is not taken for an archive that tar and gzip made, nor for one that was cut short."""
    content = archive.read_bytes()
    disk = bad_disk(tmp_path / "disk", archive.name, content, good_blocks=len(content) // BLOCK_BYTES - 4)
    with disk as bad, pytest.raises(NotIntactError, match=r"its end cannot be read \(input/output error\)"):
        open_archive(bad)
