"""What few files have: extended attributes, holes, times far away, paths longer than the kernel takes at once."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from base64 import b64encode
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.archive import index
from portal.ops.archive.reader import ArchiveReader
from portal.ops.backup import BackupConfig, BackupJob
from portal.ops.chains.reader import open_tree
from portal.ops.drill.compare_files import FileComparison
from portal.ops.filesystem.tree import Tree
from portal.ops.filesystem.xattrs import ACCESS_LIST, mode_without_list
from portal.ops.model import Component
from portal.ops.restore.files.restore import FileRestore
from tests.support.archives import program, verify

if TYPE_CHECKING:
    from portal.ops.restore.files.restore import FilesPlan, StageReport

SECOND = 1_000_000_000
MIB = 1 << 20
NAMED_USER, NOBODY = 1234, 0xFFFFFFFF
ACCESS = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in [(1, 6, NOBODY), (2, 6, NAMED_USER), (4, 4, NOBODY), (0x10, 6, NOBODY), (0x20, 0, NOBODY)]
)


class Portal:
    """Uploads, a repository, and a directory to restore to."""

    def __init__(self, place: Path) -> None:
        self.uploads, self.repository, self.target = place / "uploads", place / "repository", place / "target"
        self.uploads.mkdir()
        self.repository.mkdir(mode=0o700)
        self.job = BackupJob(BackupConfig(local_path=self.repository, media_path=self.uploads))

    def back_up(self, *, incremental: bool = False) -> Path:
        """A backup; the archive, which is intact."""
        result = self.job.backup_media(incremental=incremental)
        assert result.success, result.error
        archive = Path(result.destination_path)
        assert verify(archive).intact
        return archive

    def restore(self, archive: Path, name: str = "restore_1") -> tuple[FilesPlan, StageReport]:
        """Restore all, and compare it as a drill does."""
        restore = FileRestore(self.target, restore_id=name, component=Component.MEDIA)
        with closing(open_tree(archive)) as opened:
            found = restore.plan(opened.members()), restore.stage_from(opened, 2)
            restore.apply()
            comparison = FileComparison(opened, "media", self.target)
            assert list(comparison.damages()) == []
            assert comparison.warnings == []
        return found


@pytest.fixture
def portal(tmp_path: Path) -> Portal:
    """Empty uploads."""
    return Portal(tmp_path)


def version_of(archive: Path) -> int:
    """The version of an archive's index."""
    with closing(ArchiveReader(archive)) as reader:
        lines = reader._lines()
        return int(next(lines).split(b":", 2)[1].split(b",")[0])


def untarred(archive: Path, place: Path) -> Path:
    """The uploads as GNU tar extracts them."""
    place.mkdir()
    options = ["--xattrs", "--xattrs-include=*", "--warning=no-timestamp"]
    subprocess.run([program("tar"), *options, "-xzf", archive, "-C", place], check=True)
    return next(place.iterdir()) / "media"


@pytest.fixture
def attributed(portal: Portal) -> Portal:
    """A file and a directory with attributes and access lists."""
    scan = portal.uploads / "scan.json"
    scan.write_bytes(b"{}")
    (portal.uploads / "tenant").mkdir()
    try:
        os.setxattr(scan, "user.name=50%", b"value\n\0\xff")
        os.setxattr(scan, ACCESS_LIST, ACCESS)
        os.setxattr(portal.uploads / "tenant", "user.tenant", b"a")
        os.setxattr(portal.uploads / "tenant", "system.posix_acl_default", ACCESS)
    except OSError:
        pytest.skip("this file system has no extended attributes")
    return portal


def attributes_below(place: Path) -> dict[str, dict[str, bytes]]:
    """The extended attributes of everything in a directory."""
    return {
        str(path.relative_to(place)): {name: os.getxattr(path, name) for name in os.listxattr(path)}
        for path in place.rglob("*")
        if ".kekkai" not in str(path)
    }


