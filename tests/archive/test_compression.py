"""How hard frames are compressed: what follows from the setting, and from the blocks that wait."""

from __future__ import annotations

import gzip
import io
import os
import time
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
        frames = [pool.compress(ROWS) for _ in range(7)]
        gate.set()
        sizes = [len(done.result()) for done in frames]
    fast, medium, hard = (len(frame.compress(ROWS, effort)) for effort in Effort)
    assert sizes == [fast, fast, medium, medium, hard, hard, hard]


@pytest.mark.parametrize(("compression", "effort"), [(Compression.FAST, Effort.FAST), (Compression.SMALL, Effort.HARD)])
def test_a_fixed_compression_ignores_the_queue(compression: Compression, effort: Effort) -> None:
    """`fast` and `small` are the same for every block."""
    with CompressorPool("full_20240115_120000_abc123", 2, compression=compression) as pool:
        frames = [pool.compress(ROWS) for _ in range(6)]
        assert {len(done.result()) for done in frames} == {len(frame.compress(ROWS, effort))}


class SlowFile(io.BytesIO):
    """A file on a disk that is slower than compression."""

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Wait, then read."""
        time.sleep(0.04)
        return super().readinto(buffer)


def archive_size(directory: Path, stream: io.BytesIO) -> int:
    """Write the stream as one large file of an archive; how large that is."""
    directory.mkdir()
    member = Member("media/rows.txt", MemberType.FILE, len(stream.getbuffer()))
    with CompressorPool("media_20240115_120000_abc123", 2, helpers=False) as pool:
        out = OutputFile(os.open(directory / "archive", os.O_RDWR | os.O_CREAT))
        writer = ArchiveWriter(out, "media_20240115_120000_abc123", pool, spool_directory=directory)
        writer.reserve(1_000)
        assert len(list(writer.add_members([(member, stream)]))) == 1
        writer.finish(b"{}", mtime_ns=0)
        writer.close()
        out.close()
    return (directory / "archive").stat().st_size


def test_files_of_a_slow_disk_are_compressed_harder(tmp_path: Path) -> None:
    """What holds for dumps holds for files: while the disk is waited for, the cores have time."""
    content = ROWS * 16
    quick = archive_size(tmp_path / "quick", io.BytesIO(content))
    slow = archive_size(tmp_path / "slow", SlowFile(content))
    assert slow < 0.97 * quick
