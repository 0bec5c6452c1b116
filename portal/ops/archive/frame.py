"""A frame: one gzip member of an archive, complete in itself.

The format is RFC 1952, the data in it RFC 1951. Every frame starts with the same ten bytes; only the first frame of an
archive has a comment, and only the last an extra field. Concatenated frames are a valid gzip file.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final, cast

from isal import isal_zlib

from portal.ops.errors import NotIntactError

Buffer = bytes | bytearray | memoryview

DeflateError = cast("type[Exception]", isal_zlib.error)
"""The error that inflating raises. The library's type stub declares it as an instance, not a class."""

INPUT_BYTES: Final = 1 << 20
"""The usual length of tar data in a frame: small enough to read one file quickly, large enough to compress well."""

_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_HEADER_WITH_EXTRA: Final = b"\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff"
_HEADER_WITH_COMMENT: Final = b"\x1f\x8b\x08\x10\x00\x00\x00\x00\x00\xff"
HEADER_BYTES: Final = len(_HEADER)
"""The length of a frame's gzip header without comment or extra field."""

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

    Measured on the rows of the benchmark's findings database, on one core of an AMD EPYC: speed, and size to that
    of FAST.
    """

    FAST = 0
    """ISA-L 2: 525 MB/s, 1.00"""
    MEDIUM = 1
    """libdeflate 5: 113 MB/s, 0.80"""
    HARD = 2
    """libdeflate 6: 77 MB/s, 0.77"""
    HARDEST = 3
    """libdeflate 8: 39 MB/s, 0.74"""


_ISAL_LEVEL: Final = 2
_LIBDEFLATE_LEVELS: Final = {Effort.MEDIUM: 5, Effort.HARD: 6, Effort.HARDEST: 8}


def compress(data: Buffer, effort: Effort = Effort.FAST) -> bytes:
    """Compress `data` into a frame: deflated, or stored if deflating would not shrink it."""
    if not _worth_deflating(data):
        return store(data)
    deflated = _deflate(data, effort)
    if len(deflated) >= len(data):
        return store(data)
    return b"".join((_HEADER, deflated, _tail(data)))


def _deflate(data: Buffer, effort: Effort) -> Buffer:
    if effort is Effort.FAST:
        faster: bytes = isal_zlib.compress(data, _ISAL_LEVEL, _RAW)
        return faster
    from deflate import deflate_compress  # imported late: helper processes of a fast backup do not need it

    smaller: bytearray = deflate_compress(data, _LIBDEFLATE_LEVELS[effort])
    return smaller


def store(data: Buffer) -> bytes:
    """Put `data` into a frame uncompressed; its length, `stored_bytes(len(data))`, does not depend on the content."""
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
    """Put `data` into a frame of exactly `length` bytes; spaces in the gzip header's comment fill the rest.

    Empty frames would also fill the room and be simpler, but busybox stops reading at one.

    Raises:
        ValueError: the data does not fit; a length of `padded_bytes(len(data))` always suffices.
    """
    body = compress(data)[len(_HEADER) :]
    room = length - len(_HEADER) - len(body) - 1
    if room < 0:
        raise ValueError(f"{len(data)} bytes do not fit into a frame of {length}")
    return b"".join((_HEADER_WITH_COMMENT, b" " * room, b"\x00", body))


def is_padded(frame: Buffer) -> bool:
    """True if `padded` made this frame; no other program starts a gzip file like that."""
    return bytes(frame[:HEADER_BYTES]) == _HEADER_WITH_COMMENT


def padded_bytes(size: int) -> int:
    """A length into which a padded frame of `size` bytes always fits."""
    return stored_bytes(size) + 1


def with_extra(data: bytes, identifier: bytes, extra: bytes) -> bytes:
    """Store `data` (at most 64 KiB) in a frame whose gzip header has the subfield `extra` (RFC 1952, 2.3.1.1)."""
    subfield = _SUBFIELD.pack(4 + len(extra), identifier, len(extra)) + extra
    return b"".join((_HEADER_WITH_EXTRA, subfield, store(data)[len(_HEADER) :]))


def extra_of(frame: bytes, identifier: bytes) -> bytes | None:
    """The data that `with_extra` put into a frame's header, or None for another kind of frame."""
    start = len(_HEADER_WITH_EXTRA)
    if frame[:start] != _HEADER_WITH_EXTRA or len(frame) < start + _SUBFIELD.size:
        return None
    total, found, length = _SUBFIELD.unpack_from(frame, start)
    if found != identifier or total != length + 4:
        return None
    return frame[start + _SUBFIELD.size : start + _SUBFIELD.size + length]


def decompress(frame: Buffer, size: int) -> bytes:
    """Decompress a frame that holds `size` bytes.

    Raises:
        NotIntactError: the frame holds more or less, its checksum is wrong, or the data is not exactly one frame.
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
    """Check the gzip header of a frame: inflating does not notice changes there.

    Raises:
        NotIntactError: it is not the header of our frames, or its comment is not all spaces.
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
    # Not the start: a tar header there compresses well and would make random data look compressible.
    sample = b"".join(view[at : at + _SAMPLE_BYTES] for at in range(step // 2, 4 * step, step))
    return len(isal_zlib.compress(sample, _SAMPLE_LEVEL, _RAW)) < _INCOMPRESSIBLE * len(sample)
