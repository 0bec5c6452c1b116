"""What packs small files into frames, in this process: what it notes of each, and what it leaves for later."""

from __future__ import annotations

import errno
import gzip
import io
import os
import socket
import threading
from contextlib import closing
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.archive import frame, packer
from portal.ops.archive.compressor_pool import CompressorPool
from portal.ops.archive.index import MemberType, decode_member, number, tar_header
from portal.ops.archive.packer import LARGE_BYTES, Pack, Packer, receive_pack, send_pack
from portal.ops.errors import OpsError
from portal.ops.filesystem.tree import Tree
from portal.ops.filesystem.xattrs import TooManyXattrsError
from tests.support.archives import BACKUP_ID, compressor_pool
from tests.support.trees import MIB
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from portal.ops.archive.index import Member


def files(*names: str) -> list[packer.Item]:
    return [(f"media/{name}", "file", "") for name in names]


def packed(media: Path, items: list[packer.Item], own: Packer | None = None) -> Pack:
    """Items of a tree, packed into one frame."""
    with closing(Tree(str(media))) as tree:
        return (own or Packer()).pack(BACKUP_ID, tree, items)


def members(pack: Pack) -> list[tuple[Member, bytes]]:
    """What is in a pack by its lines, with the bytes at that place."""
    data = gzip.decompress(pack.frame) if pack.lines else b""
    assert len(data) == pack.tar_length
    found = []
    for line in pack.lines:
        member = decode_member(number([line], 0).rstrip("\n").encode())
        start = member.at + len(tar_header(member, BACKUP_ID))
        assert data[member.at : start] == tar_header(member, BACKUP_ID)
        found.append((member, data[start : start + member.size]))
    return found


def test_every_kind_is_packed_as_it_is(media: Path) -> None:
    """A directory, links and files, counted; a second frame in the same buffer begins at its start."""
    for name, size in (("a", 0), ("b", 511), ("c", 512), ("d", 100_000)):
        (media / name).write_bytes(name.encode() * size)
    (media / "link").symlink_to("a")
    items: list[packer.Item] = [
        ("media", "directory", ""),
        *files(*"abcd"),
        ("media/link", "symlink", ""),
        ("media/b", "hardlink", "media/a"),
    ]
    own = Packer()
    for _ in range(2):
        pack = packed(media, items, own)
        found = members(pack)
        assert [(one.path, one.type) for one, _ in found] == [(path, MemberType(kind)) for path, kind, _ in items]
        assert {one.path[6:]: content for one, content in found if one.type is MemberType.FILE} == {
            name: (media / name).read_bytes() for name in "abcd"
        }
        assert {one.sha256 for one, _ in found if one.sha256} == {
            sha256((media / name).read_bytes()).hexdigest() for name in "abcd"
        }
        assert [one.link for one, _ in found if one.link] == ["a", "media/a"]
        assert (pack.files, pack.content_bytes) == (4, 511 + 512 + 100_000)
        assert (pack.vanished, pack.changed, pack.special, pack.outside, pack.stripped, pack.rest, pack.large) == (
            [], [], [], [], [], [], [],
        )  # fmt: skip


def test_what_is_another_thing_by_now_is_noted(media: Path) -> None:
    """A name that is gone, one that a FIFO, a socket or a directory has, one that has grown: each with its note."""
    (media / "kept").write_bytes(b"kept")
    os.mkfifo(media / "fifo")
    (media / "directory").mkdir()
    (media / "grown").write_bytes(bytes(LARGE_BYTES))
    (media / "nearly").write_bytes(bytes(LARGE_BYTES - 1))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(media / "socket"))
        others: list[packer.Item] = [
            ("media/kept", "directory", ""),
            ("media/kept", "symlink", ""),
            ("media/gone", "symlink", ""),
            ("media/directory", "hardlink", "media/kept"),
        ]
        pack = packed(media, [*files("gone", "fifo", "socket", "directory", "grown", "nearly", "kept"), *others])
    assert [one.path for one, _ in members(pack)] == ["media/nearly", "media/kept"]
    assert sorted(pack.special) == ["media/directory", "media/fifo", "media/socket"]
    assert pack.vanished == ["media/gone", *(path for path, _, _ in others)]
    assert pack.large == files("grown")
    assert (pack.files, pack.content_bytes, pack.changed) == (2, LARGE_BYTES - 1 + 4, [])


