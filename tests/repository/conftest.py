"""Repositories to work in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from portal.ops.backup.job import BackupConfig, BackupJob
from tests.support.portal import succeeded
from tests.support.repositories import public_directory, repository

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["config", "public_directory", "repository"]


@pytest.fixture
def config(tmp_path: Path) -> BackupConfig:
    """Uploads to back up, and a repository that a backup was made to."""
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "scan.json").write_text("{}")
    config = BackupConfig(local_path=tmp_path / "archives", media_path=tmp_path / "uploads", jobs=1)
    succeeded(BackupJob(config).backup_media())
    return config
