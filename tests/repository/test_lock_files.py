"""The files behind the locks: who gets one, what it says of whoever has it, and that none stays open."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import ArchiveAbsentError, BusyError, RepositoryError
from portal.ops.repository import locks
from portal.ops.repository.locks import (
    archive_lock,
    claim,
    holder,
    holders,
    is_locked_alone,
    lock_alone_by_name,
    locked_alone,
    locked_file,
    try_lock,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    """Every descriptor is closed in the end, however it ended."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A file that stands for an archive."""
    path = tmp_path / "full_1.tar.gz"
    path.write_bytes(b"archive")
    return path


@contextmanager
def held(path: Path, kind: int) -> Iterator[int]:
    """A lock that another descriptor has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert try_lock(descriptor, kind)
        yield descriptor
    finally:
        os.close(descriptor)


def test_waiting_ends_with_the_first_result_or_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried at once, once more at the end, and never after that; what is false is a result too."""
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    tries: list[float] = []
    assert wait_for(lambda: tries.append(now[0]), 1.0, pause=0.25) is None
    assert tries == [100.0, 100.25, 100.5, 100.75, 101.0]
    assert wait_for(lambda: tries.append(now[0]), 0) is None
    assert len(tries) == 6
    results = iter([None, None, False, True])
    slept.clear()
    assert wait_for(lambda: next(results), float("inf")) is False
    assert slept == [0.05, 0.05]


def test_a_name_that_leads_elsewhere_by_now_is_not_locked(archive: Path) -> None:
    """Another file, or none, may have it since the file was opened."""
    with closing(archive.open("rb")) as file:
        assert lock_alone_by_name(file.fileno(), archive)
        with closing(archive.open("rb")) as other:
            assert not lock_alone_by_name(other.fileno(), archive)
        archive.rename(archive.with_name("elsewhere"))
        assert not lock_alone_by_name(file.fileno(), archive)
        archive.write_bytes(b"another")
        assert not lock_alone_by_name(file.fileno(), archive)


def test_an_archive_that_is_read_is_not_claimed(archive: Path) -> None:
    """Any number may read it; it can be claimed when none does, and then not be read."""
    with archive_lock(archive, 0), archive_lock(archive, 0), claim(archive) as is_free:
        assert not is_free
    with claim(archive) as is_free:
        assert is_free
        with claim(archive) as is_free_again:
            assert not is_free_again
        with (
            pytest.raises(BusyError, match=rf"full_1.tar.gz is locked by process {os.getpid()} \("),
            archive_lock(archive, 0),
        ):
            pass
    with archive_lock(archive, 0):
        pass