def test_a_link_that_leads_out_is_noted(media: Path) -> None:
    """With its target; it is packed all the same."""
    for name, target in (("in", "a/b"), ("out", "/etc/passwd"), ("up", "../../elsewhere")):
        (media / name).symlink_to(target)
    pack = packed(media, [(f"media/{name}", "symlink", "") for name in ("in", "out", "up")])
    assert pack.outside == [("media/out", "/etc/passwd"), ("media/up", "../../elsewhere")]
    assert len(pack.lines) == 3


def test_what_does_not_fit_is_left_for_another_frame(media: Path) -> None:
    """The frame ends before its buffer does, and everything behind it is named in order."""
    names = [f"{number}" for number in range(8)]
    for name in names:
        (media / name).write_bytes(os.urandom(LARGE_BYTES - 1))
    pack = packed(media, files(*names))
    held = len(pack.lines)
    assert 2 <= held < 8
    assert pack.tar_length <= 4 * frame.INPUT_BYTES
    assert pack.rest == files(*names[held:])
    assert [content for _, content in members(pack)] == [(media / name).read_bytes() for name in names[:held]]


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_file_that_cannot_be_read_is_the_only_thing_told(
    media: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """No frame comes of it; its path and the error do."""
    for name in "abc":
        (media / name).write_bytes(b"x")
    opened = Tree.open_file

    def refuse(tree: Tree, path: str) -> int:
        if path == "b":
            raise OSError(number, os.strerror(number))
        return opened(tree, path)

    monkeypatch.setattr(Tree, "open_file", refuse)
    pack = packed(media, files(*"abc"))
    assert pack.failure == ("media/b", number)
    assert (pack.lines, pack.frame, pack.files) == ([], b"", 0)


class Restless:
    """Changes a file after each of so many looks at its content."""

    def __init__(self, path: Path, change: Any, times: int) -> None:
        self.path, self.change, self.left, self.reads = path, change, times, 0

    def readv(self, descriptor: int, buffers: list[memoryview]) -> int:
        """Read, then change the file."""
        self.reads += 1
        count = os.preadv(descriptor, buffers, os.lseek(descriptor, 0, os.SEEK_CUR))
        os.lseek(descriptor, count, os.SEEK_CUR)
        if self.left:
            self.left -= 1
            self.change(self.path)
        return count


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def overwrite(path: Path) -> None:
    found = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))  # as somebody does who does not want it to be seen


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("change", [append, overwrite, shorten])
@pytest.mark.parametrize(("times", "is_noted"), [(0, False), (2, False), (3, True), (9, True)])
def test_a_file_that_changes_is_read_three_times(
    media: Path, monkeypatch: pytest.MonkeyPatch, change: Any, times: int, is_noted: bool
) -> None:
    """Then it is kept with a note, as it was read last; its neighbours are not touched by that."""
    for name in "abc":
        (media / name).write_bytes(f"{name} and some text".encode() * 100)
    restless = Restless(media / "b", change, times)
    monkeypatch.setattr(os, "readv", restless.readv)
    pack = packed(media, files("b", "c"))
    assert pack.changed == (["media/b"] if is_noted else [])
    found = {member.path: content for member, content in members(pack)}
    assert found["media/c"] == (media / "c").read_bytes()
    if not is_noted:
        assert found["media/b"] == (media / "b").read_bytes()
    assert len(found) == pack.files == 2


