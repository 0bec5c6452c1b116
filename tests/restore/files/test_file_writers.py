"""The threads that write the larger files of a stage."""

from __future__ import annotations

import os
import stat
from random import Random
from typing import TYPE_CHECKING

import pytest

from portal.ops.filesystem.attributes import Attributes
from portal.ops.restore.files.writers import ALIGNMENT, BLOCK_BYTES, Writers

if TYPE_CHECKING:
    from pathlib import Path

MOMENT = 1_700_000_000_123_456_789


def attributes(mode: int = 0o640) -> Attributes:
    return Attributes(mode, os.getuid(), os.getgid(), MOMENT)


def created(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size", [0, 1, ALIGNMENT, 3 * ALIGNMENT + 5, BLOCK_BYTES, 20 * BLOCK_BYTES + 4097])
def test_a_file_holds_what_was_written(tmp_path: Path, size: int) -> None:
    """Whatever its length is, and in whatever pieces it comes, nothing is missing and nothing too much."""
    data = Random(size).randbytes(size)
    with Writers() as writers:
        file = writers.file(created(tmp_path / "file"), attributes())
        for start in range(0, size, 300_001):
            file.write(memoryview(data)[start : start + 300_001])
        file.finish()
    assert (tmp_path / "file").read_bytes() == data


def test_many_files_are_written_at_once(tmp_path: Path) -> None:
    """Files share the threads and their memory, and none gets anything of another's."""
    contents = [Random(number).randbytes(50_000 + 1_000 * number) for number in range(300)]
    with Writers() as writers:
        for number, data in enumerate(contents):
            file = writers.file(created(tmp_path / str(number)), attributes())
            file.write(memoryview(data))
            file.finish()
    assert [(tmp_path / str(number)).read_bytes() for number in range(300)] == contents


def test_a_file_gets_its_attributes(tmp_path: Path) -> None:
    """Mode and time are set after the last byte was written."""
    with Writers() as writers:
        file = writers.file(created(tmp_path / "file"), attributes(0o604))
        file.write(memoryview(b"x" * (3 * BLOCK_BYTES)))
        file.finish()
    found = (tmp_path / "file").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o604, MOMENT)


def test_what_is_passed_over_is_a_hole(tmp_path: Path) -> None:
    """Zeros that are passed over, also at the end, take no room and are read as zeros."""
    with Writers() as writers:
        file = writers.file(created(tmp_path / "file"), attributes())
        file.write(memoryview(b"a" * ALIGNMENT))
        file.skip(64 * BLOCK_BYTES)
        file.write(memoryview(b"b" * ALIGNMENT))
        file.skip(64 * BLOCK_BYTES)
        file.finish()
    hole = bytes(64 * BLOCK_BYTES)
    assert (tmp_path / "file").read_bytes() == b"a" * ALIGNMENT + hole + b"b" * ALIGNMENT + hole
    assert (tmp_path / "file").stat().st_blocks * 512 < BLOCK_BYTES


def test_what_may_not_pass_the_cache_goes_through_it(tmp_path: Path) -> None:
    """A place that cannot be written to directly, as on file systems that never can be, is written all the same."""
    data = Random(1).randbytes(2 * BLOCK_BYTES + 17)
    with Writers() as writers:
        file = writers.file(created(tmp_path / "file"), attributes())
        file.skip(100)
        file.write(memoryview(data))
        file.finish()
    assert (tmp_path / "file").read_bytes() == bytes(100) + data


def test_a_write_that_fails_is_reported(tmp_path: Path) -> None:
    """An error of one thread is raised where the files come from, and nothing is left open."""
    (tmp_path / "file").touch()
    before = open_descriptors()
    with pytest.raises(OSError, match="Bad file descriptor"), Writers() as writers:
        bad = writers.file(os.open(tmp_path / "file", os.O_RDONLY), attributes())
        bad.write(memoryview(b"x" * BLOCK_BYTES))
        bad.finish()
        for number in range(100):
            file = writers.file(created(tmp_path / str(number)), attributes())
            file.write(memoryview(b"x" * BLOCK_BYTES))
            file.finish()
    assert open_descriptors() <= before  # what other tests have left may be closed meanwhile


def test_a_failure_elsewhere_leaves_nothing_open(tmp_path: Path) -> None:
    """Whoever stops half way has no descriptor left, neither of a file that was finished nor of one that was not."""
    before = open_descriptors()
    with pytest.raises(KeyError), Writers() as writers:
        done = writers.file(created(tmp_path / "done"), attributes())
        done.write(memoryview(b"x" * BLOCK_BYTES))
        done.finish()
        begun = writers.file(created(tmp_path / "begun"), attributes())
        begun.write(memoryview(b"x" * (BLOCK_BYTES + 1)))
        raise KeyError
    assert open_descriptors() <= before  # what other tests have left may be closed meanwhile
