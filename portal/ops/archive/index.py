"""The index of an archive: its members, and the frame in which each of them starts.

The index is the archive's last member, `index.jsonl`, one JSON object a line:

1. ``{"index_version":1,"backup_id":…,"frames":F,"members":M}``; the version is 2 where a member has extended attributes
   or holes, or a line is longer than 64 KiB: releases that know version 1 alone then refuse the archive
2. F lines ``{"offset":…,"length":…,"tar_length":…}``: where a frame lies in the file, and how much of the tar it holds
3. M lines, one for each member in the order of the tar: ``{"frame":…,"at":…,"path":…,"type":…,…}``. The header of the
   member starts `at` bytes into that frame. A path is relative to the directory `<backup_id>/`; bytes of a name that
   are not UTF-8 stand as the lone surrogates of PEP 383.

The frames of the index itself, and the one that ends the archive, are not listed: the gzip header of the last frame
says where the index starts. This module is pure: it reads and writes no files.
"""

from __future__ import annotations

import json
import re
from array import array
from base64 import b64decode
from collections.abc import Generator, Iterator
from enum import StrEnum
from json.encoder import encode_basestring_ascii as quote
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from portal.ops.archive import tar
from portal.ops.archive.sparse import are_possible, payload_bytes
from portal.ops.errors import NotIntactError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from portal.ops.filesystem.extents import Extents
    from portal.ops.filesystem.xattrs import Xattrs

NAME: Final = "index.jsonl"
MANIFEST: Final = "manifest.json"
TRAILER_ID: Final = b"KI"
TRAILER: Final = Struct("<Q")
"""The subfield of the last frame's gzip header, which says where in the file the index starts."""

VERSION: Final = 1
EXTENDED_VERSION: Final = 2
"""The version of an index that version 1's readers cannot read: with extended attributes, holes or long lines."""

PATH_BYTES: Final = 1 << 15
"""The longest path of a directory, in bytes; a backup refuses a longer one."""

LINE_BYTES: Final = 1 << 20
"""The longest line of an index, in bytes."""

SHORT_LINE_BYTES: Final = 1 << 16
"""The longest line of an index of version 1, in bytes."""


_MOST: Final = 1 << 63
_MOST_OWNER: Final = 1 << 32
_XATTR_NAME_BYTES: Final = 255
_XATTRS: Final = '"xattrs":{'
_SPARSE: Final = '"sparse":['

FRAME_MAX: Final = 1 << 26
"""The most tar bytes in one frame (64 MiB), whatever an index claims: a reader keeps a few frames in memory."""


class MemberType(StrEnum):
    """The kinds of members of an archive."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"


_TYPEFLAG: Final = {
    MemberType.FILE: tar.FILE,
    MemberType.DIRECTORY: tar.DIRECTORY,
    MemberType.SYMLINK: tar.SYMLINK,
    MemberType.HARDLINK: tar.HARDLINK,
}


class Member(NamedTuple):
    """One line of the index.

    `mode` holds permission bits; `mtime_ns` and `ctime_ns` are nanoseconds since 1970. `link` is the target of a
    symlink or, for a hard link, the path of the member with the content. `sha256` is the digest of a file's content in
    hexadecimal. `frame` and `at` say where the header starts. `xattrs` are extended attributes. `sparse` lists the
    extents of a file with holes: `size` is then the size of the file itself, and `sha256` that of its payload (see
    `sparse.py`).
    """

    path: str
    type: MemberType
    size: int = 0
    mode: int = 0o600
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    link: str = ""
    sha256: str = ""
    frame: int = 0
    at: int = 0
    xattrs: Xattrs = ()
    sparse: Extents = ()

    @property
    def payload_bytes(self) -> int:
        """The number of bytes of the member's data in the tar, before padding."""
        return payload_bytes(self.size, self.sparse) if self.sparse else self.size


Contents = Generator[tuple[Member, Iterator[memoryview]], None, None]
"""Members, each with its content in pieces."""


_decode: Final = json.JSONDecoder().raw_decode
"""Decodes JSON like `json.loads`, but allows no white space around a value: an index has none."""

_TYPES: Final = (str, MemberType, *[int] * 7, str, str, int, int, tuple, tuple)


def decode_name(name: bytes) -> str:
    """Decode a file name as the index writes it, whatever the locale of the process."""
    return name.decode("utf-8", "surrogateescape")


def encode_name(name: str) -> bytes:
    """Encode a name of the index as the bytes on the disk and in the tar."""
    return name.encode("utf-8", "surrogateescape")


