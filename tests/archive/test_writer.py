"""The writer by itself: what is counted, which frames there are, and where each buffer goes afterwards."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from portal.ops.archive import frame, index, packer
from portal.ops.archive.blocks import Block, fill
from portal.ops.archive.compressor_pool import CompressorPool
from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.output_file import OutputFile
from portal.ops.archive.reader import ArchiveReader
from portal.ops.archive.writer import ArchiveWriter
from portal.ops.errors import SourceError
from portal.ops.model import Compression
from tests.support.archives import BACKUP_ID, MTIME_NS, NAME, Recipe, tree_in_archive, tree_on_disk, write_archive
from tests.support.trees import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LARGE = packer.LARGE_BYTES


@dataclass
class Written:
    """A writer, and what it has told of its progress."""

    writer: ArchiveWriter
    advanced: list[int] = field(default_factory=list)

    def add(self, members: list[tuple[Member, bytes]]) -> list[Member]:
        """Add members with their content; the members as they were returned."""
        return list(self.writer.add_members((member, io.BytesIO(content)) for member, content in members))


@contextmanager
def writing(path: Path, manifest: bytes = b"{}") -> Iterator[Written]:
    """A writer; the archive is finished if nothing goes wrong."""
    with CompressorPool(BACKUP_ID, 1, helpers=False, compression=Compression.FAST) as pool:
        out = OutputFile(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        advanced: list[int] = []
        writer = ArchiveWriter(out, BACKUP_ID, pool, spool_directory=path.parent, advance=advanced.append)
        try:
            writer.reserve(1000)
            yield Written(writer, advanced)
            digest = writer.finish(manifest, mtime_ns=MTIME_NS)
            assert digest == sha256(path.read_bytes()).hexdigest()
        finally:
            writer.close()
            out.close()


def file(name: str, size: int) -> tuple[Member, bytes]:
    content = Random(name).randbytes(size)
    return Member(f"media/{name}", MemberType.FILE, size, mtime_ns=MTIME_NS), content


def held(path: Path) -> tuple[list[Member], dict[str, bytes]]:
    """The members of an archive but the manifest, and the content of its files."""
    with closing(ArchiveReader(path)) as reader:
        found = [(member, b"".join(content)) for member, content in reader.contents(1)][1:]
        members = list(reader.members())[1:]
    return members, {member.path: content for member, content in found if member.type is MemberType.FILE}


def test_room_for_the_manifest_is_reserved_once(tmp_path: Path) -> None:
    """Whoever adds the first component asks whether that was done."""
    with CompressorPool(BACKUP_ID, 1, helpers=False, compression=Compression.FAST) as pool:
        out = OutputFile(os.open(tmp_path / NAME, os.O_RDWR | os.O_CREAT, 0o600))
        with closing(out), closing(ArchiveWriter(out, BACKUP_ID, pool, spool_directory=tmp_path)) as writer:
            assert not writer.reserved
            writer.reserve(1000)
            assert writer.reserved


def test_members_of_every_size_are_counted_and_come_back(tmp_path: Path) -> None:
    """More small files than there are buffers, large ones between them, and what has no content."""
    files = [file(f"{number:02}", 700_000) for number in range(30)]
    files[7:7] = [file("large", 3 * MIB + 7)]
    files.append(file("last", 5))
    others = [
        (Member("media", MemberType.DIRECTORY, mode=0o755), b""),
        (Member("media/link", MemberType.SYMLINK, link="00"), b""),
    ]
    with writing(tmp_path / NAME) as written:
        returned = written.add([*others, *files])
        tally = written.writer.tally
    total = sum(len(content) for _, content in files)
    assert (tally.files, tally.content_bytes, sum(written.advanced)) == (len(files), total, total)
    members, contents = held(tmp_path / NAME)
    assert contents == {member.path: content for member, content in files}
    digests = {member.path: sha256(content).hexdigest() for member, content in files}
    assert {member.path: member.sha256 for member in members if member.sha256} == digests
    assert [(member.path, member.sha256) for member in returned] == [(one.path, one.sha256) for one in members]


@pytest.mark.parametrize(
    ("sizes", "frames"),
    [
        ([5, 5, 5], [1, 1, 1]),
        ([LARGE - 1, 5], [1, 2]),  # with the header of the second it would be longer than a frame should be
        ([LARGE // 2, LARGE // 2 - 1024, 0], [1, 1, 2]),
        ([5, LARGE, 5], [1, 2, 3]),
        ([LARGE - 1536, 0], [1, 1]),
        ([LARGE - 1024, 0], [1, 1]),
    ],
)
def test_small_members_share_a_frame_up_to_its_usual_size(tmp_path: Path, sizes: list[int], frames: list[int]) -> None:
    """A large one gets frames of its own, whatever comes before and after it."""
    with writing(tmp_path / NAME) as written:
        written.add([file(str(number), size) for number, size in enumerate(sizes)])
    members, _ = held(tmp_path / NAME)
    assert [member.frame for member in members] == frames


@pytest.mark.parametrize("size", [5, 2 * MIB])
@pytest.mark.parametrize("missing", [1, 5])
def test_a_member_that_ends_early_is_an_error(tmp_path: Path, size: int, missing: int) -> None:
    """Nobody takes what was in the buffer before for the rest of it."""
    member, content = file("short", size)
    with pytest.raises(SourceError, match=f"media/short ended before its {size} bytes"), writing(tmp_path / NAME) as it:
        it.add([(member, content[:-missing])])


@pytest.mark.parametrize("size", [0, 1, 511, 512, MIB - 1, MIB, MIB + 1, 14 * MIB + 100])
def test_a_stream_is_as_long_as_it_is(tmp_path: Path, size: int) -> None:
    """Also with more frames than there are buffers, and with a file behind it."""
    content = Random(size).randbytes(size)
    with writing(tmp_path / NAME) as written:
        member = written.writer.add_stream("database.sql", io.BytesIO(content), mtime_ns=MTIME_NS)
        assert (member.size, member.sha256) == (size, sha256(content).hexdigest())
        assert sum(written.advanced) == size
        written.add([file("after", 10)])
    members, contents = held(tmp_path / NAME)
    assert [(one.path, one.mtime_ns) for one in members] == [("database.sql", MTIME_NS), ("media/after", MTIME_NS)]
    assert contents["database.sql"] == content


def test_a_manifest_that_fits_is_one_that_can_be_written(tmp_path: Path) -> None:
    """The longest that is said to fit fills its room, and is what a reader finds."""
    with writing(tmp_path / "measured") as written:
        longest = max(size for size in range(900, 1700) if written.writer.manifest_fits(bytes(size)))
        assert longest >= 1000
        assert not written.writer.manifest_fits(bytes(longest + 1))
    manifest = Random(1).randbytes(longest)
    with writing(tmp_path / NAME, manifest):
        pass
    with closing(ArchiveReader(tmp_path / NAME)) as reader:
        member = next(reader.members())
        assert (member.path, member.size, member.mtime_ns) == (index.MANIFEST, longest, MTIME_NS)
        assert b"".join(reader.extract(member)) == manifest


def test_an_index_is_compressed_as_it_grows(tmp_path: Path) -> None:
    """Its frames are of the usual size, however many members there are, and whoever takes it gets all of them."""
    names = [f"{number:04}-{'n' * 600}" for number in range(6_000)]
    with writing(tmp_path / NAME) as written:
        written.add([file(name, 0) for name in names])
        found = written.writer.take_index()
    with closing(ArchiveReader(tmp_path / NAME)) as reader:
        data = (tmp_path / NAME).read_bytes()[reader._index_at :]
        assert [member.path for member in reader.members()][1:] == [f"media/{name}" for name in names]
    assert [member.path for member in found.members()] == [f"media/{name}" for name in names]
    found.close()
    sizes = []
    while data:
        inflate = zlib.decompressobj(31)
        sizes.append(len(inflate.decompress(data)))
        data = inflate.unused_data
    assert sum(sizes) > 3 * MIB
    assert max(sizes) < 2 * MIB


@pytest.mark.parametrize("is_taken", [True, False])
def test_the_index_is_closed_unless_somebody_has_it(tmp_path: Path, is_taken: bool) -> None:
    """What was written can be read from memory, without the archive, as long as whoever took it wants."""
    with writing(tmp_path / NAME) as written:
        written.add([file("one", 10), file("two", 20)])
        spool = written.writer._index._spool
        found = written.writer.take_index() if is_taken else None
    assert spool.closed is not is_taken
    if found:
        assert list(found.members()) == held(tmp_path / NAME)[0]
        found.close()
        assert spool.closed


def test_hard_links_behind_their_file_share_a_frame(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """The file is waited for once; the links behind it are packed together."""
    (media / "a").write_bytes(b"content")
    for number in range(50):
        os.link(media / "a", media / f"link-{number:02}")
    archive = write_archive(tmp_path / NAME, pool, Recipe(media=media))
    members, _ = held(archive)
    links = [member.frame for member in members if member.type is MemberType.HARDLINK]
    assert len(links) == 50
    assert len(set(links)) <= 2
    assert tree_in_archive(archive) == tree_on_disk(media)


class Trickle(io.BytesIO):
    """A pipe that has one byte at a time."""

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read a single byte."""
        return super().readinto(buffer[:1])


