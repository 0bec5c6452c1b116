"""Trees go into archives and come out again, by this engine and by the tools that everybody has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, assume, given, settings

from portal.ops.archive import frame
from portal.ops.archive.index import MemberType
from portal.ops.archive.reader import ArchiveReader
from portal.ops.backup.walk import identity
from tests.support import archives
from tests.support.archives import (
    NAME,
    Recipe,
    Tree,
    program,
    read_member,
    tree_in_archive,
    tree_on_disk,
    write_archive,
)
from tests.support.trees import MIB, SECOND, Node, grow, trees

if TYPE_CHECKING:
    from collections.abc import Callable

    from portal.ops.archive.compressor_pool import CompressorPool

ROOT = Path(__file__).parents[2]
IS_ROOT = os.geteuid() == 0
LONG_FORM = os.environ.get("KEKKAI_LONG_TESTS")


# -- trees of every shape ---------------------------------------------------------------------------------------------


def python_tar(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as found:
        found.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)  # not before Python 3.11.4
        found.extractall(target)  # noqa: S202  (we made it)


def command(*argv: str) -> Callable[[Path, Path], None]:
    """An extraction by a program of the system."""

    def extract(archive: Path, target: Path) -> None:
        environment = os.environ | {"LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [*argv, archive, "-C", target], env=environment, umask=0, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")

    return extract


def exact(tree: Tree) -> Tree:
    return tree


def without_link_times(tree: Tree) -> Tree:
    """What is left where links have no time."""
    return {
        name: replace(entry, mtime_ns=0) if entry.kind is MemberType.SYMLINK else entry for name, entry in tree.items()
    }


def plain(tree: Tree) -> Tree:
    """What busybox keeps: times of files in whole seconds from 1970 to 2242; setuid and setgid for root alone."""
    return {
        name: replace(
            entry,
            mode=entry.mode if IS_ROOT else entry.mode & 0o1777,
            mtime_ns=entry.mtime_ns // SECOND
            if entry.kind is MemberType.FILE and 0 <= entry.mtime_ns < 8**11 * SECOND
            else 0,
        )
        for name, entry in tree.items()
    }


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A way to extract an archive, and what of a tree it promises to keep.

    Arguments:
        off_ns: how many nanoseconds a time may be off.
        since_ns: the first time that is kept; bsdtar takes the second -1.5 for -0.5.
        reads_holes: whether it knows sparse members; busybox leaves their table at the front of the file.
        package: what Debian has it in, where it is not everywhere.
    """

    name: str
    extract: Callable[[Path, Path], None]
    kept: Callable[[Tree], Tree] = exact
    off_ns: int = 0
    since_ns: int = -(2**63)
    reads_holes: bool = True
    package: str = ""

    def check(self, archive: Path, tree: Tree) -> None:
        """Extract, and compare with what went in."""
        with tempfile.TemporaryDirectory() as target:
            self.extract(archive, Path(target))
            found = tree_on_disk(Path(target) / archives.BACKUP_ID / "media")
        for name in found.keys() & tree.keys():
            expected = tree[name].mtime_ns
            if expected < self.since_ns or abs(found[name].mtime_ns - expected) <= self.off_ns:
                found[name] = replace(found[name], mtime_ns=expected)
        assert self.kept(found) == self.kept(tree)


GNU_TAR = Tool(name="tar", extract=command("tar", "--warning=no-timestamp", "-xpzf"))
TOOLS = [
    GNU_TAR,
    Tool(name="tarfile", extract=python_tar, kept=without_link_times, off_ns=2000),
    Tool(name="bsdtar", extract=command("bsdtar", "-xpf"), since_ns=0, package="libarchive-tools"),
    Tool(name="busybox", extract=command("busybox", "tar", "-xpzf"), kept=plain, reads_holes=False, package="busybox"),
]


@pytest.fixture(scope="module", params=TOOLS, ids=[tool.name for tool in TOOLS])
def tool(request: pytest.FixtureRequest) -> Tool:
    """Each of the tools that should open an archive; GNU tar and Python's are everywhere."""
    tool: Tool = request.param
    if tool.package and not shutil.which(tool.name):
        pytest.skip(f"{tool.name} is not installed here; Debian has it in {tool.package}")
    return tool


def has_hole(node: Node) -> bool:
    """Whether a file with a hole is in a tree."""
    return node.hole > 0 or any(has_hole(child) for child in node.children or ())


