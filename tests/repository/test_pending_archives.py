"""Archives on their way: the commit, a second writer, and what is left after a crash."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import BusyError, RepositoryError
from portal.ops.repository.pending import _open_locked
from portal.ops.repository.repository import Repository
from portal.ops.repository.sidecar import read_sidecar, sidecar_of
from tests.support.repositories import CONTENT, DIGEST, as_nobody, backup_id, names, publish, python
from tests.support.waiting import LONG_SECONDS, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.repository.pending import PendingArchive


WRITER = """
import sys
from pathlib import Path
from portal.ops.model import BackupId
from portal.ops.repository.durable import write_durably
from portal.ops.repository.repository import Repository
from portal.ops.repository.sidecar import sidecar_of

with Repository(Path(sys.argv[1])).pending(BackupId.parse(sys.argv[2])) as draft:
    draft.out.write(b"half")
    if sys.argv[3] == "sidecar":
        write_durably(sidecar_of(draft.final), b"0" * 64 + b"  " + draft.final.name.encode())
    print("writing", flush=True)
    sys.stdin.readline()
    draft.out.write(b" and half")
    draft.commit(draft.out.finish())
"""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Another process, half way through an archive."""

    process: subprocess.Popen[bytes]

    def finish(self) -> None:
        """Let it write the rest and publish."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def die(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait()


@contextmanager
def writer(
    repository: Repository, *, until: str = "half", name: str = "full_20240115_120000_abc123"
) -> Iterator[Writer]:
    with python(WRITER, repository.path, name, until) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"writing\n"
            yield Writer(process=process)
        finally:
            process.kill()


def is_in(thread: threading.Thread, function: str) -> bool:
    """Whether a thread is in a function at the moment."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame and frame.f_code.co_name != function:
        frame = frame.f_back
    return frame is not None


class TestCommit:
    """When an archive begins to exist."""

    def test_nothing_exists_before_the_commit(self, repository: Repository) -> None:
        """What is being written is not an archive: it has a hidden name and no sidecar."""
        with repository.pending(backup_id()) as draft:
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
        with pytest.raises(ZeroDivisionError), repository.pending(backup_id()) as draft:
            assert draft is not None
            draft.out.write(CONTENT)
            raise ZeroDivisionError
        assert names(repository) == set()

    def test_what_goes_wrong_after_it_leaves_the_archive(self, repository: Repository) -> None:
        """A failure after the commit takes nothing back."""
        with pytest.raises(ZeroDivisionError), repository.pending(backup_id()) as draft:
            assert draft is not None
            draft.out.write(CONTENT)
            path = draft.commit(draft.out.finish())
            raise ZeroDivisionError
        assert read_sidecar(path) == DIGEST
        assert names(repository) == {path.name, sidecar_of(path).name}

    def test_an_archive_that_exists_is_not_begun_again(self, repository: Repository) -> None:
        """The same id a second time finds the first one's archive."""
        publish(repository)
        with repository.pending(backup_id()) as draft:
            assert draft is None
        assert not list(repository.path.glob(".full*"))


class TestSecondWriter:
    """Two processes with the same id."""

    def test_it_waits_and_then_finds_the_archive(self, tmp_path: Path) -> None:
        """While one process writes, another waits; when it is done, there is nothing left to do."""
        repository = Repository(tmp_path, lock_timeout=LONG_SECONDS)
        found: list[object] = []

        def wait() -> None:
            with repository.pending(backup_id()) as draft:
                found.append(draft)

        with writer(repository) as other:
            waiting = threading.Thread(target=wait)
            waiting.start()
            wait_until(lambda: is_in(waiting, "wait_for"))
            assert waiting.is_alive()
            other.finish()
            waiting.join(LONG_SECONDS)
        assert found == [None]
        assert repository.archive_path(backup_id()).read_bytes() == b"half and half"

    def test_it_gives_up_as_busy(self, repository: Repository) -> None:
        """A writer that does not end in time makes the other one busy, with the id in the message."""
        busy = pytest.raises(BusyError, match="full_20240115_120000_abc123 is being written")
        with writer(repository), busy, repository.pending(backup_id()):
            pass

    def test_it_takes_over_when_the_first_one_dies(self, tmp_path: Path) -> None:
        """When the writer that is waited for is killed, the one that waits starts from the beginning."""
        repository = Repository(tmp_path, lock_timeout=LONG_SECONDS)
        with writer(repository) as other:
            threading.Timer(0.2, other.die).start()
            path = publish(repository)
        assert path.read_bytes() == CONTENT

    def test_another_id_does_not_wait(self, repository: Repository) -> None:
        """Different archives are written side by side."""
        with writer(repository):
            publish(repository, "full_20240115_120000_def456")
        assert repository.find("full_20240115_120000_def456").size == len(CONTENT)


