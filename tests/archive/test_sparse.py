"""Files with holes: their table, what is possible, and how a payload and a file become one another."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.ops.archive.sparse import (
    NoSuchTableError,
    SparsePayload,
    are_possible,
    expanded,
    hole,
    is_hole,
    payload_bytes,
    table_of,
)
from tests.support.archives import NAME, Recipe, tree_in_archive, tree_on_disk, verify, write_archive
from tests.support.trees import MIB

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from portal.ops.archive.compressor_pool import CompressorPool
    from portal.ops.filesystem.extents import Extents


def test_the_table_is_that_of_the_format() -> None:
    """The number of extents, then two numbers for each, padded to a whole block."""
    text = b"2\n0\n512\n4096\n7\n"
    assert table_of(((0, 512), (4096, 7))) == text.ljust(512, b"\0")
    assert len(table_of(tuple((at * 4096, 512) for at in range(100)))) == 1536
    assert payload_bytes(9000, ((0, 512), (4096, 7))) == 512 + 519
    assert payload_bytes(9000, ()) == 9000


@pytest.mark.parametrize(
    ("extents", "size", "is_possible"),
    [
        ((), 0, True),
        (((0, 0),), 0, True),
        (((0, 512), (512, 7)), 519, True),
        (((0, 512), (512, 7)), 518, False),  # beyond the end of the file
        (((0, 512), (511, 7)), 600, False),  # one lies over the other
        (((0, 512), (512, 0)), 512, True),
        (((512, 512), (0, 512)), 2048, False),  # not in order
        (((0, 7), (512, 7)), 600, False),  # only the last may end within a block
        (((0, -1),), 600, False),
        (((-1, 1),), 600, False),
        (((0, 1),), (1 << 63) - 1, True),
        (((0, 1),), 1 << 63, False),
    ],
)
def test_what_extents_are_possible(extents: Extents, size: int, is_possible: bool) -> None:
    """In order, within the file, and with a size that a header can say."""
    assert are_possible(extents, size) is is_possible


@pytest.mark.parametrize("length", [0, 1, 64 * MIB, 64 * MIB + 1, 200 * MIB])
def test_a_hole_is_known_by_its_pieces(length: int) -> None:
    """They are zeros, as many as there should be, and are told from zeros that are data."""
    pieces = list(hole(length))
    assert sum(map(len, pieces)) == length
    assert all(map(is_hole, pieces))
    assert not any(piece[:100].tobytes().strip(b"\0") for piece in pieces)
    assert not is_hole(memoryview(bytes(100)))
    assert not is_hole(memoryview(b"data"))


def in_pieces(data: bytes, length: int) -> Generator[memoryview, None, str]:
    """A payload as a reader gets it."""
    for at in range(0, len(data), length):
        yield memoryview(data)[at : at + length]
    return "digest"


def all_of(payload: Generator[memoryview, None, str], size: int, extents: Extents) -> tuple[list[memoryview], str]:
    expanding, pieces = expanded(payload, size, extents), []
    while True:
        try:
            pieces.append(next(expanding))
        except StopIteration as end:
            return pieces, end.value


EXTENTS: Extents = ((1024, 512), (1536, 512), (4096, 5000 - 4096 + 8))


@pytest.mark.parametrize("length", [1, 7, 511, 512, 513, 1 << 20])
@pytest.mark.parametrize("tail", [0, 1, 9000])
def test_a_payload_becomes_the_file(tmp_path: Path, length: int, tail: int) -> None:
    """By whatever pieces it comes; the holes are pieces by themselves, and the digest is that of the payload."""
    size = 5008 + tail
    content = bytearray(size)
    for start, count in EXTENTS:
        content[start : start + count] = os.urandom(count)
    path = tmp_path / "file"
    path.write_bytes(content)
    with path.open("rb") as file:
        reading = SparsePayload(file.fileno(), EXTENTS)
        buffer = memoryview(bytearray(length))
        payload = b""
        while count := reading.readinto(buffer):
            payload += buffer[:count]
        assert not reading.is_short
    assert len(payload) == payload_bytes(size, EXTENTS)
    pieces, digest = all_of(in_pieces(payload, length), size, EXTENTS)
    assert (b"".join(pieces), digest) == (bytes(content), "digest")
    assert sum(len(piece) for piece in pieces if is_hole(piece)) == 1024 + (4096 - 2048) + tail
    assert all(pieces)


@given(st.integers(0, 511), st.integers(1, 255))
def test_another_table_is_refused(at: int, change: int) -> None:
    """Whatever byte of it is another one."""
    table = bytearray(table_of(EXTENTS))
    table[at] ^= change
    for length in (100, 512, 4096):
        with pytest.raises(NoSuchTableError):
            all_of(in_pieces(bytes(table) + bytes(2000), length), 5008, EXTENTS)


def test_what_a_file_has_lost_is_zeros_and_is_told(tmp_path: Path) -> None:
    """The payload keeps its length, since the header in front of it was written before."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 700)
    with path.open("rb") as file:
        reading = SparsePayload(file.fileno(), ((0, 512), (512, 512)))
        buffer = memoryview(bytearray(b"?" * 2000))
        found = b""
        while count := reading.readinto(buffer):
            found += buffer[:count]
        assert reading.is_short
    assert found[512:] == b"x" * 700 + bytes(324)


def with_hole(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"start" * 1000)
        file.truncate(8 * MIB)
        file.seek(5 * MIB)
        file.write(b"end" * MIB)


def test_a_file_with_holes_that_rests_has_no_note(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """It is read once, and is not told to have changed."""
    with_hole(media / "image")
    seen: list[int] = []
    recipe = Recipe(media=media, advance=seen.append)
    archive = write_archive(tmp_path / NAME, pool, recipe)
    assert (recipe.tally.changed, recipe.tally.files, sum(seen)) == ([], 1, 8 * MIB)
    assert tree_in_archive(archive) == tree_on_disk(media)


def test_a_file_with_holes_that_loses_data_is_noted(
    pool: CompressorPool, tmp_path: Path, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its times and its size are what they were: it is read again, and kept as it was read last."""
    with_hole(media / "image")
    inode, read, lost = (media / "image").stat().st_ino, os.preadv, []

    def lose(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if os.fstat(descriptor).st_ino != inode:
            return read(descriptor, buffers, offset)
        lost.append(offset)
        return 0

    recipe = Recipe(media=media)
    monkeypatch.setattr(os, "preadv", lose)
    archive = write_archive(tmp_path / NAME, pool, recipe)
    assert recipe.tally.changed == ["media/image"]
    assert lost.count(0) == 3
    assert verify(archive).intact