_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
drawn = settings(max_examples=20, deadline=None, suppress_health_check=_SLOW)


class Workshop:
    """A directory for one drawn tree and its archive."""

    def __init__(self, stack: ExitStack, node: Node) -> None:
        self.path = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.media = self.path / "uploads"
        grow(os.fsencode(self.media), node, [])
        self.tree = tree_on_disk(self.media)

    def archive(self, pool: CompressorPool, name: str = NAME) -> Path:
        """Archive the tree."""
        return write_archive(self.path / name, pool, Recipe(media=self.media))


@drawn
@given(node=trees)
def test_tools_extract_what_was_archived(pool: CompressorPool, tool: Tool, node: Node) -> None:
    """Each tool makes the tree again: names, contents, modes, times, links."""
    assume(tool.reads_holes or not has_hole(node))
    with ExitStack() as stack:
        work = Workshop(stack, node)
        tool.check(work.archive(pool), work.tree)


@drawn
@given(node=trees)
def test_engine_reads_what_was_archived(pool: CompressorPool, node: Node) -> None:
    """Reading everything back gives the tree, to the nanosecond, and verification agrees."""
    with ExitStack() as stack:
        work = Workshop(stack, node)
        archive = work.archive(pool)
        assert tree_in_archive(archive) == work.tree
        assert archives.verify(archive).message.startswith(f"{archives.BACKUP_ID} is intact")


@drawn
@given(node=trees)
def test_index_lists_what_was_archived(pool: CompressorPool, node: Node) -> None:
    """The index has one line for each name, with the size and the inode that it has on the disk."""
    with ExitStack() as stack:
        work = Workshop(stack, node)
        with closing(ArchiveReader(work.archive(pool))) as archive:
            listed = {os.fsencode(member.path): member for member in archive.members()}
        found = {b"media/" + name if name else b"media": entry for name, entry in work.tree.items()}
        assert set(listed) == {*found, b"manifest.json"}
        for name, entry in found.items():
            there = os.lstat(os.path.join(os.fsencode(work.media), name[len(b"media/") :]))
            assert (listed[name].inode, listed[name].ctime_ns) == (there.st_ino, there.st_ctime_ns)
            if listed[name].type is MemberType.FILE:
                assert listed[name].size == entry.size
                if not listed[name].sparse:  # whose digest is that of the table and the data
                    assert listed[name].sha256 == entry.content


@drawn
@given(node=trees)
def test_any_file_can_be_taken_out_alone(pool: CompressorPool, node: Node) -> None:
    """Each file is found by its path and read by itself."""
    with ExitStack() as stack:
        work = Workshop(stack, node)
        archive = stack.enter_context(closing(ArchiveReader(work.archive(pool))))
        for name, entry in work.tree.items():
            if entry.kind is MemberType.FILE and entry.first == name:
                member = archive.find("media/" + os.fsdecode(name))
                assert member is not None
                assert sha256(b"".join(archive.extract(member))).hexdigest() == entry.content


@drawn
@given(node=trees)
def test_same_tree_gives_the_same_bytes(pool: CompressorPool, node: Node) -> None:
    """An archive is a function of what is archived."""
    with ExitStack() as stack:
        work = Workshop(stack, node)
        assert work.archive(pool).read_bytes() == work.archive(pool, "again.tar.gz").read_bytes()


# -- what everybody's tools say of an archive -------------------------------------------------------------------------


def filled(root: Path) -> Path:
    """A tree with small files, large ones, and ones that do not compress."""
    for number in range(20):
        (root / f"scan-{number}.json").write_bytes(b'{"finding": %d}\n' % number * number)
    (root / "large.sarif").write_bytes(b"0123456789abcdef" * 200_000)
    (root / "noise.bin").write_bytes(os.urandom(3 * MIB + 7))
    return root