def test_extended_attributes_come_back(attributed: Portal, tmp_path: Path) -> None:
    """Attributes and access lists of files and directories are restored, by this engine and by GNU tar."""
    archive = attributed.back_up()
    assert attributed.restore(archive)[1].warnings == ()
    expected = attributes_below(attributed.uploads)
    assert expected["scan.json"]
    assert attributes_below(attributed.target) == expected
    assert attributes_below(untarred(archive, tmp_path / "tar")) == expected
    assert version_of(archive) == index.EXTENDED_VERSION


def test_a_change_of_attributes_alone_is_backed_up(attributed: Portal) -> None:
    """An incremental has the file or directory whose attributes alone were changed."""
    attributed.back_up(incremental=True)
    for path in (attributed.uploads / "scan.json", attributed.uploads / "tenant"):
        os.setxattr(path, "user.later", b"1")
    archive = attributed.back_up(incremental=True)
    with closing(ArchiveReader(archive)) as reader:
        assert {member.path for member in reader.members() if member.xattrs} == {"media/scan.json", "media/tenant"}
    attributed.restore(archive)
    assert attributes_below(attributed.target) == attributes_below(attributed.uploads)


def test_a_rollback_brings_attributes_of_directories_back(attributed: Portal) -> None:
    """A directory that was there has its own attributes again after a rollback, and the tree holds nothing of ours."""
    archive = attributed.back_up()
    (attributed.target / "tenant").mkdir(parents=True)
    os.setxattr(attributed.target / "tenant", "user.own", b"1")
    before = attributes_below(attributed.target)
    attributed.restore(archive)
    restore = FileRestore(attributed.target, restore_id="restore_1", component=Component.MEDIA)
    restore.rollback()
    assert attributes_below(attributed.target)["tenant"] == before["tenant"]


