"""A source that has lost nearly everything at once is most likely not mounted: that is no deletion."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.backup.job import BackupConfig, BackupJob, BackupResult
from portal.ops.errors import ConfigurationError
from tests.support.portal import succeeded
from tests.support.restores import mounted

if TYPE_CHECKING:
    from pathlib import Path

FILES = 20


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """Uploads that are backed up."""
    directory = tmp_path / "uploads"
    directory.mkdir()
    for number in range(FILES):
        (directory / f"{number}.json").write_text("{}")
    succeeded(back_up(tmp_path))
    return directory


def back_up(tmp_path: Path, *, incremental: bool = False, **changes: Any) -> BackupResult:
    config = BackupConfig(local_path=tmp_path / "archives", media_path=tmp_path / "uploads", jobs=1, **changes)
    return BackupJob(config).backup_media(incremental=incremental)


def refused(result: BackupResult) -> str:
    assert not result.success
    assert "--confirm-loss" in str(result.error)
    return str(result.error)


@pytest.mark.parametrize("incremental", [True, False], ids=["incremental", "everything"])
def test_an_empty_directory_in_the_place_of_the_uploads(uploads: Path, tmp_path: Path, *, incremental: bool) -> None:
    """The uploads' volume is not mounted: nothing is published, and when it is back, backups go on."""
    before = set(os.listdir(tmp_path / "archives"))
    away = uploads.rename(tmp_path / "away")
    uploads.mkdir()
    error = refused(back_up(tmp_path, incremental=incremental))
    assert f"{uploads} has 0 files" in error
    assert f"had {FILES} of it" in error
    assert {name for name in os.listdir(tmp_path / "archives") if name.endswith(".tar.gz")} <= before
    uploads.rmdir()
    away.rename(uploads)
    (uploads / "new.json").write_text("{}")
    succeeded(back_up(tmp_path, incremental=incremental))


@pytest.mark.parametrize("incremental", [True, False], ids=["incremental", "everything"])
def test_a_loss_is_confirmed_once(uploads: Path, tmp_path: Path, *, incremental: bool) -> None:
    """Where a person says that it is right, the archive is made, and the next ones need no confirmation."""
    for number in range(FILES - 1):
        (uploads / f"{number}.json").unlink()
    refused(back_up(tmp_path, incremental=incremental))
    succeeded(back_up(tmp_path, incremental=incremental, confirm_loss=True))
    (uploads / "more.json").write_text("{}")
    succeeded(back_up(tmp_path, incremental=incremental))


@pytest.mark.parametrize("other", [["audit-log"], ["repository"], ["audit-log", "repository"]])
def test_another_loss_that_is_confirmed_is_not_this_one(uploads: Path, tmp_path: Path, *, other: list[str]) -> None:
    """Each danger is confirmed for itself, and the message says by which name."""
    for number in range(FILES - 1):
        (uploads / f"{number}.json").unlink()
    assert "--confirm-loss uploads." in refused(back_up(tmp_path, confirm_loss=other))
    succeeded(back_up(tmp_path, confirm_loss=["uploads"]))


def test_a_loss_that_does_not_exist_is_not_confirmed(tmp_path: Path) -> None:
    """The names are in the hint."""
    with pytest.raises(ConfigurationError, match="'media' is not a loss that can be confirmed") as caught:
        back_up(tmp_path, confirm_loss=["media"])
    assert "uploads, audit-log, repository" in caught.value.hint


def test_a_usual_clean_up_is_no_loss(uploads: Path, tmp_path: Path) -> None:
    """Half of the files may go at once, and of few files all."""
    for number in range(FILES // 2):
        (uploads / f"{number}.json").unlink()
    succeeded(back_up(tmp_path, incremental=True))
    for number in range(FILES // 2, FILES - 5):
        (uploads / f"{number}.json").unlink()
    succeeded(back_up(tmp_path))
    for name in os.listdir(uploads):
        (uploads / name).unlink()
    succeeded(back_up(tmp_path))


def test_few_files_on_a_volume_that_is_not_mounted(tmp_path: Path) -> None:
    """That the device is another one says what the number of files does not."""
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    with mounted(uploads):
        (uploads / "one.json").write_text("{}")
        succeeded(back_up(tmp_path))
    assert "not on the device" in refused(back_up(tmp_path))


def test_an_audit_log_that_is_gone(tmp_path: Path) -> None:
    """An audit log only grows: one without any file is not there."""
    for name in ("uploads", "audit"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.jsonl").write_text("{}\n")

    def full() -> BackupResult:
        from portal.ops.model import BackupType

        config = BackupConfig(local_path=tmp_path / "archives", audit_log_path=tmp_path / "audit", jobs=1)
        return BackupJob(config)._run(BackupType.AUDIT_LOGS, None, None)

    succeeded(full())
    shutil.rmtree(tmp_path / "audit")
    (tmp_path / "audit").mkdir()
    refused(full())
