"""Opens an archive by its index and reads single members, or all of them, with every byte checked.

Everything is checked against something else: the frames must cover the file without a gap, every header must equal the
one made from its index line, every frame must decompress to its listed size. `contents` and `extract` return what the
index describes, or raise an error.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, nullcontext
from hashlib import sha256
from itertools import chain, dropwhile, islice
from json.encoder import encode_basestring_ascii as quote
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from isal import isal_zlib

from portal.ops.archive import frame, index, tar
from portal.ops.archive.damage import Damage, DamagedError, checked, is_below
from portal.ops.archive.index import MANIFEST, TRAILER, TRAILER_ID, Member, MemberType
from portal.ops.archive.read_ahead import (
    WORTH_A_THREAD,
    Coming,
    Expected,
    Loaded,
    Span,
    frames_ahead,
    hashed,
    one_thread,
)
from portal.ops.archive.source import FileSource, unreadable
from portal.ops.archive.sparse import NoSuchTableError, expanded
from portal.ops.errors import NotIntactError
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager
    from pathlib import Path

    from portal.ops.archive.index import Contents
    from portal.ops.archive.runs import Run
    from portal.ops.archive.source import Source
    from portal.ops.manifest import Manifest


_TRAILER_BYTES: Final = len(frame.with_extra(tar.END_OF_ARCHIVE, TRAILER_ID, bytes(TRAILER.size)))
_MANIFEST_MAX: Final = 1 << 26
_READ_BYTES: Final = 1 << 18
_MAX_INFLATED: Final = 1 << 20


def is_indexed(path: Path) -> bool:
    """True if an archive has an index, or had one before its end was damaged; archives by tar and gzip have none.

    Raises:
        RepositoryError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            if frame.is_padded(file.read(frame.HEADER_BYTES)):
                return True
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TRAILER_BYTES))
            return frame.extra_of(file.read(), TRAILER_ID) is not None
    except OSError as error:
        raise unreadable(path, error) from error


