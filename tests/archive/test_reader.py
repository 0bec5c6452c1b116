"""The reader by itself: what it says of an archive that lies in one place, and what it reads in advance."""

from __future__ import annotations

import errno
import gzip
import os
import sys
import threading
import time
from contextlib import closing
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.archive import frame, index, read_ahead, tar
from portal.ops.archive.damage import DamagedError
from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.read_ahead import Coming, Expected, Loaded, frames_ahead, hashed, one_thread
from portal.ops.archive.reader import ArchiveReader, is_indexed
from portal.ops.archive.runs import Run, runs
from portal.ops.archive.source import FileSource
from portal.ops.errors import NotIntactError, RepositoryError
from tests.support.archives import BACKUP_ID, MTIME_NS, NAME, Recipe, write_archive
from tests.support.hostile import CONTENT, _write, directory, file, hardlink, manifest_of, symlink, write_indexed
from tests.support.waiting import names_of, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.archive.compressor_pool import CompressorPool

PIECES = (directory("media"), file("media/a"), symlink("media/l", '"path":"media/x",'), file("media/b", b"b" * 50_000))


def damage_of(path: Path, *, below: str | None = None, together: bool = False, jobs: int = 1) -> str:
    """Read everything; what is wrong, or nothing."""
    try:
        with closing(ArchiveReader(path)) as reader:
            for _, content in reader.contents(jobs, below=below, together=together):
                for _ in content:
                    pass
    except NotIntactError as error:
        return error.message
    return ""


def test_what_agrees_is_read(tmp_path: Path) -> None:
    """All of it, by any number of threads; one member, a part below a path, and nothing below another."""
    path = write_indexed(tmp_path, PIECES)
    assert [damage_of(path, jobs=jobs) for jobs in (1, 2, 5)] == [""] * 3
    with closing(ArchiveReader(path)) as reader:
        assert [one.path for one in reader.members()] == ["manifest.json", *(piece.member.path for piece in PIECES)]
        assert reader.member_count == 5
        found = reader.find("media/b")
        assert found is not None
        assert b"".join(reader.extract(found)) == b"b" * 50_000
        assert [reader.find(name) for name in ("media/x", "a", "")] == [None] * 3
        below = [member.path for member, _ in reader.contents(1, below="media")]
        assert below == [piece.member.path for piece in PIECES]
        assert list(reader.contents(1, below="medi")) == []
        assert [one.path for one, _ in reader.contents(1, below="media/a")] == ["media/a"]


@pytest.mark.parametrize("step", [0, 1, 5])
def test_a_frame_that_is_not_there(tmp_path: Path, step: int) -> None:
    """Is named as such, one behind the last like one further on."""
    with closing(ArchiveReader(write_indexed(tmp_path, PIECES))) as reader:
        member = reader.find("media/a")
        assert member is not None
        for number in (len(reader.frames) + step, -1 - step):
            with pytest.raises(DamagedError, match="media/a: the index names a frame that is not there"):
                list(reader.extract(member._replace(frame=number)))


@pytest.mark.parametrize("size", [(1 << 26) + 1, 1 << 40])
def test_a_manifest_that_is_too_large_is_not_read(tmp_path: Path, size: int) -> None:
    """No memory is taken for it."""
    with (
        closing(ArchiveReader(write_indexed(tmp_path, PIECES, size=size))) as reader,
        pytest.raises(DamagedError, match="does not start with a manifest"),
    ):
        reader.manifest()


def test_another_member_in_front_is_no_manifest(tmp_path: Path) -> None:
    """Only the first one counts, by its name."""
    path = rewritten(write_indexed(tmp_path, PIECES), lambda text: text.replace(b"manifest.json", b"manifest.text"))
    with (
        closing(ArchiveReader(path)) as reader,
        pytest.raises(DamagedError, match="does not start with a manifest"),
    ):
        reader.manifest()


