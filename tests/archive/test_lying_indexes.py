"""Archives whose index says something else than their tar: whatever it is, they are refused or restored as it says.

What must never come of one: a wait without end, an error that is no error of the engine, a part that is left out in
silence, content with another digest than the index has, or anything that is left behind.
"""

from __future__ import annotations

import os
import signal
import tempfile
from contextlib import closing, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from portal.ops.archive import frame, index, tar
from portal.ops.archive.damage import is_below
from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.reader import ArchiveReader
from portal.ops.errors import ConfigurationError, NotIntactError
from portal.ops.model import RESTORE_DIRECTORY, Component, VerifyLevel
from portal.ops.restore.files import stage as file_stage
from portal.ops.restore.files.restore import FileRestore
from portal.ops.verify.verify import Verifier
from tests.support.archives import BACKUP_ID, MTIME_NS, NAME, seal
from tests.support.hostile import Piece, directory, file, hardlink, manifest_of, symlink

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG_FORM = os.environ.get("KEKKAI_LONG_TESTS")
MANY_SECONDS = 60.0
MIB = 1 << 20
NAMES = ("media/a", "media/b", "media/c", "media/d/a", "audit/log")
SIZES = (0, 1, 600, 1536, 100_000)
LIES: dict[str, tuple[Any, ...]] = {
    "size": (0, 1, 512, 1024, 4 * MIB, 1 << 40),
    "at": (0, 1, 512, 1024, MIB),
    "frame": (0, 1, 2, 99),
    "sha256": ("0" * 64,),
    "path": NAMES,
    "link": ("media/a", "a", "../.."),
    "type": tuple(MemberType),
    "mtime_ns": (0, -1),
}


class Lie(NamedTuple):
    """What the index says wrongly of one member; `header` is whether the member's header in the tar says it as well."""

    number: int
    what: str
    value: Any
    header: bool


class Forged(NamedTuple):
    """An archive of media, by its frames, and what its index lies about."""

    frames: list[list[Piece]]
    lies: list[Lie]

    def write(self, path: Path) -> list[Member]:
        """Write it, with a sidecar; what its index says."""
        data, table, lines = [], index.FrameTable(), []
        said: list[Member] = []
        manifest = file(index.MANIFEST, manifest_of(BACKUP_ID).encode())
        for number, pieces in enumerate([[manifest], *self.frames]):
            block = b""
            for piece in pieces:
                truth = piece.member._replace(frame=number, at=len(block))
                lies = [lie for lie in self.lies if lie.number == len(said)]
                said.append(truth._replace(**{lie.what: lie.value for lie in lies}))
                header = truth._replace(**{lie.what: lie.value for lie in lies if lie.header})
                lines.append(index.number([index.encode_member(said[-1])], said[-1].frame))
                block += index.tar_header(header, BACKUP_ID) + piece.content + bytes(tar.padding(len(piece.content)))
            data.append(frame.compress(block) if number else frame.padded(block, frame.padded_bytes(len(block))))
            table.append(len(data[-1]), len(block))
        text = index.head_line(BACKUP_ID, frames=len(table), members=len(lines)).encode() + b"".join(table.encode())
        text += "".join(lines).encode("ascii")
        header_of_index = index.tar_header(Member(index.NAME, MemberType.FILE, len(text), mtime_ns=MTIME_NS), BACKUP_ID)
        end = frame.with_extra(tar.END_OF_ARCHIVE, index.TRAILER_ID, index.TRAILER.pack(table.end))
        data.append(frame.compress(header_of_index + text + bytes(tar.padding(len(text)))))
        path.write_bytes(b"".join([*data, end]))
        seal(path)
        return said


@st.composite
def pieces(draw: st.DrawFn) -> Piece:
    """A member of an archive; mostly a file."""
    path = draw(st.sampled_from(NAMES))
    kind = draw(st.sampled_from(["file"] * 4 + ["directory", "symlink", "hardlink"]))
    if kind == "file":
        return file(path, draw(st.sampled_from(b"xyz")).to_bytes(1) * draw(st.sampled_from(SIZES)))
    if kind == "directory":
        return directory(path)
    return symlink(path, "b") if kind == "symlink" else hardlink(path, draw(st.sampled_from(NAMES)))


