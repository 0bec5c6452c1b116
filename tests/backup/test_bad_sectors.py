"""A disk that fails while a backup reads from it."""

from __future__ import annotations

import os
from random import Random
from typing import TYPE_CHECKING

import pytest

from portal.ops.backup.job import BackupConfig, BackupJob, BackupResult
from tests.support.bad_disk import BLOCK_BYTES, bad_disk
from tests.support.portal import succeeded

if TYPE_CHECKING:
    from pathlib import Path

LARGE = 3 << 20


def back_up(tmp_path: Path, *, incremental: bool = False) -> BackupResult:
    config = BackupConfig(local_path=tmp_path / "archives", media_path=tmp_path / "uploads", jobs=2)
    return BackupJob(config).backup_media(incremental=incremental)


def archives(tmp_path: Path) -> list[str]:
    """What is in the repository, finished or not."""
    return sorted(name for name in os.listdir(tmp_path / "archives") if ".tar.gz" in name)


@pytest.mark.parametrize("incremental", [True, False], ids=["incremental", "everything"])
@pytest.mark.parametrize(
    ("size", "good_blocks"),
    [(LARGE, 0), (LARGE, LARGE // BLOCK_BYTES - 1), (3000, 1)],
    ids=["large from its start", "large at its end", "small"],
)
def test_an_upload_on_a_bad_sector(tmp_path: Path, size: int, good_blocks: int, *, incremental: bool) -> None:
    """The file is named, the hint is about its disk, nothing is published, and the earlier backup stays."""
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "good.json").write_text("{}")
    succeeded(back_up(tmp_path))
    before = archives(tmp_path)
    with bad_disk(uploads / "tenant", "scan.sarif", Random(1).randbytes(size), good_blocks=good_blocks) as bad:
        result = back_up(tmp_path, incremental=incremental)
    assert not result.success
    message, hint = (result.error or "").split("\n")
    assert message == f"cannot read {bad}: input/output error"
    assert "The disk that holds this file is failing, not the one of the repository" in hint
    assert archives(tmp_path) == before
    (uploads / "later.json").write_text("{}")
    succeeded(back_up(tmp_path, incremental=incremental))