class ArchiveReader:
    """An archive with an index, opened for reading.

    Arguments:
        path: the archive's file; with a source, only its name is used.
        source: reads the bytes; by default the file is opened.

    Raises:
        NotIntactError: the index cannot be read, or does not match the file.
    """

    has_index: Final = True

    def __init__(self, path: Path, source: Source | None = None) -> None:
        self.path = path
        self._source = source or FileSource(path)
        try:
            self._size = self._source.size
            self._index_at = self._read_trailer()
            self.frames = index.FrameTable()
            lines = self._lines()
            self.backup_id, frame_count, self.member_count = index.decode_head(next(lines, b""))
            for line in islice(lines, frame_count):
                self.frames.decode_line(line)
            if len(self.frames) != frame_count or self.frames.end != self._index_at:
                raise DamagedError(Damage(what="the index does not describe the frames that are there"))
        except BaseException:
            self._source.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def fileno(self) -> int:
        """The descriptor of the archive's file."""
        assert isinstance(self._source, FileSource)
        return self._source.fileno()

    def manifest(self) -> Manifest:
        """The manifest; reads the first frame only.

        Raises:
            NotIntactError: it is damaged, or is not the manifest of this archive.
        """
        from portal.ops.manifest import Manifest

        member = next(self.members(), None)
        if member is None or member.path != MANIFEST or member.size > _MANIFEST_MAX:
            raise DamagedError(Damage(what="the archive does not start with a manifest"))
        manifest = Manifest.decode(b"".join(self.extract(member)))
        if manifest.backup_id != self.backup_id:
            raise DamagedError(Damage(what="the manifest is another archive's", path=MANIFEST))
        return manifest

    def members(self) -> Iterator[Member]:
        """All members in the order of the tar.

        Raises:
            NotIntactError: a line of the index is invalid, or the number of lines is wrong.
        """
        count = 0
        for line in islice(self._lines(), 1 + len(self.frames), None):
            count += 1
            yield checked(index.decode_member(line))
        if count != self.member_count:
            raise DamagedError(Damage(what=f"the index has {count} members instead of {self.member_count}"))

    def layers(self) -> Iterator[Layer]:
        """The archive itself, which holds its whole tree."""
        yield Layer(self, self.member_count, holds=lambda _: True, named=nullcontext)

    def find(self, path: str) -> Member | None:
        """The member with that path. The index is searched as text, and only matching lines are decoded."""
        needle = f'"path":{quote(path)},'.encode("ascii")
        for line in islice(self._lines(), 1 + len(self.frames), None):
            if needle in line:
                member = checked(index.decode_member(line))
                if member.path == path:
                    return member
        return None

    def extract(self, member: Member) -> Iterator[memoryview]:
        """The content of one file in pieces, read from no frames but its own.

        Raises:
            NotIntactError: a frame is damaged, or, after the last piece, the content does not match the index.
        """
        if not 0 <= member.frame < len(self.frames):
            raise DamagedError(Damage(what="the index names a frame that is not there", path=member.path))
        frames = (Loaded(number, self.read_frame(number)) for number in range(member.frame, len(self.frames)))
        cursor = _Cursor(self, frames, start=(member.frame, member.at))
        yield from cursor.content(member)

    def contents(self, jobs: int, *, below: str | None = None, together: bool = False) -> Contents:
        """All members with their content, in the order of the tar; `jobs` threads decompress and hash in advance.

        Content that the caller does not read is skipped when the next member is requested, also after damage.

        Arguments:
            below: return only the member of this path and those below it, which are consecutive; only their frames are
                read.
            together: check the rest of the index for more members below that path.

        Raises:
            NotIntactError: index and tar do not match; reading a member's content raises damage to its frames or
                digest.
        """
        members = self.members()
        if below is not None:
            members = dropwhile(lambda member: not is_below(member.path, below), members)
        coming = Coming(members, self.frames.tar_lengths, self.backup_id)
        first = next(coming, None)
        if first is None:
            return
        start = (0, 0) if below is None else (first.member.frame, first.member.at)
        numbers = range(start[0], len(self.frames))
        with frames_ahead(self.read_frame, numbers, coming, jobs) as frames, one_thread("hash") as hashing:
            cursor = _Cursor(self, frames, start, hashing)
            for member, header in chain([first], coming):
                if below is not None and not is_below(member.path, below):
                    if together:
                        _expect_none(below, coming)
                    return
                yield member, cursor.take(member, header)
                cursor.skip_to_end()
            cursor.expect_end(len(self.frames))

    def contents_of(self, run: Run, jobs: int = 1) -> Iterator[tuple[Member, Iterator[memoryview]]]:
        """The members of a run with their content, as from `contents`; only the frames of the run are read.

        Arguments:
            jobs: how many threads decompress and hash in advance; 1 uses no thread.
        """
        coming = Coming(iter(run.members), self.frames.tar_lengths, self.backup_id)
        with ExitStack() as stack:
            if jobs > 1:
                frames = stack.enter_context(frames_ahead(self.read_frame, run.frames, coming, jobs))
                cursor = _Cursor(self, frames, (run.frames.start, 0), stack.enter_context(one_thread("hash")))
            else:
                frames = (Loaded(number, self.read_frame(number)) for number in run.frames)
                cursor = _Cursor(self, frames, (run.frames.start, 0))
            for member, header in coming:
                yield member, cursor.take(member, header)
                cursor.skip_to_end()
            cursor.expect_end(run.frames.stop)

    def read_frame(self, number: int) -> bytes | NotIntactError:
        """The content of one frame, or the error that reading it raised."""
        length = self.frames.lengths[number]
        try:
            data = self._source.read_at(length, self.frames.offsets[number])
            frame.check_header(data)
            return frame.decompress(data, self.frames.tar_lengths[number])
        except OSError as error:
            return NotIntactError(f"it cannot be read ({system_reason(error)})")
        except NotIntactError as error:
            return error

    # -- inside -----------------------------------------------------------------------------------------------------

    def _read_trailer(self) -> int:
        try:
            data = self._source.read_at(_TRAILER_BYTES, max(0, self._size - _TRAILER_BYTES))
        except OSError as error:
            raise DamagedError(Damage(what=f"its end cannot be read ({system_reason(error)})")) from error
        extra = frame.extra_of(data, TRAILER_ID)
        if extra is None or len(extra) != TRAILER.size:
            raise DamagedError(Damage(what="the archive does not end as it should: it is cut short, or not finished"))
        (index_at,) = TRAILER.unpack(extra)
        if data != frame.with_extra(tar.END_OF_ARCHIVE, TRAILER_ID, extra):
            raise DamagedError(Damage(what="the last frame of the archive is damaged"))
        if not 0 < index_at < self._size - _TRAILER_BYTES:
            raise DamagedError(Damage(what="the end of the archive says that the index lies outside of it"))
        return int(index_at)

    def _lines(self) -> Iterator[bytes]:
        """The lines of the index from the first on; checks the tar around them."""
        chunks = self._inflate_index()
        header = _take(chunks, tar.BLOCK)
        size = _index_size(header[0])
        rest = size
        tail = b""
        for chunk in chain([header[1]], chunks):
            piece = chunk[:rest]
            rest -= len(piece)
            lines = (tail + piece).split(b"\n")
            tail = lines.pop()
            if len(tail) > index.LINE_BYTES:
                break
            yield from lines
            if not rest and chunk[len(piece) :].strip(b"\x00"):
                tail = b"x"
        if rest or tail:
            raise DamagedError(Damage(what="the index does not end as it should"))

    def _inflate_index(self) -> Iterator[bytes]:
        at, end = self._index_at, self._size - _TRAILER_BYTES
        try:
            inflate = self._start_frame(at)
            while at < end:
                data = self._source.read_at(min(_READ_BYTES, end - at), at)
                at += len(data)
                if not data:
                    break
                while data:
                    if inflate.eof:
                        inflate = self._start_frame(at - len(data))
                    yield inflate.decompress(data, _MAX_INFLATED)
                    data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
        except frame.DeflateError as error:
            raise DamagedError(Damage(what=f"the index does not decompress ({error})")) from error
        except OSError as error:
            raise DamagedError(Damage(what=f"the index cannot be read ({system_reason(error)})")) from error
        if not inflate.eof:
            raise DamagedError(Damage(what="the index is cut short"))

    def _start_frame(self, offset: int) -> Any:
        try:
            frame.check_header(self._source.read_at(frame.HEADER_BYTES, offset))
        except NotIntactError as error:
            raise DamagedError(Damage(what=f"the index has a damaged frame: {error.message}")) from error
        return isal_zlib.decompressobj(31)


