"""The file that a dump is put into for pg_restore."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from portal.ops.postgres.dump_file import write_dump

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_a_dump_is_written_in_order(tmp_path: Path) -> None:
    """The file holds the pieces one after the other, and nobody else may read it."""
    data = Random(1).randbytes(3_000_000)
    view = memoryview(data)
    write_dump(tmp_path / "dump", (view[start : start + 70_001] for start in range(0, len(data), 70_001)))
    assert (tmp_path / "dump").read_bytes() == data
    assert stat.S_IMODE((tmp_path / "dump").stat().st_mode) == 0o600


def test_a_dump_replaces_what_was_left_of_another(tmp_path: Path) -> None:
    """Nothing of a longer file that was there before is in the new one."""
    (tmp_path / "dump").write_bytes(b"x" * 1000)
    write_dump(tmp_path / "dump", [memoryview(b"new")])
    assert (tmp_path / "dump").read_bytes() == b"new"


def test_a_full_disk_ends_the_writing() -> None:
    """An error of the thread that writes is raised where the pieces come from, before all of them have come."""
    made = 0

    def pieces() -> Iterator[memoryview]:
        nonlocal made
        for _ in range(1000):
            made += 1
            yield memoryview(bytes(1 << 16))

    with pytest.raises(OSError, match="No space left"):
        write_dump(Path("/dev/full"), pieces())
    assert made < 1000


def test_damage_ends_the_writing(tmp_path: Path) -> None:
    """An error of the archive is raised as it is, and nothing is left open."""

    def pieces() -> Iterator[memoryview]:
        yield memoryview(b"begun")
        raise KeyError

    before = os.listdir("/proc/self/fd")
    with pytest.raises(KeyError):
        write_dump(tmp_path / "dump", pieces())
    assert len(os.listdir("/proc/self/fd")) == len(before)
