"""Tar headers as bytes. This module is pure: it reads no files.

Headers are POSIX.1-1988 ("ustar") with additions. GNU tar, bsdtar, busybox and Python all understand these:

- a name or link target over 100 bytes goes ahead in a GNU ``L`` or ``K`` record (busybox ignores the pax ``path``);
- a number too large for its octal field is written in base 256;
- a time with a fraction of a second goes ahead in a pax ``mtime`` record. A reader that ignores pax loses the
  fraction and nothing else.

Two more are pax records that GNU tar, bsdtar and Python read. They are written only for files that need them:

- extended attributes, as ``SCHILY.xattr.<name>``;
- a file with holes, in GNU's sparse format 1.0. Its header has a name of its own, so that a program which does not
  know the format cannot put the packed data in the file's place.

Names stay the bytes they were. Owners are numbers: the names of users differ from machine to machine.

Sources: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from zlib import adler32

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK: Final = 512
END_OF_ARCHIVE: Final = bytes(2 * BLOCK)

FILE: Final = b"0"
HARDLINK: Final = b"1"
SYMLINK: Final = b"2"
DIRECTORY: Final = b"5"

_NAME_BYTES: Final = 100
_SECOND: Final = 1_000_000_000
_LATEST: Final = 8**11
_LARGE_OWNER: Final = 8**7
_CHECKSUM_AT: Final = 148
_CHECKSUM_SPACES: Final = 8 * ord(" ")
"""The checksum field counts as spaces while the checksum is computed."""


def padding(size: int) -> int:
    """The number of zero bytes after `size` bytes of data."""
    return -size % BLOCK


def encode(
    name: bytes,
    *,
    typeflag: bytes = FILE,
    size: int = 0,
    mode: int = 0o600,
    uid: int = 0,
    gid: int = 0,
    mtime_ns: int = 0,
    link: bytes = b"",
    real_size: int | None = None,
    xattrs: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """The header of one member in whole blocks, with the records that precede it.

    Arguments:
        name: the path inside the archive; a directory's ends in a slash.
        typeflag: FILE, HARDLINK, SYMLINK or DIRECTORY.
        size: bytes of data that follow, without padding.
        mode: permission bits.
        mtime_ns: nanoseconds since 1970; negative before that.
        link: the target of a link.
        real_size: the size of a file with holes.
        xattrs: names and values of extended attributes.
    """
    seconds, fraction = divmod(mtime_ns, _SECOND)
    ahead = b""
    needs_time = bool(fraction) or not 0 <= seconds < _LATEST
    if xattrs or real_size is not None:
        records = [_mtime(mtime_ns)] if needs_time else []
        if real_size is not None:
            records += _sparse(name, real_size)
            name = _packed_name(name)
        records += [b"SCHILY.xattr.%s=%s\n" % (_keyword(key), value) for key, value in xattrs]
        ahead = _pax(records)
    elif needs_time:
        ahead = _pax_mtime(mtime_ns)
    if len(name) > _NAME_BYTES:
        ahead += _long(b"L", name)
    if len(link) > _NAME_BYTES:
        ahead += _long(b"K", link)
    if not 0 <= seconds < _LATEST:
        seconds = 0
    return ahead + _block(name, mode, uid, gid, size, seconds, typeflag, link)


def _block(name: bytes, mode: int, uid: int, gid: int, size: int, seconds: int, typeflag: bytes, link: bytes) -> bytes:
    # Formats text in one piece and caches the sums of constant parts: a reader makes a header for every member again,
    # and a writer of small files does little else.
    if uid < _LARGE_OWNER and gid < _LARGE_OWNER and size < _LATEST:
        numbers = f"{mode & 0o7777:07o}\0{uid:07o}\0{gid:07o}\0{size:011o}\0{seconds:011o}\0".encode("ascii")
    else:
        owner = _number(uid, 8) + _number(gid, 8)
        numbers = b"%07o\0%s%s%011o\0" % (mode & 0o7777, owner, _number(size, 12), seconds)
    front = name[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0") + numbers
    back, back_sum = _BACKS[typeflag] if not link and typeflag in _BACKS else _back(typeflag, link)
    return b"%s%06o\x00 %s" % (front, _sum(front) + _CHECKSUM_SPACES + back_sum, back)


def _back(typeflag: bytes, link: bytes) -> tuple[bytes, int]:
    """The part of the header after the checksum, and the sum of its bytes."""
    named = typeflag + link[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0") + b"ustar\x0000"
    return named.ljust(BLOCK - _CHECKSUM_AT - 8, b"\0"), _sum(named)


def _sum(data: bytes) -> int:
    # The low half of Adler-32 is one plus the sum of the bytes modulo 65521, which half a block cannot exceed.
    return (adler32(data) & 0xFFFF) - 1


def _number(value: int, width: int) -> bytes:
    if value < 8 ** (width - 1):
        return b"%0*o\x00" % (width - 1, value)
    return b"\x80" + value.to_bytes(width - 1, "big")


def _long(typeflag: bytes, text: bytes) -> bytes:
    data = text + b"\x00"
    header = _block(b"././@LongLink", 0o644, 0, 0, len(data), 0, typeflag, b"")
    return header + data + bytes(padding(len(data)))


def _mtime(mtime_ns: int) -> bytes:
    sign = b"-" if mtime_ns < 0 else b""
    return b"mtime=%s%d.%09d\n" % (sign, *divmod(abs(mtime_ns), _SECOND))


def _sparse(name: bytes, real_size: int) -> list[bytes]:
    return [
        b"GNU.sparse.major=1\n",
        b"GNU.sparse.minor=0\n",
        b"GNU.sparse.name=%s\n" % name,
        b"GNU.sparse.realsize=%d\n" % real_size,
    ]


def _packed_name(name: bytes) -> bytes:
    above, _, last = name.rpartition(b"/")
    return b"%s/GNUSparseFile.0/%s" % (above, last)


def _keyword(name: bytes) -> bytes:
    """A name as GNU tar writes it, with `=` escaped, since that ends a keyword."""
    return name.replace(b"%", b"%25").replace(b"=", b"%3D")


def _pax(records: list[bytes]) -> bytes:
    data = b"".join(map(_record, records))
    header = _block(b"././@PaxHeader", 0o644, 0, 0, len(data), 0, b"x", b"")
    return header + data + bytes(padding(len(data)))


def _record(text: bytes) -> bytes:
    """A pax record with its length in front; the length includes its own digits."""
    length = len(text) + 2
    while len(b"%d %s" % (length, text)) > length:
        length = len(b"%d %s" % (length, text))
    return b"%d %s" % (length, text)


def _pax_mtime(mtime_ns: int) -> bytes:
    seconds, fraction = divmod(abs(mtime_ns), _SECOND)
    record = f"mtime={'-' if mtime_ns < 0 else ''}{seconds}.{fraction:09d}\n"
    length = len(record) + 3  # two digits and a space: a record has never fewer than 7 or more than 97 bytes
    return _PAX_HEADERS[length] + f"{length} {record}".encode("ascii").ljust(BLOCK, b"\0")


_BACKS: Final = {typeflag: _back(typeflag, b"") for typeflag in (FILE, HARDLINK, SYMLINK, DIRECTORY, b"x")}
_PAX_HEADERS: Final = {length: _block(b"././@PaxHeader", 0o644, 0, 0, length, 0, b"x", b"") for length in range(20, 41)}
