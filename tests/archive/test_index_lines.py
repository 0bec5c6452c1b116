"""Lines of the index: the quick way of reading one says what the thorough way says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.ops.archive import index
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
    from portal.ops.archive.damage import checked

    with pytest.raises(NotIntactError):
        checked(Member(path, MemberType.FILE))


@pytest.mark.parametrize("path", ["a", "a/b", "...", "a/.b", ".a/b..", "a./b"])
def test_a_path_with_points_is_a_path(path: str) -> None:
    """Only whole names of one or two points lead elsewhere."""
    from portal.ops.archive.damage import checked

    assert checked(Member(path, MemberType.FILE)).path == path
