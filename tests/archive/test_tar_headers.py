"""Tar headers, held against Python's own reader of them."""

from __future__ import annotations

import io
import tarfile
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.ops.archive import tar

GIB = 1 << 30
SECOND = 1_000_000_000


def parsed(*headers: bytes) -> list[tarfile.TarInfo]:
    """What Python's tarfile makes of headers without content."""
    with tarfile.open(fileobj=io.BytesIO(b"".join(headers) + tar.END_OF_ARCHIVE)) as archive:
        return archive.getmembers()


def header(header: bytes) -> tarfile.TarInfo:
    """What tarfile makes of a single header, which may announce content that is not there."""
    with tarfile.open(fileobj=io.BytesIO(header + tar.END_OF_ARCHIVE), mode="r|") as archive:
        found = archive.next()
    assert found is not None
    return found


def nanoseconds(found: tarfile.TarInfo) -> int:
    """The time of a member, with all the digits that it has."""
    return int(Decimal(found.pax_headers.get("mtime", found.mtime)) * SECOND)


def raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


part = st.binary(min_size=1, max_size=255).filter(lambda name: not set(name) & {0, ord("/")})
names = st.lists(part, min_size=1, max_size=16).map(b"/".join)
numbers = st.one_of(st.integers(0, 2**21 + 1), st.integers(0, 2**32 - 1))
times = st.integers(-(2**63), 2**63).flatmap(lambda s: st.sampled_from([s, s // SECOND * SECOND]))


@given(name=names)
def test_any_name_is_read_back(name: bytes) -> None:
    """A name of any bytes and length is read back byte by byte."""
    assert raw(header(tar.encode(name)).name) == name


@pytest.mark.parametrize("length", [1, 99, 100, 101, 255, 256, 300, 511, 512, 513, 4095])
def test_name_of_each_length_is_read_back(length: int) -> None:
    """Names around each limit of the format are read back whole."""
    name = b"d/" * ((length - 1) // 2) + b"n" * (1 + (length - 1) % 2)
    assert len(name) == length
    assert raw(header(tar.encode(name)).name) == name


@pytest.mark.parametrize("name", [b"new\nline", b"\xff\xfe\x80", "für".encode(), b" leading", b"trailing ", b"a\\b"])
def test_unusual_name_is_read_back(name: bytes) -> None:
    """Newlines, blanks and bytes that are no text survive."""
    assert raw(header(tar.encode(name)).name) == name


@given(name=names, target=names)
def test_any_link_target_is_read_back(name: bytes, target: bytes) -> None:
    """Name and target of a symlink are read back, whatever their length."""
    found = header(tar.encode(name, typeflag=tar.SYMLINK, link=target))
    assert (raw(found.name), raw(found.linkname)) == (name, target)


@pytest.mark.parametrize(
    ("typeflag", "kind"),
    [(tar.FILE, "isreg"), (tar.DIRECTORY, "isdir"), (tar.SYMLINK, "issym"), (tar.HARDLINK, "islnk")],
)
def test_type_is_read_back(typeflag: bytes, kind: str) -> None:
    """Each type of member is what tarfile takes it for."""
    assert getattr(header(tar.encode(b"x", typeflag=typeflag)), kind)()


@pytest.mark.parametrize("size", [0, 1, 511, 512, 8 * GIB - 1, 8 * GIB, 8 * GIB + 1, 2**62])
def test_size_is_read_back(size: int) -> None:
    """Sizes on both sides of the octal field's limit are exact."""
    assert header(tar.encode(b"x", size=size)).size == size


@given(uid=numbers, gid=numbers, mode=st.integers(0, 0o7777))
def test_owner_and_mode_are_read_back(uid: int, gid: int, mode: int) -> None:
    """Owners up to the kernel's largest and every permission bit are exact, and no user is named."""
    found = header(tar.encode(b"x", uid=uid, gid=gid, mode=mode))
    assert (found.uid, found.gid, found.mode) == (uid, gid, mode)
    assert (found.uname, found.gname) == ("", "")


@given(mtime_ns=times)
def test_time_is_read_back_to_the_nanosecond(mtime_ns: int) -> None:
    """Times before 1970, after 2242 and between two seconds are exact."""
    assert nanoseconds(header(tar.encode(b"x", mtime_ns=mtime_ns))) == mtime_ns


def test_whole_second_needs_no_pax_record() -> None:
    """A time without a fraction fits the plain header, which keeps the archive small."""
    assert len(tar.encode(b"x", mtime_ns=1_700_000_000 * SECOND)) == tar.BLOCK


def test_checksum_is_right_for_each_byte() -> None:
    """The checksum is the plain sum of the header's bytes, also where all of them are large."""
    for value in range(1, 256):
        text = bytes([value]) * 100
        block = tar.encode(text, typeflag=tar.SYMLINK, link=text)
        assert int(block[148:154], 8) == sum(block[:148]) + 8 * ord(" ") + sum(block[156:])


@given(first=names, second=names, mtime_ns=times)
def test_headers_follow_each_other(first: bytes, second: bytes, mtime_ns: int) -> None:
    """What goes ahead of one member is not taken for the next one's."""
    found = parsed(
        tar.encode(first, typeflag=tar.SYMLINK, link=second, mtime_ns=mtime_ns), tar.encode(second, mtime_ns=0)
    )
    assert [raw(member.name) for member in found] == [first, second]
    assert [nanoseconds(member) for member in found] == [mtime_ns, 0]


@given(name=names, target=names, mtime_ns=times)
def test_header_is_whole_blocks(name: bytes, target: bytes, mtime_ns: int) -> None:
    """Whatever goes ahead, a header ends where a block does."""
    assert len(tar.encode(name, typeflag=tar.SYMLINK, link=target, mtime_ns=mtime_ns)) % tar.BLOCK == 0


@pytest.mark.parametrize(("size", "fill"), [(0, 0), (1, 511), (511, 1), (512, 0), (513, 511)])
def test_padding_fills_the_block(size: int, fill: int) -> None:
    """Content and padding are whole blocks."""
    assert tar.padding(size) == fill


@pytest.mark.parametrize("mtime_ns", [0, SECOND, -1, -SECOND, 8**11 * SECOND - 1, 8**11 * SECOND, 5 * SECOND + 7])
def test_attributes_and_holes_are_records(mtime_ns: int) -> None:
    """Beside those, the time of a member is what it would be without; names are escaped as GNU tar does."""
    values = [(b"user.a", b"1"), (b"user.50%=x", b"b\0\n"), (b"user.long", b"z" * 2000)]
    table = b"1\n0\n0\n".ljust(tar.BLOCK, b"\0")
    found = header(tar.encode(b"a/b", size=512, real_size=70_000, mtime_ns=mtime_ns, xattrs=values) + table)
    assert found.pax_headers["SCHILY.xattr.user.a"] == "1"
    assert found.pax_headers["SCHILY.xattr.user.50%25%3Dx"] == "b\0\n"
    assert found.pax_headers["SCHILY.xattr.user.long"] == "z" * 2000
    assert (found.pax_headers["GNU.sparse.name"], found.pax_headers["GNU.sparse.realsize"]) == ("a/b", "70000")
    assert nanoseconds(found) == mtime_ns
    assert ("mtime" in found.pax_headers) is (bool(mtime_ns % SECOND) or not 0 <= mtime_ns < 8**11 * SECOND)


@pytest.mark.parametrize("seconds", [-1, 8**11])
def test_a_time_that_fits_no_field_is_1970_there(seconds: int) -> None:
    """A program that ignores the record gets a time that is plainly none."""
    block = tar.encode(b"x", mtime_ns=seconds * SECOND)[-tar.BLOCK :]
    assert int(block[136:147], 8) == 0


def test_a_packed_name_lies_beside_the_real_one() -> None:
    """A program that does not know the format cannot take the packed data for the file."""
    assert tar.encode(b"top/a/b", real_size=9)[-tar.BLOCK :].startswith(b"top/a/GNUSparseFile.0/b\0")
    assert len(tar.encode(b"x", xattrs=[(b"user.a", b"1")])) == 3 * tar.BLOCK


def test_each_number_that_fits_its_field_is_octal() -> None:
    """Also beside one that does not: a reader makes the header again and compares it byte for byte."""
    block = tar.encode(b"x", uid=8**7, gid=1000, size=12345)
    assert block[108:116] == b"\x80" + (8**7).to_bytes(7, "big")
    assert block[116:124] == b"0001750\0"
    assert block[124:136] == b"00000030071\0"
    assert tar.encode(b"x", uid=7, gid=8**7 - 1, size=8**11)[108:124] == b"0000007\x007777777\0"


@pytest.mark.parametrize("xattrs", [(), ((b"user.a", b"x"),)])
def test_extended_headers_have_no_time_of_their_own(xattrs: tuple[tuple[bytes, bytes], ...]) -> None:
    """The same member always makes the same bytes; the time of the member is in a record."""
    first = tar.encode(b"x", mtime_ns=3 * SECOND + 1, xattrs=xattrs)[: tar.BLOCK]
    assert first[156:157] == b"x"
    assert int(first[136:147], 8) == 0
