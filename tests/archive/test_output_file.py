"""The file that an archive is written to: what could not be put on the disk is told in the end."""

from __future__ import annotations

import errno
import os
import sys
import threading
from hashlib import sha256
from typing import TYPE_CHECKING, NoReturn

import pytest

from portal.ops.archive import output_file
from portal.ops.archive.output_file import OutputFile
from tests.support.waiting import LONG_SECONDS, names_of, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def opened(place: Path) -> OutputFile:
    return OutputFile(os.open(place / "file", os.O_RDWR | os.O_CREAT, 0o600))


@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
def test_what_the_disk_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Also where it was refused while more was being written: the kernel tells of it once."""

    refused = threading.Event()

    def refuse(_: int) -> NoReturn:
        refused.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(output_file, "_WRITE_BEHIND_BYTES", 10)
    monkeypatch.setattr(os, call, refuse)
    file = opened(tmp_path)
    try:
        for _ in range(5):
            file.write(b"0123456789")
        assert call == "fsync" or refused.wait(LONG_SECONDS)
        with pytest.raises(OSError, match="Input/output error"):
            file.finish()
    finally:
        file.close()


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    """With what was patched in, and without what was taken back."""
    file = opened(tmp_path)
    file.skip(4)
    file.write(b"content and more")
    file.truncate(11)
    file.patch(0, b"head")
    assert file.finish() == sha256(b"headcontent").hexdigest()
    file.close()
    assert (tmp_path / "file").read_bytes() == b"headcontent"


class Disk:
    """Counts what is synced, and how much of the file there was at that time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.sizes: list[int] = []
        self.behind = threading.Semaphore(0)
        monkeypatch.setattr(output_file, "_WRITE_BEHIND_BYTES", 10)
        for call in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, call, self._counted(call))

    def _counted(self, call: str) -> Callable[[int], None]:
        def count(descriptor: int) -> None:
            self.calls.append(call)
            self.sizes.append(os.fstat(descriptor).st_size)
            if call == "fdatasync":
                self.behind.release()

        return count


def test_what_is_written_is_pushed_to_the_disk_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each part of so many bytes, not for less; the last sync comes behind all of it."""
    disk = Disk(monkeypatch)
    file = opened(tmp_path)
    for length in (9, 1, 9, 1, 25):
        file.write(b"x" * length)
        if file.position % 10 == 0 or length == 25:
            assert disk.behind.acquire(timeout=LONG_SECONDS)
    file.write(b"y" * 9)
    file.finish()
    file.close()
    assert disk.calls == ["fdatasync"] * 3 + ["fsync"]
    assert disk.sizes == [10, 20, 45, 54]


def test_what_another_program_wrote_is_pushed_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it is settled; what is taken back is written anew, and pushed anew."""
    disk = Disk(monkeypatch)
    file = opened(tmp_path)
    os.pwrite(file._descriptor, b"0123456789abcdef", 0)
    file.settle(12)
    assert (file.position, file._hashed) == (12, 12)
    assert disk.behind.acquire(timeout=LONG_SECONDS)
    file.settle(5)
    assert file.position == 12
    file.truncate(8)
    assert file.position == 8
    file.write(b"XY")
    assert len(disk.calls) == 1
    file.write(b"01234567")
    assert disk.behind.acquire(timeout=LONG_SECONDS)
    assert file.finish() == sha256(b"01234567XY01234567").hexdigest()
    file.close()
    assert disk.calls == ["fdatasync", "fdatasync", "fsync"]


@pytest.mark.parametrize("length", [0, 3, 11, 12, 13])
def test_the_digest_goes_on_where_it_can(tmp_path: Path, length: int) -> None:
    """What was hashed and then cut away does not count."""
    file = opened(tmp_path)
    file.write(b"0123456789abcdef")
    file.settle(12)
    file.truncate(length)
    file.write(b"+")
    assert file.finish() == sha256(b"0123456789abcdef"[:length] + b"+").hexdigest()
    file.close()


def test_a_disk_that_takes_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is written, and hashed, by as many calls as it takes."""
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: write(descriptor, data[:3], offset))
    monkeypatch.setattr(os, "preadv", lambda descriptor, views, offset: read(descriptor, [views[0][:3]], offset))
    file = opened(tmp_path)
    file.write(b"0123456789")
    file.skip(4)
    file.write(b"end")
    file.patch(10, b"abcd")
    assert file.finish() == sha256(b"0123456789abcdend").hexdigest()
    file.close()


@pytest.mark.parametrize(("call", "waiting"), [("fsync", "join"), ("fdatasync", "_stop_write_behind")])
def test_the_end_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, waiting: str) -> None:
    """What it was refused last, by whichever thread, is told, however long that takes."""
    main, begun = threading.current_thread().ident or 0, threading.Event()

    def refuse(_: int) -> NoReturn:
        begun.set()
        wait_until(lambda: waiting in names_of(sys._current_frames()[main]))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(output_file, "_WRITE_BEHIND_BYTES", 5)
    monkeypatch.setattr(os, call, refuse)
    file = opened(tmp_path)
    file.write(b"content")
    assert call == "fsync" or begun.wait(LONG_SECONDS)
    with pytest.raises(OSError, match="Input/output error"):
        file.finish()
    file.close()


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_closed_file_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_finished: bool
) -> None:
    """Neither its descriptor nor its thread, whether it was finished or given up."""
    Disk(monkeypatch)
    file = opened(tmp_path)
    file.write(b"0123456789")
    assert file._behind.is_alive()
    if is_finished:
        file.finish()
    file.close()
    assert not file._behind.is_alive()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file._descriptor)
