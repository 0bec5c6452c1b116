"""Archives that lie: put together from the pieces of the engine's own writer, and with Python's tarfile."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from portal.ops.archive import frame, index, tar
from portal.ops.archive.index import Member, MemberType
from portal.ops.manifest import Manifest
from portal.ops.model import SUFFIX, Component
from tests.support.archives import BACKUP_ID, MTIME_NS, NAME, seal

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


def write_indexed(directory: Path, pieces: Sequence[Piece], **lies: Any) -> Path:
    """An archive with an index, each member in a frame of its own; tar and index agree unless a piece lies.

    Arguments:
        lies: what the index is to say wrongly of the manifest.
    """
    return _write(directory / NAME, BACKUP_ID, manifest_of(BACKUP_ID).encode(), pieces, **lies)


def manifest_of(backup_id: str, **others: Any) -> Manifest:
    """The manifest of an archive of media."""
    return Manifest(
        backup_id=backup_id,
        type="media",
        timestamp="2024-01-15T12:00:00Z",
        components=(Component.MEDIA,),
        hostname="portal-server",
        db_name="",
        **others,
    )


def write_chained(
    directory: Path,
    backup_id: str,
    pieces: Sequence[Piece],
    *,
    parent: Path | None = None,
    base: str | None = None,
    tree: tuple[int, int] | None = None,
    changes: dict[str, Any] | None = None,
) -> Path:
    """A base, or an incremental on another archive, with its sidecar.

    Arguments:
        tree: how many files and bytes it says that the whole tree has; by default as many as it has itself.
        changes: what its manifest says otherwise.
    """
    contents = [piece for piece in pieces if piece.member.path.startswith("media") and piece.content]
    files, size = tree or (len(contents), sum(len(piece.content) for piece in contents))
    manifest = manifest_of(
        backup_id,
        format_version=2 if parent else 1,
        parent=parent and parent.name.removesuffix(SUFFIX),
        parent_sha256=parent and sha256(parent.read_bytes()).hexdigest(),
        base=base,
        details={"media": {"read_from_ns": MTIME_NS, "tree": {"files": files, "bytes": size}}},
    )
    document = json.loads(manifest.encode()) | (changes or {})
    path = directory / f"{backup_id}{SUFFIX}"
    return seal(_write(path, backup_id, json.dumps(document).encode(), pieces))


def _write(path: Path, backup_id: str, manifest: bytes, pieces: Sequence[Piece], **lies: Any) -> Path:
    frames, table, lines = [], index.FrameTable(), []
    for number, piece in enumerate([file(index.MANIFEST, manifest, **lies), *pieces]):
        block = _tar_of(piece, backup_id)
        frames.append(frame.compress(block) if number else frame.padded(block, frame.padded_bytes(len(block))))
        table.append(len(frames[-1]), len(block) if piece.tar_length is None else piece.tar_length)
        lines.append(index.number([index.encode_member(piece.member)], number))
    text = index.head_line(backup_id, frames=len(table), members=len(lines)).encode()
    text += b"".join(table.encode()) + "".join(lines).encode("ascii")
    header = index.tar_header(Member(index.NAME, MemberType.FILE, len(text), mtime_ns=MTIME_NS), backup_id)
    end = frame.with_extra(tar.END_OF_ARCHIVE, index.TRAILER_ID, index.TRAILER.pack(table.end))
    path.write_bytes(b"".join([*frames, frame.compress(header + text + bytes(tar.padding(len(text)))), end]))
    return path


def _tar_of(piece: Piece, backup_id: str) -> bytes:
    return index.tar_header(piece.member, backup_id) + piece.content + bytes(tar.padding(len(piece.content)))


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
