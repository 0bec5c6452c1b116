"""The work after a backup without a worker, as any caller of the engine gets it: never a failure of the backup."""

from __future__ import annotations

import errno
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from portal.ops.backup.aftercare import CleanedUp, clean_up_after_backup, copy_after_backup
from portal.ops.errors import BusyError
from portal.ops.model import BackupType
from portal.ops.repository.access_log import AccessLog, Action
from portal.ops.repository.locks import locked_alone
from portal.ops.repository.repository import Repository
from portal.ops.restore.cleanup import CleanupJob
from portal.ops.settings.load import Settings, load_settings
from tests.support.kept import put_archive

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.repository.access_log import AccessEntry
    from portal.ops.runtime.progress import Step

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


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, []),
        (1, ["pruned: 1 old archive, 2.0 kB: a0"]),
        (3, ["pruned: 3 old archives, 2.0 kB: a0, a1, a2"]),
        (4, ["pruned: 4 old archives, 2.0 kB: a0, a1, a2 and 1 more"]),
        (1_004, ["pruned: 1,004 old archives, 2.0 kB: a0, a1, a2 and 1,001 more"]),
    ],
)
def test_what_was_removed_is_one_line(count: int, told: list[str]) -> None:
    """With three names at most; what was discarded of restores follows."""
    names = tuple(f"a{number}" for number in range(count))
    assert CleanedUp(names=names, freed_bytes=2_000).lines() == told
    assert CleanedUp(names=names, freed_bytes=2_000, discarded=("x", "y")).lines() == [*told, "x", "y"]


def test_a_prune_that_another_one_is_in_the_way_of_is_a_warning(archives: Path) -> None:
    """It says who that is, and no failure is written into the access log."""
    repository = Repository(archives)
    with locked_alone(archives, "another prune is running"):
        done = clean_up_after_backup(settings(archives))
    assert done.names == ()
    assert done.warnings[0].startswith("old archives were not removed: another prune of ")
    assert list(AccessLog(repository).entries()) == []
    assert len(list(archives.glob("*.tar.gz"))) == 3


def test_where_nothing_is_old_nothing_is_locked(archives: Path) -> None:
    """A look at the names is enough, and a look at the plan where archives are past their days."""
    for environ in ({"BACKUP_RETENTION_DAYS": "40"}, {"BACKUP_RETENTION_COUNT": "3"}):
        with locked_alone(archives, "another prune is running"):
            done = clean_up_after_backup(settings(archives, **environ))
        assert (done.names, done.freed_bytes, done.warnings) == ((), 0, ())


def test_a_prune_that_fails_on_the_way_is_a_warning(archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has removed is told all the same."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error", "/the/wal")

    monkeypatch.setattr("portal.ops.retention.prune.prune_wal", refuse)
    done = clean_up_after_backup(settings(archives))
    assert (len(done.names), done.freed_bytes > 0) == (2, True)
    (warning,) = done.warnings
    assert warning.startswith("old archives were not removed: cannot use /the/wal: input/output error")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BusyError("it is locked"), "old archives were not removed: it is locked"),
        (
            OSError(errno.EIO, "Input/output error", "/there"),
            "old archives were not removed: cannot use /there: input/output error\n"
            "  hint: Look at the disk and the permissions there. The backup is complete.",
        ),
        (KeyboardInterrupt(), "the prune after this backup was stopped; the next one continues it"),
    ],
)
def test_whatever_ends_a_cleanup_is_a_warning(
    archives: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, said: str
) -> None:
    """After the removal of archives too, which is told."""

    def refuse(_: CleanupJob) -> tuple[str, ...]:
        raise error

    monkeypatch.setattr(CleanupJob, "discard_old", refuse)
    done = clean_up_after_backup(settings(archives))
    assert (len(done.names), done.discarded, done.warnings) == (2, (), (said,))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BusyError("it is locked"), "off-site copies were not made: it is locked"),
        (OSError(errno.EIO, "Input/output error"), "off-site copies were not made: [Errno 5] Input/output error"),
        (KeyboardInterrupt(), "the off-site copy after this backup was stopped; the next one continues it"),
    ],
)
def test_whatever_ends_a_copy_is_a_warning(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, said: str
) -> None:
    """There is no result then."""

    def refuse(*_: object) -> object:
        raise error

    monkeypatch.setattr("portal.ops.offsite.copy.CopyJob.run", refuse)
    place = tmp_path / "copies"
    done = copy_after_backup(settings(archives, BACKUP_OFFSITE_URLS=f"file://{place}", BACKUP_OFFSITE_ENCRYPTION="off"))
    assert (done.result, done.warnings) == (None, (said,))


def test_a_copy_that_is_made_is_told(archives: Path, tmp_path: Path) -> None:
    """With what was copied, and in the name of whoever asked."""
    place = tmp_path / "copies"
    place.mkdir()
    seen: list[AccessEntry] = []
    steps: list[Step] = []
    done = copy_after_backup(
        settings(archives, BACKUP_OFFSITE_URLS=f"file://{place}", BACKUP_OFFSITE_ENCRYPTION="off"),
        actor="ada",
        observer=seen.append,
        progress=steps.append,
    )
    assert done.result is not None
    assert done.result.success
    assert {entry.who for entry in seen} == {"ada"}
    assert steps