def tar_header(member: Member, backup_id: str) -> bytes:
    """The header of the member in the tar. It depends on the index line alone, so a reader can compare the two."""
    link = f"{backup_id}/{member.link}" if member.type is MemberType.HARDLINK else member.link
    slash = "/" if member.type is MemberType.DIRECTORY else ""
    return tar.encode(
        encode_name(f"{backup_id}/{member.path}{slash}"),
        typeflag=_TYPEFLAG[member.type],
        size=member.payload_bytes,
        mode=member.mode,
        uid=member.uid,
        gid=member.gid,
        mtime_ns=member.mtime_ns,
        link=encode_name(link),
        real_size=member.size if member.sparse else None,
        xattrs=[(encode_name(name), b64decode(value)) for name, value in member.xattrs],
    )


def encode_member(member: Member, digest: str = "") -> str:
    """The member's line without its start, the number of its frame, which `number` adds.

    Arguments:
        digest: the SHA-256 of the content, if the member itself has none yet.
    """
    path, kind, size, mode, uid, gid, mtime_ns, ctime_ns, inode, link, sha256, _, at, xattrs, sparse = member
    line = (
        f'"at":{at},"path":{quote(path)},"type":"{kind}","mode":"{mode:04o}","uid":{uid},"gid":{gid},'
        f'"mtime_ns":{mtime_ns},"ctime_ns":{ctime_ns},"inode":{inode}'
    )
    if xattrs:
        line += f",{_XATTRS}{','.join(f'{quote(name)}:{quote(value)}' for name, value in xattrs)}}}"
    if sparse:
        line += f",{_SPARSE}{','.join(f'[{start},{length}]' for start, length in sparse)}]"
    if kind is MemberType.FILE:
        return f'{line},"size":{size},"sha256":"{digest or sha256}"}}\n'
    return f'{line},"link":{quote(link)}}}\n' if link else f"{line}}}\n"


def version_of(lines: Sequence[str], text: str) -> int:
    """The index version that these lines need.

    Arguments:
        text: the lines, concatenated.
    """
    is_extended = _XATTRS in text or _SPARSE in text or max(map(len, lines), default=0) > SHORT_LINE_BYTES // 2
    return EXTENDED_VERSION if is_extended else VERSION


def number(lines: list[str], frame: int) -> str:
    """Complete the lines of members that start in the same frame."""
    start = f'{{"frame":{frame},'
    return start + start.join(lines) if lines else ""


_NUMBER: Final = rb"(-?(?:0|[1-9][0-9]{0,18}))"
_COUNT: Final = rb"(0|[1-9][0-9]{0,17})"
_OWNER: Final = rb"(0|[1-9][0-9]{0,8})"
_PLAIN_FILE: Final = re.compile(
    rb'\{"frame":' + _COUNT + rb',"at":' + _COUNT + rb',"path":"([ !#-\[\]-\x7f]{1,4000})","type":"file","mode":"'
    rb'([0-7]{1,6})","uid":' + _OWNER + rb',"gid":' + _OWNER + rb',"mtime_ns":' + _NUMBER + rb',"ctime_ns":' + _NUMBER
    + rb',"inode":' + _NUMBER + rb',"size":' + _COUNT + rb',"sha256":"([0-9a-f]{64})"\}'
)  # fmt: skip
"""Matches the line of nearly every file, without escapes and with all values in bounds: twice as fast as JSON."""


def decode_member(line: bytes) -> Member:
    """Decode one line of a member.

    Raises:
        NotIntactError: `encode_member` does not write such a line.
    """
    if (found := _PLAIN_FILE.fullmatch(line)) is None:
        return _decode_any(line)
    frame, at, path, mode, uid, gid, mtime_ns, ctime_ns, inode, size, sha256 = found.groups()
    return Member(
        path.decode("ascii"),
        MemberType.FILE,
        int(size),
        int(mode, 8),
        int(uid),
        int(gid),
        int(mtime_ns),
        int(ctime_ns),
        int(inode),
        "",
        sha256.decode("ascii"),
        int(frame),
        int(at),
    )


