"""Writes an archive in one pass over the data; frames are compressed on all cores and written in order.

The first frame (the manifest) and the header of a stream of unknown length are written last, into reserved room of a
fixed size. Everything else is appended.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from portal.ops.archive import frame, index, packer, tar
from portal.ops.archive.blocks import Readable, SharedFrame, fill, too_short
from portal.ops.archive.frame_output import FrameOutput
from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.index_output import IndexOutput, WrittenIndex
from portal.ops.archive.tree_members import Tally, TreeMembers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from portal.ops.archive.compressor_pool import CompressorPool
    from portal.ops.archive.output_file import OutputFile
    from portal.ops.archive.packer import Item
    from portal.ops.filesystem.tree import Tree

__all__ = ["ArchiveWriter", "Tally", "WrittenIndex"]


class ArchiveWriter:
    """Writes one archive; call `reserve`, then any of the `add` methods, then `finish`.

    Arguments:
        out: the empty output file.
        backup_id: the top directory of all members.
        pool: compresses the frames.
        spool_directory: the directory for the index's temporary file, used if the index outgrows memory.
        advance: called with the number of content bytes after each read.
    """

    def __init__(
        self,
        out: OutputFile,
        backup_id: str,
        pool: CompressorPool,
        *,
        spool_directory: Path,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._backup_id = backup_id
        self._pool = pool
        self._advance = advance
        self._output = FrameOutput(out, pool)
        self._index = IndexOutput(spool_directory)
        self._manifest_room = 0
        self.reserved = False
        self.tally = Tally()

    def reserve(self, manifest_bytes: int) -> None:
        """Reserve room at the front for a manifest of at most `manifest_bytes` bytes."""
        self.reserved = True
        self._manifest_room = frame.padded_bytes(2 * tar.BLOCK + manifest_bytes)
        self._output.leave_room(self._manifest_room, 0)
        self._index.members += 1

    def add_stream(self, path: str, stream: Readable, *, mtime_ns: int) -> Member:
        """Append a member whose size is known only when its stream ends."""
        self._output.drain()
        member = Member(path, MemberType.FILE, mtime_ns=mtime_ns, frame=len(self._output.frames))
        room = frame.stored_bytes(tar.BLOCK)
        header_at = self._output.file.position
        self._output.leave_room(room, tar.BLOCK)
        digest, size, more = sha256(), 0, True
        while more:
            block = self._output.blocks.get()
            length = fill(stream, block.data[: frame.INPUT_BYTES])
            digest.update(block.data[:length])
            size += length
            self._advance(length)
            more = length == frame.INPUT_BYTES
            self._output.submit_block(block, length + block.zero(length, tar.padding(length)))
        self._output.drain()
        member = member._replace(size=size, sha256=digest.hexdigest())
        self._output.file.patch(header_at, frame.store(index.tar_header(member, self._backup_id)))
        self._index.add([index.encode_member(member)], member.frame)
        return member

    def add_members(self, members: Iterable[tuple[Member, Readable]]) -> Iterator[Member]:
        """Append members with known metadata and a stream each for content; return each with its digest.

        Arguments:
            members: the members; each content is read completely before the next member is requested.

        Raises:
            SourceError: a stream ends before the member's size.
        """
        shared: SharedFrame | None = None
        for member, stream in members:
            header = index.tar_header(member, self._backup_id)
            is_large = member.type is MemberType.FILE and member.size >= packer.LARGE_BYTES
            if shared and (is_large or not shared.has_room_for(header, member)):
                self._submit_shared(shared)
                shared = None
            if is_large:
                digest = self._stream_large(member, stream)
            else:
                shared = shared or SharedFrame(self._output.blocks.get())
                digest = shared.add(header, member, stream)
            yield member._replace(sha256=digest)
        if shared:
            self._submit_shared(shared)
        self._output.drain()

    def _submit_shared(self, shared: SharedFrame) -> None:
        """Submit the frame of small members for compression and writing."""

        def take(done: bytes) -> None:
            self._output.blocks.put(shared.block)
            number = self._output.write_frame(done, shared.end)
            self._index.add(shared.lines, number)
            self.tally.count(shared.files, shared.content_bytes)

        self._output.submit(self._pool.compress(shared.block.data[: shared.end]), take)
        self._advance(shared.content_bytes)

    def _stream_large(self, member: Member, stream: Readable) -> str:
        """Append a large file in frames of its own; return its SHA-256."""
        numbers: list[int] = []
        digest = sha256()
        ahead, rest = index.tar_header(member, self._backup_id), member.size
        while rest or ahead:
            block = self._output.blocks.get()
            start = block.put(ahead)
            wanted = min(rest, frame.INPUT_BYTES)
            if fill(stream, block.data[start : start + wanted]) < wanted:
                raise too_short(member)
            digest.update(block.data[start : start + wanted])
            self._advance(wanted)
            rest -= wanted
            end = start + wanted
            self._output.submit_block(block, end if rest else end + block.zero(end, tar.padding(member.size)), numbers)
            ahead = b""
        whole = member._replace(sha256=digest.hexdigest())
        self._output.then(lambda: self._take_large(whole, numbers[0]))
        return whole.sha256

    def _take_large(self, member: Member, number: int) -> None:
        self.tally.count(1, member.size)
        self._index.add([index.encode_member(member)], number)

    def add_items(self, tree: Tree, items: Iterable[tuple[Item, int]]) -> None:
        """Append files, directories and links.

        Arguments:
            tree: the tree that is read.
            items: the members to add, each with its size from the latest look at it.

        Raises:
            SourceError: one of them cannot be read.
        """
        self._pool.start_helpers()
        with tree.again() as source:
            members = TreeMembers(
                source,
                backup_id=self._backup_id,
                pool=self._pool,
                output=self._output,
                lines=self._index,
                tally=self.tally,
                advance=self._advance,
            )
            members.add(items)

    def finish(self, manifest: bytes, *, mtime_ns: int) -> str:
        """Write manifest, index and end; return the SHA-256 of the whole file."""
        self._output.drain()
        member = Member(
            index.MANIFEST, MemberType.FILE, len(manifest), mtime_ns=mtime_ns, sha256=sha256(manifest).hexdigest()
        )
        front = index.tar_header(member, self._backup_id) + manifest + bytes(tar.padding(len(manifest)))
        self._output.frames.tar_lengths[0] = len(front)
        self._output.file.patch(0, frame.padded(front, self._manifest_room))
        self._index.write(self._output, self._backup_id, member, mtime_ns)
        return self._output.file.finish()

    def take_index(self) -> WrittenIndex:
        """Return the index of the finished archive; the caller has to close it."""
        return self._index.take()

    def manifest_fits(self, manifest: bytes) -> bool:
        """True if a manifest fits into the reserved room."""
        return frame.padded_bytes(2 * tar.BLOCK + len(manifest)) <= self._manifest_room

    def close(self) -> None:
        """Discard the temporary file of the index, unless `take_index` returned it. The archive's file stays open."""
        self._index.close()
