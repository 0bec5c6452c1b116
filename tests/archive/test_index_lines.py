"""Lines of the index: the quick way of reading one says what the thorough way says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.ops.archive import index
from portal.ops.archive.damage import Damage, DamagedError, checked, is_below
from portal.ops.archive.index import Member, MemberType, decode_member, encode_member
from portal.ops.errors import NotIntactError

NUMBERS = st.integers(-(1 << 66), 1 << 66) | st.integers(-2, 2) | st.integers(10**17, 10**20)
NAMES = st.text(st.characters(codec="utf-8") | st.sampled_from('/."\\\n'), min_size=1, max_size=12)
FILES = st.builds(
    Member,
    path=NAMES,
    type=st.just(MemberType.FILE),
    size=NUMBERS,
    mode=st.integers(0, 1 << 34),
    uid=NUMBERS,
    gid=st.integers(0, 1 << 34),
    mtime_ns=NUMBERS,
    ctime_ns=NUMBERS,
    inode=NUMBERS,
    sha256=st.sampled_from(["0a" * 32, "", "0A" * 32, "0" * 65]),
    frame=st.integers(-1, 1 << 62),
    at=st.integers(-1, 1 << 62),
)


def read(line: bytes, how: str) -> Member | None:
    """What a line says; nothing where it is invalid."""
    try:
        return {"quick": decode_member, "thorough": index._decode_any}[how](line)
    except NotIntactError:
        return None


def line_of(member: Member) -> bytes:
    return index.number([encode_member(member)], member.frame).rstrip("\n").encode("ascii")


@given(FILES)
def test_a_file_is_read_alike(member: Member) -> None:
    """Whatever its name and numbers, also where they are out of bounds."""
    line = line_of(member)
    assert read(line, "quick") == read(line, "thorough")


@given(
    FILES,
    st.integers(0, 200),
    st.sampled_from([b"", b"0", b"-", b" ", b'"', b"\\", b"\xff", b"\x00", b"+", b"_", b"."]),
)
def test_a_line_that_was_changed_is_read_alike(member: Member, at: int, instead: bytes) -> None:
    """One byte of it is another one, or gone."""
    line = line_of(member)
    changed = line[:at] + instead + line[at + 1 :]
    assert read(changed, "quick") == read(changed, "thorough")


def test_a_usual_line_is_read_quickly() -> None:
    """The pattern fits what a backup writes."""
    member = Member(
        "media/tenant-1/scan.json", MemberType.FILE, size=7, mtime_ns=1_700_000_000_123_456_789, sha256="ab" * 32
    )
    assert index._PLAIN_FILE.fullmatch(line_of(member))
    assert decode_member(line_of(member)) == member


@pytest.mark.parametrize("path", ["/a", "a/", "a//b", ".", "..", "a/./b", "../a", "a/..", "a\0b", ""])
def test_a_path_that_leads_out_is_refused(path: str) -> None:
    """Or that is none."""
    with pytest.raises(NotIntactError):
        checked(Member(path, MemberType.FILE))


@pytest.mark.parametrize("path", ["a", "a/b", "...", "a/.b", ".a/b..", "a./b"])
def test_a_path_with_points_is_a_path(path: str) -> None:
    """Only whole names of one or two points lead elsewhere."""
    assert checked(Member(path, MemberType.FILE)).path == path


FILE = Member("media/a", MemberType.FILE, size=7, mtime_ns=1, ctime_ns=2, inode=3, sha256="ab" * 32, frame=4, at=512)
LONG_PATH = "a" * (index.LINE_BYTES - 1)
VALUE = "dmFsdWU="


@pytest.mark.parametrize(
    ("possible", "impossible"),
    [
        (FILE._replace(xattrs=(("user.a", VALUE),)), FILE._replace(xattrs=(("", VALUE),))),
        (FILE._replace(xattrs=(("a" * 255, ""),)), FILE._replace(xattrs=(("a" * 256, ""),))),
        (FILE._replace(xattrs=(("ä" * 127, VALUE),)), FILE._replace(xattrs=(("ä" * 128, VALUE),))),
        (FILE._replace(xattrs=(("user.a", VALUE),)), FILE._replace(xattrs=(("user.\0", VALUE),))),
        (
            FILE._replace(xattrs=(("user.a", VALUE), ("user.b", VALUE))),
            FILE._replace(xattrs=(("user.a", VALUE), ("user.b", "dmFsdWU"))),
        ),
        (FILE._replace(xattrs=(("user.a", VALUE),)), FILE._replace(xattrs=(("user.a", "dmFs dWU="),))),
        (FILE._replace(sparse=((0, 7),)), FILE._replace(sparse=((0, 8),))),
        (
            FILE._replace(type=MemberType.FILE, sparse=((0, 7),)),
            FILE._replace(type=MemberType.SYMLINK, sparse=((0, 7),), sha256=""),
        ),
        (FILE._replace(size=(1 << 63) - 1), FILE._replace(size=1 << 63)),
        (FILE._replace(size=0), FILE._replace(size=-1)),
        (FILE._replace(mtime_ns=(1 << 93) - 1), FILE._replace(mtime_ns=1 << 93)),
        (FILE._replace(mtime_ns=1 - (1 << 93)), FILE._replace(mtime_ns=-(1 << 93))),
        (FILE._replace(uid=(1 << 32) - 1), FILE._replace(uid=1 << 32)),
        (FILE._replace(gid=(1 << 32) - 1), FILE._replace(gid=1 << 32)),
        (FILE._replace(mode=(1 << 32) - 1), FILE._replace(mode=1 << 32)),
        (FILE._replace(uid=0, gid=0, mode=0), FILE._replace(uid=-1)),
        (FILE._replace(gid=0), FILE._replace(gid=-1)),
        (FILE._replace(frame=0), FILE._replace(frame=-1)),
        (FILE._replace(at=0), FILE._replace(at=-1)),
        (FILE._replace(path=LONG_PATH), FILE._replace(path=f"{LONG_PATH}a")),
        (
            Member("l", MemberType.SYMLINK, link=LONG_PATH[1:]),
            Member("l", MemberType.SYMLINK, link=LONG_PATH),
        ),
        (FILE._replace(path=LONG_PATH[2:] + "ä"), FILE._replace(path=LONG_PATH[1:] + "ä")),
    ],
)
def test_what_no_header_can_say_is_refused(possible: Member, impossible: Member) -> None:
    """At each limit: what is just possible is read as it was written, and what is beyond is no line."""
    assert read(line_of(possible), "quick") == read(line_of(possible), "thorough") == possible
    assert read(line_of(impossible), "quick") is None


@pytest.mark.parametrize(
    "member",
    [
        Member("media", MemberType.DIRECTORY, mode=0o755),
        Member("media/l", MemberType.SYMLINK, link='a"\\ä\udcff'),
        Member("media/h", MemberType.HARDLINK, link="media/a"),
        FILE._replace(path='media/"\\ä\udcff\n'),
        FILE._replace(xattrs=(("user.a", VALUE), ("user.=%", "")), sparse=((0, 0), (4096, 7)), size=5000),
    ],
)
def test_a_line_is_read_as_it_was_written(member: Member) -> None:
    """Whatever kind it is of; and with anything behind it, it is no line."""
    line = line_of(member)
    assert decode_member(line) == member
    for more in (b" ", b"x", b"{}", b","):
        assert read(line + more, "quick") is None


def test_lines_are_what_the_format_says() -> None:
    """The layout counts: `find` looks for the path as text, and releases before read these very lines."""
    assert line_of(FILE).decode() == (
        '{"frame":4,"at":512,"path":"media/a","type":"file","mode":"0600","uid":0,"gid":0,"mtime_ns":1,"ctime_ns":2,'
        f'"inode":3,"size":7,"sha256":"{"ab" * 32}"}}'
    )
    others = {
        Member("media", MemberType.DIRECTORY, mode=0o755, frame=4): "directory",
        Member("media/b", MemberType.SYMLINK, mode=0o755, frame=4, link="a"): "symlink",
        Member("media/b", MemberType.HARDLINK, mode=0o755, frame=4, link="media/a"): "hardlink",
    }
    for member, kind in others.items():
        link = f',"link":"{member.link}"' if member.link else ""
        assert line_of(member).decode() == (
            f'{{"frame":4,"at":0,"path":"{member.path}","type":"{kind}","mode":"0755","uid":0,"gid":0,"mtime_ns":0,'
            f'"ctime_ns":0,"inode":0{link}}}'
        )
    extended = FILE._replace(xattrs=(("user.a", "eA=="), ("user.b", "")), sparse=((0, 512), (1024, 0)))
    assert (
        ',"inode":3,"xattrs":{"user.a":"eA==","user.b":""},"sparse":[[0,512],[1024,0]],"size":7,"sha256":"'
        in line_of(extended).decode()
    )
    assert encode_member(FILE._replace(sha256=""), "cd" * 32) == encode_member(FILE._replace(sha256="cd" * 32))
    assert index.number([], 7) == ""
    assert index.number(["a\n", "b\n"], 7) == '{"frame":7,a\n{"frame":7,b\n'
    assert index.head_line("x", frames=2, members=3) == ('{"index_version":1,"backup_id":"x","frames":2,"members":3}\n')


HEAD = {"index_version": 1, "backup_id": "a", "frames": 0, "members": 0}
MOST = (1 << 63) - 1


@pytest.mark.parametrize(
    ("name", "possible", "impossible"),
    [
        ("frames", [0, 1, MOST], [-1, MOST + 1, True, 1.0, "1", None]),
        ("members", [0, 1, MOST], [-1, MOST + 1, True, 1.0, "1", None]),
        ("backup_id", ["a", "...", "ä"], ["", ".", "..", "a/b", "/", "a\0b"]),
        ("index_version", [1, 2], [0, 3, None]),
    ],
)
def test_a_first_line_that_cannot_be_is_refused(name: str, possible: list[Any], impossible: list[Any]) -> None:
    """Each of its values is bounded; the ones at the bounds are read."""
    for value in possible:
        head = HEAD | {name: value}
        assert index.decode_head(json.dumps(head).encode()) == (head["backup_id"], head["frames"], head["members"])
    for value in impossible:
        with pytest.raises(NotIntactError):
            index.decode_head(json.dumps(HEAD | {name: value}).encode())
    with pytest.raises(NotIntactError):
        index.decode_head(json.dumps({one: value for one, value in HEAD.items() if one != name}).encode())


def table(*frames: tuple[int, int]) -> index.FrameTable:
    """A table of frames, each with its length in the file and in the tar."""
    made = index.FrameTable()
    assert [made.append(*one) for one in frames] == list(range(len(frames)))
    return made


def test_a_table_of_frames_is_read_as_it_was_written() -> None:
    """Each frame lies behind the one before; the bytes that it takes are known beforehand."""
    made = table((10, 1000), (20, 2000), (5, 500))
    lines = list(made.encode())
    assert lines[1] == b'{"offset":10,"length":20,"tar_length":2000}\n'
    assert made.encoded_bytes() == sum(map(len, lines))
    found = index.FrameTable()
    for line in lines:
        found.decode_line(line)
    assert (found.offsets, found.lengths, found.tar_lengths) == (made.offsets, made.lengths, made.tar_lengths)
    assert found.end == made.end == 35


@pytest.mark.parametrize(("count", "end"), [(0, 0), (1, 10), (2, 30), (3, 35), (4, 35)])
def test_frames_that_are_taken_back_are_forgotten(count: int, end: int) -> None:
    """The next one lies where the first of them lay."""
    made = table((10, 1000), (20, 2000), (5, 500))
    made.truncate(count)
    assert (len(made), made.end) == (min(count, 3), end)
    assert len(made.lengths) == len(made.tar_lengths) == len(made)
    assert made.append(7, 700) == min(count, 3)
    assert made.offsets[-1] == end


@pytest.mark.parametrize(
    ("possible", "impossible"),
    [
        ((0, 1, 1), (1, 1, 1)),
        ((0, 1, 1), (0, 0, 1)),
        ((0, 1, 1), (0, 1, 0)),
        ((0, index.FRAME_MAX - 1, 1), (0, index.FRAME_MAX, 1)),
        ((0, 1, index.FRAME_MAX - 1), (0, 1, index.FRAME_MAX)),
    ],
)
def test_a_frame_that_cannot_be_is_refused(possible: tuple[int, ...], impossible: tuple[int, ...]) -> None:
    """It follows the one before, holds something, and is no larger than a reader keeps in memory."""
    line = '{"offset":%d,"length":%d,"tar_length":%d}'
    index.FrameTable().decode_line((line % possible).encode())
    with pytest.raises(NotIntactError):
        index.FrameTable().decode_line((line % impossible).encode())


@pytest.mark.parametrize(
    ("path", "top", "is_so"),
    [("a", "a", True), ("a/b", "a", True), ("ab", "a", False), ("a", "a/b", False), ("b/a", "a", False)],
)
def test_what_is_below_a_path(path: str, top: str, is_so: bool) -> None:
    """A name that only begins alike is not below it."""
    assert is_below(path, top) is is_so


@pytest.mark.parametrize("lie", [{"size": -1}, {"at": -1}, {"frame": -1}, {"link": "a\0b"}])
def test_what_is_impossible_of_a_member_is_damage(lie: dict[str, Any]) -> None:
    """An archive of tar and gzip has no line of ours that would have been refused."""
    assert checked(FILE._replace(size=0, at=0, frame=0)).path == FILE.path
    with pytest.raises(DamagedError, match="media/a: the index says something impossible of it"):
        checked(FILE._replace(**lie))


@pytest.mark.parametrize("link", ["/a", "../a", ""])
def test_the_target_of_a_hard_link_is_a_path(link: str) -> None:
    """That of a symlink is whatever it is."""
    assert checked(Member("media/l", MemberType.SYMLINK, link=link)).link == link
    with pytest.raises(DamagedError):
        checked(Member("media/l", MemberType.HARDLINK, link=link))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (Damage("bad"), "bad"),
        (Damage("bad", frame=0), "frame 0: bad"),
        (Damage("bad", path="media/a"), "media/a: bad"),
        (Damage("bad", frame=3, path="media/a"), "media/a, frame 3: bad"),
    ],
)
def test_damage_is_told_with_its_place(damage: Damage, text: str) -> None:
    """As far as it is known."""
    error = DamagedError(damage)
    assert (str(error.damage), error.message) == (text, text)
    assert error.hint
