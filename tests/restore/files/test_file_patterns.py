"""Some files are restored, and no others."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from portal.ops.archive.reader import ArchiveReader
from portal.ops.errors import ConfigurationError, NotIntactError
from portal.ops.restore.files.selection import matches
from tests.support.archives import NAME, Recipe, tree_on_disk, write_archive
from tests.support.file_restores import live_tree, restore_of, run
from tests.support.hostile import directory, file, hardlink, write_indexed

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.archive.compressor_pool import CompressorPool

MIB = 1 << 20


@pytest.mark.parametrize(
    ("path", "pattern", "fits"),
    [
        ("tenant-a/2024/x.sarif", "tenant-a/*.sarif", True),
        ("tenant-a/x.json", "tenant-a/*.sarif", False),
        ("tenant-a/2024/x.sarif", "tenant-a", True),
        ("tenant-a/2024/x.sarif", "tenant-a/", True),
        ("tenant-ab/x", "tenant-a", False),
        ("Tenant-a/x", "tenant-a/*", False),
    ],
)
def test_patterns_are_the_shells(path: str, pattern: str, fits: bool) -> None:
    """`*` also stands for a slash, a directory takes what is below it, and case matters."""
    assert matches(path, [pattern]) is fits


@pytest.mark.usefixtures("hands")
def test_some_files_are_restored_and_no_others(archive: Path, target: Path) -> None:
    """With a pattern only what fits it is put in place; directories that are there keep what they have."""
    before = live_tree(target)
    report = run(restore_of(target, patterns=("tenant-a/*.sarif",)), archive)
    assert (report.new, report.replaced) == (2, 1)
    changed = {name for name, entry in live_tree(target).items() if before.get(name) != entry}
    assert {name for name in changed if name.endswith(b".sarif")} == {
        b"tenant-a/2024/scan-0.sarif",
        b"tenant-a/2024/scan-1.sarif",
        b"tenant-a/2024/scan-2.sarif",
    }
    assert b"" not in changed
    restore_of(target).rollback()
    assert live_tree(target) == before


@pytest.mark.usefixtures("hands")
def test_one_file_is_read_from_its_frames_alone(
    pool: CompressorPool, tmp_path: Path, source: Path, target: Path
) -> None:
    """Damage elsewhere in an archive does not keep a single file from being restored."""
    (source / "tenant-b" / "large.bin").write_bytes(os.urandom(3 * MIB))
    archive = write_archive(tmp_path / NAME, pool, Recipe(media=source))
    reader = ArchiveReader(archive)
    large = reader.find("media/tenant-b/large.bin")
    assert large is not None
    with archive.open("r+b") as data:
        data.seek(reader.frames.offsets[large.frame + 1] + 1000)
        data.write(b"damage")
    run(restore_of(target, patterns=("tenant-a/2024/scan-1.sarif",)), archive)
    assert (target / "tenant-a" / "2024" / "scan-1.sarif").read_text() == "tenant-a 1"


@pytest.mark.parametrize("jobs", [1, 2])
def test_frames_are_read_once(
    pool: CompressorPool, tmp_path: Path, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    """However many of the files in a frame are asked for; frames that have none of them are not read."""
    for number in range(60):
        (source / "tenant-a" / f"half-{number}").write_bytes(os.urandom(MIB // 2))
    (source / "tenant-a" / "half-1x").write_bytes(os.urandom(9 * MIB))
    archive = write_archive(tmp_path / NAME, pool, Recipe(media=source))
    read: Counter[int] = Counter()
    original = ArchiveReader.read_frame

    def counted(self: ArchiveReader, number: int) -> bytes | NotIntactError:
        read[number] += 1
        return original(self, number)

    monkeypatch.setattr(ArchiveReader, "read_frame", counted)
    with closing(ArchiveReader(archive)) as opened:
        restore_of(target, patterns=("tenant-a/half-1?", "tenant-a/2024/*")).stage_from(opened, jobs)
        assert set(read.values()) == {1}
        assert 15 <= len(read) < len(opened.frames) - 20


@pytest.mark.usefixtures("hands")
def test_hard_link_is_restored_without_its_first_name(target: Path, tmp_path: Path) -> None:
    """Names of a file whose content is under a name that is not asked for get that content, and share it."""
    links = [hardlink(f"media/b/{name}", "media/a") for name in ("one", "two")]
    archive = write_indexed(tmp_path, [directory("media"), file("media/a", b"content"), directory("media/b"), *links])
    run(restore_of(target, patterns=("b/*",)), archive)
    assert (target / "b" / "two").read_bytes() == b"content"
    assert (target / "b" / "two").samefile(target / "b" / "one")
    assert not (target / "a").exists()


@pytest.mark.usefixtures("hands")
def test_pattern_that_fits_nothing_is_an_error(archive: Path, target: Path) -> None:
    """A mistyped pattern is told, and leaves nothing behind."""
    before = tree_on_disk(target)
    with pytest.raises(ConfigurationError, match="fits"):
        run(restore_of(target, patterns=("tenant-c/*",)), archive)
    assert tree_on_disk(target) == before


def test_exact_and_patterns_exclude_each_other(target: Path) -> None:
    """An exact restore of some files would move all others aside."""
    with pytest.raises(ConfigurationError):
        restore_of(target, exact=True, patterns=("a",))