def test_attributes_that_cannot_be_set_are_a_warning(attributed: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system refuses them the files are restored without, with a warning, and the group gets no more."""
    archive = attributed.back_up()
    monkeypatch.setattr(os, "setxattr", refuse)
    restore = FileRestore(attributed.target, restore_id="restore_1", component=Component.MEDIA)
    with closing(open_tree(archive)) as opened:
        report = restore.stage_from(opened, 1)
    restore.apply()
    assert "scan.json has extended attributes" in " ".join(report.warnings)
    assert (attributed.target / "scan.json").stat().st_mode & 0o777 == 0o640


def refuse(*_: object) -> None:
    raise OSError(95, "Operation not supported")


def test_the_mask_is_not_the_group_mode() -> None:
    """Without its access list a file gives its group what the list gave the group, within the mask."""
    value = ((ACCESS_LIST, b64encode(ACCESS).decode()),)
    assert mode_without_list(0o660, value) == 0o640
    assert mode_without_list(0o660, ()) == 0o660


def test_holes_are_neither_read_nor_written(portal: Portal, tmp_path: Path) -> None:
    """A sparse file of 20 GB takes seconds to back up, verify and restore, and the space that its data need."""
    image = portal.uploads / ("image-" * 20)
    with image.open("wb") as file:
        file.truncate(20 << 30)
        for at, content in ((1 << 30, b"x" * 10_000), (5 << 30, os.urandom(3 * MIB))):
            file.seek(at)
            file.write(content)
    started = time.monotonic()
    archive = portal.back_up()
    plan, _ = portal.restore(archive)
    assert time.monotonic() - started < 30
    assert plan.stage_bytes < 8 * MIB
    restored = portal.target / image.name
    assert restored.stat().st_size == 20 << 30
    assert restored.stat().st_blocks * 512 < 8 * MIB
    for copy in (restored, untarred(archive, tmp_path / "tar") / image.name):
        assert copy.stat().st_blocks * 512 < 8 * MIB
        for at in (1 << 30, 5 << 30):
            assert at_offset(copy, at) == at_offset(image, at)
    assert version_of(archive) == index.EXTENDED_VERSION


def at_offset(path: Path, at: int) -> bytes:
    with path.open("rb") as file:
        file.seek(at)
        return file.read(4 * MIB)


@pytest.mark.parametrize("data", [[], [(0, 5)], [(3 * MIB + 7, 9)], [(0, 4096), (2 * MIB, 70_000), (9 * MIB + 1, 3)]])
def test_any_holes_come_back(portal: Portal, tmp_path: Path, data: list[tuple[int, int]]) -> None:
    """Whatever a file begins and ends with, it is the same afterwards, for this engine and for GNU tar."""
    image = portal.uploads / "image"
    with image.open("wb") as file:
        file.truncate(9 * MIB + 4)
        for at, length in data:
            file.seek(at)
            file.write(os.urandom(length))
    archive = portal.back_up()
    portal.restore(archive)
    content = image.read_bytes()
    assert (portal.target / "image").read_bytes() == content
    assert (untarred(archive, tmp_path / "tar") / "image").read_bytes() == content


def test_an_incremental_knows_a_sparse_file_again(portal: Portal) -> None:
    """A file with holes whose times alone have changed is read, and not stored again."""
    with (portal.uploads / "image").open("wb") as file:
        file.truncate(9 * MIB)
        file.write(b"start")
    base = portal.back_up(incremental=True)
    (portal.uploads / "image").chmod((portal.uploads / "image").stat().st_mode)
    assert portal.back_up(incremental=True) == base


@pytest.mark.parametrize("seconds", [-(1 << 31), -1, 9_300_000_000, 15_000_000_000])
def test_any_time_comes_back(portal: Portal, seconds: int) -> None:
    """A file with a time before 1970, or after 2262, is restored with that time."""
    far = portal.uploads / "far"
    far.write_bytes(b"f")
    os.utime(far, ns=(0, seconds * SECOND + 1))
    wanted = far.stat().st_mtime_ns
    archive = portal.back_up()
    portal.restore(archive)
    assert (portal.target / "far").stat().st_mtime_ns == wanted
    assert version_of(archive) == index.VERSION
    assert portal.back_up(incremental=True)


def test_paths_may_be_longer_than_the_kernel_takes(portal: Portal) -> None:
    """A path of 5,000 bytes is backed up, verified, restored, compared, found by name, and removed again."""
    path = "/".join(["d" * 50] * 100)
    with Tree(str(portal.uploads)) as tree:
        above = tree.directory(path, make=True)
        os.close(os.open("scan", os.O_WRONLY | os.O_CREAT, dir_fd=above))
    archive = portal.back_up(incremental=True)
    portal.restore(archive)
    with closing(ArchiveReader(archive)) as reader:
        assert reader.find(f"media/{path}/scan") is not None
    with Tree(str(portal.target)) as tree:
        assert tree.look(f"{path}/scan") is not None
        above = tree.directory(path)
    with Tree(str(portal.uploads)) as tree:
        os.close(os.open("later", os.O_WRONLY | os.O_CREAT, dir_fd=tree.directory(path)))
    portal.restore(portal.back_up(incremental=True), "restore_2")
    restore = FileRestore(portal.target, restore_id="restore_2", component=Component.MEDIA)
    restore.rollback()
    with Tree(str(portal.target)) as tree:
        assert tree.look(f"{path}/later") is None
    for place in (portal.uploads, portal.target):  # pytest cannot remove them
        with Tree(str(place)) as tree:
            tree.remove("d" * 50)


def test_many_large_attributes_fill_several_frames(portal: Portal) -> None:
    """Frames stay small enough for every reader, whatever the headers of their members take."""
    try:
        for number in range(1500):
            directory = portal.uploads / f"d{number}"
            directory.mkdir()
            os.setxattr(directory, "user.note", bytes(3000))
    except OSError:
        pytest.skip("this file system has no room for such attributes")
    archive = portal.back_up()
    portal.restore(archive)
    assert attributes_below(portal.target) == attributes_below(portal.uploads)


@pytest.mark.parametrize(("length", "version"), [(1 << 10, index.VERSION), ((1 << 15) + 1, index.EXTENDED_VERSION)])
def test_a_long_line_needs_a_new_reader(length: int, version: int) -> None:
    """Releases before refuse an index with a line that they would read in pieces."""
    line = "x" * length
    assert index.version_of([line], line) == version