def test_an_archive_that_goes_meanwhile_is_neither(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening it and having its lock it is removed, or replaced."""
    lock = locks.try_lock

    def removed(descriptor: int, kind: int) -> bool:
        archive.unlink(missing_ok=True)
        return lock(descriptor, kind)

    def replaced(descriptor: int, kind: int) -> bool:
        archive.rename(archive.with_name("old"))
        archive.write_bytes(b"new")
        return lock(descriptor, kind)

    for meddle in (replaced, removed):
        monkeypatch.setattr(locks, "try_lock", meddle)
        with claim(archive) as is_free:
            assert not is_free
        archive.write_bytes(b"there again")
        with (
            pytest.raises(ArchiveAbsentError, match=r"full_1\.tar\.gz has just been removed"),
            archive_lock(archive, 0),
        ):
            pass
    monkeypatch.undo()
    archive.unlink(missing_ok=True)
    with claim(archive) as is_free:
        assert not is_free
    with pytest.raises(ArchiveAbsentError), archive_lock(archive, 0):
        pass


def test_an_archive_that_cannot_be_opened_is_an_error(archive: Path) -> None:
    """It is not taken for one that is gone."""
    below = archive / "below"
    for look in (lambda: archive_lock(below, 0), lambda: claim(below)):
        with pytest.raises(RepositoryError, match="cannot read") as caught, look():
            pass
        assert not isinstance(caught.value, ArchiveAbsentError)


def test_a_lock_file_is_made_and_waited_for(tmp_path: Path) -> None:
    """It is for its owner alone; who does not get it in time hears what is locked, by whom, and what to do."""
    path = tmp_path / "lock"
    with locked_file(path, fcntl.LOCK_EX, 0, what="the thing"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert is_locked_alone(path)
        with (
            pytest.raises(BusyError, match=rf"^the thing is locked by process {os.getpid()} \(") as caught,
            locked_file(path, fcntl.LOCK_SH, 0, what="the thing", hint="Do this."),
        ):
            pass
        assert caught.value.hint == "Do this."
    assert not is_locked_alone(path)
    with locked_file(path, fcntl.LOCK_SH, 0, what="the thing"), locked_file(path, fcntl.LOCK_SH, 0, what="the thing"):
        assert not is_locked_alone(path)
    with pytest.raises(RepositoryError, match="cannot open"), locked_file(tmp_path, fcntl.LOCK_SH, 0, what="x"):
        pass


def test_a_directory_is_locked_without_writing(tmp_path: Path) -> None:
    """Nobody waits for it; what is no directory is refused."""
    with locked_alone(tmp_path, "it is busy"):
        with (
            pytest.raises(BusyError, match=rf"^it is busy: process {os.getpid()} \("),
            locked_alone(tmp_path, "it is busy"),
        ):
            pass
        assert is_locked_alone(tmp_path)
    with locked_alone(tmp_path, "it is busy"):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(OSError, match=r"Not a directory|No such file"), locked_alone(path, "x"):
            pass


def test_what_is_not_there_is_not_locked(tmp_path: Path) -> None:
    """Nor is a link to something that is."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    with held(tmp_path / "file", fcntl.LOCK_EX):
        assert is_locked_alone(tmp_path / "file")
        assert not is_locked_alone(tmp_path / "link")
        assert not is_locked_alone(tmp_path / "absent")


def test_who_has_a_lock_is_told(tmp_path: Path) -> None:
    """By the program and its first words, as the kernel lists it; an exclusive one is told apart."""
    path, free = tmp_path / "lock", tmp_path / "free"
    path.touch()
    free.touch()
    me = f"process {os.getpid()} ("
    with held(path, fcntl.LOCK_SH) as descriptor:
        (who,) = holders([path, free, tmp_path / "absent"])[path]
        assert who.startswith(me)
        assert who.endswith(")")
        assert holder(descriptor) == who
    with held(path, fcntl.LOCK_EX) as descriptor:
        assert holders([path, free]) == {path: [f"{who}, alone"]}
        assert holder(descriptor) == who
    assert holders([path, free]) == {}
    with closing(path.open("rb")) as file:
        assert holder(file.fileno()) == "another process"


def test_what_the_kernel_lists_is_read(tmp_path: Path) -> None:
    """Several holders of one file, of any device; a process that cannot be looked at, and words that are no text."""
    path = tmp_path / "lock"
    path.touch()
    found = path.stat()
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    proc = tmp_path / "proc"
    (proc / "17").mkdir(parents=True)
    (proc / "17" / "cmdline").write_bytes(b"python\0-m\0\0tools.b\xfcckup\0run\0a\0secret\0" + b"x" * 100)
    (proc / "19").mkdir()
    (proc / "19" / "cmdline").write_bytes(b"y" * 100)
    (proc / "locks").write_text(
        f"1: FLOCK  ADVISORY  READ 17 {place} 0 EOF\n"
        f"2: POSIX  ADVISORY  WRITE 21 {place} 0 EOF\n"
        f"3: FLOCK  ADVISORY  WRITE 18 {place} 0 EOF\n"
        f"4: FLOCK  ADVISORY  READ 19 {place} 0 EOF\n"
        f"5: FLOCK  ADVISORY  READ 20 {place}1 0 EOF\n"
    )
    assert holders([path], proc=proc) == {
        path: [
            "process 17 (python -m tools.b?ckup run a)",
            "process 18 (of another user or container), alone",
            f"process 19 ({'y' * 60})",
        ]
    }
    assert holders([path], proc=tmp_path / "absent") == {}
