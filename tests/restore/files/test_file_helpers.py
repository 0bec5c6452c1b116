"""The helper processes of a restore: what they make is what one process would make, and their end is noticed."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.open import open_archive
from portal.ops.archive.reader import ArchiveReader
from portal.ops.archive.runs import Run, runs
from portal.ops.errors import NotIntactError, RestoreError
from portal.ops.filesystem.tree import Tree
from portal.ops.model import Component
from portal.ops.restore.files import stage as file_stage
from portal.ops.restore.files.helpers import Helpers
from portal.ops.restore.files.restore import FileRestore
from portal.ops.restore.files.unpacker import CHECKED, PASSED, Use
from tests.support import archives
from tests.support.archives import NAME, Recipe, tree_on_disk, write_archive
from tests.support.waiting import LONG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from portal.ops.restore.files.restore import StageReport

MIB = 1 << 20
FILES = 1_500


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More files than one process would restore by itself: small ones, some of many frames, links, holes."""
    root, random = tmp_path_factory.mktemp("source"), Random(7)
    for number in range(FILES):
        path = root / f"tenant-{number % 7}" / f"scan-{number}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(random.randbytes(random.choice((0, 1, 300, 5_000, 70_000))))
    (root / "tenant-0" / "several-frames").write_bytes(random.randbytes(3 * MIB + 5))
    (root / "tenant-1" / "many-frames").write_bytes(random.randbytes(12 * MIB))
    with (root / "tenant-2" / "holes").open("wb") as file:
        file.truncate(9 * MIB)
    os.link(root / "tenant-0" / "scan-0.json", root / "tenant-6" / "another-name")
    os.link(root / "tenant-1" / "many-frames", root / "tenant-1" / "the-same")
    (root / "latest").symlink_to("tenant-3")
    (root / "empty").mkdir(mode=0o750)
    (root / "tenant-4").chmod(0o500)
    return root


