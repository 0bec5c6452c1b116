"""Reads single files from a copy: the index at the archive's end, then the frames with the file.

A segment consists of chunks that are encrypted separately, so only its header and the needed chunks are downloaded. age
authenticates everything that is read; the file's digest is checked too.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from portal.ops.archive.damage import is_below
from portal.ops.archive.index import MemberType
from portal.ops.archive.reader import ArchiveReader
from portal.ops.chains.deletions import deletions
from portal.ops.errors import NotIntactError
from portal.ops.model import SUFFIX, Component
from portal.ops.storage.age_format import (
    CHUNK_BYTES,
    HEADER_MOST,
    Layout,
    NeedMoreError,
    open_payload,
    parse_header,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from portal.ops.archive.index import Member
    from portal.ops.offsite.commit import Commit
    from portal.ops.storage.age_format import Payload
    from portal.ops.storage.age_keys import Identity
    from portal.ops.storage.backend import Backend

_HEADER_BYTES: Final = 4096
_NONCE_BYTES: Final = 16
_AHEAD_CHUNKS: Final = 8
_KEPT_CHUNKS: Final = 256
"""How many recently read chunks to keep (16 MiB): an index is read in consecutive pieces."""


class RemoteFile:
    """An off-site archive that can be read at any offset.

    Arguments:
        identities: the identities for decrypting; empty if the copy is not encrypted.
    """

    def __init__(self, backend: Backend, commit: Commit, identities: Sequence[Identity]) -> None:
        self._backend = backend
        self._commit = commit
        self._identities = identities
        self._opened: dict[int, tuple[Payload, Layout]] = {}
        self._chunks: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self.size = commit.archive_size
        self.name = commit.backup_id
        self.received = 0

    def read_at(self, length: int, offset: int) -> bytes:
        """Read bytes at an offset; fewer than requested at the end of the archive.

        Raises:
            IdentityError: it is encrypted for none of the identities.
            NotIntactError: what was read was changed.
            StorageError: the store failed.
        """
        end = min(self.size, offset + length)
        found = bytearray()
        while offset + len(found) < end:
            at = offset + len(found)
            number, inside = divmod(at, self._commit.segment_bytes)
            chunk, skip = divmod(inside, CHUNK_BYTES)
            piece = self._chunk(number, chunk, end - at + skip)
            if len(piece) <= skip:
                raise self._damaged(number, "it is cut short")
            found += piece[skip : skip + end - at]
        return bytes(found)

    def close(self) -> None:
        """Release cached data."""
        self._chunks.clear()

    def _chunk(self, number: int, chunk: int, wanted: int) -> bytes:
        """One chunk of a segment; if more are needed, the following ones are read with it."""
        if (number, chunk) not in self._chunks:
            count = max(_AHEAD_CHUNKS, -(-wanted // CHUNK_BYTES))
            self._load(number, chunk, min(count, _KEPT_CHUNKS))
        self._chunks.move_to_end((number, chunk))
        return self._chunks[number, chunk]

    def _load(self, number: int, first: int, count: int) -> None:
        if self._commit.is_encrypted:
            payload, layout = self._segment(number)
            last = min(layout.count, first + count) - 1
            sealed_chunk = CHUNK_BYTES + 16
            start, length = layout.span(first, last)
            data = memoryview(self._read(number, start, length))
            for chunk in range(first, last + 1):
                at = (chunk - first) * sealed_chunk
                piece = data[at : at + sealed_chunk]
                self._keep((number, chunk), payload.chunk(chunk, piece, is_last=chunk == layout.count - 1))
            return
        data = memoryview(self._read(number, first * CHUNK_BYTES, count * CHUNK_BYTES))
        for chunk in range(first, first + count):
            at = (chunk - first) * CHUNK_BYTES
            if at < len(data) or chunk == first:
                self._keep((number, chunk), bytes(data[at : at + CHUNK_BYTES]))

    def _keep(self, key: tuple[int, int], piece: bytes) -> None:
        self._chunks[key] = piece
        self._chunks.move_to_end(key)
        while len(self._chunks) > _KEPT_CHUNKS:
            self._chunks.popitem(last=False)

    def _segment(self, number: int) -> tuple[Payload, Layout]:
        """The decryptor of a segment."""
        if number not in self._opened:
            data, wanted = b"", _HEADER_BYTES
            while True:
                data = self._read(number, 0, wanted)
                try:
                    header = parse_header(data)
                    break
                except NeedMoreError:
                    if wanted > HEADER_MOST:
                        raise self._damaged(number, "its header does not end") from None
                    wanted *= 4
            start = header.size + _NONCE_BYTES
            if len(data) < start:
                data = self._read(number, 0, start)
            payload = open_payload(header, data[header.size : start], self._identities)
            layout = Layout(start=start, size=self._commit.segments[number].size)
            if layout.plain_size != self._commit.plain_size(number):
                raise self._damaged(number, "it holds another part of an archive")
            self._opened[number] = payload, layout
        return self._opened[number]

    def _read(self, number: int, start: int, length: int) -> bytes:
        data = b"".join(self._backend.read(self._commit.segment_name(number), start, length))
        self.received += len(data)
        return data

    def _damaged(self, number: int, what: str) -> NotIntactError:
        return NotIntactError(
            f"the off-site segment {self._commit.segment_name(number)} is damaged: {what}",
            hint="Take another copy or an older archive: 'offsite list' shows them.",
        )


class FoundFile(NamedTuple):
    """A file of a copy.

    Arguments:
        reader: returns its content.
        files: the archives that were searched.
    """

    reader: ArchiveReader
    member: Member
    files: tuple[RemoteFile, ...]

    def received(self) -> int:
        """The bytes downloaded so far."""
        return sum(one.received for one in self.files)


def find_file(backend: Backend, line: Sequence[Commit], identities: Sequence[Identity], path: str) -> FoundFile | None:
    """Find a file in the last archive of a chain that has it; None if there is none.

    Arguments:
        line: the archive with everything that it needs, its base first.

    Raises:
        NotIntactError: an index is damaged.
    """
    files: list[RemoteFile] = []
    is_upload = is_below(path, Component.MEDIA.member)
    for number, commit in reversed(tuple(enumerate(line))):
        if number and commit.parent_sha256 != line[number - 1].archive_sha256:
            raise NotIntactError(
                f"the copy of {commit.parent} is not of the archive that {commit.backup_id} was made on",
                hint="Take an older archive: 'offsite list' shows them.",
            )
        name = Path(f"{commit.backup_id}{SUFFIX}")
        files.append(RemoteFile(backend, commit, identities))
        reader = ArchiveReader(name, files[-1])
        member = reader.find(path)
        if member is not None and member.type is MemberType.HARDLINK:
            member = reader.find(member.link)
        if member is not None:
            return FoundFile(reader, member, tuple(files)) if member.type is MemberType.FILE else None
        if not is_upload or (commit.parent is not None and _is_gone(path, set(deletions(reader)))):
            return None
    return None


def _is_gone(path: str, gone: set[str]) -> bool:
    return any(part in gone for part in _above(path))


def _above(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition("/")[0]