def rewritten(path: Path, change: Any) -> Path:
    """The archive with another index, put back with all that belongs around."""
    data = path.read_bytes()
    with closing(ArchiveReader(path)) as reader:
        at = reader.frames.end
    text = gzip.decompress(data[at:])
    size = int(text[124:135], 8)
    lines = change(text[tar.BLOCK : tar.BLOCK + size])
    member = Member(index.NAME, MemberType.FILE, len(lines), mtime_ns=MTIME_NS)
    body = index.tar_header(member, BACKUP_ID) + lines + bytes(tar.padding(len(lines)))
    end = frame.with_extra(tar.END_OF_ARCHIVE, index.TRAILER_ID, index.TRAILER.pack(at))
    path.write_bytes(data[:at] + frame.compress(body) + end)
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text, ""),
        (lambda text: text.replace(b'"members":5', b'"members":4'), "the index has 5 members instead of 4"),
        (lambda text: text.replace(b'"members":5', b'"members":6'), "the index has 5 members instead of 6"),
        (lambda text: text.replace(b'"frames":5', b'"frames":4'), "does not describe the frames that are there"),
        (lambda text: text[:-1], "the index does not end as it should"),
        (lambda text: text + b"x", "the index does not end as it should"),
        (lambda text: text + b"\n", "the index has a line that is invalid"),
        (lambda text: text + b"x" * (3 * index.LINE_BYTES) + b"\n", "the index does not end as it should"),
    ],
)
def test_an_index_that_does_not_fit(tmp_path: Path, change: Any, said: str) -> None:
    """Each way has its words."""
    found = damage_of(rewritten(write_indexed(tmp_path, PIECES), change))
    assert found.startswith(said) or said in found
    assert bool(found) is bool(said)


def test_a_member_apart_from_the_rest(tmp_path: Path) -> None:
    """Is told only to whoever has asked that there be none."""
    apart = [directory("media"), file("media/a"), file("audit/log"), file("media/b")]
    path = write_indexed(tmp_path, apart)
    assert damage_of(path, below="media") == ""
    assert damage_of(path, below="media", together=True) == "media/b: it lies apart from the rest of media"
    assert damage_of(path, below="audit", together=True) == ""


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_not_read_is_passed_over(tmp_path: Path, jobs: int) -> None:
    """Whatever part of a content somebody reads, the next member comes whole."""
    contents = {f"media/{n}": Random(n).randbytes(n * 70_000) for n in range(1, 6)}
    path = write_indexed(tmp_path, [directory("media"), *(file(name, content) for name, content in contents.items())])
    with closing(ArchiveReader(path)) as reader:
        for chosen in contents:
            for member, content in reader.contents(jobs):
                if member.path == chosen:
                    assert b"".join(content) == contents[chosen]
                elif member.path in contents:
                    next(content)


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_shares_a_frame_is_passed_over_as_well(
    pool: CompressorPool, tmp_path: Path, media: Path, jobs: int
) -> None:
    """Files of one frame, each read whole, in part or not at all, in whatever order that happens."""
    contents = {f"media/{number}": Random(number).randbytes(1 + number * 700) for number in range(9)}
    for name, content in contents.items():
        (tmp_path / "uploads" / name.removeprefix("media/")).write_bytes(content)
    path = write_archive(tmp_path / NAME, pool, Recipe(media=media))
    with closing(ArchiveReader(path)) as reader:
        found: dict[str, bytes] = {}
        for turn in range(3):
            for number, (member, pieces) in enumerate(reader.contents(jobs)):
                if (number + turn) % 3 == 0:
                    found[member.path] = b"".join(pieces)
                elif (number + turn) % 3 == 1:
                    next(pieces, None)
        assert {name: found[name] for name in contents} == contents


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_run_is_read_alone(tmp_path: Path, jobs: int) -> None:
    """Its frames and no others; what it does not list is damage."""
    path = write_indexed(tmp_path, PIECES)
    with closing(ArchiveReader(path)) as reader:
        found = list(runs(reader.members(), len(reader.frames)))
        assert [(run.frames.start, len(run.members)) for run in found] == [(number, 1) for number in range(5)]
        read: list[int] = []
        real = reader.read_frame
        reader.read_frame = lambda number: read.append(number) or real(number)  # type: ignore[method-assign,func-returns-value]
        (content,) = [b"".join(content) for _, content in reader.contents_of(found[4], jobs)]
        assert (content, read) == (b"b" * 50_000, [4])
        with pytest.raises(DamagedError, match="something that its index does not list"):
            list(reader.contents_of(Run(range(1, 3), found[1].members), jobs))


def test_a_frame_that_cannot_be_read_is_damage_there(tmp_path: Path) -> None:
    """With what the system says; other frames are read."""

    class Failing(FileSource):
        """A disk with a bad sector."""

        def read_at(self, length: int, offset: int) -> bytes:
            if offset == bad:
                raise OSError(5, "Input/output error")
            return super().read_at(length, offset)

    path = write_indexed(tmp_path, PIECES)
    bad = -1
    with closing(ArchiveReader(path, Failing(path))) as reader:
        bad = reader.frames.offsets[2]
        member, other = reader.find("media/a"), reader.find("media/b")
        assert member is not None
        assert other is not None
        with pytest.raises(DamagedError, match=r"it cannot be read \(input/output error\)") as caught:
            list(reader.extract(member))
        assert (caught.value.damage.frame, caught.value.damage.path) == (2, "media/a")
        assert b"".join(reader.extract(other)) == b"b" * 50_000
        bad = reader.frames.end
        with pytest.raises(DamagedError, match="the index cannot be read"):
            list(reader.members())


