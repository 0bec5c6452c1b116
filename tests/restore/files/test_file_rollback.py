"""A rollback leaves nothing of ours in the tree, and everything that somebody else has written."""

from __future__ import annotations

import os
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from portal.ops.chains.reader import open_tree
from portal.ops.errors import AccessDeniedError
from portal.ops.model import RESTORE_DIRECTORY, Component
from portal.ops.restore.files.restore import FileRestore
from tests.support import archives
from tests.support.archives import NAME, Recipe, tree_on_disk, write_archive

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive of two files, one of them in a directory."""
    source = tmp_path / "source"
    (source / "tenant").mkdir(parents=True)
    for path in ("scan.json", "tenant/notes.json"):
        (source / path).write_text("from the backup")
    with archives.compressor_pool() as pool:
        return write_archive(tmp_path / NAME, pool, Recipe(media=source))


def restored(archive: Path, target: Path) -> FileRestore:
    """A restore that has been applied."""
    restore = FileRestore(target, restore_id="restore_1", component=Component.MEDIA)
    with closing(open_tree(archive)) as opened:
        restore.stage_from(opened, 1)
    restore.apply()
    return restore


def test_nothing_of_ours_remains(archive: Path, tmp_path: Path) -> None:
    """The uploads are exactly what they were, times included."""
    target = tmp_path / "live"
    (target / "own").mkdir(parents=True)
    (target / "scan.json").write_text("live")
    os.utime(target, ns=(0, 1_700_000_000_123_456_789))
    before = tree_on_disk(target)
    report = restored(archive, target).rollback()
    assert tree_on_disk(target) == before
    assert not report.kept
    assert not report.changed


def test_directory_that_a_restore_made_is_removed(archive: Path, tmp_path: Path) -> None:
    """Where nothing was before the restore, nothing is afterwards."""
    restored(archive, tmp_path / "new" / "live").rollback()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["other.json", "tenant/other.json"])
def test_what_others_wrote_into_a_directory_of_the_restore_stays(archive: Path, tmp_path: Path, place: str) -> None:
    """A file that somebody has put into a directory which the restore made is still there after the rollback."""
    target = tmp_path / "live"
    restore = restored(archive, target)
    (target / place).write_text("somebody's")
    restore.rollback()
    assert (target / place).read_text() == "somebody's"
    assert not (target / "scan.json").exists()
    assert not (target / RESTORE_DIRECTORY).exists()


def test_restored_file_that_somebody_changed_is_kept(archive: Path, tmp_path: Path) -> None:
    """What somebody has added to a restored file is reported, and in the restore's directory, which then stays."""
    target = tmp_path / "live"
    restore = restored(archive, target)
    with (target / "scan.json").open("a") as file:
        file.write(", and more")
    report = restore.rollback()
    assert report.changed == ("scan.json",)
    (kept,) = target.rglob("scan.json")
    assert kept.read_text() == "from the backup, and more"


@pytest.mark.parametrize("was_there", [False, True])
def test_restored_file_that_somebody_replaced_is_reported(archive: Path, tmp_path: Path, was_there: bool) -> None:
    """A file that has taken the place of a restored one is named, and is not lost, whatever was there before."""
    target = tmp_path / "live"
    target.mkdir()
    if was_there:
        (target / "scan.json").write_text("live")
    restore = restored(archive, target)
    (tmp_path / "another").write_text("somebody's")
    (tmp_path / "another").rename(target / "scan.json")
    report = restore.rollback()
    assert report.kept == ("scan.json",)
    assert "somebody's" in {path.read_text() for path in target.rglob("scan.json")}
    assert (target / "scan.json").read_text() == ("live" if was_there else "somebody's")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a file immutable")
def test_immutable_file_is_named(archive: Path, tmp_path: Path) -> None:
    """Where a file may not be replaced even by root, the error names it, and nothing is changed."""
    target = tmp_path / "live"
    (target / "tenant").mkdir(parents=True)
    for path in ("scan.json", "tenant/notes.json"):
        (target / path).write_text("live")
    if subprocess.run(["chattr", "+i", target / "tenant" / "notes.json"], check=False).returncode:
        pytest.skip("this file system has no such attribute")
    try:
        with pytest.raises(AccessDeniedError, match=f"^{target}/tenant/notes.json may not be changed") as refused:
            restored(archive, target)
    finally:
        subprocess.run(["chattr", "-i", target / "tenant" / "notes.json"], check=True)
    assert "lsattr" in refused.value.hint
    assert (target / "scan.json").read_text() == "live"
    assert not (target / RESTORE_DIRECTORY).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a file immutable")
@pytest.mark.parametrize(
    ("fixed", "attribute", "named"),
    [("tenant/notes.json", "i", "tenant/notes.json"), ("tenant", "a", "tenant"), ("", "i", "the directory itself")],
)
def test_the_plan_foresees_it(archive: Path, tmp_path: Path, fixed: str, attribute: str, named: str) -> None:
    """A file that would be replaced, or a directory that it is in, is in the way of the restore before it begins."""
    target = tmp_path / "live"
    (target / "tenant").mkdir(parents=True)
    (target / "tenant" / "notes.json").write_text("live")
    if subprocess.run(["chattr", f"+{attribute}", target / fixed], check=False).returncode:
        pytest.skip("this file system has no such attribute")
    restore = FileRestore(target, restore_id="restore_1", component=Component.MEDIA)
    try:
        with closing(open_tree(archive)) as opened:
            blockers = restore.plan(opened.members()).blockers
    finally:
        subprocess.run(["chattr", f"-{attribute}", target / fixed], check=True)
    assert any(one.message.startswith(f"in {target}, {named} may not be changed, not even by root") for one in blockers)
    with closing(open_tree(archive)) as opened:
        assert restore.plan(opened.members()).blockers == ()
