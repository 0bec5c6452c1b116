"""Collects the index of an archive while members are written, and appends it at the end."""

from __future__ import annotations

import gzip
import tempfile
from itertools import chain
from typing import TYPE_CHECKING, Final

from portal.ops.archive import frame, index, tar
from portal.ops.archive.index import Member, MemberType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from portal.ops.archive.frame_output import FrameOutput

_SPOOL_MEMORY: Final = 8 << 20


class IndexOutput:
    """Collects the lines of an index, compressed.

    Arguments:
        spool_directory: the directory for an unnamed temporary file, used if the lines outgrow memory.
    """

    def __init__(self, spool_directory: Path) -> None:
        self.members = 0
        self._spool = tempfile.SpooledTemporaryFile(_SPOOL_MEMORY, dir=str(spool_directory))  # noqa: SIM115  (`close` closes it)
        self._is_taken = False
        self._lines: list[str] = []
        self._line_bytes = 0
        self._spooled_bytes = 0
        self._version = index.VERSION

    def take(self) -> WrittenIndex:
        """Return the written index; the caller has to close it."""
        self._is_taken = True
        return WrittenIndex(self._spool)

    def close(self) -> None:
        """Discard the temporary file, unless `take` returned it."""
        if not self._is_taken:
            self._spool.close()

    def add(self, lines: list[str], number: int) -> None:
        """Append the lines of members that start in the same frame."""
        self.members += len(lines)
        text = index.number(lines, number)
        self._version = max(self._version, index.version_of(lines, text))
        self._lines.append(text)
        self._line_bytes += len(text)
        if self._line_bytes >= frame.INPUT_BYTES:
            self._flush_lines()

    def _flush_lines(self, ending: bytes = b"") -> None:
        text = "".join(self._lines).encode("ascii") + ending
        if text:
            self._spool.write(frame.compress(text))
        self._spooled_bytes += self._line_bytes
        self._lines, self._line_bytes = [], 0

    def write(self, output: FrameOutput, backup_id: str, manifest: Member, mtime_ns: int) -> None:
        """Write the index and the end of the archive.

        Arguments:
            manifest: the archive's first member.
        """
        frames, out = output.frames, output.file
        front = [
            index.head_line(backup_id, frames=len(frames), members=self.members, version=self._version),
            index.number([index.encode_member(manifest)], 0),
        ]
        size = sum(map(len, front)) + frames.encoded_bytes() + self._spooled_bytes + self._line_bytes
        self._flush_lines(bytes(tar.padding(size)))
        header = index.tar_header(Member(index.NAME, MemberType.FILE, size, mtime_ns=mtime_ns), backup_id)
        starts_at = out.position
        head, first = (text.encode("ascii") for text in front)
        for block in _batches(chain((header, head), frames.encode(), (first,))):
            out.write(frame.compress(block))
        self._spool.seek(0)
        while data := self._spool.read(frame.INPUT_BYTES):
            out.write(data)
        out.write(frame.with_extra(tar.END_OF_ARCHIVE, index.TRAILER_ID, index.TRAILER.pack(starts_at)))


class WrittenIndex:
    """The index of an archive that was just written, so that nobody has to read the archive again.

    Arguments:
        spool: the index as it is in the archive, without its head and the lines of frames.
    """

    def __init__(self, spool: tempfile.SpooledTemporaryFile[bytes]) -> None:
        self._spool = spool

    def members(self) -> Iterator[Member]:
        """Every member but the manifest, in the order of the archive."""
        self._spool.seek(0)
        with gzip.GzipFile(fileobj=self._spool, mode="rb") as lines:
            for line in lines:
                if not line.startswith(b"\0"):  # fills the last block of the tar
                    yield index.decode_member(line.removesuffix(b"\n"))

    def close(self) -> None:
        """Close the temporary file."""
        self._spool.close()


def _batches(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Join the parts into pieces of about a frame's input size."""
    batch: list[bytes] = []
    weight = 0
    for part in parts:
        batch.append(part)
        weight += len(part)
        if weight >= frame.INPUT_BYTES:
            yield b"".join(batch)
            batch, weight = [], 0
    if batch:
        yield b"".join(batch)
