"""A restored tree is held against its archive: every difference is found, and nothing else is called one."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.archive.open import open_archive
from portal.ops.drill.compare import MOST_DAMAGES, Comparison
from portal.ops.drill.compare_files import FileComparison
from portal.ops.restore.database.object_check import ObjectCheck
from tests.support.archives import NAME, Recipe, write_archive
from tests.support.hostile import CONTENT, directory, file, hardlink, symlink, write_indexed, write_plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from portal.ops.archive.compressor_pool import CompressorPool

MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree with a file, a larger one with holes, a link of each kind, and directories."""
    root = tmp_path / "source"
    (root / "d").mkdir(parents=True)
    (root / "empty").mkdir(mode=0o750)
    (root / "d" / "a").write_text("content")
    (root / "b").write_bytes(os.urandom(2 * MIB + 5))
    with (root / "holes").open("wb") as sparse:
        sparse.write(b"x" * 4096)
        sparse.seek(4 * MIB)
        sparse.write(b"y" * 4096)
        sparse.truncate(8 * MIB)
    (root / "link").symlink_to("d/a")
    os.link(root / "d" / "a", root / "other")
    return root


@pytest.fixture
def archive(pool: CompressorPool, tmp_path: Path, source: Path) -> Path:
    """Its archive."""
    return write_archive(tmp_path / NAME, pool, Recipe(media=source))


def compared(archive: Path, place: Path) -> tuple[list[str], FileComparison]:
    """What differs, as `path: what`."""
    with closing(open_archive(archive)) as opened:
        found = FileComparison(opened, "media", place)
        return [f"{one.path}: {one.what}" for one in found.damages()], found


def touch_hole(root: Path, at: int, data: bytes = b"data") -> None:
    """Write into a file with holes, without changing its time."""
    before = (root / "holes").stat()
    with (root / "holes").open("r+b") as sparse:
        sparse.seek(at)
        sparse.write(data)
    os.utime(root / "holes", ns=(before.st_atime_ns, before.st_mtime_ns))


def rewrite(root: Path) -> None:
    before = (root / "b").stat()
    data = bytearray((root / "b").read_bytes())
    data[-1] ^= 1
    (root / "b").write_bytes(data)
    os.utime(root / "b", ns=(before.st_atime_ns, before.st_mtime_ns))


def grow(root: Path) -> None:
    before = (root / "b").stat()
    with (root / "b").open("ab") as data:
        data.write(b"x")
    os.utime(root / "b", ns=(before.st_atime_ns, before.st_mtime_ns))


def shrink(root: Path) -> None:
    before = (root / "b").stat()
    os.truncate(root / "b", 2 * MIB)
    os.utime(root / "b", ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_directory(root: Path) -> None:
    (root / "b").unlink()
    (root / "b").mkdir()


def replace_by_file(root: Path) -> None:
    (root / "empty").rmdir()
    (root / "empty").touch()


def relink(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("b")


def unlink_copy(root: Path) -> None:
    shutil.copy2(root / "other", root / "copy")
    (root / "copy").rename(root / "other")


def add(root: Path) -> None:
    (root / "d" / "more").mkdir()
    (root / ".kekkai-restore" / "r").mkdir(parents=True)


def test_a_tree_is_as_it_was(archive: Path, source: Path) -> None:
    """And everything in it was counted; a hard link counts as a file, without its bytes."""
    said, found = compared(archive, source)
    assert (said, found.warnings) == ([], [])
    assert (found.files, found.content_bytes) == (5, 7 + 2 * MIB + 5 + 8 * MIB)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (rewrite, "media/b: its SHA-256 is "),
        (grow, f"media/b: it has {2 * MIB + 6} bytes, and had {2 * MIB + 5}"),
        (shrink, f"media/b: it has {2 * MIB} bytes, and had {2 * MIB + 5}"),
        (lambda root: os.utime(root / "b"), "media/b: its time of change is another one"),
        (lambda root: os.utime(root / "b", ns=(0, 0)), "media/b: its time of change is another one"),
        (lambda root: (root / "b").chmod(0o604), "media/b: its mode is 604, and was "),
        (lambda root: (root / "empty").chmod(0o700), "media/empty: its mode is 700, and was 750"),
        (lambda root: (root / "empty").chmod(0o755), "media/empty: its mode is 755, and was 750"),
        (lambda root: (root / "b").unlink(), "media/b: it was not restored"),
        (replace_by_directory, "media/b: it is something else than in the backup"),
        (replace_by_file, "media/empty: it is something else than in the backup"),
        (relink, "media/link: it is another link"),
        (
            lambda root: (root / "link").unlink() or shutil.copy(root / "b", root / "link"),
            "media/link: it is another link",
        ),
        (unlink_copy, ": it is no other name of media/"),
        (add, "media/d/more: it was restored, and is not in the backup"),
        (lambda root: touch_hole(root, 4096), "media/holes: its SHA-256 is that of a file with data in its holes"),
        (
            lambda root: touch_hole(root, 4 * MIB - 4),
            "media/holes: its SHA-256 is that of a file with data in its holes",
        ),
        (
            lambda root: touch_hole(root, 4 * MIB + 4096),
            "media/holes: its SHA-256 is that of a file with data in its holes",
        ),
        (
            lambda root: touch_hole(root, 8 * MIB - 4),
            "media/holes: its SHA-256 is that of a file with data in its holes",
        ),
        (lambda root: touch_hole(root, 4095, b"z"), "media/holes: its SHA-256 is "),
        (lambda root: touch_hole(root, 4 * MIB + 4095, b"z"), "media/holes: its SHA-256 is "),
    ],
)
def test_each_difference_is_found(archive: Path, source: Path, change: Callable[[Path], object], says: str) -> None:
    """And nothing else."""
    change(source)
    (said,) = compared(archive, source)[0]
    assert says in said


