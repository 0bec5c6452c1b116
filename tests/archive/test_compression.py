"""How hard frames are compressed: what follows from the setting, and from the blocks that wait."""

from __future__ import annotations

import gzip
from random import Random
from threading import Event

import pytest

from portal.ops.archive import frame
from portal.ops.archive.compressor_pool import CompressorPool
from portal.ops.archive.frame import Effort
from portal.ops.model import Compression

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
