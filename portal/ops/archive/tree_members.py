"""Adds the files, directories and links of a tree to an archive.

Helper processes pack small files into frames, many at a time. Large files are read here. A file that changes while it
is read is read again; one that grows too large for a shared frame gets frames of its own.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from hashlib import sha256
from io import FileIO
from typing import TYPE_CHECKING

from portal.ops.archive import frame, index, packer, tar
from portal.ops.archive.blocks import fill
from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.sparse import SparsePayload
from portal.ops.filesystem.extents import data_extents
from portal.ops.filesystem.refusals import unreadable
from portal.ops.filesystem.tree import GONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from portal.ops.archive.compressor_pool import CompressorPool
    from portal.ops.archive.frame_output import FrameOutput
    from portal.ops.archive.index_output import IndexOutput
    from portal.ops.archive.packer import Item
    from portal.ops.errors import SourceError
    from portal.ops.filesystem.tree import Tree


@dataclass(kw_only=True)
class Tally:
    """Counts and lists of everything written so far."""

    files: int = 0
    content_bytes: int = 0
    vanished: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    outside: list[tuple[str, str]] = field(default_factory=list)
    stripped: list[str] = field(default_factory=list)
    foreign: packer.Foreign = field(default_factory=dict)

    def count(self, files: int, content_bytes: int) -> None:
        """Count written files."""
        self.files += files
        self.content_bytes += content_bytes


class TreeMembers:
    """Appends members of a tree to an archive.

    Arguments:
        tree: the tree that is read.
        backup_id: the top directory of the archive.
        pool: reads and compresses small files in helper processes.
        output: receives the frames.
        lines: receives the lines of the index.
        tally: counts what is written.
        advance: called with the number of content bytes after each read.
    """

    def __init__(
        self,
        tree: Tree,
        *,
        backup_id: str,
        pool: CompressorPool,
        output: FrameOutput,
        lines: IndexOutput,
        tally: Tally,
        advance: Callable[[int], None],
    ) -> None:
        self._tree = tree
        self._backup_id = backup_id
        self._pool = pool
        self._output = output
        self._index = lines
        self._tally = tally
        self._advance = advance
        self._tree_number = pool.number()
        self._unsettled: set[str] = set()
        self._grown: list[Item] = []

    def add(self, items: Iterable[tuple[Item, int]]) -> None:
        """Append items; see `ArchiveWriter.add_items`."""
        batch: list[Item] = []
        weight = 0
        for item, size in items:
            if self._grown:
                self._add_grown()
            if size >= packer.LARGE_BYTES and item[1] == "file":
                self._submit_pack(batch)  # first, since the directory that holds them may be among the items
                batch, weight = [], 0
                self._add_large(item)
                continue
            if item[1] == "hardlink":
                if item[2] in self._unsettled:
                    self._submit_pack(batch)
                    batch, weight = [], 0
                    self._settle()
                item = self._as_it_is(item)
            elif item[1] == "file" and item[2]:
                self._unsettled.add(item[2])
            batch.append(item)
            weight += (size if item[1] == "file" else 0) + packer.ITEM_BYTES
            if weight >= frame.INPUT_BYTES:
                self._submit_pack(batch)
                batch, weight = [], 0
        self._submit_pack(batch)
        self._settle()

    def _as_it_is(self, item: Item) -> Item:
        """The hard link, or a file of its own if its target vanished or was another file by the time it was read."""
        path, _, link = item
        if link in self._tally.vanished or not self._is_same(link, path):
            return path, "file", ""
        return item

    def _is_same(self, first: str, second: str) -> bool:
        """True if two names refer to the same file."""
        one, other = (self._tree.look(packer.source_of(path)) for path in (first, second))
        return one is not None and other is not None and os.path.samestat(one, other)

    def _settle(self) -> None:
        """Wait until everything submitted is written, including files that have grown meanwhile."""
        self._output.drain()
        while self._grown:
            self._add_grown()
            self._output.drain()
        self._unsettled.clear()

    def _add_grown(self) -> None:
        """Add the files that outgrew a shared frame; never called while another file is being streamed."""
        while self._grown:
            self._add_large(self._grown.pop(0))

    def _add_large(self, item: Item) -> None:
        path = item[0]
        for attempt in range(1, packer.ATTEMPTS + 1):
            try:
                self._tree.forget()  # the name may belong to another directory than the open one by now
                descriptor = self._tree.open_file(packer.source_of(path))
            except OSError as error:
                self._note_unreadable(path, error)
                return
            try:
                if self._stream_file(path, descriptor, keep=attempt == packer.ATTEMPTS):
                    return
            finally:
                os.close(descriptor)

    def _stream_file(self, path: str, descriptor: int, *, keep: bool) -> bool:
        """Append a file; if it changed meanwhile and need not be kept, remove it again and return False."""
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            self._tally.special.append(path)
            return True
        stripped: list[str] = []
        foreign: list[str] = []
        member = packer.member_of(path, MemberType.FILE, before)._replace(
            xattrs=packer.xattrs_of(path, descriptor, stripped, foreign),
            sparse=data_extents(descriptor, before) if _is_utf8(path) else (),
        )
        packed = SparsePayload(descriptor, member.sparse) if member.sparse else None
        file = packed or FileIO(descriptor, closefd=False)
        numbers: list[int] = []
        digest, whole = sha256(), True
        ahead, rest = index.tar_header(member, self._backup_id), member.payload_bytes
        self._advance(max(0, member.size - rest))
        while rest or ahead:
            block = self._output.blocks.get()
            start = block.put(ahead)
            wanted = min(rest, frame.INPUT_BYTES)
            try:
                length = fill(file, block.data[start : start + wanted])
            except OSError as error:
                raise self._unreadable(path, error) from error
            whole = whole and length == wanted
            block.zero(start + length, wanted - length)
            digest.update(block.data[start : start + wanted])
            self._advance(wanted)
            rest -= wanted
            end = start + wanted
            pad = 0 if rest else tar.padding(member.payload_bytes)
            self._output.submit_block(block, end + block.zero(end, pad), numbers)
            ahead = b""
        whole = whole and not (packed and packed.is_short)
        unchanged = whole and packer.same_content(before, os.fstat(descriptor))
        if not (unchanged or keep):
            self._output.drain()  # the number of a frame is known only when the frame is written
            self._output.take_back(numbers[0])
            return False
        if not unchanged:
            self._tally.changed.append(path)
        self._tally.stripped += stripped
        packer.count_foreign(self._tally.foreign, ((name, (1, path)) for name in foreign))
        self._output.then(lambda: self._take_large(member, numbers[0], digest.hexdigest()))
        return True

    def _take_large(self, member: Member, number: int, digest: str) -> None:
        self._tally.count(1, member.size)
        self._index.add([index.encode_member(member._replace(sha256=digest))], number)

    def _note_unreadable(self, path: str, error: OSError) -> None:
        if error.errno == errno.ENXIO:  # a socket now has the file's name
            self._tally.special.append(path)
        elif error.errno in GONE:
            self._tally.vanished.append(path)
        else:
            raise self._unreadable(path, error) from error

    def _unreadable(self, path: str, error: OSError) -> SourceError:
        return unreadable(self._tree.name(packer.source_of(path)), error)

    def _submit_pack(self, items: list[Item]) -> None:
        if items:
            self._output.submit(self._pool.pack(self._tree_number, self._tree, items), self._take_pack)

    def _take_pack(self, pack: packer.Pack) -> None:
        if pack.failure:
            path, number = pack.failure
            raise self._unreadable(path, OSError(number, os.strerror(number)))
        if pack.lines:
            number = self._output.write_frame(pack.frame, pack.tar_length)
            self._index.add(pack.lines, number)
        self._tally.count(pack.files, pack.content_bytes)
        self._advance(pack.content_bytes)
        self._tally.vanished += pack.vanished
        self._tally.changed += pack.changed
        self._tally.special += pack.special
        self._tally.outside += pack.outside
        self._tally.stripped += pack.stripped
        packer.count_foreign(self._tally.foreign, pack.foreign.items())
        self._grown += pack.large
        if pack.rest:
            self._take_pack(self._pool.pack(self._tree_number, self._tree, pack.rest).result())


def _is_utf8(path: str) -> bool:
    """True if a path is UTF-8: bsdtar refuses sparse members with other names."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
