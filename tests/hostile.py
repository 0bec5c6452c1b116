"""Archives that lie: put together from the pieces of the engine's own writer, and with Python's tarfile."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from portal.ops.archive import frame, index, tar
from portal.ops.archive.index import Member, MemberType
from portal.ops.manifest import Manifest
from portal.ops.model import Component
from tests.archives import BACKUP_ID, MTIME_NS, NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

CONTENT: Final = b'{"finding": 1}\n'


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A member, and what the tar really holds of it.

    Arguments:
        member: what the index says.
        content: the bytes in the tar.
        tar_length: how much the table of frames says that its frame holds; the truth by default.
    """

    member: Member
    content: bytes = b""
    tar_length: int | None = None


def file(path: str, content: bytes = CONTENT, **lies: Any) -> Piece:
    """A file, with what the index is to say wrongly of it."""
    member = Member(path, MemberType.FILE, len(content), sha256=sha256(content).hexdigest(), mtime_ns=MTIME_NS)
    return Piece(member=member._replace(**lies), content=content)


def directory(path: str) -> Piece:
    """A directory."""
    return Piece(member=Member(path, MemberType.DIRECTORY, mode=0o755, mtime_ns=MTIME_NS))


def symlink(path: str, link: str) -> Piece:
    """A symlink."""
    return Piece(member=Member(path, MemberType.SYMLINK, mode=0o777, link=link, mtime_ns=MTIME_NS))


def hardlink(path: str, link: str) -> Piece:
    """Another name of a file."""
    return Piece(member=Member(path, MemberType.HARDLINK, link=link, mtime_ns=MTIME_NS))


def write_indexed(directory: Path, pieces: Sequence[Piece]) -> Path:
    """An archive with an index, each member in a frame of its own; tar and index agree unless a piece lies."""
    data = Manifest(
        backup_id=BACKUP_ID,
        type="media",
        timestamp="2024-01-15T12:00:00Z",
        components=(Component.MEDIA,),
        hostname="portal-server",
        db_name="",
    ).encode()
    frames, table, lines = [], index.FrameTable(), []
    for number, piece in enumerate([file(index.MANIFEST, data), *pieces]):
        block = _tar_of(piece)
        frames.append(frame.compress(block))
        table.append(len(frames[-1]), len(block) if piece.tar_length is None else piece.tar_length)
        lines.append(index.number([index.encode_member(piece.member)], number))
    text = index.head_line(BACKUP_ID, frames=len(table), members=len(lines)).encode()
    text += b"".join(table.encode()) + "".join(lines).encode("ascii")
    header = index.tar_header(Member(index.NAME, MemberType.FILE, len(text), mtime_ns=MTIME_NS), BACKUP_ID)
    end = frame.with_extra(tar.END_OF_ARCHIVE, index.TRAILER_ID, index.TRAILER.pack(table.end))
    path = directory / NAME
    path.write_bytes(b"".join([*frames, frame.compress(header + text + bytes(tar.padding(len(text)))), end]))
    return path


def _tar_of(piece: Piece) -> bytes:
    return index.tar_header(piece.member, BACKUP_ID) + piece.content + bytes(tar.padding(len(piece.content)))


def write_plain(directory: Path, pieces: Sequence[Piece], adjust: Callable[[tarfile.TarInfo], None]) -> Path:
    """The same as tar and gzip would write it."""
    path = directory / NAME
    with tarfile.open(path, "w:gz") as archive:
        for piece in [Piece(member=Member("media", MemberType.DIRECTORY, mode=0o755)), *pieces]:
            info = tarfile.TarInfo(f"{BACKUP_ID}/{piece.member.path}")
            info.type = _TYPES[piece.member.type]
            info.mode, info.size, info.linkname = piece.member.mode, len(piece.content), piece.member.link
            if piece.member.type is MemberType.HARDLINK:
                info.linkname = f"{BACKUP_ID}/{piece.member.link}"
            if piece.member.path != "media":
                adjust(info)
            archive.addfile(info, io.BytesIO(piece.content))
    return path


_TYPES: Final = {
    MemberType.FILE: tarfile.REGTYPE,
    MemberType.DIRECTORY: tarfile.DIRTYPE,
    MemberType.SYMLINK: tarfile.SYMTYPE,
    MemberType.HARDLINK: tarfile.LNKTYPE,
}
