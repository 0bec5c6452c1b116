"""How the files of a stage are written: nothing missing, nothing too much, holes as holes."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.sparse import hole
from portal.ops.errors import DiskFullError, NotIntactError
from portal.ops.filesystem.tree import Tree
from portal.ops.restore.files import free_space
from portal.ops.restore.files.file_writer import HOLE_BYTES, FileMaker, attributes_of, drain
from portal.ops.restore.files.free_space import Room
from portal.ops.restore.files.writers import BLOCK_BYTES, Writers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOMENT = 1_700_000_000_123_456_789
ZEROS = bytes(HOLE_BYTES)


def member(path: str, size: int, **facts: Any) -> Member:
    found: dict[str, Any] = {"mode": 0o640, "uid": os.getuid(), "gid": os.getgid(), "mtime_ns": MOMENT}
    return Member(path, MemberType.FILE, size, **(found | facts))


def made(root: Path, content: bytes, pieces: list[bytes], advance: Any = lambda _: None) -> Path:
    """One file of these pieces."""
    with Tree(str(root)) as tree, Writers() as writers:
        maker = FileMaker(tree, writers, Room(tree.fileno(), str(root)), advance=advance)
        maker.make("a/file", member("media/a/file", len(content)), iter([memoryview(piece) for piece in pieces]))
    return root / "a" / "file"


def in_pieces(content: bytes, length: int) -> list[bytes]:
    return [content[at : at + length] for at in range(0, len(content), length)]


NOISE = os.urandom(HOLE_BYTES)


@pytest.mark.parametrize("length", [1 << 20, HOLE_BYTES, 5000, 4096, HOLE_BYTES + 4096])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        NOISE[:-1],
        NOISE,
        NOISE + b"x",
        ZEROS[:-1],
        ZEROS,
        ZEROS + b"x",
        b"x" + ZEROS * 3 + b"y",
        ZEROS * 2 + NOISE + ZEROS * 2,
        NOISE + ZEROS * 3 + b"end",
        NOISE[:100] + ZEROS * 4 + NOISE[:100] + ZEROS[:4096],
    ],
)
def test_the_content_is_the_files(tmp_path: Path, content: bytes, length: int) -> None:
    """However it is cut into pieces; every byte is told, holes too; mode and time are those of the member."""
    told: list[int] = []
    path = made(tmp_path, content, in_pieces(content, length), told.append)
    assert path.read_bytes() == content
    assert sum(told) == len(content)
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o640, MOMENT)


@pytest.mark.parametrize("length", [HOLE_BYTES, 3 * HOLE_BYTES, 1 << 20])
@pytest.mark.parametrize(
    ("before", "after", "blocks"),
    [(b"", b"", 0), (NOISE, b"", 1), (b"", NOISE, 1), (NOISE, NOISE, 2), (b"", NOISE[:4096], 1)],
)
def test_zeros_are_holes(tmp_path: Path, before: bytes, after: bytes, blocks: int, length: int) -> None:
    """At the beginning, in the middle and at the end, if they are long enough."""
    content = before + ZEROS * 16 + after
    path = made(tmp_path, content, in_pieces(content, length))
    assert path.read_bytes() == content
    assert path.stat().st_blocks * 512 <= blocks * HOLE_BYTES


@pytest.mark.parametrize(
    ("lengths", "most_blocks"),
    [
        ((0, 3 * HOLE_BYTES), 0),
        ((HOLE_BYTES, 3 * HOLE_BYTES, HOLE_BYTES), 2),
        ((HOLE_BYTES, 3 * HOLE_BYTES + 7), 1),
        ((HOLE_BYTES + 512, 3 * HOLE_BYTES - 512, HOLE_BYTES), 4),
        ((HOLE_BYTES, 3 * HOLE_BYTES + 512, HOLE_BYTES - 512), 3),
        ((4096, 4096, 4096, 60_000, 5), 2),
    ],
)
def test_holes_of_the_archive_stay_holes(tmp_path: Path, lengths: tuple[int, ...], most_blocks: int) -> None:
    """Where they begin and end with a block, or with the file; data and holes come by turns."""
    pieces: list[memoryview] = []
    for number, length in enumerate(lengths):
        pieces += hole(length) if number % 2 else [memoryview(NOISE * 2)[:length]]
    content = b"".join(pieces)
    with Tree(str(tmp_path)) as tree, Writers() as writers:
        maker = FileMaker(tree, writers, Room(tree.fileno(), ""))
        maker.make("f", member("media/f", len(content)), iter(pieces))
    assert (tmp_path / "f").read_bytes() == content
    assert (tmp_path / "f").stat().st_blocks * 512 <= most_blocks * HOLE_BYTES


def test_holes_need_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written does, in small files and in large ones."""
    taken: list[int] = []
    monkeypatch.setattr(Room, "take", lambda _, count: taken.append(count))
    content = ZEROS * 4 + NOISE + ZEROS * 2
    made(tmp_path, content, in_pieces(content, HOLE_BYTES))
    assert sum(taken) == HOLE_BYTES
    taken.clear()
    (tmp_path / "other").mkdir()
    made(tmp_path / "other", b"small", [b"sm", b"all"])
    assert taken == [2, 3]


