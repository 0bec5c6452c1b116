"""A frame: one gzip member of an archive, complete in itself.

The format is RFC 1952, the data in it RFC 1951. Every frame starts with the same ten bytes; only the first of an
archive has a comment, and only the last an extra field. Frames one behind the other are a valid gzip file.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final, cast

from isal import isal_zlib

from portal.ops.errors import NotIntactError

Buffer = bytes | bytearray | memoryview

DeflateError = cast("type[Exception]", isal_zlib.error)
"""What inflating raises (the library's type stub has it as an instance, not a class)."""

INPUT_BYTES: Final = 1 << 20
"""How much of the tar a frame usually holds: small enough to read one file quickly, large enough to compress well."""

_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_HEADER_WITH_EXTRA: Final = b"\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff"
_HEADER_WITH_COMMENT: Final = b"\x1f\x8b\x08\x10\x00\x00\x00\x00\x00\xff"
HEADER_BYTES: Final = len(_HEADER)
"""How long a frame's gzip header is, without comment or extra field."""

_SUBFIELD: Final = Struct("<H2sH")
_TAIL: Final = Struct("<II")
_STORED: Final = Struct("<BHH")
_STORED_MAX: Final = 0xFFFF
_RAW: Final = -15
_SAMPLE_LEVEL: Final = 2
_SAMPLE_BYTES: Final = 4096
_INCOMPRESSIBLE: Final = 0.97


class Effort(IntEnum):
    """The compression effort for a frame.

    The figures are for the rows of a findings database: speed of one core of a Xeon of 2026, and size against FAST.
    """

    FAST = 0
    """ISA-L 2: 1,100 MB/s, 1.00"""
    MEDIUM = 1
    """ISA-L 3: 400 MB/s, 0.95"""
    HARD = 2
    """libdeflate 6: 180 MB/s, 0.81"""
    HARDEST = 3
    """libdeflate 8: 105 MB/s, 0.78"""


def compress(data: Buffer, effort: Effort = Effort.FAST) -> bytes:
    """One frame of `data`: deflated, or stored where deflating would gain nothing."""
    if not _worth_deflating(data):
        return store(data)
    deflated = _deflate(data, effort)
    if len(deflated) >= len(data):
        return store(data)
    return b"".join((_HEADER, deflated, _tail(data)))


def _deflate(data: Buffer, effort: Effort) -> Buffer:
    if effort < Effort.HARD:
        faster: bytes = isal_zlib.compress(data, 2 if effort is Effort.FAST else 3, _RAW)
        return faster
    from deflate import deflate_compress  # late: a helper process of a fast backup does without

    smaller: bytearray = deflate_compress(data, 6 if effort is Effort.HARD else 8)
    return smaller


def store(data: Buffer) -> bytes:
    """One frame of `data`, not compressed: its length is `stored_bytes(len(data))`, whatever the data."""
    view = memoryview(data)
    parts: list[Buffer] = [_HEADER]
    last = max(0, (len(view) - 1) // _STORED_MAX)
    for number in range(last + 1):
        chunk = view[number * _STORED_MAX : (number + 1) * _STORED_MAX]
        parts += (_STORED.pack(number == last, len(chunk), len(chunk) ^ 0xFFFF), chunk)
    parts.append(_tail(data))
    return b"".join(parts)


def stored_bytes(size: int) -> int:
    """The length of a stored frame of `size` bytes."""
    chunks = max(1, -(-size // _STORED_MAX))
    return len(_HEADER) + chunks * _STORED.size + size + _TAIL.size


def padded(data: bytes, length: int) -> bytes:
    """A frame of `data` that is exactly `length` bytes long: spaces in the gzip header's comment fill it up.

    (Frames of no content would do the same and be plainer, but busybox stops at one.)

    Raises:
        ValueError: the data does not fit; `padded_bytes(len(data))` always does.
    """
    body = compress(data)[len(_HEADER) :]
    room = length - len(_HEADER) - len(body) - 1
    if room < 0:
        raise ValueError(f"{len(data)} bytes do not fit into a frame of {length}")
    return b"".join((_HEADER_WITH_COMMENT, b" " * room, b"\x00", body))


def is_padded(frame: Buffer) -> bool:
    """True if a frame is one of those that `padded` makes; no other program starts a gzip file like that."""
    return bytes(frame[:HEADER_BYTES]) == _HEADER_WITH_COMMENT


def padded_bytes(size: int) -> int:
    """A length that a padded frame of `size` bytes fits into, whatever the data."""
    return stored_bytes(size) + 1


def with_extra(data: bytes, identifier: bytes, extra: bytes) -> bytes:
    """A stored frame of `data` (64 KiB at most) whose gzip header carries `extra` as a subfield (RFC 1952, 2.3.1.1)."""
    subfield = _SUBFIELD.pack(4 + len(extra), identifier, len(extra)) + extra
    return b"".join((_HEADER_WITH_EXTRA, subfield, store(data)[len(_HEADER) :]))


def extra_of(frame: bytes, identifier: bytes) -> bytes | None:
    """The data that `with_extra` put into a frame's header; nothing for another kind of frame."""
    start = len(_HEADER_WITH_EXTRA)
    if frame[:start] != _HEADER_WITH_EXTRA or len(frame) < start + _SUBFIELD.size:
        return None
    total, found, length = _SUBFIELD.unpack_from(frame, start)
    if found != identifier or total != length + 4:
        return None
    return frame[start + _SUBFIELD.size : start + _SUBFIELD.size + length]


def decompress(frame: Buffer, size: int) -> bytes:
    """The `size` bytes that a frame holds.

    Raises:
        NotIntactError: the frame holds more or less than that, its checksum is wrong, or it is not one frame exactly.
    """
    inflate = isal_zlib.decompressobj(31)
    try:
        data: bytes = inflate.decompress(frame, size + 1)
    except DeflateError as error:
        raise NotIntactError(f"it does not decompress ({error})") from error
    if len(data) != size or not inflate.eof or inflate.unused_data:
        raise NotIntactError(f"it holds {len(data)} bytes instead of {size}, or is cut short")
    return data


def check_header(frame: Buffer) -> None:
    """Hold the gzip header of a frame against the format: inflating alone would not notice a change there.

    Raises:
        NotIntactError: it is not the header that every frame has, or its comment is not the spaces that pad it.
    """
    start = len(_HEADER)
    if frame[:start] == _HEADER:
        return
    if frame[:start] != _HEADER_WITH_COMMENT or bytes(frame[start:]).partition(b"\x00")[0].strip(b" "):
        raise NotIntactError("its gzip header is not the one that every frame has")


def _tail(data: Buffer) -> bytes:
    return _TAIL.pack(isal_zlib.crc32(data), len(data) & 0xFFFFFFFF)


def _worth_deflating(data: Buffer) -> bool:
    if len(data) < 16 * _SAMPLE_BYTES:
        return True
    view = memoryview(data)
    step = len(view) // 4
    # Not from the start: a tar header there would make a block of random data look as if it could shrink.
    sample = b"".join(view[at : at + _SAMPLE_BYTES] for at in range(step // 2, 4 * step, step))
    return len(isal_zlib.compress(sample, _SAMPLE_LEVEL, _RAW)) < _INCOMPRESSIBLE * len(sample)
