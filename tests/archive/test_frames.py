"""Frames: what goes in comes out, and nothing that was changed does."""

from __future__ import annotations

import gzip
import random
import subprocess
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portal.ops.archive import frame, tar
from portal.ops.errors import NotIntactError
from tests.support.archives import program

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = [0, 1, 65534, 65535, 65536, 65537, 2 * 65535, 2 * 65535 + 1, frame.INPUT_BYTES]
TEXT = b'{"rule": "SQL injection", "severity": "high"}\n' * 40


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def opened(data: bytes, size: int) -> bytes:
    """A frame as the reader opens one: header and content."""
    frame.check_header(data)
    return frame.decompress(data, size)


@given(data=st.binary(max_size=5000))
def test_compressed_data_is_read_back(data: bytes) -> None:
    """A frame holds what was put into it, for our reader and for Python's."""
    done = frame.compress(data)
    assert opened(done, len(data)) == gzip.decompress(done) == data


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [noise, lambda size: (TEXT * (size // len(TEXT) + 1))[:size]], ids=["noise", "text"])
def test_each_size_is_read_back(size: int, make: Callable[[int], bytes]) -> None:
    """Sizes around the limit of a stored block are read back, compressed and stored."""
    data = make(size)
    for done in (frame.compress(data), frame.store(data)):
        assert opened(done, size) == gzip.decompress(done) == data


@pytest.mark.parametrize("size", SIZES)
def test_stored_length_is_known_beforehand(size: int) -> None:
    """The length of a stored frame depends on the size of the data alone."""
    assert len(frame.store(noise(size))) == len(frame.store(bytes(size))) == frame.stored_bytes(size)


@pytest.mark.parametrize("size", [100, 70_000, frame.INPUT_BYTES])
def test_incompressible_data_is_stored(size: int) -> None:
    """Data that does not shrink costs no more than a stored frame."""
    assert len(frame.compress(noise(size))) == frame.stored_bytes(size)


def test_a_header_does_not_hide_that_data_is_incompressible() -> None:
    """The first block of a large file has its tar header in front, which alone would shrink."""
    data = tar.encode(b"backup/media/large.bin", size=5_000_000, mtime_ns=1) + noise(frame.INPUT_BYTES)
    assert len(frame.compress(data, frame.Effort.HARD)) == frame.stored_bytes(len(data))


@pytest.mark.parametrize("quarter", range(4))
def test_data_that_shrinks_in_part_is_deflated(quarter: int) -> None:
    """Wherever the part is that can be compressed: each quarter is looked at, in its middle."""
    part = frame.INPUT_BYTES // 4
    parts = [noise(part + number)[:part] for number in range(4)]  # noise that comes twice could be compressed
    parts[quarter] = bytes(part)
    data = b"".join(parts)
    assert len(frame.compress(data)) < frame.stored_bytes(len(data)) - part // 2


@pytest.mark.parametrize("size", [16 * 4096 - 1, 16 * 4096])
def test_little_data_is_deflated_whatever_its_middle_is(size: int) -> None:
    """Trying costs nothing; from a certain size on it is looked at first."""
    data = bytearray(noise(size))
    step = size // 4
    for at in range(4):
        data[at * step : at * step + step // 4] = bytes(step // 4)  # what is looked at lies behind that
    assert (len(frame.compress(bytes(data))) == frame.stored_bytes(size)) is (size == 16 * 4096)


@given(data=st.binary(max_size=3000), more=st.integers(0, 3000))
def test_padded_frame_has_the_length_asked_for(data: bytes, more: int) -> None:
    """A padded frame fills its room to the byte, and holds its data."""
    length = frame.padded_bytes(len(data)) + more
    done = frame.padded(data, length)
    assert len(done) == length
    assert opened(done, len(data)) == gzip.decompress(done) == data


def test_data_too_large_for_its_room_is_refused() -> None:
    """A frame is never longer than the room that was left for it."""
    with pytest.raises(ValueError, match="do not fit"):
        frame.padded(noise(1000), 900)


@given(data=st.binary(max_size=2000), extra=st.binary(max_size=200))
def test_extra_field_is_read_back(data: bytes, extra: bytes) -> None:
    """A frame carries data and an extra field, and gives both back."""
    done = frame.with_extra(data, b"KI", extra)
    assert frame.extra_of(done, b"KI") == extra
    assert gzip.decompress(done) == data


@pytest.mark.parametrize("done", [frame.compress(TEXT), frame.store(TEXT), frame.padded(TEXT, 4000), b"", b"\x1f\x8b"])
def test_other_frames_have_no_extra_field(done: bytes) -> None:
    """No other frame is taken for one with an extra field, and nor is half a one."""
    assert frame.extra_of(done, b"KI") is None
    assert frame.extra_of(frame.with_extra(b"", b"XX", b"1"), b"KI") is None


def refused_or_harmless(changed: bytes, content: bytes) -> bool:
    """Whether a change was refused; one that was not must have left the content as it was.

    Deflate ignores some bits (RFC 1951, 3.2.3 and 3.2.4), and can say one thing in several ways.
    """
    try:
        return opened(changed, len(content)) == content
    except NotIntactError:
        return True


def flipped(data: bytes, position: int, change: int) -> bytes:
    return data[:position] + bytes([data[position] ^ change]) + data[position + 1 :]


MAKERS = {"compress": frame.compress, "store": frame.store, "padded": lambda text: frame.padded(text, 2500)}
each_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


@each_kind
def test_no_flipped_bit_changes_the_content(make: Callable[[bytes], bytes]) -> None:
    """A frame with a flipped bit, any bit, is refused or gives what it gave before."""
    done = make(TEXT)
    for position in range(len(done)):
        for bit in range(8):
            assert refused_or_harmless(flipped(done, position, 1 << bit), TEXT), (position, bit)


@each_kind
def test_flipped_bit_around_the_data_is_refused(make: Callable[[bytes], bytes]) -> None:
    """Every single bit of a frame's header, of its padding, of its checksum and of its size counts."""
    done = make(TEXT)
    start = done.index(0, 10) + 1 if make is MAKERS["padded"] else 10
    for position in (*range(start), *range(len(done) - 8, len(done))):
        for bit in range(8):
            with pytest.raises(NotIntactError):
                opened(flipped(done, position, 1 << bit), len(TEXT))


@each_kind
def test_frame_that_is_cut_is_refused(make: Callable[[bytes], bytes]) -> None:
    """A frame cut short anywhere is no frame."""
    done = make(TEXT)
    for length in range(len(done)):
        with pytest.raises(NotIntactError):
            opened(done[:length], len(TEXT))


LARGE = (TEXT + noise(300)) * 400
LARGE_FRAME = frame.compress(LARGE)


@given(position=st.integers(0, len(LARGE_FRAME) - 1), change=st.integers(1, 255))
def test_no_changed_byte_changes_the_content_of_a_large_frame(position: int, change: int) -> None:
    """A large frame with another byte somewhere is refused or gives what it gave before."""
    assert refused_or_harmless(flipped(LARGE_FRAME, position, change), LARGE)


@given(length=st.integers(0, len(LARGE_FRAME) - 1))
def test_large_frame_that_is_cut_is_refused(length: int) -> None:
    """A large frame cut short anywhere is refused."""
    with pytest.raises(NotIntactError):
        opened(LARGE_FRAME[:length], len(LARGE))


@pytest.mark.parametrize("more", [b"\x00", b"x", frame.compress(b""), frame.compress(TEXT)])
def test_what_follows_a_frame_is_refused(more: bytes) -> None:
    """A frame is one gzip member and nothing behind it."""
    with pytest.raises(NotIntactError):
        frame.decompress(frame.compress(TEXT) + more, len(TEXT))


@pytest.mark.parametrize("size", [0, 1, len(TEXT) - 1, len(TEXT) + 1, 1 << 20])
def test_frame_of_another_size_is_refused(size: int) -> None:
    """A frame that holds more or less than was said is refused."""
    with pytest.raises(NotIntactError):
        frame.decompress(frame.compress(TEXT), size)


def test_gzip_bomb_is_refused_without_inflating_it() -> None:
    """A frame of 128 MiB of zeros that is said to hold 1 KiB costs no memory."""
    bomb = zlib.compress(bytes(128 << 20), 1, wbits=31)
    tracemalloc.start()
    try:
        with pytest.raises(NotIntactError):
            frame.decompress(bomb, 1024)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_header_with_other_flags_is_refused() -> None:
    """The gzip header of a frame is one of those that this engine writes; others could hide something."""
    done = frame.compress(TEXT)
    for change in range(1, 256):
        with pytest.raises(NotIntactError):
            opened(flipped(done, 3, change), len(TEXT))


@pytest.mark.parametrize("byte", [0x00, 0x21, 0x09, 0xDF])
def test_padding_is_spaces_only(byte: int) -> None:
    """Nothing hides in the comment that pads a frame: it is held against the spaces it was written with."""
    done = frame.padded(TEXT, 2500)
    with pytest.raises(NotIntactError):
        opened(done[:1000] + bytes([byte]) + done[1001:], len(TEXT))


@settings(max_examples=20, deadline=None)
@given(blocks=st.lists(st.binary(max_size=400), min_size=1, max_size=8))
def test_gzip_accepts_frames_behind_each_other(blocks: list[bytes]) -> None:
    """Frames of every kind behind one another are one gzip file."""
    frames = [frame.padded(blocks[0], 1000), *map(frame.compress, blocks), *map(frame.store, blocks)]
    frames.append(frame.with_extra(b"end", b"KI", b"12345678"))
    done = subprocess.run([program("gzip"), "-dc"], input=b"".join(frames), capture_output=True, check=True)
    assert done.stdout == b"".join([blocks[0], *blocks, *blocks, b"end"])
    assert not done.stderr
