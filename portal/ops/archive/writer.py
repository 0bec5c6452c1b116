"""Puts an archive together: one pass over the data, frames compressed on all cores and written in order.

The first frame (the manifest) and the header of a stream of unknown length are left out at first and written last,
into room of a fixed size; everything else is appended.
"""

from __future__ import annotations

import errno
import gzip
import os
import stat
import tempfile
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import sha256
from io import FileIO
from itertools import chain
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from portal.ops.archive import frame, index, packer, tar
from portal.ops.archive.blocks import Block, Readable, SharedFrame, fill, too_short
from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.sparse import SparsePayload
from portal.ops.filesystem.extents import data_extents
from portal.ops.filesystem.refusals import unreadable
from portal.ops.filesystem.tree import GONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from portal.ops.archive.compressor_pool import CompressorPool
    from portal.ops.archive.output_file import OutputFile
    from portal.ops.archive.packer import Item
    from portal.ops.errors import SourceError
    from portal.ops.filesystem.tree import Tree

_DONE: Final[Future[None]] = Future()
_DONE.set_result(None)
_SPOOL_MEMORY: Final = 8 << 20
_AHEAD: Final = 6
"""So many blocks may wait: the effort of compression follows how many do."""


@dataclass(kw_only=True)
class Tally:
    """What has been written so far, by number and by name."""

    files: int = 0
    content_bytes: int = 0
    vanished: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    outside: list[tuple[str, str]] = field(default_factory=list)
    stripped: list[str] = field(default_factory=list)


