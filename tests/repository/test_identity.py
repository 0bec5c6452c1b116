"""The id of a repository: a backup goes to the one that is meant, or nowhere."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.errors import RepositoryAbsentError, RepositoryError
from portal.ops.repository.identity import STAND_IN_NAME, check_id, check_known, give_id, note_stand_in, repository_id
from portal.ops.repository.locks import locked_file
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


KNOWN, OTHER = "a" * 32, "b" * 32


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (KNOWN.encode() + b"\n", KNOWN),
        (KNOWN.encode(), KNOWN),
        (b"", ""),
        (b"\n", ""),
        (b"a-b\n", ""),
        (b"a b\n", ""),
        (b"\xff" * 32, ""),
        (b"c" * 1000, "c" * 64),
        (None, ""),
    ],
)
def test_an_id_is_a_word(tmp_path: Path, content: bytes | None, found: str) -> None:
    """What else is in the file is none, and no more of it is read than an id has."""
    if content is not None:
        (tmp_path / ".lock").write_bytes(content)
    assert repository_id(tmp_path / ".lock") == found


def test_an_id_is_given_once(tmp_path: Path) -> None:
    """Not while the repository is locked, nor where there is no directory; every one is another."""
    lock = tmp_path / ".lock"
    before = len(os.listdir("/proc/self/fd"))
    with locked_file(lock, fcntl.LOCK_SH, 0, what="it"):
        give_id(lock)
    assert repository_id(lock) == ""
    give_id(lock)
    first = repository_id(lock)
    assert len(first) == 32
    assert lock.read_bytes() == first.encode() + b"\n"
    give_id(lock)
    assert repository_id(lock) == first
    give_id(tmp_path / "absent" / ".lock")
    give_id(tmp_path / ".other")
    assert repository_id(tmp_path / ".other") not in ("", first)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("known", "found", "is_empty", "error", "said"),
    [
        ("", "", True, None, ""),
        ("", OTHER, False, None, ""),
        (KNOWN, KNOWN, True, None, ""),
        (KNOWN, "", False, None, ""),
        (KNOWN, OTHER, True, RepositoryError, f"has the id {OTHER}, and the one that was used here has {KNOWN}"),
        (KNOWN, OTHER, False, RepositoryError, "has the id"),
        (KNOWN, "", True, RepositoryAbsentError, "the directory has no archive and no id"),
    ],
)
def test_which_repository_is_the_known_one(
    tmp_path: Path, known: str, found: str, is_empty: bool, error: type[RepositoryError] | None, said: str
) -> None:
    """By its id; without one, by its archives."""
    (tmp_path / ".lock").write_text(found)
    if error is None:
        check_known(tmp_path / ".lock", known, is_empty=is_empty)
        return
    with pytest.raises(RepositoryError, match=said) as caught:
        check_known(tmp_path / ".lock", known, is_empty=is_empty)
    assert type(caught.value) is error
    assert "--confirm-loss" in caught.value.hint


def test_what_there_is_instead_is_told(tmp_path: Path) -> None:
    """No directory, or one that a restore has filled."""
    with pytest.raises(RepositoryAbsentError, match="there is no such directory"):
        check_known(tmp_path / "absent" / ".lock", KNOWN, is_empty=True)
    note_stand_in(tmp_path)
    assert b"was not there when a restore began" in (tmp_path / STAND_IN_NAME).read_bytes()
    with pytest.raises(RepositoryAbsentError, match="no archive but what was brought for a restore"):
        check_known(tmp_path / ".lock", KNOWN, is_empty=True)


def test_the_configured_one_is_the_only_one(tmp_path: Path) -> None:
    """Any is, where none is configured."""
    lock = tmp_path / ".lock"
    with pytest.raises(RepositoryError, match=f"is not the repository {KNOWN}: it has no id"):
        check_id(lock, KNOWN)
    check_id(lock, "")
    lock.write_text(KNOWN)
    check_id(lock, KNOWN)
    check_id(lock, "")
    with pytest.raises(RepositoryError, match=f"is not the repository {OTHER}: its id is {KNOWN}") as caught:
        check_id(lock, OTHER)
    assert "BACKUP_REPOSITORY_ID" in caught.value.hint


def test_an_id_that_cannot_be_written_is_given_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is no reason to fail, and leaves nothing open."""
    before = len(os.listdir("/proc/self/fd"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("portal.ops.repository.identity.os.pwrite", full)
        give_id(tmp_path / ".lock")
    assert repository_id(tmp_path / ".lock") == ""
    assert len(os.listdir("/proc/self/fd")) == before
    give_id(tmp_path / ".lock")
    assert len(repository_id(tmp_path / ".lock")) == 32


def test_a_stand_in_that_cannot_be_noted_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be taken for the repository itself later."""
    known = tmp_path / "archives"
    Repository(known).prepare()
    shutil.rmtree(known)

    def refused(_: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("portal.ops.repository.repository.note_stand_in", refused)
    with pytest.raises(RepositoryError, match=f"cannot write to {known}"):
        Repository(known).prepare_for_restore()