def test_zeros_in_holes_are_no_difference(archive: Path, source: Path) -> None:
    """A file system may have no holes; nor do the bits of sets and sticky directories count."""
    for at in (4096, 4 * MIB - 4096, 5 * MIB):
        touch_hole(source, at, bytes(4096))
    (source / "empty").chmod(0o1750)
    (source / "b").chmod((source / "b").stat().st_mode | 0o4000)
    assert compared(archive, source)[0] == []


def test_nothing_was_restored(archive: Path, tmp_path: Path) -> None:
    """Each entry is missed."""
    said, found = compared(archive, tmp_path / "absent")
    assert len(said) == 8
    assert {one.partition(": ")[2] for one in said} == {"it was not restored"}
    assert found.files == 5


def test_an_archive_without_an_index(tmp_path: Path) -> None:
    """It is read through for the digests."""
    archive = write_plain(
        tmp_path, [file("media/a", b"one"), file("media/b", b"two")], lambda info: setattr(info, "mtime", 7)
    )
    place = tmp_path / "place"
    place.mkdir(mode=0o755)
    for name, text in (("a", "one"), ("b", "tw0")):
        (place / name).write_text(text)
        (place / name).chmod(0o600)
        os.utime(place / name, (7, 7))
    (said,) = compared(archive, place)[0]
    assert said.startswith("media/b: its SHA-256 is ")


def test_extended_attributes(tmp_path: Path) -> None:
    """Lost ones are a warning of the place, other ones a difference; where the backup has none they do not count."""
    place = tmp_path / "place"
    place.mkdir(mode=0o755)
    names = [str(number) for number in range(8)]
    wanted = (("user.a", "eA=="), ("user.b", "eQ=="))
    pieces = [file(f"media/{name}", xattrs=wanted if name != "7" else ()) for name in names]
    for name in names:
        (place / name).write_bytes(CONTENT)
        (place / name).chmod(0o600)
        os.utime(place / name, ns=(pieces[0].member.mtime_ns, pieces[0].member.mtime_ns))
    try:
        os.setxattr(place / "7", "user.c", b"z")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    os.setxattr(place / "0", "user.a", b"x")
    archive = write_indexed(tmp_path, [directory("media"), *pieces])
    os.utime(place, ns=(pieces[0].member.mtime_ns, pieces[0].member.mtime_ns))
    said, found = compared(archive, place)
    assert said == []
    assert found.warnings == [
        *(f"media/{n} has lost extended attributes: this file system or user does not allow them" for n in range(5)),
        "2 more differ in the same way",
    ]
    os.setxattr(place / "0", "user.b", b"other")
    os.setxattr(place / "1", "user.c", b"z")
    for name, value in wanted:
        os.setxattr(place / "2", name, {"eA==": b"x", "eQ==": b"y"}[value])
    said, found = compared(archive, place)
    assert said == [f"media/{n}: its extended attributes are others" for n in range(2)]
    assert len(found.warnings) == 4