def test_what_is_refused_leaves_nothing_open(tmp_path: Path) -> None:
    """Whatever is wrong with it."""
    path = write_indexed(tmp_path, PIECES)
    before = len(os.listdir("/proc/self/fd"))
    data = path.read_bytes()
    for content in (data[:-1], data[:100], b""):
        path.write_bytes(content)
        with pytest.raises(NotIntactError):
            ArchiveReader(path)
        assert len(os.listdir("/proc/self/fd")) == before


def test_an_archive_of_ours_is_known_by_one_of_its_ends(tmp_path: Path) -> None:
    """The other may be damaged; one of tar and gzip has neither."""
    path = write_indexed(tmp_path, PIECES)
    data = path.read_bytes()
    plain = gzip.compress(b"x" * 100_000)
    for content, expected in (
        (data, True),
        (data[:-1], True),
        (data[:10], True),
        (b"\0" * 100 + data[100:], True),
        (b"\0" * 100 + data[100:-1], False),
        (data[:9], False),
        (plain, False),
        (b"", False),
    ):
        path.write_bytes(content)
        assert is_indexed(path) is expected
    with pytest.raises(RepositoryError, match="cannot read"):
        is_indexed(tmp_path)


@pytest.mark.parametrize("place", ["0", "the end", "beyond", "inside"])
def test_an_index_lies_before_the_end(tmp_path: Path, place: str) -> None:
    """And behind the first byte."""
    path = write_indexed(tmp_path, PIECES)
    data = path.read_bytes()
    length = len(frame.with_extra(tar.END_OF_ARCHIVE, index.TRAILER_ID, bytes(8)))
    last = len(data) - length
    at = {"0": 0, "the end": last, "beyond": last + 1, "inside": last - 1}[place]
    path.write_bytes(data[:-length] + frame.with_extra(tar.END_OF_ARCHIVE, index.TRAILER_ID, index.TRAILER.pack(at)))
    with pytest.raises(NotIntactError) as caught:
        ArchiveReader(path)
    assert ("lies outside of it" in caught.value.message) is (place != "inside")


# -- ahead ------------------------------------------------------------------------------------------------------------


def coming(*members: Member, error: NotIntactError | None = None, lengths: int = 1 << 20) -> Coming:
    def all_of() -> Iterator[Member]:
        yield from members
        if error:
            raise error

    return Coming(all_of(), [lengths] * 9, BACKUP_ID)


def of_size(size: int, frame: int, at: int = 0, **facts: Any) -> Member:
    return Member(f"media/{frame}-{at}", MemberType.FILE, size, frame=frame, at=at, **facts)


def test_files_worth_it_are_hashed_ahead() -> None:
    """Whole ones of a frame, from a certain size on; the members come in order all the same, with their headers."""
    worth = 1 << 15
    members = [
        of_size(worth, 0),
        of_size(worth - 1, 0, 40_000),
        of_size(worth, 0, 80_000)._replace(type=MemberType.SYMLINK),
        of_size((1 << 20) - 512, 1),
        of_size((1 << 20) - 511, 2),
        of_size(worth, 4, 1024),
    ]
    ahead = coming(*members)
    assert ahead.spans(0) == [(512, 512 + worth)]
    assert next(ahead) == Expected(members[0], index.tar_header(members[0], BACKUP_ID))
    assert ahead.spans(1) == [(512, 1 << 20)]
    assert ahead.spans(2) == []
    assert ahead.spans(3) == []
    assert [one.member for one in ahead] == members[1:]
    assert ahead.spans(4) == []


def test_an_error_comes_when_it_is_its_turn() -> None:
    """The members before it come first, whoever has looked at them."""
    failing = coming(of_size(1, 0), of_size(1, 1), error=NotIntactError("no line"))
    assert failing.spans(5) == []
    assert [next(failing).member.frame for _ in range(2)] == [0, 1]
    with pytest.raises(NotIntactError, match="no line"):
        next(failing)