def test_gzip_finds_nothing_wrong(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """`gzip -t` accepts an archive of many members without a word."""
    archive = write_archive(tmp_path / NAME, pool, Recipe(media=filled(media)))
    done = subprocess.run([program("gzip"), "-tv", archive], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "OK" in done.stderr


def test_sha256sum_agrees_with_the_sidecar(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """`sha256sum -c` reads the sidecar and finds the archive unchanged."""
    write_archive(tmp_path / NAME, pool, Recipe(media=filled(media)))
    subprocess.run([program("sha256sum"), "-c", f"{NAME}.sha256"], cwd=tmp_path, check=True, capture_output=True)


def test_frames_hold_about_a_mebibyte(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """Neither small files nor large ones make frames that are slow to read one file from."""
    archive = write_archive(tmp_path / NAME, pool, Recipe(media=filled(media)))
    with closing(ArchiveReader(archive)) as found:
        assert max(found.frames.tar_lengths) <= 2 * frame.INPUT_BYTES


def test_files_of_a_middle_size_share_no_large_frame(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """A frame is full when its bytes are many, however few files they are."""
    for number in range(40):
        (media / f"file-{number}").write_bytes(bytes([number]) * 200_000)
    archive = write_archive(tmp_path / NAME, pool, Recipe(media=media))
    with closing(ArchiveReader(archive)) as found:
        assert max(found.frames.tar_lengths) <= 2 * frame.INPUT_BYTES


def test_reading_one_file_reads_its_frames_only(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """A file is read although every frame that does not hold it is broken."""
    archive = write_archive(tmp_path / NAME, pool, Recipe(media=filled(media)))
    with closing(ArchiveReader(archive)) as found:
        member = found.find("media/scan-7.json")
        assert member is not None
        lengths = list(zip(found.frames.offsets, found.frames.lengths, strict=True))
    with archive.open("r+b") as file:
        for number, (offset, length) in enumerate(lengths):
            if number != member.frame:
                file.seek(offset)
                file.write(bytes(length))
    assert read_member(archive, "media/scan-7.json") == b'{"finding": 7}\n' * 7


# -- large, many, deep ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [MIB - 1, MIB, MIB + 1, 3 * MIB])
def test_hard_links_of_large_and_small_files_share_their_content(
    pool: CompressorPool, tmp_path: Path, media: Path, tool: Tool, size: int
) -> None:
    """A file with three names is in the archive once, and has three names again afterwards."""
    (media / "b").write_bytes(os.urandom(size))
    (media / "deeper").mkdir()
    os.link(media / "b", media / "deeper" / "c")
    os.link(media / "b", media / "z")
    archive = write_archive(tmp_path / NAME, pool, Recipe(media=media))
    assert archive.stat().st_size < 1.5 * size
    tool.check(archive, tree_on_disk(media))


def test_sparse_file_costs_no_more_than_it_holds(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """A hole of 256 MiB is a small archive, and a hole's worth of zeros when read."""
    with (media / "sparse").open("wb") as file:
        file.write(b"head")
        file.seek(256 * MIB)
        file.write(b"tail")
    archive = write_archive(tmp_path / NAME, pool, Recipe(media=media))
    assert archive.stat().st_size < 2 * MIB
    assert tree_in_archive(archive) == tree_on_disk(media)


@pytest.mark.skipif(not LONG_FORM, reason="takes two minutes: set KEKKAI_LONG_TESTS=1")
def test_file_of_more_than_8_gib_is_read_back(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """A size that no octal field holds goes in and comes out, and tar lists it."""
    size = 8 * 1024 * MIB + 12345
    with (media / "huge").open("wb") as file:
        file.truncate(size)
    archive = write_archive(tmp_path / NAME, pool, Recipe(media=media))
    found = archives.verify(archive)
    assert (found.intact, found.content_bytes) == (True, size)
    listing = subprocess.run([program("tar"), "-tvzf", archive], capture_output=True, text=True, check=True).stdout
    assert f" {size} " in listing


def test_tree_of_200_levels_is_read_back(pool: CompressorPool, tmp_path: Path, media: Path, tool: Tool) -> None:
    """Depth is no limit."""
    directory = media
    for level in range(200):
        directory /= f"level-{level:03}"
        directory.mkdir()
        (directory / "file").write_bytes(b"%d" % level)
    tool.check(write_archive(tmp_path / NAME, pool, Recipe(media=media)), tree_on_disk(media))


def test_5000_small_files_are_read_back(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """Many small files, over many frames, are all there."""
    for number in range(5000):
        if number % 100 == 0:
            (media / f"tenant-{number // 100}").mkdir()
        (media / f"tenant-{number // 100}" / f"{number}.json").write_bytes(b"%d" % number * (number % 700))
    archive = write_archive(tmp_path / NAME, pool, Recipe(media=media))
    assert tree_in_archive(archive) == tree_on_disk(media)


def test_long_names_and_targets_leave_nothing_out(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """A thousand links whose headers alone are many mebibytes are in the archive, and no warning was needed."""
    deep = media.joinpath(*["d" * 200] * 15)
    deep.mkdir(parents=True)
    for number in range(1100):
        (deep / f"link-{number}").symlink_to("t" * 4000)
    recipe = Recipe(media=media)
    archive = write_archive(tmp_path / NAME, pool, recipe)
    assert not recipe.tally.vanished
    assert not recipe.tally.special
    assert tree_in_archive(archive) == tree_on_disk(media)


def test_helpers_are_started_once(tmp_path: Path, media: Path) -> None:
    """A backup of uploads and audit log starts as many helper processes as it has pool."""
    (media / "scan.json").write_bytes(b"{}")
    with archives.compressor_pool() as pool:
        before = child_count()
        write_archive(tmp_path / NAME, pool, Recipe(media=media, audit=media))
        assert child_count() - before == pool.jobs


def child_count() -> int:
    return len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


# -- where the tree lies ----------------------------------------------------------------------------------------------


def test_repository_inside_the_tree_is_passed_over(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """The directory of archives is known by its identity: another name for it is no way in."""
    repository = media / "backups"
    repository.mkdir()
    (media / "scan.json").write_bytes(b"{}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(repository)
    recipe = Recipe(media=media, excluded=frozenset([identity(elsewhere)]))
    archive = write_archive(repository / NAME, pool, recipe)
    assert set(tree_in_archive(archive)) == {b"", b"scan.json"}


def test_repository_under_a_bind_mount_is_passed_over(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """A repository that is mounted into the tree a second time is passed over there too."""
    repository, mounted = tmp_path / "backups", media / "mounted"
    repository.mkdir()
    mounted.mkdir()
    (repository / "older.tar.gz").write_bytes(b"x")
    mount = subprocess.run(
        [program("mount"), "--bind", repository, mounted], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"this user may not mount: {mount.stderr.strip()}")
    try:
        recipe = Recipe(media=media, excluded=frozenset([identity(repository)]))
        archive = write_archive(repository / NAME, pool, recipe)
    finally:
        subprocess.run([program("umount"), mounted], check=True)
    assert set(tree_in_archive(archive)) == {b""}


def test_root_that_is_a_symlink_is_followed(pool: CompressorPool, tmp_path: Path, media: Path) -> None:
    """The directory of uploads may be a link to where they are; links inside it stay links."""
    (media / "scan.json").write_bytes(b"{}")
    (media / "link").symlink_to("/etc")
    (tmp_path / "configured").symlink_to(media)
    archive = write_archive(tmp_path / NAME, pool, Recipe(media=tmp_path / "configured"))
    assert tree_in_archive(archive) == tree_on_disk(media)


@pytest.mark.parametrize("size", [0, 100, 3 * MIB])
def test_audit_path_may_be_the_file_itself(pool: CompressorPool, tmp_path: Path, size: int) -> None:
    """An audit log that is one file lies below `audit/` under its own name."""
    log = tmp_path / "audit.jsonl"
    log.write_bytes(os.urandom(size))
    archive = write_archive(tmp_path / NAME, pool, Recipe(audit=log))
    found = tree_in_archive(archive, "audit")
    assert set(found) == {b"audit.jsonl"}
    assert found[b"audit.jsonl"].content == sha256(log.read_bytes()).hexdigest()
    assert archives.verify(archive).intact


def test_empty_directory_is_an_archive(pool: CompressorPool, tmp_path: Path, media: Path, tool: Tool) -> None:
    """A portal without an upload has a whole backup."""
    archive = write_archive(tmp_path / NAME, pool, Recipe(media=media))
    assert archives.verify(archive).intact
    tool.check(archive, tree_on_disk(media))


def test_names_are_independent_of_the_locale(tmp_path: Path, media: Path) -> None:
    """A backup that cron starts without a locale names files as one that a person starts."""
    (media / "prüfung.json").write_bytes(b"{}")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [sys.executable, "-m", "tests.support.archives", os.fsencode(media), tmp_path / NAME],
        cwd=ROOT,
        env=environment,
        check=True,
    )
    assert read_member(tmp_path / NAME, "media/prüfung.json") == b"{}"
    assert archives.verify(tmp_path / NAME).intact