def test_too_many_attributes_are_left_out_and_noted_once(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the file was read; the directory has a note of its own."""

    def refuse(_: int, __: list[str]) -> None:
        raise TooManyXattrsError

    monkeypatch.setattr(packer, "read_xattrs", refuse)
    (media / "a").write_bytes(b"some text")
    restless = Restless(media / "a", append, 9)
    monkeypatch.setattr(os, "readv", restless.readv)
    pack = packed(media, [("media", "directory", ""), *files("a")])
    assert pack.stripped == ["media", "media/a"]
    assert [one.xattrs for one, _ in members(pack)] == [(), ()]


def test_the_same_content_is_told_by_times_and_size(media: Path) -> None:
    """Each of the three counts, also where it goes backwards."""
    (media / "a").write_bytes(b"x")
    found = os.stat(media / "a")
    assert packer.same_content(found, found)
    for name in ("st_mtime_ns", "st_ctime_ns", "st_size"):
        for step in (1, -1):
            other = _changed(found, name, step)
            assert not packer.same_content(found, other)
            assert not packer.same_content(other, found)


def _changed(found: os.stat_result, name: str, step: int) -> Any:
    values = {one: getattr(found, one) for one in ("st_mtime_ns", "st_ctime_ns", "st_size")}
    values[name] += step
    return type("Changed", (), values)


def test_a_pack_that_is_cut_short_is_an_error() -> None:
    """A helper that ends in the middle of an answer is not taken for one that has answered."""
    pack = Pack()
    pack.frame, pack.lines, pack.failure = b"frame", ["line"], ("path", 5)
    stream = io.BytesIO()
    send_pack(stream, pack)
    sent = stream.getvalue()
    found = receive_pack(io.BytesIO(sent))
    assert (found.frame, found.lines, found.failure) == (b"frame", ["line"], ("path", 5))
    for length in range(len(sent)):
        with pytest.raises(EOFError):
            receive_pack(io.BytesIO(sent[:length]))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_pool_leaves_nothing_behind(media: Path) -> None:
    """No descriptor, no process and no thread, with helpers and without them, and also after an error."""
    (media / "a").write_bytes(b"x")
    before, threads = open_descriptors(), set(threading.enumerate())
    for helpers in (True, False):
        for fails in (False, True):
            with closing(Tree(str(media))) as tree:
                try:
                    with CompressorPool(BACKUP_ID, 2, helpers=helpers) as pool:
                        assert pool.pack(pool.number(), tree, files("a")).result().files == 1
                        processes = [one.helper.process for one in pool._helpers]
                        if fails:
                            raise ZeroDivisionError
                except ZeroDivisionError:
                    assert fails
            assert [process.returncode for process in processes] == [-9 if fails else 0] * (2 if helpers else 0)
            assert open_descriptors() == before
            assert set(threading.enumerate()) <= threads


def test_blocks_that_wait_are_dropped_after_an_error() -> None:
    """Whoever stops a backup does not wait for what nobody will write."""
    waiting: list[Future[bytes]] = []

    def hold(_: frame.Effort) -> bytes:
        wait_until(lambda: len(waiting) == 3 and all(one.cancelled() for one in waiting))
        return b""

    with pytest.raises(ZeroDivisionError), CompressorPool(BACKUP_ID, 1, helpers=False) as pool:
        pool._submit(hold)
        waiting += [pool.compress(b"x") for _ in range(3)]
        raise ZeroDivisionError
    assert all(one.cancelled() for one in waiting)


def test_trees_are_told_apart(tmp_path: Path) -> None:
    """By the number that each has, whichever helper or thread reads them."""
    for jobs, helpers in ((1, True), (2, True), (2, False)):
        with CompressorPool(BACKUP_ID, jobs, helpers=helpers) as pool:
            for name in ("one", "two", "three"):
                place = tmp_path / name
                place.mkdir(exist_ok=True)
                (place / "a").write_bytes(name.encode())
                with closing(Tree(str(place))) as tree:
                    number = pool.number()
                    for _ in range(3):
                        (content,) = members(pool.pack(number, tree, files("a")).result())
                        assert content[1] == name.encode()


def test_a_helper_that_ends_is_an_error_with_a_hint(media: Path) -> None:
    """It is not waited for; what to look for is told."""
    (media / "a").write_bytes(b"x")
    with closing(Tree(str(media))) as tree, pytest.raises(ZeroDivisionError), compressor_pool() as pool:
        pool.start_helpers()
        for one in pool._helpers:
            one.helper.process.kill()
            one.helper.process.wait()
        for _ in range(4):  # more than there are helpers: each is there again for the next
            with pytest.raises(OpsError, match="a helper process of the backup ended unexpectedly") as caught:
                pool.pack(0, tree, files("a")).result(30)
            assert "out of memory" in caught.value.hint
        raise ZeroDivisionError


def test_a_pool_without_helpers_starts_none(media: Path) -> None:
    """Nor does one whose helpers are not wanted any more."""
    (media / "a").write_bytes(b"x")
    with closing(Tree(str(media))) as tree:
        with CompressorPool(BACKUP_ID, 2, helpers=False) as pool:
            pool.start_helpers()
            assert pool.pack(0, tree, files("a")).result().files == 1
            assert not pool._helpers
        with CompressorPool(BACKUP_ID, 2) as pool:
            pool.forgo_helpers()
            assert pool.pack(0, tree, files("a")).result().files == 1
            assert not pool._helpers


def test_compressing_threads_step_back() -> None:
    """They have a lower priority than the thread that reads, so that it is not kept from reading."""
    with CompressorPool(BACKUP_ID, 1) as pool:
        found = pool._submit(lambda _: os.getpriority(os.PRIO_PROCESS, 0)).result()
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert found == min(19, own + 5)


def test_large_is_what_is_streamed() -> None:
    """The buffer has room for the largest small file behind a frame that is just not full."""
    assert LARGE_BYTES == MIB
    assert packer._FULL_BYTES + packer.HEADER_ROOM + LARGE_BYTES <= packer._FILES_BYTES