class ArchiveWriter:
    """Writes one archive; call `reserve`, then any of the `add` methods, then `finish`.

    Arguments:
        out: the file, still empty.
        backup_id: the directory that all members are in.
        pool: compresses the frames.
        spool_directory: where the index waits, unnamed, if it outgrows memory.
        advance: called with every number of bytes of content read.
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
        self._out = out
        self._backup_id = backup_id
        self._pool = pool
        self._advance = advance
        self._frames = index.FrameTable()
        self._pending: deque[tuple[Future[Any], Callable[[Any], None]]] = deque()
        self._blocks: SimpleQueue[Block] = SimpleQueue()
        for _ in range(pool.jobs + _AHEAD + 2):
            self._blocks.put(Block())
        self._spool = tempfile.SpooledTemporaryFile(_SPOOL_MEMORY, dir=str(spool_directory))  # noqa: SIM115  (`close` closes it)
        self._lines: list[str] = []
        self._line_bytes = 0
        self._spooled_bytes = 0
        self._is_index_taken = False
        self._members = 0
        self._version = index.VERSION
        self._manifest_room = 0
        self.reserved = False
        self._unsettled: set[str] = set()
        self._grown: list[Item] = []
        self._tree: Tree | None = None
        self._tree_number = 0
        self.tally = Tally()

    def reserve(self, manifest_bytes: int) -> None:
        """Leave room at the front for a manifest of this size at the most."""
        self.reserved = True
        self._manifest_room = frame.padded_bytes(2 * tar.BLOCK + manifest_bytes)
        self._frames.append(self._manifest_room, 0)
        self._out.skip(self._manifest_room)
        self._members += 1

    def add_stream(self, path: str, stream: Readable, *, mtime_ns: int) -> Member:
        """Append a member whose size is known only when its stream has ended."""
        self._drain()
        member = Member(path, MemberType.FILE, mtime_ns=mtime_ns, frame=len(self._frames))
        room = frame.stored_bytes(tar.BLOCK)
        header_at = self._out.position
        self._frames.append(room, tar.BLOCK)
        self._out.skip(room)
        digest, size, more = sha256(), 0, True
        while more:
            block = self._blocks.get()
            length = fill(stream, block.data[: frame.INPUT_BYTES])
            digest.update(block.data[:length])
            size += length
            self._advance(length)
            more = length == frame.INPUT_BYTES
            self._submit_block(block, length + block.zero(length, tar.padding(length)))
        self._drain()
        member = member._replace(size=size, sha256=digest.hexdigest())
        self._out.patch(header_at, frame.store(index.tar_header(member, self._backup_id)))
        self._add_lines([index.encode_member(member)], member.frame)
        return member

    def add_members(self, members: Iterable[tuple[Member, Readable]]) -> Iterator[Member]:
        """Append members whose metadata is known and whose content comes as a stream; each with its digest.

        Arguments:
            members: what to add; a content is read to the member's size before the next one is asked for.

        Raises:
            SourceError: a content ends before its size.
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
                shared = shared or SharedFrame(self._blocks.get())
                digest = shared.add(header, member, stream)
            yield member._replace(sha256=digest)
        if shared:
            self._submit_shared(shared)
        self._drain()

    def _submit_shared(self, shared: SharedFrame) -> None:
        """Have the frame of small members compressed and written."""

        def take(done: bytes) -> None:
            self._blocks.put(shared.block)
            number = self._write_frame(done, shared.end)
            self._add_lines(shared.lines, number)
            self._count(shared.files, shared.content_bytes)

        self._submit(self._pool.compress(shared.block.data[: shared.end]), take)
        self._advance(shared.content_bytes)

    def _stream_large(self, member: Member, stream: Readable) -> str:
        """Append a large file in frames of its own; its SHA-256."""
        numbers: list[int] = []
        digest = sha256()
        ahead, rest = index.tar_header(member, self._backup_id), member.size
        while rest or ahead:
            block = self._blocks.get()
            start = block.put(ahead)
            wanted = min(rest, frame.INPUT_BYTES)
            if fill(stream, block.data[start : start + wanted]) < wanted:
                raise too_short(member)
            digest.update(block.data[start : start + wanted])
            self._advance(wanted)
            rest -= wanted
            end = start + wanted
            self._submit_block(block, end if rest else end + block.zero(end, tar.padding(member.size)), numbers)
            ahead = b""
        self._submit(_DONE, lambda _: self._take_large(member, numbers[0], digest.hexdigest()))
        return digest.hexdigest()

    def add_items(self, tree: Tree, items: Iterable[tuple[Item, int]]) -> None:
        """Append files, directories and links.

        Arguments:
            tree: where they are read.
            items: what to add, each with the size it had a moment ago.

        Raises:
            SourceError: one of them cannot be read.
        """
        self._pool.start_helpers()
        self._tree_number = self._pool.number()
        with tree.again() as self._tree:
            self._add_items(items)

    def _add_items(self, items: Iterable[tuple[Item, int]]) -> None:
        batch: list[Item] = []
        weight = 0
        for item, size in items:
            if self._grown:
                self._add_grown()
            if size >= packer.LARGE_BYTES and item[1] == "file":
                self._submit_pack(batch)  # first: the directory it lies in may be among them
                batch, weight = [], 0
                self._add_large(item)
                continue
            if item[1] == "hardlink" and item[2] in self._unsettled:
                self._submit_pack(batch)
                batch, weight = [], 0
                item = self._settled(item)
            elif item[1] == "file" and item[2]:
                self._unsettled.add(item[2])
            batch.append(item)
            weight += (size if item[1] == "file" else 0) + packer.ITEM_BYTES
            if weight >= frame.INPUT_BYTES:
                self._submit_pack(batch)
                batch, weight = [], 0
        self._submit_pack(batch)
        self._settle()

    def _settled(self, item: Item) -> Item:
        """A hard link; if what it links to was no longer the same file when it was read, a file of its own."""
        path, _, link = item
        self._settle()
        if link in self.tally.vanished or not self._is_same(link, path):
            return path, "file", ""
        return item

    def _is_same(self, first: str, second: str) -> bool:
        """Whether two names are names of one file."""
        one, other = (self._source.look(packer.source_of(path)) for path in (first, second))
        return one is not None and other is not None and os.path.samestat(one, other)

    @property
    def _source(self) -> Tree:
        assert self._tree is not None
        return self._tree

    def _settle(self) -> None:
        """Have everything written that was submitted, also what has grown meanwhile."""
        self._drain()
        while self._grown:
            self._add_grown()
            self._drain()
        self._unsettled.clear()

    def _add_grown(self) -> None:
        """Add the files that have outgrown a shared frame: never while another one is being streamed."""
        while self._grown:
            self._add_large(self._grown.pop(0))

    def finish(self, manifest: bytes, *, mtime_ns: int) -> str:
        """Write manifest, index and end; the SHA-256 of the whole file."""
        self._drain()
        member = Member(
            index.MANIFEST, MemberType.FILE, len(manifest), mtime_ns=mtime_ns, sha256=sha256(manifest).hexdigest()
        )
        front = index.tar_header(member, self._backup_id) + manifest + bytes(tar.padding(len(manifest)))
        self._frames.tar_lengths[0] = len(front)
        self._out.patch(0, frame.padded(front, self._manifest_room))
        self._write_index(member, mtime_ns)
        return self._out.finish()

    def take_index(self) -> WrittenIndex:
        """The index, once the archive is finished; from then on it is the caller's to close."""
        self._is_index_taken = True
        return WrittenIndex(self._spool)

    def manifest_fits(self, manifest: bytes) -> bool:
        """Whether a manifest fits into the room that was reserved."""
        return frame.padded_bytes(2 * tar.BLOCK + len(manifest)) <= self._manifest_room

    def close(self) -> None:
        """Give up the index's spool, unless it was taken; the file itself is the caller's."""
        if not self._is_index_taken:
            self._spool.close()

    # -- large files ------------------------------------------------------------------------------------------------

    def _add_large(self, item: Item) -> None:
        path = item[0]
        for attempt in range(1, packer.ATTEMPTS + 1):
            try:
                self._source.forget()  # another directory may have taken the name of one that is open
                descriptor = self._source.open_file(packer.source_of(path))
            except OSError as error:
                self._note_unreadable(path, error)
                return
            try:
                if self._stream_file(path, descriptor, keep=attempt == packer.ATTEMPTS):
                    return
            finally:
                os.close(descriptor)

    def _stream_file(self, path: str, descriptor: int, *, keep: bool) -> bool:
        """Append the file; if it changed meanwhile and need not be kept, take it back and say no."""
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            self.tally.special.append(path)
            return True
        stripped: list[str] = []
        member = packer.member_of(path, MemberType.FILE, before)._replace(
            xattrs=packer.xattrs_of(path, descriptor, stripped),
            sparse=data_extents(descriptor, before) if _is_utf8(path) else (),
        )
        packed = SparsePayload(descriptor, member.sparse) if member.sparse else None
        file = packed or FileIO(descriptor, closefd=False)
        numbers: list[int] = []
        digest, whole = sha256(), True
        ahead, rest = index.tar_header(member, self._backup_id), member.payload_bytes
        self._advance(max(0, member.size - rest))
        while rest or ahead:
            block = self._blocks.get()
            start = block.put(ahead)
            wanted = min(rest, frame.INPUT_BYTES)
            try:
                length = fill(file, block.data[start : start + wanted])
            except OSError as error:
                raise self._unreadable(path, error.errno or 0) from error
            whole = whole and length == wanted
            block.zero(start + length, wanted - length)
            digest.update(block.data[start : start + wanted])
            self._advance(wanted)
            rest -= wanted
            end = start + wanted
            pad = 0 if rest else tar.padding(member.payload_bytes)
            self._submit_block(block, end + block.zero(end, pad), numbers)
            ahead = b""
        whole = whole and not (packed and packed.is_short)
        unchanged = whole and packer.same_content(before, os.fstat(descriptor))
        if not (unchanged or keep):
            self._drain()
            self._frames.truncate(numbers[0])
            self._out.truncate(self._frames.end)
            return False
        if not unchanged:
            self.tally.changed.append(path)
        self.tally.stripped += stripped
        self._submit(_DONE, lambda _: self._take_large(member, numbers[0], digest.hexdigest()))
        return True

    def _take_large(self, member: Member, number: int, digest: str) -> None:
        self._count(1, member.size)
        self._add_lines([index.encode_member(member._replace(sha256=digest))], number)

    def _note_unreadable(self, path: str, error: OSError) -> None:
        if error.errno == errno.ENXIO:  # a socket has taken the file's name
            self.tally.special.append(path)
        elif error.errno in GONE:
            self.tally.vanished.append(path)
        else:
            raise self._unreadable(path, error.errno or 0) from error

    def _unreadable(self, path: str, number: int) -> SourceError:
        return unreadable(self._source.name(packer.source_of(path)), number)

    # -- the pipeline -----------------------------------------------------------------------------------------------

    def _submit_block(self, block: Block, length: int, numbers: list[int] | None = None) -> None:
        """Compress the start of a block; the number of its frame goes to `numbers` if it is the first there."""
        if not length:
            self._blocks.put(block)
            return

        def take(done: bytes) -> None:
            self._blocks.put(block)
            number = self._write_frame(done, length)
            if numbers is not None and not numbers:
                numbers.append(number)

        self._submit(self._pool.compress(block.data[:length]), take)

    def _submit_pack(self, items: list[Item]) -> None:
        if items:
            self._submit(self._pool.pack(self._tree_number, self._source, items), self._take_pack)

    def _submit(self, future: Future[Any], take: Callable[[Any], None]) -> None:
        self._pending.append((future, take))
        self._drain_to(self._pool.jobs + _AHEAD)

    def _drain(self) -> None:
        self._drain_to(0)

    def _drain_to(self, left: int) -> None:
        while len(self._pending) > left:
            future, take = self._pending.popleft()
            take(future.result())

    def _write_frame(self, data: bytes, tar_length: int) -> int:
        self._out.write(data)
        return self._frames.append(len(data), tar_length)

    def _take_pack(self, pack: packer.Pack) -> None:
        if pack.failure:
            raise self._unreadable(*pack.failure)
        if pack.lines:
            number = self._write_frame(pack.frame, pack.tar_length)
            self._add_lines(pack.lines, number)
        self._count(pack.files, pack.content_bytes)
        self._advance(pack.content_bytes)
        self.tally.vanished += pack.vanished
        self.tally.changed += pack.changed
        self.tally.special += pack.special
        self.tally.outside += pack.outside
        self.tally.stripped += pack.stripped
        self._grown += pack.large
        if pack.rest:
            self._take_pack(self._pool.pack(self._tree_number, self._source, pack.rest).result())

    def _count(self, files: int, content_bytes: int) -> None:
        self.tally.files += files
        self.tally.content_bytes += content_bytes

    # -- the index --------------------------------------------------------------------------------------------------

    def _add_lines(self, lines: list[str], number: int) -> None:
        self._members += len(lines)
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

    def _write_index(self, manifest: Member, mtime_ns: int) -> None:
        front = [
            index.head_line(self._backup_id, frames=len(self._frames), members=self._members, version=self._version),
            index.number([index.encode_member(manifest)], 0),
        ]
        size = sum(map(len, front)) + self._frames.encoded_bytes() + self._spooled_bytes + self._line_bytes
        self._flush_lines(bytes(tar.padding(size)))
        header = index.tar_header(Member(index.NAME, MemberType.FILE, size, mtime_ns=mtime_ns), self._backup_id)
        starts_at = self._out.position
        head, first = (text.encode("ascii") for text in front)
        for block in _batches(chain((header, head), self._frames.encode(), (first,))):
            self._out.write(frame.compress(block))
        self._spool.seek(0)
        while data := self._spool.read(frame.INPUT_BYTES):
            self._out.write(data)
        self._out.write(frame.with_extra(tar.END_OF_ARCHIVE, index.TRAILER_ID, index.TRAILER.pack(starts_at)))


class WrittenIndex:
    """The index of an archive that was just written, without the archive being read again.

    Arguments:
        spool: the index as it is in the archive, without its head and the frames.
    """

    def __init__(self, spool: tempfile.SpooledTemporaryFile[bytes]) -> None:
        self._spool = spool

    def members(self) -> Iterator[Member]:
        """Every member but the manifest, in the order of the archive."""
        self._spool.seek(0)
        with gzip.GzipFile(fileobj=self._spool, mode="rb") as lines:
            for line in lines:
                if not line.startswith(b"\0"):  # what fills up the last block of the tar
                    yield index.decode_member(line)

    def close(self) -> None:
        """Give up the spool."""
        self._spool.close()


def _batches(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The parts, joined to about the frames' input size."""
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


def _is_utf8(path: str) -> bool:
    """Whether a path can stand in the record of a sparse member: bsdtar refuses one that is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