class TestBetween:
    """What happens between two looks."""

    def test_an_archive_that_was_just_finished(self, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is found after the lock was had, and nothing is left of the second attempt."""
        locked = _open_locked

        def late(partial: Path, **how: bool) -> int | None:
            monkeypatch.undo()
            publish(repository)
            return locked(partial, **how)

        monkeypatch.setattr("portal.ops.repository.repository._open_locked", late)
        before = len(os.listdir("/proc/self/fd"))
        with repository.pending(backup_id()) as draft:
            assert draft is None
        assert names(repository) == {"full_20240115_120000_abc123.tar.gz", "full_20240115_120000_abc123.tar.gz.sha256"}
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_directory_that_is_no_repository(self, tmp_path: Path) -> None:
        """That it cannot be written to is told."""
        missing = pytest.raises(RepositoryError, match=f"cannot write to {tmp_path}/absent: no such file")
        with missing, Repository(tmp_path / "absent").pending(backup_id()):
            pass

    def test_a_name_is_vacated(self, repository: Repository) -> None:
        """If nobody writes such an archive and there is none; nothing is left of the look."""
        name = str(backup_id())
        before = len(os.listdir("/proc/self/fd"))
        with repository.vacated(name) as is_gone:
            assert is_gone
            assert names(repository) == {f".{name}.tar.gz.partial"}
            with repository.vacated(name) as is_gone_too:
                assert not is_gone_too
        assert names(repository) == set()
        (repository.path / f"{name}.tar.gz").symlink_to("nowhere")
        with repository.vacated(name) as is_gone:
            assert not is_gone
        assert names(repository) == {f"{name}.tar.gz"}
        assert len(os.listdir("/proc/self/fd")) == before

    def test_an_archive_that_cannot_be_given_to_its_owner_leaves_nothing_open(
        self, repository: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its lock would keep every other backup of that id away."""
        before = len(os.listdir("/proc/self/fd"))

        def refused(*_: object) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr("portal.ops.repository.pending.give_to_owner", refused)
        with pytest.raises(RepositoryError), repository.pending(backup_id()):
            pass
        assert len(os.listdir("/proc/self/fd")) == before

    @pytest.mark.parametrize(("number", "expected"), [(errno.ENOSPC, True), (errno.EACCES, False)])
    def test_a_name_is_vacated_where_there_is_no_room(
        self, repository: Repository, monkeypatch: pytest.MonkeyPatch, number: int, expected: bool
    ) -> None:
        """Nobody else has room for such an archive then; any other error says nothing of others."""

        def refuse(_: Path) -> int | None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("portal.ops.repository.repository._open_locked", refuse)
        with repository.vacated(str(backup_id())) as is_gone:
            assert is_gone is expected

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
    def test_a_signal_does_not_come_between_a_file_and_its_record(
        self, repository: Repository, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
    ) -> None:
        """What a handler raises while the hidden file is made takes that file with it; the mask is as before."""
        begin = repository._begin
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

        def interrupted(final: Path) -> PendingArchive | None:
            pending = begin(final)
            signal.raise_signal(number)
            return pending

        def handle(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(repository, "_begin", interrupted)
        handler = signal.signal(number, handle)
        try:
            with pytest.raises(ZeroDivisionError), repository.pending(backup_id()):
                pass
        finally:
            signal.signal(number, handler)
        assert names(repository) == set()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


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
            other.process.wait(LONG_SECONDS)
        assert repository.find("latest").path.read_bytes() == b"half and half"

    def test_a_sidecar_without_an_archive_is_removed(self, repository: Repository) -> None:
        """After a crash between sidecar and rename, neither of the two stays."""
        with writer(repository, until="sidecar") as other:
            assert len(names(repository)) == 2
            other.die()
        repository.sweep()
        assert names(repository) == set()

    def test_one_that_is_written_or_strange_hides_no_other(self, repository: Repository) -> None:
        """The rest is swept, whichever comes first; no descriptor stays open."""
        (repository.path / ".a.tar.gz.partial").touch()
        remains = repository.path / ".media_20240115_120000_abc123.tar.gz.partial"
        remains.touch()
        before = len(os.listdir("/proc/self/fd"))
        with writer(repository) as other:
            assert repository.sweep() == [remains.name]
            other.finish()
        assert len(os.listdir("/proc/self/fd")) == before

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


def test_a_repository_on_a_killed_machine_stays_usable(repository: Repository) -> None:
    """After a kill between any two steps of a commit, the next backup of the same id succeeds."""
    for until in ("half", "sidecar"):
        with writer(repository, until=until) as other:
            os.kill(other.process.pid, signal.SIGKILL)
            other.process.wait()
        path = publish(repository)
        assert read_sidecar(path) == DIGEST
        path.unlink()
        sidecar_of(path).unlink()