def test_a_full_disk_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written."""
    monkeypatch.setattr(free_space, "room", lambda _: 4)
    with pytest.raises(DiskFullError):
        made(tmp_path, b"12345", [b"12345"])
    assert (tmp_path / "a" / "file").read_bytes() == b""
    (tmp_path / "a" / "file").unlink()
    assert made(tmp_path, b"1234", [b"1234"]).read_bytes() == b"1234"


@pytest.mark.parametrize("size", [10, 3 * HOLE_BYTES])
@pytest.mark.parametrize(("more", "says"), [(1, "longer"), (-1, "shorter"), (BLOCK_BYTES, "longer")])
def test_the_index_says_how_long_it_is(tmp_path: Path, size: int, more: int, says: str) -> None:
    """To the byte."""
    content = os.urandom(size + more)
    with Tree(str(tmp_path)) as tree, Writers() as writers:
        maker = FileMaker(tree, writers, Room(tree.fileno(), ""))
        with pytest.raises(NotIntactError, match=f"media/f is {says} than the archive says"):
            maker.make("f", member("media/f", size), iter([memoryview(piece) for piece in in_pieces(content, 7000)]))


@pytest.mark.parametrize("size", [1, HOLE_BYTES])
def test_nothing_is_written_over(tmp_path: Path, size: int) -> None:
    """What is there already, or a file where a directory should be, is an archive that lies."""
    (tmp_path / "there").write_text("kept")
    (tmp_path / "link").symlink_to("elsewhere")
    with Tree(str(tmp_path)) as tree, Writers() as writers:
        maker = FileMaker(tree, writers, Room(tree.fileno(), ""))
        for path in ("there", "link", "there/file"):
            with pytest.raises(NotIntactError, match=f"media/{path} comes twice"):
                maker.make(path, member(f"media/{path}", size), iter([memoryview(bytes(size))]))
    assert (tmp_path / "there").read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["link", "there"]


def test_descriptors_are_closed(tmp_path: Path) -> None:
    """Also of a file that could not be written."""
    before = len(os.listdir("/proc/self/fd"))

    def fails() -> Iterator[memoryview]:
        yield memoryview(b"x")
        raise KeyError

    with Tree(str(tmp_path)) as tree, Writers() as writers:
        maker = FileMaker(tree, writers, Room(tree.fileno(), ""))
        inside = len(os.listdir("/proc/self/fd"))
        maker.make("done", member("media/done", 1), iter([memoryview(b"x")]))
        with pytest.raises(KeyError):
            maker.make("file", member("media/file", 2), fails())
        assert len(os.listdir("/proc/self/fd")) == inside
    assert len(os.listdir("/proc/self/fd")) == before


def test_attributes() -> None:
    """Of a file without the bits that make it run as somebody else; of a directory with them."""
    found = attributes_of(member("media/a", 0, mode=0o7755))
    assert found == (0o1755, os.getuid(), os.getgid(), MOMENT, None)
    place = Member("media/a", MemberType.DIRECTORY, mode=0o7755, xattrs=(("user.a", "eA=="),))
    assert (attributes_of(place).mode, attributes_of(place).xattrs) == (0o7755, (("user.a", "eA=="),))


def test_content_that_is_not_wanted_is_read() -> None:
    """To its end, since only that checks it."""
    read: list[int] = []

    def content() -> Iterator[memoryview]:
        for number in range(3):
            read.append(number)
            yield memoryview(b"x")

    drain(content())
    assert read == [0, 1, 2]