def test_no_more_members_wait_than_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many an index claims for a frame."""
    monkeypatch.setattr(read_ahead, "_MOST_WAITING", 3)
    ahead = coming(*(of_size(1, 0, at) for at in range(10)))
    ahead.spans(0)
    assert len(ahead._waiting) == 3
    assert len(list(ahead)) == 10


def test_frames_are_read_in_order_and_not_too_far_ahead() -> None:
    """Two more than there are threads; what fails is an item, and what is not wanted any more is not read."""
    read: list[int] = []
    lock = threading.Lock()

    def one(number: int) -> bytes | NotIntactError:
        with lock:
            read.append(number)
        return NotIntactError("torn") if number == 2 else bytes([number]) * 40_000

    members = coming(of_size(1 << 15, 1), lengths=40_000)
    with frames_ahead(one, range(1, 9), members, 2) as frames:
        first = next(frames)
        assert first == Loaded(1, b"\1" * 40_000, {(512, 512 + (1 << 15)): sha256(b"\1" * (1 << 15)).hexdigest()})
        second = next(frames)
        assert (second.number, str(second.data)) == (2, "torn")
    assert set(read) <= {1, 2, 3, 4, 5}
    assert set(read) >= {1, 2}
    with frames_ahead(one, range(3, 9), coming(), 3) as frames:
        assert [loaded.number for loaded in frames] == [3, 4, 5, 6, 7, 8]


def test_a_read_that_was_begun_is_waited_for() -> None:
    """Whoever closes the file afterwards takes it from nobody."""
    main = threading.current_thread().ident or 0
    begun, finished = threading.Event(), []

    def one(number: int) -> bytes:
        if number == 1:
            begun.set()
            wait_until(lambda: "wait" in names_of(sys._current_frames()[main]))
            finished.append(number)
        return b""

    with frames_ahead(one, range(3), coming(), 1) as frames:
        next(frames)
        while not begun.is_set():  # not by its `wait`, which is looked for
            time.sleep(0.005)
        assert finished == []
    assert finished == [1]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_pieces_are_hashed_in_order(count: int) -> None:
    """By a thread or without one; the digest is complete in the end."""
    pieces = [memoryview(os.urandom(100_000)) for _ in range(count)]
    for name in ("hash", None):
        with one_thread("hash") as thread:
            found, hashing = [], hashed(iter(pieces), thread if name else None)
            try:
                while True:
                    found.append(next(hashing))
            except StopIteration as end:
                assert end.value == sha256(b"".join(pieces)).hexdigest()
            assert found == pieces


def test_a_thread_that_still_works_is_not_waited_for() -> None:
    """A reader that is closed in the middle of a large file ends at once."""
    begun, done = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        done.wait(60)

    with one_thread("hash") as thread:
        job = thread.submit(work)
        assert begun.wait(60)
    assert not job.done()
    done.set()
    with pytest.raises(RuntimeError, match="after shutdown"):
        thread.submit(work)


def test_a_hard_link_has_no_content(tmp_path: Path) -> None:
    """Nor has a directory or a symlink; their headers are compared all the same."""
    pieces = [directory("media"), file("media/a"), hardlink("media/h", "media/a")]
    with closing(ArchiveReader(write_indexed(tmp_path, pieces))) as reader:
        found = {member.path: b"".join(content) for member, content in reader.contents(1)}
    assert (found["media/a"], found["media/h"], found["media"]) == (CONTENT, b"", b"")
    path = tmp_path / NAME
    data = path.read_bytes()
    lied = rewritten(path, lambda text: text.replace(b'"link":"media/a"', b'"link":"media/b"'))
    assert damage_of(lied) == "media/h, frame 3: its tar header is not what the index makes of it"
    assert data != lied.read_bytes()


def test_the_manifest_is_that_of_the_archive(tmp_path: Path) -> None:
    """Another one's says nothing of this one."""
    other = manifest_of("full_20240116_120000_abc124").encode()
    path = write_indexed(tmp_path, PIECES)
    with closing(ArchiveReader(path)) as reader:
        assert reader.manifest().backup_id == BACKUP_ID
    path = _write(tmp_path / "other.tar.gz", BACKUP_ID, other, PIECES)
    with closing(ArchiveReader(path)) as reader, pytest.raises(NotIntactError, match="another archive's"):
        reader.manifest()


def test_an_end_that_cannot_be_read_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason, and nothing stays open."""
    path = write_indexed(tmp_path, PIECES)
    before = len(os.listdir("/proc/self/fd"))

    def bad(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(FileSource, "read_at", bad)
    with pytest.raises(NotIntactError, match=r"its end cannot be read \(input/output error\)"):
        ArchiveReader(path)
    assert len(os.listdir("/proc/self/fd")) == before