@pytest.mark.parametrize(("size", "room"), [(0, 10), (9, 10), (10, 10), (11, 10)])
def test_a_buffer_is_filled_by_as_many_reads_as_it_takes(size: int, room: int) -> None:
    """Up to its end or that of the pipe; nothing is read beyond it."""
    stream = Trickle(bytes(range(1, size + 1)))
    buffer = memoryview(bytearray(room))
    assert fill(stream, buffer) == min(size, room)
    assert bytes(buffer) == bytes(range(1, min(size, room) + 1)).ljust(room, b"\0")
    assert stream.tell() == min(size, room)


def test_a_buffer_used_before_pads_with_zeros() -> None:
    """Nothing of the last frame is left between the members of the next."""
    block = Block()
    block.data[:2000] = b"x" * 2000
    assert block.put(b"head") == 4
    assert block.zero(4, 508) == 508
    assert bytes(block.data[:514]) == b"head" + bytes(508) + b"xx"
    assert len(block.data) > frame.INPUT_BYTES + packer.HEADER_ROOM


@pytest.mark.parametrize("limit", [1, 100, 1000, 10_000])
def test_an_index_is_written_in_pieces_of_a_limited_size(
    tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, its size in the tar is that of its lines."""
    in_pieces = SimpleNamespace(INPUT_BYTES=limit, compress=frame.compress, with_extra=frame.with_extra)
    monkeypatch.setattr("portal.ops.archive.index_output.frame", in_pieces)
    members = [file(f"{number:03}", 10) for number in range(40)]
    with writing(tmp_path / NAME) as written:
        added = written.add(members)
    with tarfile.open(tmp_path / NAME) as archive:
        names = [member.name.partition("/")[2] for member in archive]
        last = archive.extractfile(f"{BACKUP_ID}/{names[-1]}")
        assert last is not None
        lines = last.read().rstrip(b"\0").decode().splitlines()
    assert names == ["manifest.json", *(member.path for member in added), index.NAME]
    assert sum('"path"' in line for line in lines) == 41
    assert [member.path for member in held(tmp_path / NAME)[0]] == [member.path for member in added]
