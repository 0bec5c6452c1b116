"""The work after a backup without a worker, as any caller of the engine gets it: never a failure of the backup."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from portal.ops.backup.aftercare import clean_up_after_backup, copy_after_backup
from portal.ops.model import BackupType
from portal.ops.repository.access_log import Action
from portal.ops.settings.load import Settings, load_settings
from tests.support.kept import put_archive

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.repository.access_log import AccessEntry

SHORT = {"BACKUP_RETENTION_DAYS": "7", "BACKUP_RETENTION_COUNT": "1"}


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """A repository with one new archive of uploads and two old ones."""
    for age in (1, 20, 30):
        put_archive(tmp_path, BackupType.MEDIA, datetime.now(UTC) - timedelta(days=age))
    return tmp_path


def settings(archives: Path, **environ: str) -> Settings:
    return load_settings({"BACKUP_LOCAL_PATH": str(archives), **SHORT, **environ}, lambda _: "")


def test_old_archives_are_removed(archives: Path) -> None:
    """The result names the removed archives, their size, and says so in one line."""
    done = clean_up_after_backup(settings(archives))
    assert len(done.names) == 2
    assert done.freed_bytes > 0
    assert done.lines()[0].startswith("pruned: 2 old archives, ")
    assert not any((archives / f"{name}.tar.gz").exists() for name in done.names)


def test_a_prune_that_is_switched_off_removes_nothing(archives: Path) -> None:
    """`BACKUP_SCHEDULE_PRUNE=off` counts for every caller."""
    done = clean_up_after_backup(settings(archives, BACKUP_SCHEDULE_PRUNE="off"))
    assert done.names == done.warnings == ()
    assert len(list(archives.glob("*.tar.gz"))) == 3


def test_a_failure_is_a_warning(archives: Path) -> None:
    """An invalid retention policy raises nothing; the warning names the reason."""
    done = clean_up_after_backup(settings(archives, BACKUP_RETENTION_DAYS="0", BACKUP_RETENTION_COUNT="0"))
    assert done.names == ()
    assert done.warnings[0].startswith("old archives were not removed: ")


def test_a_missing_repository_is_a_warning_with_its_path(tmp_path: Path) -> None:
    """An error of the operating system names the path and a hint."""
    missing = tmp_path / "missing"
    done = clean_up_after_backup(settings(missing))
    assert not done.names
    assert all(str(missing) in warning for warning in done.warnings)


def test_an_interrupted_prune_tells_what_it_removed(archives: Path) -> None:
    """The caller's own exception stops the prune, becomes a warning, and does not hide the removed archives."""

    class Stopped(BaseException):
        pass

    def stop(entry: AccessEntry) -> None:
        if entry.action is Action.PRUNE:
            raise Stopped

    done = clean_up_after_backup(settings(archives), observer=stop, interrupt=Stopped)
    assert len(done.names) == 2
    assert done.warnings == ("the prune after this backup was stopped; the next one continues it",)


def test_nothing_is_copied_without_a_destination(archives: Path) -> None:
    """Without off-site settings there is neither a result nor a warning."""
    done = copy_after_backup(settings(archives))
    assert done.result is None
    assert done.warnings == ()


def test_a_failed_copy_is_a_warning(archives: Path, tmp_path: Path) -> None:
    """A destination that cannot be used raises nothing; the warning names the reason."""
    place = tmp_path / "missing" / "copies"
    done = copy_after_backup(settings(archives, BACKUP_OFFSITE_URLS=f"file://{place}", BACKUP_OFFSITE_ENCRYPTION="off"))
    assert done.result is not None
    assert done.warnings[-1].startswith("off-site copies were not made: ")
