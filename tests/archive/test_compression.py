"""How hard frames are compressed: what follows from the setting, and from the blocks that wait."""

from __future__ import annotations

import gzip
import io
import os
from random import Random
from threading import Event
from typing import TYPE_CHECKING

import pytest

from portal.ops.archive import frame
from portal.ops.archive.compressor_pool import CompressorPool
from portal.ops.archive.frame import Effort
from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.output_file import OutputFile
from portal.ops.archive.writer import ArchiveWriter
from portal.ops.model import Compression
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

_RANDOM = Random(7)
ROWS = "".join(
    f"{n}\tfinding {_RANDOM.randrange(999)}\t{_RANDOM.random():.4f}\tactive\n" for n in range(20_000)
).encode()


@pytest.mark.parametrize("effort", Effort)
def test_every_effort_gives_a_gzip_member(effort: Effort) -> None:
    """What is compressed with any effort, gunzip and we read the same."""
    done = frame.compress(ROWS, effort)
    assert gzip.decompress(done) == frame.decompress(done, len(ROWS)) == ROWS


def test_more_effort_gives_smaller_frames() -> None:
    """The efforts differ in what they are for."""
    sizes = [len(frame.compress(ROWS, effort)) for effort in Effort]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.9 * sizes[0]


def test_effort_follows_the_blocks_that_wait() -> None:
    """The more blocks wait behind one, the faster it is compressed; with none behind it, as hard as possible."""
    gate = Event()
    with CompressorPool("full_20240115_120000_abc123", 1) as pool:
        pool._submit(lambda _: gate.wait())
        frames = [pool.compress(ROWS) for _ in range(13)]
        gate.set()
        sizes = [len(done.result()) for done in frames]
    fast, medium, hard, hardest = (len(frame.compress(ROWS, effort)) for effort in Effort)
    assert sizes == [fast] * 2 + [medium] * 5 + [hard] * 5 + [hardest]


@pytest.mark.parametrize(
    ("compression", "effort"), [(Compression.FAST, Effort.FAST), (Compression.SMALL, Effort.HARDEST)]
)
def test_a_fixed_compression_ignores_the_queue(compression: Compression, effort: Effort) -> None:
    """`fast` and `small` are the same for every block."""
    with CompressorPool("full_20240115_120000_abc123", 2, compression=compression) as pool:
        frames = [pool.compress(ROWS) for _ in range(6)]
        assert {len(done.result()) for done in frames} == {len(frame.compress(ROWS, effort))}


class SlowFile(io.BytesIO):
    """A file on a disk that is slower than compression: nothing waits when there is more of it."""

    def __init__(self, content: bytes, pool: CompressorPool) -> None:
        super().__init__(content)
        self._pool = pool

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Wait until all is taken up, then read."""
        wait_until(lambda: not self._pool._waiting)
        return super().readinto(buffer)


class QuickFile(io.BytesIO):
    """A file that is read to its end before anything of it is compressed."""

    def __init__(self, content: bytes, pool: CompressorPool) -> None:
        super().__init__(content)
        self._gate = Event()
        for _ in range(pool.jobs):
            pool._submit(lambda _: self._gate.wait())

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read, and at the end let the compression begin."""
        count = super().readinto(buffer)
        if self.tell() == len(self.getbuffer()):
            self._gate.set()
        return count


def archive_size(directory: Path, kind: type[SlowFile | QuickFile]) -> int:
    """Write a large file of seven blocks into an archive; how large that is."""
    directory.mkdir()
    content = (ROWS * 12)[: 7 * frame.INPUT_BYTES]
    with CompressorPool("media_20240115_120000_abc123", 2, helpers=False) as pool:
        out = OutputFile(os.open(directory / "archive", os.O_RDWR | os.O_CREAT))
        writer = ArchiveWriter(out, "media_20240115_120000_abc123", pool, spool_directory=directory)
        writer.reserve(1_000)
        member = Member("media/rows.txt", MemberType.FILE, len(content))
        assert len(list(writer.add_members([(member, kind(content, pool))]))) == 1
        writer.finish(b"{}", mtime_ns=0)
        writer.close()
        out.close()
    return (directory / "archive").stat().st_size


def test_files_of_a_slow_disk_are_compressed_harder(tmp_path: Path) -> None:
    """What holds for dumps holds for files: while the disk is waited for, the cores have time."""
    assert archive_size(tmp_path / "slow", SlowFile) < 0.97 * archive_size(tmp_path / "quick", QuickFile)