def test_a_time_that_cannot_be_kept(tmp_path: Path) -> None:
    """Far from now it is a warning, since not every file system has such times; the content counts all the same."""
    place = tmp_path / "place"
    place.mkdir(mode=0o755)
    far = (1 << 31) * 10**9
    pieces = [
        file("media/near", mtime_ns=far - 1),
        file("media/far", mtime_ns=far),
        file("media/past", mtime_ns=-far),
        file("media/rotten", mtime_ns=far, sha256="0" * 64),
    ]
    for piece in pieces:
        path = place / piece.member.path.removeprefix("media/")
        path.write_bytes(CONTENT)
        path.chmod(0o600)
    archive = write_indexed(tmp_path, [directory("media"), *pieces])
    said, found = compared(archive, place)
    assert [one.partition(" is ")[0] for one in said] == ["media/near: its time of change", "media/rotten: its SHA-256"]
    assert [warning.split()[0] for warning in found.warnings] == ["media/far", "media/past", "media/rotten"]


def test_a_link_to_a_name_that_was_replaced(tmp_path: Path) -> None:
    """Something else takes a name while it is compared: that is a difference, and no error."""
    place = tmp_path / "place"
    place.mkdir(mode=0o755)
    (place / "a").symlink_to("a")
    archive = write_indexed(tmp_path, [directory("media"), file("media/a"), hardlink("media/b", "media/a")])
    said, _ = compared(archive, place)
    assert said == [
        "media/a: something else took its name during the comparison",
        "media/b: it was not restored",
    ]
    (place / "b").symlink_to("x")
    archive = write_indexed(tmp_path, [directory("media"), file("media/c"), hardlink("media/b", "media/c")])
    assert "media/b: it is no other name of media/c" in compared(archive, place)[0]
    archive = write_indexed(tmp_path, [directory("media"), symlink("media/b", "y")])
    assert "media/b: it is another link" in compared(archive, place)[0]


class TestComparison:
    """What is said of all of it together."""

    def test_tables(self) -> None:
        """Differences are damage; what has moved is a warning."""
        found = Comparison()
        found.rows_of_tables({"a": 1, "e_0": 2, "e_1": 1}, {"a": 1, "e_0": 1, "e_1": 2}, {"e_0": "e", "e_1": "e"})
        assert (found.tables, found.rows, found.checks) == (3, 4, ["3 tables with 4 rows"])
        assert (found.damages, found.warnings) == (
            [],
            ["rows of e are in other partitions than they were; none is missing"],
        )
        found = Comparison()
        found.rows_of_tables({"a": 1}, {"a": 2})
        assert [(one.what, one.path) for one in found.damages] == [("table a has 1 rows, not 2", None)]
        assert found.checks == ["1 table with 1 row"]

    def test_a_manifest_without_numbers(self) -> None:
        """Nothing could be compared, which is said; of a database without tables there is nothing to say."""
        found = Comparison()
        found.rows_of_tables({"a": 1}, {})
        assert (found.tables, found.checks, len(found.warnings)) == (1, [], 1)
        found = Comparison()
        found.rows_of_tables({}, {})
        assert (found.checks, found.warnings) == (["0 tables with 0 rows"], [])

    def test_indexes(self) -> None:
        """Differences are damage, up to a number that nobody reads any more."""
        wrong = tuple(f"index {number}" for number in range(MOST_DAMAGES + 1))
        found = Comparison()
        found.keys_of_tables(ObjectCheck(indexes=1, constraints=2, wrong=wrong, warnings=("w",)))
        assert (found.checks, found.warnings) == (["1 index and 2 constraints"], ["w"])
        assert [one.what for one in found.damages] == list(wrong[:-1])

    def test_files(self, tmp_path: Path) -> None:
        """They are counted together over the components."""
        pieces: list[Any] = [directory("media"), file("media/a"), directory("audit"), file("audit/b")]
        archive = write_indexed(tmp_path, pieces)
        found = Comparison()
        with closing(open_archive(archive)) as opened:
            found.files_of(opened, "media", tmp_path / "absent")
            found.files_of(opened, "audit", tmp_path / "absent")
        size = len(CONTENT)
        assert (found.files, found.bytes, len(found.damages)) == (2, 2 * size, 4)
        assert found.checks == [f"uploads: 1 file with {size} bytes", f"audit log: 1 file with {size} bytes"]
        assert found.damages[0].path == "media"