def _decode_any(line: bytes) -> Member:
    try:
        text = line.decode("ascii")
        found, end = _decode(text)
        if end != len(text):
            raise ValueError("something follows the member")
        member = Member(
            found["path"],
            MemberType(found["type"]),
            found.get("size", 0),
            int(found["mode"], 8),
            found["uid"],
            found["gid"],
            found["mtime_ns"],
            found["ctime_ns"],
            found["inode"],
            found.get("link", ""),
            found.get("sha256", ""),
            found["frame"],
            found["at"],
            tuple(found.get("xattrs", {}).items()),
            tuple((int(start), int(length)) for start, length in found.get("sparse", ())),
        )
        if tuple(map(type, member)) != _TYPES:
            raise TypeError("a value of another type")
        if not _is_possible(member):
            raise ValueError("no header can say that")
        return member
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise NotIntactError(f"the index has a line that is invalid: {line[:200]!r}") from error


def _is_possible(member: Member) -> bool:
    """True if a tar header can hold this member; raises ValueError if a name cannot be encoded."""
    path, kind, size, mode, uid, gid, mtime_ns, _, _, link, _, frame, at, xattrs, sparse = member
    for name, value in xattrs:
        b64decode(value, validate=True)
        if not name or "\x00" in name or len(encode_name(name)) > _XATTR_NAME_BYTES:
            return False
    if sparse and not (kind is MemberType.FILE and are_possible(sparse, size)):
        return False
    return (
        min(size, mode, uid, gid, frame, at) >= 0
        and max(size, abs(mtime_ns) >> 30) < _MOST
        and max(mode, uid, gid) < _MOST_OWNER
        and _name_bytes(path) + _name_bytes(link) < LINE_BYTES
    )


def _name_bytes(name: str) -> int:
    return len(name) if name.isascii() else len(encode_name(name))


class FrameTable:
    """Where each frame lies in the file and its length in the tar, in 24 bytes of memory a frame."""

    def __init__(self) -> None:
        self.offsets = array("Q")
        self.lengths = array("Q")
        self.tar_lengths = array("Q")
        self.end = 0

    def __len__(self) -> int:
        return len(self.offsets)

    def append(self, length: int, tar_length: int) -> int:
        """Add the frame after the last one; return its number."""
        self.offsets.append(self.end)
        self.lengths.append(length)
        self.tar_lengths.append(tar_length)
        self.end += length
        return len(self.offsets) - 1

    def truncate(self, count: int) -> None:
        """Forget all frames from number `count` on."""
        if count < len(self):
            self.end = self.offsets[count]
            del self.offsets[count:], self.lengths[count:], self.tar_lengths[count:]

    def encode(self) -> Iterator[bytes]:
        """The lines of the table."""
        for offset, length, tar_length in zip(self.offsets, self.lengths, self.tar_lengths, strict=True):
            yield b'{"offset":%d,"length":%d,"tar_length":%d}\n' % (offset, length, tar_length)

    def encoded_bytes(self) -> int:
        """The length of all lines together."""
        return sum(map(len, self.encode()))

    def decode_line(self, line: bytes) -> None:
        """Append the frame that one line describes.

        Raises:
            NotIntactError: the line is invalid, or the frame does not follow the one before.
        """
        try:
            found = json.loads(line)
            offset, length, tar_length = found["offset"], found["length"], found["tar_length"]
            if offset != self.end or not (0 < length < FRAME_MAX and 0 < tar_length < FRAME_MAX):
                raise ValueError("it does not follow the frame before, or its size cannot be")
            self.append(length, tar_length)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise NotIntactError(f"the index has a frame that is invalid: {line[:200]!r}") from error


def head_line(backup_id: str, *, frames: int, members: int, version: int = VERSION) -> str:
    """The first line of an index."""
    head = {"index_version": version, "backup_id": backup_id, "frames": frames, "members": members}
    return json.dumps(head, separators=(",", ":")) + "\n"


def decode_head(line: bytes) -> tuple[str, int, int]:
    """Decode the first line: the backup's id, the number of frames and the number of members.

    Raises:
        NotIntactError: the line is invalid, or a later release wrote it.
    """
    try:
        head: dict[str, Any] = json.loads(line)
        version = head["index_version"]
        found = str(head["backup_id"]), head["frames"], head["members"]
        if not all(type(number) is int and 0 <= number < _MOST for number in found[1:]):
            raise ValueError("it counts what cannot be")
        if encode_name(found[0]) in (b"", b".", b"..") or {"/", "\x00"} & set(found[0]):
            raise ValueError("no directory has that name")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise NotIntactError("the index does not start with a line that describes it") from error
    if version not in (VERSION, EXTENDED_VERSION):
        raise NotIntactError(
            f"the index has version {version!r}; this release reads versions {VERSION} and {EXTENDED_VERSION}",
            hint="Use the release that wrote the archive, or a later one.",
        )
    return found
