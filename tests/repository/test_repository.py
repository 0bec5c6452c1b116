"""The repository: when an archive exists, who waits for whom, and what is left after a crash."""

from __future__ import annotations

import os
import shlex
import stat
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import ArchiveAbsentError, RepositoryError
from portal.ops.repository.repository import Repository
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


<<<<<<< HEAD
class TestCommit:
    """When an archive begins to exist."""

    def test_nothing_exists_before_the_commit(self, repository: Repository) -> None:
        """What is being written is not an archive: it has a hidden name and no sidecar."""
        with repository.draft(backup_id()) as draft:
            assert draft is not None
            draft.out.write(CONTENT)
            assert repository.archives() == []
            assert names(repository) == {".full_20240115_120000_abc123.tar.gz.partial"}
            draft.discard()

    def test_the_archive_and_its_sidecar_exist_after_it(self, repository: Repository) -> None:
        """The commit leaves the archive, its sidecar, and nothing else."""
        path = publish(repository)
        assert path.read_bytes() == CONTENT
        assert names(repository) == {"full_20240115_120000_abc123.tar.gz", "full_20240115_120000_abc123.tar.gz.sha256"}

    def test_sha256sum_agrees(self, repository: Repository) -> None:
        """The sidecar is in the format of sha256sum, which finds the archive intact."""
        path = publish(repository)
        checked = subprocess.run(
            ["sha256sum", "--check", "--strict", sidecar_of(path).name],
            cwd=repository.path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (checked.returncode, checked.stdout) == (0, f"{path.name}: OK\n")

    def test_archive_and_sidecar_are_for_their_owner_alone(self, repository: Repository) -> None:
        """Both files have mode 0600, whatever the umask."""
        before = os.umask(0)
        try:
            path = publish(repository)
        finally:
            os.umask(before)
        assert {stat.S_IMODE(file.stat().st_mode) for file in (path, sidecar_of(path))} == {0o600}

    def test_a_draft_that_fails_leaves_nothing(self, repository: Repository) -> None:
        """Whatever ends the writing early, all that was written is removed."""
        with pytest.raises(ZeroDivisionError), repository.draft(backup_id()) as draft:
            assert draft is not None
            draft.out.write(CONTENT)
            raise ZeroDivisionError
        assert names(repository) == set()

    def test_what_goes_wrong_after_it_leaves_the_archive(self, repository: Repository) -> None:
        """A failure after the commit takes nothing back."""
        with pytest.raises(ZeroDivisionError), repository.draft(backup_id()) as draft:
            assert draft is not None
            draft.out.write(CONTENT)
            path = draft.commit(draft.out.finish())
            raise ZeroDivisionError
        assert read_sidecar(path) == DIGEST
        assert names(repository) == {path.name, sidecar_of(path).name}

    def test_an_archive_that_exists_is_not_begun_again(self, repository: Repository) -> None:
        """The same id a second time finds the first one's archive."""
        publish(repository)
        with repository.draft(backup_id()) as draft:
            assert draft is None
        assert not list(repository.path.glob(".full*"))


class TestSecondWriter:
    """Two processes with the same id."""

    def test_it_waits_and_then_finds_the_archive(self, tmp_path: Path) -> None:
        """While one process writes, another waits; when it is done, there is nothing left to do."""
        repository = Repository(tmp_path, lock_timeout=30)
        found: list[object] = []

        def wait() -> None:
            with repository.draft(backup_id()) as draft:
                found.append(draft)

        with writer(repository) as other:
            waiting = threading.Thread(target=wait)
            waiting.start()
            time.sleep(0.2)
            assert waiting.is_alive()
            other.finish()
            waiting.join(10)
        assert found == [None]
        assert repository.archive_path(backup_id()).read_bytes() == b"half and half"

    def test_it_gives_up_as_busy(self, repository: Repository) -> None:
        """A writer that does not end in time makes the other one busy, with the id in the message."""
        busy = pytest.raises(BusyError, match="full_20240115_120000_abc123 is being written")
        with writer(repository), busy, repository.draft(backup_id()):
            pass

    def test_it_takes_over_when_the_first_one_dies(self, tmp_path: Path) -> None:
        """When the writer that is waited for is killed, the one that waits starts from the beginning."""
        repository = Repository(tmp_path, lock_timeout=30)
        with writer(repository) as other:
            threading.Timer(0.2, other.die).start()
            path = publish(repository)
        assert path.read_bytes() == CONTENT

    def test_another_id_does_not_wait(self, repository: Repository) -> None:
        """Different archives are written side by side."""
        with writer(repository):
            publish(repository, "full_20240115_120000_def456")
        assert repository.find("full_20240115_120000_def456").size == len(CONTENT)


class TestSweep:
    """What is left of backups that were killed."""

    def test_remains_of_the_dead_are_removed(self, repository: Repository) -> None:
        """What a killed writer left is removed, and named."""
        with writer(repository) as other:
            other.die()
        assert repository.sweep() == [".full_20240115_120000_abc123.tar.gz.partial"]
        assert names(repository) == set()

    def test_work_in_progress_is_left_alone(self, repository: Repository) -> None:
        """A living writer's file stays, and its archive comes to be."""
        with writer(repository) as other:
            assert repository.sweep() == []
            other.finish()
            other.process.wait(10)
        assert repository.find("latest").path.read_bytes() == b"half and half"

    def test_a_sidecar_without_an_archive_is_removed(self, repository: Repository) -> None:
        """After a crash between sidecar and rename, neither of the two stays."""
        with writer(repository, until="sidecar") as other:
            assert len(names(repository)) == 2
            other.die()
        repository.sweep()
        assert names(repository) == set()

    def test_temporary_sidecars_are_removed(self, repository: Repository) -> None:
        """After a crash while the sidecar was written, its temporary file goes too."""
        with writer(repository) as other:
            (repository.path / ".full_20240115_120000_abc123.tar.gz.sha256.17.tmp").write_bytes(b"0123")
            other.die()
        repository.sweep()
        assert names(repository) == set()

    def test_archives_and_strangers_are_left_alone(self, repository: Repository) -> None:
        """Whole archives, their sidecars and everybody else's files stay."""
        publish(repository)
        for name in ("notes.txt", ".hidden", "other.tar.gz.partial", ".other.tar.gz.partial"):
            (repository.path / name).touch()
        before = names(repository)
        assert repository.sweep() == []
        assert names(repository) == before

    def test_remains_of_another_user_do_not_stop_a_backup(self, public_directory: Path) -> None:
        """What root left half done, and the portal's user cannot open, is passed over."""
        remains = public_directory / ".full_20240115_120000_abc123.tar.gz.partial"
        remains.touch(mode=0o600)
        public_directory.chmod(0o777)
        with as_nobody():
            assert Repository(public_directory).sweep() == []
        assert remains.exists()


class TestLocks:
    """Shared for backups and verifications, exclusive for what removes."""

    def test_shared_locks_do_not_exclude_each_other(self, repository: Repository) -> None:
        """Any number of readers and writers of archives can work at once."""
        with repository.shared(), repository.shared():
            pass

    def test_an_exclusive_lock_waits_for_shared_ones(self, repository: Repository) -> None:
        """Nothing is removed while somebody works: who wants to is busy."""
        with (
            repository.shared(),
            pytest.raises(BusyError, match=r"is locked by another process"),
            repository.exclusive(),
        ):
            pass

    def test_a_shared_lock_waits_for_an_exclusive_one(self, repository: Repository) -> None:
        """While somebody removes, nobody else works: after the time limit they are busy, which a retry can help."""
        started = time.monotonic()
        with repository.exclusive(), pytest.raises(BusyError) as caught, repository.shared():
            pass
        assert time.monotonic() - started >= 0.5
        assert caught.value.retryable
        assert "BACKUP_LOCK_TIMEOUT" in caught.value.hint

    def test_a_lock_is_free_when_its_holder_has_ended(self, tmp_path: Path) -> None:
        """Who waits goes on as soon as the lock is free."""
        repository = Repository(tmp_path, lock_timeout=30)
        holding = ExitStack()
        holding.enter_context(repository.exclusive())
        threading.Timer(0.2, holding.close).start()
        started = time.monotonic()
        with repository.shared():
            assert time.monotonic() - started < 5

    def test_a_lock_of_another_user_is_an_error_with_a_way_out(self, public_directory: Path) -> None:
        """A lock file that root made in the portal's repository is refused with the command that helps."""
        public_directory.chmod(0o777)
        with Repository(public_directory).shared():
            pass
        with as_nobody(), pytest.raises(RepositoryError) as caught, Repository(public_directory).shared():
            pass
        assert str(caught.value).startswith(f"cannot open {public_directory}/.lock: permission denied")
        assert f"chown -R kekkai:kekkai {public_directory}" in caught.value.hint


=======
>>>>>>> main
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

    def test_an_ambiguous_start_is_refused(self, filled: Repository) -> None:
        """A start that several have names them."""
        expected = "'full_2024' could be any of full_20240116_120000_def456, full_20240115_120000_abc123"
        with pytest.raises(ArchiveAbsentError, match=expected):
            filled.find("full_2024")

    @pytest.mark.parametrize("name", ["full_2025", "", "..", "/nowhere/x.tar.gz", "x" * 300, "nul\0", "*"])
    def test_what_is_not_there_is_refused(self, filled: Repository, name: str) -> None:
        """A name that fits nothing, possible or not, is an error that tells how to see what there is."""
        with pytest.raises(ArchiveAbsentError) as caught:
            filled.find(name)
        assert "list" in caught.value.hint

    def test_no_latest_in_an_empty_repository(self, repository: Repository) -> None:
        """Where there is nothing, the error says how to begin."""
        with pytest.raises(ArchiveAbsentError, match=r"there is no archive in .*\n.*backup.sh full"):
            repository.find("latest")

    def test_a_path_that_may_not_be_looked_at_is_an_error(self, public_directory: Path) -> None:
        """A path below a directory of another user's is refused as such."""
        (public_directory / "closed").mkdir(mode=0o700)
        path = public_directory / "closed" / "x.tar.gz"
        with as_nobody(), pytest.raises(RepositoryError, match=f"cannot read {path}: permission denied"):
            Repository(public_directory / "none").find(path)
