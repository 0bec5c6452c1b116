"""The repository: when an archive exists, who waits for whom, and what is left after a crash."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import ArchiveAbsentError, RepositoryError
from portal.ops.model import BackupType
from portal.ops.repository.repository import Repository
from tests.support.portal import small_disk
from tests.support.repositories import CONTENT, as_nobody, publish

if TYPE_CHECKING:
    from pathlib import Path


class TestPrepare:
    """Making the directory."""

    def test_the_directory_is_made_for_its_owner_alone(self, tmp_path: Path) -> None:
        """A repository that is made anew has mode 0700, whatever the umask."""
        before = os.umask(0)
        try:
            Repository(tmp_path / "deep" / "repository").prepare()
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "deep" / "repository").stat().st_mode) == 0o700

    def test_the_mode_of_a_directory_that_is_there_is_left_alone(self, tmp_path: Path) -> None:
        """Whoever gave the directory another mode had a reason."""
        tmp_path.chmod(0o755)
        Repository(tmp_path).prepare()
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755

    def test_a_file_in_its_place_is_an_error(self, tmp_path: Path) -> None:
        """A file where the directory should be is named."""
        (tmp_path / "file").touch()
        with pytest.raises(RepositoryError, match=f"cannot create {tmp_path}/file: file exists"):
            Repository(tmp_path / "file").prepare()

    def test_a_directory_that_cannot_be_written_is_an_error(self, public_directory: Path) -> None:
        """Another user's directory is refused with the command that helps."""
        with as_nobody(), pytest.raises(RepositoryError) as caught:
            Repository(public_directory).prepare()
        assert str(caught.value).startswith(f"cannot write to {public_directory}")
        assert f"chown -R kekkai:kekkai {public_directory}" in caught.value.hint

    def test_a_file_system_that_is_read_only_is_told(self, tmp_path: Path) -> None:
        """Permissions are not the reason, and no hint says so; one that was used before is not written to either."""
        with small_disk(tmp_path / "disk", "1m"):
            repository = Repository(tmp_path / "disk")
            repository.prepare()
            subprocess.run(["mount", "-o", "remount,ro", repository.path], check=True)
            with pytest.raises(RepositoryError, match="read-only file system") as caught:
                repository.prepare()
            assert str(caught.value).startswith(f"cannot write to {repository.path}")
            assert "chown" not in caught.value.hint

    def test_a_strange_name_can_be_copied_from_the_hint(self, public_directory: Path) -> None:
        """The command of a hint is quoted where a shell needs it."""
        strange = public_directory / "it's mine"
        with as_nobody(), pytest.raises(RepositoryError) as caught:
            Repository(strange).prepare()
        assert shlex.split(caught.value.hint)[-1] == str(strange)

    def test_a_directory_that_cannot_be_made_is_an_error(self, public_directory: Path) -> None:
        """Where the directory cannot be made, the error says so and why."""
        with as_nobody(), pytest.raises(RepositoryError, match=r"cannot create .*/new: permission denied") as caught:
            Repository(public_directory / "new").prepare()
        assert caught.value.hint.endswith(f"install -d -m 700 -o kekkai -g kekkai {public_directory}/new")


class TestList:
    """The archives, as their names and directory entries tell."""

    def test_the_newest_comes_first(self, repository: Repository) -> None:
        """Archives are in the order of the moments in their names, not of their files."""
        moments = ("20240116_000000", "20231231_235959", "20240115_120000")
        for moment in moments:
            publish(repository, f"full_{moment}_abc123")
        listed = [archive.name for archive in repository.archives()]
        assert listed == [f"full_{moment}_abc123" for moment in sorted(moments, reverse=True)]

    def test_types_are_mixed_in_time(self, repository: Repository) -> None:
        """What counts is when a backup was made, not of what."""
        publish(repository, "media_20240115_120000_abc123")
        publish(repository, "database_20240115_130000_abc123")
        assert [archive.name[:5] for archive in repository.archives()] == ["datab", "media"]

    def test_files_that_are_no_archives_are_ignored(self, repository: Repository) -> None:
        """Sidecars, hidden files, directories, dangling links and anything else are no archives."""
        publish(repository)
        (repository.path / "notes.txt").touch()
        (repository.path / ".hidden.tar.gz").touch()
        (repository.path / "directory.tar.gz").mkdir()
        (repository.path / "link.tar.gz").symlink_to("nowhere")
        assert [archive.name for archive in repository.archives()] == ["full_20240115_120000_abc123"]

    def test_an_archive_of_another_name_has_the_time_of_its_file(self, repository: Repository) -> None:
        """An archive that somebody renamed is listed by the time of its file, and has no id."""
        renamed = repository.path / "before-the-upgrade.tar.gz"
        renamed.write_bytes(CONTENT)
        os.utime(renamed, (1_700_000_000, 1_700_000_000))
        (archive,) = repository.archives()
        assert archive.backup_id is None
        assert archive.moment == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)

    def test_a_repository_that_is_not_there_has_no_archives(self, tmp_path: Path) -> None:
        """Before the first backup the list is empty."""
        assert Repository(tmp_path / "none").archives() == []

    def test_archives_that_vanish_meanwhile_hide_no_others(self, repository: Repository) -> None:
        """While a prune removes archives, those that stay are listed every time."""
        publish(repository)
        ended = threading.Event()

        def come_and_go() -> None:
            passing = [repository.path / f"media_20240115_{number:06}_abc123.tar.gz" for number in range(100)]
            while not ended.is_set():
                for path in passing:
                    path.touch()
                for path in passing:
                    path.unlink()

        thread = threading.Thread(target=come_and_go)
        thread.start()
        try:
            for _ in range(300):
                assert "full_20240115_120000_abc123" in [archive.name for archive in repository.archives()]
        finally:
            ended.set()
            thread.join()

    def test_a_directory_that_cannot_be_read_is_an_error(self, tmp_path: Path) -> None:
        """A repository that cannot be read is not an empty one."""
        (tmp_path / "file").touch()
        with pytest.raises(RepositoryError, match=f"cannot read {tmp_path}/file: not a directory"):
            Repository(tmp_path / "file").archives()