@pytest.fixture(scope="module")
def archive(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with archives.compressor_pool() as pool:
        return write_archive(tmp_path_factory.mktemp("repository") / NAME, pool, Recipe(media=source))


def restore(tmp_path: Path) -> FileRestore:
    (tmp_path / "live").mkdir(exist_ok=True)
    return FileRestore(tmp_path / "live", restore_id="restore_1", component=Component.MEDIA)


def staged(restoring: FileRestore, archive: Path, advance: Callable[[int], None] = lambda _: None) -> StageReport:
    """Stage an archive with two helpers."""
    with closing(open_archive(archive)) as opened:
        return restoring.stage_from(opened, 2, advance)


def helpers() -> list[int]:
    """The helpers that this thread has started; other tests' servers may be its children too."""
    listed = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text(encoding="ascii")
    return [int(pid) for pid in listed.split() if b"restore.files.unpacker" in command_line(int(pid))]


def command_line(pid: int) -> bytes:
    """What a process was started with; a program that is just being loaded has none for an instant."""
    while not (found := Path(f"/proc/{pid}/cmdline").read_bytes()) and is_running(str(pid)):
        time.sleep(0.001)
    return found


def once(do: Callable[[], object]) -> Callable[[int], None]:
    """What is called with every number of bytes: does it the first time, and nothing from then on."""
    todo = [do]

    def advance(_: int) -> None:
        if todo:
            todo.pop()()

    return advance


def damaged(archive: Path, tmp_path: Path, frame: int) -> Path:
    """A copy of which one frame has bytes that are wrong (one wrong bit may decode to the same zeros)."""
    reader = ArchiveReader(archive)
    offset = reader.frames.offsets[frame] + reader.frames.lengths[frame] // 2
    reader.close()
    content = bytearray(archive.read_bytes())
    content[offset : offset + 8] = bytes(byte ^ 0xFF for byte in content[offset : offset + 8])
    copy = tmp_path / NAME
    copy.write_bytes(content)
    return copy


def test_everything_comes_back(archive: Path, source: Path, tmp_path: Path) -> None:
    """Files, links, holes, modes and times are those of the backup, and every byte was told."""
    told: list[int] = []
    one = restore(tmp_path)
    report = staged(one, archive, told.append)
    assert sum(told) == report.content_bytes == sum(file.stat().st_size for file in first_names(source))
    assert not helpers()
    one.apply()
    found = tree_on_disk(tmp_path / "live")
    assert {path: entry for path, entry in found.items() if not path.startswith(b".kekkai")} == tree_on_disk(source)
    assert (tmp_path / "live" / "tenant-2" / "holes").stat().st_blocks == 0


def first_names(root: Path) -> list[Path]:
    """Every file once, whatever the number of its names."""
    found = {path.stat().st_ino: path for path in root.rglob("*") if path.is_file() and not path.is_symlink()}
    return [*found.values()]


@pytest.mark.parametrize("place", [0.1, 0.5, 0.95])
def test_damage_is_found_and_nothing_stays(archive: Path, tmp_path: Path, place: float) -> None:
    """Whichever helper meets it; the error names the frame, and a file."""
    frame_count = len(ArchiveReader(archive).frames)
    frame = round(frame_count * place)
    with pytest.raises(NotIntactError, match=rf"media/tenant-\S+, frame {frame}: "):
        staged(restore(tmp_path), damaged(archive, tmp_path, frame))
    assert not list((tmp_path / "live").iterdir())
    assert not helpers()


def test_what_is_passed_over_need_not_be_intact(archive: Path, tmp_path: Path) -> None:
    """Of a run some members are restored; the others are looked at only where that is asked for."""
    with closing(ArchiveReader(archive)) as reader:
        run = next(run for run in runs(reader.members(), len(reader.frames)) if len(run.members) > 5)
        first, *others = [number for number, member in enumerate(run.members) if member.size]
        lying = Run(run.frames, [member._replace(sha256="0" * 64) for member in run.members])
        lying.members[first] = run.members[first]
        uses: list[Use] = [f"file-{first}" if number == first else PASSED for number in range(len(run.members))]
        with Tree(str(tmp_path)) as tree:
            with Helpers(reader, tree, 1) as one:
                one.unpack(lying, uses)
            assert (tmp_path / f"file-{first}").stat().st_size == run.members[first].size
            assert len(list(tmp_path.iterdir())) == 1
            uses[first], uses[others[0]] = PASSED, CHECKED
            with pytest.raises(NotIntactError, match=run.members[others[0]].path), Helpers(reader, tree, 1) as one:
                one.unpack(lying, uses)


def test_helper_that_is_killed_is_noticed(archive: Path, tmp_path: Path) -> None:
    """As the kernel does it where memory runs out: the restore fails, and says where to look."""

    def kill() -> None:
        os.kill(helpers()[-1], signal.SIGKILL)

    with pytest.raises(RestoreError, match="a helper process of the restore ended unexpectedly") as caught:
        staged(restore(tmp_path), archive, once(kill))
    assert "dmesg" in caught.value.hint
    assert not list((tmp_path / "live").iterdir())
    assert not helpers()


def test_helpers_end_where_the_restore_fails(archive: Path, tmp_path: Path) -> None:
    """Whatever it was that went wrong beside them."""

    def fail() -> None:
        assert len(helpers()) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        staged(restore(tmp_path), archive, once(fail))
    assert not list((tmp_path / "live").iterdir())
    assert not helpers()


def test_refusal_of_the_system_is_told(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper, which makes the long files too, meets a limit of the file system: it is the restore that says so."""
    monkeypatch.setattr(file_stage, "LONG_FRAMES", 1_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, before[1]))
    try:
        with pytest.raises(RestoreError, match="file too large") as caught:
            staged(restore(tmp_path), archive)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "ulimit -f" in caught.value.hint
    assert not list((tmp_path / "live").iterdir())


_STAGE_AND_DIE = """
import os, signal, sys, threading, time
from pathlib import Path
from portal.ops.archive.open import open_archive
from portal.ops.model import Component
from portal.ops.restore.files.restore import FileRestore

asked = []

def die(_):
    asked.append(True)
    if len(asked) < 1_000:
        return
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    for pid in children:
        while len(os.listdir(f"/proc/{pid}/task")) < 2:  # the threads that write come after all that ties it to us
            time.sleep(0.001)
        os.kill(int(pid), signal.SIGSTOP)  # so it does not see that nothing more comes: only a signal ends it
    print(*children, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

restore = FileRestore(Path(sys.argv[2]), restore_id="restore_1", component=Component.MEDIA)
restore.stage_from(open_archive(Path(sys.argv[1])), 2, die)
"""


def test_helpers_end_with_a_restore_that_is_killed(archive: Path, tmp_path: Path) -> None:
    """Nobody goes on to write into a stage that the next restore removes."""
    one = restore(tmp_path)
    with (tmp_path / "said").open("w+", encoding="utf-8") as said:  # no pipe, which those that are left would hold open
        command = [sys.executable, "-c", _STAGE_AND_DIE, str(archive), str(tmp_path / "live")]
        killed = subprocess.run(command, stdout=said, stderr=said, check=False, timeout=60)
        said.seek(0)
        left = said.read().split()
    try:
        assert (killed.returncode, len(left)) == (-signal.SIGKILL, 2), left
        until = time.monotonic() + LONG_SECONDS
        while any(is_running(pid) for pid in left):
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        for pid in left:
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(pid), signal.SIGKILL)
    one.undo()
    assert not list((tmp_path / "live").iterdir())


def is_running(pid: str) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_long_files_are_written_here(
    archive: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too long for a helper comes back as well, among what helpers make."""
    lengths: set[int] = set()
    unpack = Helpers.unpack

    def noted(helpers: Helpers, run: Run, uses: Sequence[Use]) -> None:
        lengths.add(len(run.frames))
        unpack(helpers, run, uses)

    monkeypatch.setattr(file_stage, "LONG_FRAMES", 1)
    monkeypatch.setattr(Helpers, "unpack", noted)
    one = restore(tmp_path)
    staged(one, archive)
    one.apply()
    for name in ("tenant-0/several-frames", "tenant-1/many-frames", "tenant-2/holes"):
        assert (tmp_path / "live" / name).read_bytes() == (source / name).read_bytes()
    assert lengths == {1}


def member(path: str, frame: int, at: int = 0) -> Member:
    return Member(path, MemberType.FILE, frame=frame, at=at)


def test_runs_begin_where_a_frame_begins() -> None:
    """A run goes on until a member starts with its frame; the last one to the end of the archive."""
    members = [member("a", 0), member("b", 1), member("c", 1, 512), member("d", 2, 512), member("e", 3), member("f", 7)]
    assert list(runs(members, 9)) == [
        Run(range(1), members[:1]),
        Run(range(1, 3), members[1:4]),
        Run(range(3, 7), members[4:5]),
        Run(range(7, 9), members[5:]),
    ]
    assert list(runs([], 3)) == []


@pytest.mark.parametrize(
    "members",
    [
        [member("a", 0), member("b", 0)],
        [member("a", 2), member("b", 1)],
        [member("a", 0), member("b", 3)],
        [member("a", 5), member("b", 6)],
    ],
    ids=["one frame twice", "backwards", "a frame that is not there", "none that is there"],
)
def test_runs_of_an_index_that_lies_are_refused(members: list[Member]) -> None:
    """The order of the frames is the order of the members."""
    with pytest.raises(NotIntactError, match="not in the order of the archive"):
        list(runs(members, 3))


def test_no_run_is_larger_than_a_frame_can_be() -> None:
    """An index in which no frame begins with a member is refused long before memory is full."""
    long = Member("a" * 60_000, MemberType.FILE, frame=1, at=512)
    given = 0

    def endless() -> Iterator[Member]:
        nonlocal given
        while True:
            given += 1
            yield long

    with pytest.raises(NotIntactError, match="more members here than a frame can hold"):
        list(runs(endless(), 3))
    assert given < 2_000