def _expect_none(below: str, coming: Iterator[Expected]) -> None:
    for member, _ in coming:
        if is_below(member.path, below):
            raise DamagedError(Damage(what=f"it lies apart from the rest of {below}", path=member.path))


class _Cursor:
    """Goes through the tar once, frame by frame, and checks everything on the way."""

    def __init__(
        self,
        archive: ArchiveReader,
        frames: Iterator[Loaded],
        start: tuple[int, int] = (0, 0),
        hashing: Executor | None = None,
    ) -> None:
        self._backup_id = archive.backup_id
        self._tar_lengths = archive.frames.tar_lengths
        self._frames = frames
        self._hashing = hashing
        self._number, self._at = start
        self._loaded = -1
        self._data: memoryview | NotIntactError = memoryview(b"")
        self._whole = b""
        self._digests: Mapping[Span, str] = {}
        self._left = 0

    def take(self, member: Member, header: bytes | None = None) -> Iterator[memoryview]:
        """The content of the next member, which must start where the last one ended; see `content`."""
        self._normalise()
        if (member.frame, member.at) != (self._number, self._at):
            raise DamagedError(
                Damage(
                    what=f"it starts {member.at} bytes into frame {member.frame} by the index, but "
                    f"{self._at} bytes into frame {self._number} by what comes before",
                    path=member.path,
                )
            )
        return self.content(member, header)

    def expect_end(self, number: int) -> None:
        """Make sure that nothing follows the last member before a frame begins."""
        self._normalise()
        if (self._number, self._at) != (number, 0):
            raise DamagedError(Damage(what="the archive holds something that its index does not list"))

    def content(self, member: Member, header: bytes | None = None) -> Iterator[memoryview]:
        """The content of the member; checks header, padding and digest.

        Arguments:
            header: the result of `index.tar_header` for the member, if already made.
        """
        header = header or index.tar_header(member, self._backup_id)
        payload = member.payload_bytes
        fill = tar.padding(payload)
        self._left = len(header) + payload + fill
        if self._loaded == self._number and self._at + self._left <= len(self._whole) and not member.sparse:
            return self._content_at_hand(member, header)
        return self._content_in_pieces(member, header)

    def _content_at_hand(self, member: Member, header: bytes) -> Iterator[memoryview]:
        """The content of a member that lies completely in the loaded frame."""
        data, begin = self._whole, self._at + len(header)
        found = data[self._at : begin]
        self._at, self._left = begin, self._left - len(header)
        if found != header:
            raise self._damage("its tar header is not what the index makes of it", member)
        if member.type is not MemberType.FILE:
            return
        end, after = begin + member.size, begin + self._left
        self._at, self._left = end, after - end
        piece = memoryview(data)[begin:end]
        made = self._digests.get((begin, end)) or sha256(piece).hexdigest()
        if piece:
            yield piece
        self._at, self._left = after, 0
        if data[end:after].strip(b"\x00"):
            raise self._damage("it is not followed by zeros", member)
        if made != member.sha256:
            raise self._damage("its content has another SHA-256 than the index says", member)

    def _content_in_pieces(self, member: Member, header: bytes) -> Iterator[memoryview]:
        payload = member.payload_bytes
        fill = tar.padding(payload)
        if b"".join(self._pieces(len(header), member)) != header:
            raise self._damage("its tar header is not what the index makes of it", member)
        if member.type is not MemberType.FILE:
            return
        made = self._digests.get((self._at, self._at + payload)) if self._loaded == self._number else None
        pieces = self._pieces(payload, member)
        if member.sparse:
            made = yield from self._expanded(pieces, member)
        elif made is None:
            made = yield from hashed(pieces, self._hashing if payload >= WORTH_A_THREAD else None)
        else:
            yield from pieces
        if b"".join(self._pieces(fill, member)).strip(b"\x00"):
            raise self._damage("it is not followed by zeros", member)
        if made != member.sha256:
            raise self._damage("its content has another SHA-256 than the index says", member)

    def _expanded(self, pieces: Iterator[memoryview], member: Member) -> Generator[memoryview, None, str]:
        """The content of a file with holes; returns the SHA-256 of its payload."""
        try:
            return (yield from expanded(hashed(pieces, self._hashing), member.size, member.sparse))
        except NoSuchTableError as error:
            raise self._damage("its extents are not those that the index says", member) from error

    def skip_to_end(self) -> None:
        """Skip the rest of the current member."""
        while self._left:
            self._normalise()
            if self._number >= len(self._tar_lengths):
                raise DamagedError(Damage(what="the index lists more than the archive holds"))
            step = min(self._left, self._tar_lengths[self._number] - self._at)
            self._at += step
            self._left -= step

    def _damage(self, what: str, member: Member) -> DamagedError:
        return DamagedError(Damage(what=what, frame=member.frame, path=member.path))

    def _normalise(self) -> None:
        while self._number < len(self._tar_lengths) and self._at == self._tar_lengths[self._number]:
            self._number, self._at = self._number + 1, 0

    def _pieces(self, length: int, member: Member) -> Iterator[memoryview]:
        while length:
            self._normalise()
            if self._number >= len(self._tar_lengths):
                raise self._damage("the archive ends before it does", member)
            while self._loaded < self._number:
                loaded = next(self._frames, None)
                if loaded is None:
                    raise self._damage("it does not end where the index has the next one begin", member)
                self._loaded, found, self._digests = loaded
                if isinstance(found, NotIntactError):
                    self._data, self._whole = found, b""
                else:
                    self._data, self._whole = memoryview(found), found
            if isinstance(self._data, NotIntactError):
                damage = Damage(what=self._data.message, frame=self._number, path=member.path)
                raise DamagedError(damage) from self._data
            piece = self._data[self._at : self._at + length]
            if not piece:
                raise self._damage("the index places it behind the end of its frame", member)
            self._at += len(piece)
            self._left -= len(piece)
            length -= len(piece)
            yield piece


def _take(chunks: Iterator[bytes], count: int) -> tuple[bytes, bytes]:
    """The first `count` bytes, and the bytes after them in the last chunk."""
    data = b""
    while len(data) < count and (chunk := next(chunks, None)) is not None:
        data += chunk
    return data[:count], data[count:]


def _index_size(header: bytes) -> int:
    """The size of the index, from its tar header."""
    start = b"/" + index.NAME.encode("ascii") + b"\x00"
    try:
        size = int(header[124:135], 8) if header[124:125] != b"\x80" else int.from_bytes(header[125:136], "big")
    except ValueError:
        size = -1
    if len(header) < tar.BLOCK or size < 0 or start not in header[:100]:
        raise DamagedError(Damage(what="there is no index where the end of the archive says"))
    return size


class Layer(NamedTuple):
    """The part of a tree that is in one archive.

    Arguments:
        archive: the open archive.
        most: the most members that it can contribute.
        holds: whether the tree takes this path from this archive: a later archive may have replaced or removed it.
        named: a context that adds the archive's name to the error of a damage, if there are several archives.
    """

    archive: ArchiveReader
    most: int
    holds: Callable[[str], bool]
    named: Callable[[], AbstractContextManager[None]]