@st.composite
def forged(draw: st.DrawFn) -> Forged:
    """A few frames of a few members each, and up to two lies."""
    frames = draw(st.lists(st.lists(pieces(), min_size=1, max_size=3), min_size=1, max_size=4))
    frames.insert(0, [directory("media")])
    count = 1 + sum(map(len, frames))
    lies = []
    for _ in range(draw(st.integers(0, 2))):
        what = draw(st.sampled_from(sorted(LIES)))
        value = draw(st.sampled_from(LIES[what]))
        lies.append(Lie(draw(st.integers(0, count - 1)), what, value, draw(st.booleans())))
    return Forged(frames, lies)


class WaitedTooLongError(Exception):
    """Something waits without end."""


@contextmanager
def patience() -> Iterator[None]:
    """End what takes far too long."""

    def end(*_: object) -> None:
        raise WaitedTooLongError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, MANY_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def assert_restored_as_said(archive: ArchiveReader, said: list[Member], target: Path, jobs: int, *some: str) -> None:
    """Stage it; where that is not refused, everything is there that the index has, with the digests that it has."""
    restore = FileRestore(target, restore_id="restore_1", component=Component.MEDIA, patterns=some)
    try:
        report = restore.stage_from(archive, jobs)
    except (ConfigurationError, NotIntactError) as error:
        event(type(error).__name__)
        assert not target.exists()
        return
    event("restored")
    staged = [path for path in (target / RESTORE_DIRECTORY / "restore_1" / "stage").rglob("*") if not path.is_symlink()]
    digests = {member.sha256 for member in said if is_below(member.path, "media")}
    assert {sha256(path.read_bytes()).hexdigest() for path in staged if path.is_file()} <= digests
    if not some:
        kinds = [member.type is MemberType.DIRECTORY for member in said if is_below(member.path, "media")]
        assert (report.files, report.directories) == (kinds.count(False), kinds.count(True))
    restore.undo()
    assert not target.exists()


def look_at_everything(archive: ArchiveReader, said: list[Member], path: Path) -> None:
    """What else opens an archive says what is wrong with it, and no more than that."""
    with suppress(NotIntactError):
        archive.manifest()
    for member in said:
        with suppress(NotIntactError):
            content = b"".join(archive.extract(member))
            assert member.type is not MemberType.FILE or sha256(content).hexdigest() == member.sha256
    Verifier(jobs=2).verify(path, VerifyLevel.CONTENTS)


AT_LEAST = settings(
    max_examples=1_000 if LONG_FORM else 30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@AT_LEAST
@given(forged())
@example(Forged([[directory("media")], [file("media/a", b"x" * 1024)], [file("media/b")]], [Lie(2, "size", MIB, True)]))
@example(Forged([[directory("media")], [file("media/a")]], [Lie(0, "at", MIB, False)]))
@example(Forged([[directory("media")], [file("media/a")], [file("audit/log")], [file("media/b")]], []))
def test_archives_that_lie(archive: Forged) -> None:
    """By every way to read one in this process."""
    with tempfile.TemporaryDirectory() as place, patience():
        path, target = Path(place, NAME), Path(place, "live")
        said = archive.write(path)
        with closing(ArchiveReader(path)) as opened:
            look_at_everything(opened, said, path)
            for jobs in (1, 2):
                assert_restored_as_said(opened, said, target, jobs)
                assert_restored_as_said(opened, said, target, jobs, "a")
                assert_restored_as_said(opened, said, target, jobs, "[bd]*")


@settings(AT_LEAST, max_examples=300 if LONG_FORM else 8)
@given(forged())
@example(Forged([[directory("media")], [file("media/a", b"x" * 1024)], [file("media/b")]], [Lie(2, "size", MIB, True)]))
def test_archives_that_lie_to_helpers(archive: Forged) -> None:
    """Helper processes refuse what a process by itself does, and by the same error."""
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory() as place, patience():
        patched.setattr(file_stage, "_WORTH_HELPERS", -1)
        path, target = Path(place, NAME), Path(place, "live")
        said = archive.write(path)
        with closing(ArchiveReader(path)) as opened:
            assert_restored_as_said(opened, said, target, 2)
            assert_restored_as_said(opened, said, target, 2, "[ab]")