class TestFind:
    """An archive by whatever a person calls it."""

    @pytest.fixture
    def filled(self, repository: Repository) -> Repository:
        """A repository of three archives."""
        for name in ("full_20240115_120000_abc123", "full_20240116_120000_def456", "media_20240114_120000_abc123"):
            publish(repository, name)
        return repository

    @pytest.mark.parametrize(
        "name",
        ["full_20240115_120000_abc123.tar.gz", "full_20240115_120000_abc123", "full_20240115", "full_20240115_1"],
    )
    def test_by_name_id_and_start(self, filled: Repository, name: str) -> None:
        """A file name, an id, and the start of one that no other has, all find it."""
        assert filled.find(name).name == "full_20240115_120000_abc123"

    def test_by_path(self, filled: Repository, tmp_path: Path) -> None:
        """A path finds an archive that lies anywhere."""
        elsewhere = tmp_path / "elsewhere.tar.gz"
        elsewhere.write_bytes(CONTENT)
        assert filled.find(elsewhere).path == elsewhere

    def test_by_its_sidecar(self, filled: Repository) -> None:
        """The path of a sidecar, which a shell's completion offers, finds the archive that it belongs to."""
        path = filled.path / "full_20240115_120000_abc123.tar.gz.sha256"
        assert filled.find(path).name == "full_20240115_120000_abc123"

    def test_the_latest(self, filled: Repository) -> None:
        """The latest is the one with the latest moment."""
        assert filled.find("latest").name == "full_20240116_120000_def456"

    def test_the_latest_of_some_types(self, filled: Repository) -> None:
        """Others are chosen only where there is none of these, and any archive where none has an id."""
        (filled.path / "later.tar.gz").write_bytes(CONTENT)
        assert filled.find("latest", latest_of=[BackupType.MEDIA]).name == "media_20240114_120000_abc123"
        assert filled.find("latest").name == "full_20240116_120000_def456"
        for path in filled.path.glob("*_*.tar.gz"):
            path.unlink()
        assert filled.find("latest").name == "later"

    def test_no_more_than_five_are_named(self, repository: Repository) -> None:
        """An ambiguous start may be that of very many."""
        for number in range(7):
            publish(repository, f"full_20240115_12000{number}_abc123")
        with pytest.raises(ArchiveAbsentError) as caught:
            repository.find("full")
        assert caught.value.message.count("full_20240115_") == 5
        assert "full_20240115_120002_abc123" in caught.value.message

    def test_an_ambiguous_start_is_refused(self, filled: Repository) -> None:
        """A start that several have names them."""
        expected = "'full_2024' could be any of full_20240116_120000_def456, full_20240115_120000_abc123"
        with pytest.raises(ArchiveAbsentError, match=expected):
            filled.find("full_2024")

    @pytest.mark.parametrize(
        "name",
        ["full_2025", "", "..", "/nowhere/x.tar.gz", "/dev/null/x", "/proc/self/fd/x", "x" * 300, "nul\0", "*"],
    )
    def test_what_is_not_there_is_refused(self, filled: Repository, name: str) -> None:
        """A name that fits nothing, possible or not, is an error that tells how to see what there is."""
        with pytest.raises(ArchiveAbsentError) as caught:
            filled.find(name)
        assert "list" in caught.value.hint

    def test_links_in_a_circle_are_no_archive(self, filled: Repository) -> None:
        """Nor do they hide the others."""
        (filled.path / "full_20240117_120000_abc123.tar.gz").symlink_to("full_20240117_120000_abc123.tar.gz")
        assert len(filled.archives()) == 3
        with pytest.raises(ArchiveAbsentError):
            filled.find("full_20240117_120000_abc123")

    def test_no_latest_in_an_empty_repository(self, repository: Repository) -> None:
        """Where there is nothing, the error says how to begin."""
        with pytest.raises(ArchiveAbsentError, match=r"archive not found: there is none in .*\n.*backup.sh full"):
            repository.find("latest")

    def test_a_path_that_may_not_be_looked_at_is_an_error(self, public_directory: Path) -> None:
        """A path below a directory of another user's is refused as such."""
        (public_directory / "closed").mkdir(mode=0o700)
        path = public_directory / "closed" / "x.tar.gz"
        with as_nobody(), pytest.raises(RepositoryError, match=f"cannot read {path}: permission denied"):
            Repository(public_directory / "none").find(path)
