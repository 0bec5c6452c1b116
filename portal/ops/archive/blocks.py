"""Memory buffers for the input of one frame, used by the writer of an archive."""

from __future__ import annotations

from hashlib import sha256
from typing import Protocol

from portal.ops.archive import frame, index, packer, tar
from portal.ops.archive.index import Member, MemberType
from portal.ops.errors import SourceError


class Readable(Protocol):
    """A file or a pipe, unbuffered."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the buffer or its start; return the number of bytes read, 0 at the end."""


class Block:
    """A reusable buffer for the input of one frame, with room for a tar header in front."""

    def __init__(self) -> None:
        self.data = memoryview(bytearray(frame.INPUT_BYTES + packer.HEADER_ROOM + tar.BLOCK))

    def put(self, data: bytes) -> int:
        """Copy data to the start of the buffer; return its length."""
        self.data[: len(data)] = data
        return len(data)

    def zero(self, start: int, count: int) -> int:
        """Write `count` zero bytes at `start`; return `count`."""
        self.data[start : start + count] = bytes(count)
        return count


class SharedFrame:
    """Collects small members for one frame that they share.

    Arguments:
        block: the buffer for the frame.
    """

    def __init__(self, block: Block) -> None:
        self.block = block
        self.end = 0
        self.files = self.content_bytes = 0
        self.lines: list[str] = []

    def has_room_for(self, header: bytes, member: Member) -> bool:
        """True if the frame has room for another member; the first member always fits."""
        return not self.end or self.end + len(header) + member.size <= frame.INPUT_BYTES

    def add(self, header: bytes, member: Member, stream: Readable) -> str:
        """Add a member; return the SHA-256 of a file's content, or an empty string for other members."""
        data, at = self.block.data, self.end
        start = at + len(header)
        end = start + member.size
        data[at:start] = header
        if fill(stream, data[start:end]) < member.size:
            raise too_short(member)
        is_file = member.type is MemberType.FILE
        digest = sha256(data[start:end]).hexdigest() if is_file else ""
        self.end = end + self.block.zero(end, tar.padding(member.size))
        self.lines.append(index.encode_member(member._replace(at=at, sha256=digest)))
        self.files += is_file
        self.content_bytes += member.size
        return digest


def too_short(member: Member) -> SourceError:
    """The error for a stream that is shorter than its member."""
    return SourceError(
        f"{member.path} ended before its {member.size} bytes", hint="See the server's log, then start it again."
    )


def fill(stream: Readable, room: memoryview) -> int:
    """Read until the buffer is full or the stream ends; return the number of bytes read."""
    length = 0
    while length < len(room) and (more := stream.readinto(room[length:])):
        length += more
    return length
