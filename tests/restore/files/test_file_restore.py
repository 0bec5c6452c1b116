"""Trees come back: wholly, partly, over what is there; and go away again."""

from __future__ import annotations

import os
import tempfile
from base64 import b64encode
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from portal.ops.archive.index import MemberType
from portal.ops.archive.open import open_archive
from portal.ops.backup.walk import FileTree, tree_bytes
from portal.ops.errors import BusyError, ConfigurationError, DiskFullError, RestoreError
from portal.ops.filesystem import tree as file_tree
from portal.ops.model import RESTORE_DIRECTORY, Component
from portal.ops.restore.files import journal as file_journal
from portal.ops.restore.files.record import RestoreDirectory
from portal.ops.restore.files.restore import FileRestore, FilesState, discard_rollback_data, list_restores
from tests.support.archives import MTIME_NS, NAME, Recipe, Tree, tree_on_disk, write_archive
from tests.support.file_restores import live_tree, put, restore_of, run
from tests.support.hostile import directory, file, hardlink, write_indexed, write_plain
from tests.support.portal import small_disk
from tests.support.trees import grow, trees

if TYPE_CHECKING:
    from portal.ops.archive.compressor_pool import CompressorPool
    from tests.support.trees import Node

MIB = 1 << 20
LONG_FORM = os.environ.get("KEKKAI_LONG_TESTS")
drawn = settings(
    max_examples=300 if LONG_FORM else 15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# -- every shape ------------------------------------------------------------------------------------------------------


@drawn
@given(node=trees)
def test_any_tree_comes_back(pool: CompressorPool, node: Node) -> None:
    """Names, contents, modes, times and links are restored to a directory that was not there, and it goes again."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        grow(os.fsencode(place / "source"), node, [])
        expected = without_special_bits(tree_on_disk(place / "source"))
        archive = write_archive(place / NAME, pool, Recipe(media=place / "source"))
        restore = FileRestore(place / "target", restore_id="r", component=Component.MEDIA, allow_outside_links=True)
        run(restore, archive)
        assert live_tree(place / "target") == expected
        restore.rollback()
        assert not (place / "target").exists()


@drawn
@given(before=trees, after=trees)
def test_any_tree_is_exchanged_for_any_other(pool: CompressorPool, before: Node, after: Node) -> None:
    """An exact restore over another tree gives the backup's; a rollback gives back the other, to the nanosecond."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, node in (("source", after), ("target", before)):
            grow(os.fsencode(place / name), node, [])
        expected, old = without_special_bits(tree_on_disk(place / "source")), tree_on_disk(place / "target")
        archive = write_archive(place / NAME, pool, Recipe(media=place / "source"))
        restore = FileRestore(
            place / "target", restore_id="r", component=Component.MEDIA, exact=True, allow_outside_links=True
        )
        run(restore, archive)
        assert live_tree(place / "target") == expected
        restore.rollback()
        assert live_tree(place / "target") == old


def without_special_bits(tree: Tree) -> Tree:
    """The tree with the bits off that a restore drops from files."""
    return {
        name: replace(entry, mode=entry.mode & ~0o6000) if entry.kind is MemberType.FILE else entry
        for name, entry in tree.items()
    }


# -- plan -------------------------------------------------------------------------------------------------------------


def test_plan_counts_and_touches_nothing(archive: Path, target: Path) -> None:
    """What would be new, replaced and left is said beforehand, with what is in the way."""
    before = tree_on_disk(target)
    plan = restore_of(target).plan(open_archive(archive).members())
    assert (plan.new, plan.replaced, plan.same, plan.left) == (8, 1, 0, 1)
    assert plan.in_the_way == ("tenant-b is a file, and a directory in the backup",)
    assert not plan.blockers
    assert "8 files would be new" in " ".join(plan.lines())
    assert tree_on_disk(target) == before


def test_plan_of_a_directory_that_is_not_there(archive: Path, tmp_path: Path) -> None:
    """Everything would be new, and nothing is made."""
    plan = restore_of(tmp_path / "a" / "b").plan(open_archive(archive).members())
    assert plan.new == 9
    assert not (tmp_path / "a").exists()


def test_plan_says_where_there_is_no_room(tmp_path: Path) -> None:
    """A stage that cannot fit is a blocker before anything is written."""
    archive = write_indexed(tmp_path, [directory("media"), file("media/a", size=1 << 60)])
    plan = restore_of(tmp_path / "live").plan(open_archive(archive).members())
    assert "needs about" in plan.blockers[0].message


# -- apply ------------------------------------------------------------------------------------------------------------


def test_stage_touches_nothing_live(archive: Path, target: Path) -> None:
    """Until it is applied a restore has changed nothing, and undone it leaves no trace."""
    before = tree_on_disk(target)
    restore = restore_of(target)
    restore.stage_from(open_archive(archive), 2)
    assert {name: one for name, one in live_tree(target).items() if name} == {k: v for k, v in before.items() if k}
    assert not restore.is_begun()
    restore.undo()
    assert tree_on_disk(target) == before


def test_files_that_the_backup_lacks_stay(archive: Path, source: Path, target: Path) -> None:
    """A restore adds and replaces; what came since the backup is left."""
    report = run(restore_of(target), archive)
    assert (report.new, report.replaced, report.same, report.aside) == (8, 1, 0, 0)
    assert (target / "tenant-a" / "new.json").read_text() == "since the backup"
    added = live_tree(target)
    del added[b"tenant-a/new.json"]
    assert added == tree_on_disk(source)


def test_rollback_is_the_exact_inverse(archive: Path, target: Path) -> None:
    """After a rollback the tree is what it was, file in the way and times of directories included."""
    before = tree_on_disk(target)
    run(restore_of(target), archive)
    report = restore_of(target).rollback()
    assert live_tree(target) == before
    assert report.state is FilesState.ROLLED_BACK


def test_second_rollback_changes_nothing(archive: Path, target: Path, tmp_path: Path) -> None:
    """A rollback that is asked for twice is done once, also where it has removed the directory."""
    for place in (target, tmp_path / "not-there"):
        run(restore_of(place), archive)
        restore_of(place).rollback()
        after = tree_on_disk(tmp_path)
        assert restore_of(place).rollback().state is FilesState.ROLLED_BACK
        assert {name: one.content for name, one in tree_on_disk(tmp_path).items() if b"restore.json" not in name} == {
            name: one.content for name, one in after.items() if b"restore.json" not in name
        }


def test_exact_moves_aside_and_removes_nothing(archive: Path, source: Path, target: Path) -> None:
    """An exact restore equals the backup; what it moved aside is in the rollback."""
    report = run(restore_of(target, exact=True), archive)
    assert live_tree(target) == tree_on_disk(source)
    assert report.aside == 1
    held = target / RESTORE_DIRECTORY / "restore_1" / "rollback" / "tenant-a" / "new.json"
    assert held.read_text() == "since the backup"


def test_exact_leaves_the_repository_alone(archive: Path, target: Path) -> None:
    """A repository inside of the uploads is not moved, nor are the directories above it."""
    repository = target / "ops" / "backups"
    repository.mkdir(parents=True)
    (repository / "archive").write_text("a backup")
    (target / "ops" / "other").write_text("moved")
    run(restore_of(target, exact=True, protected=(repository,)), archive)
    assert (repository / "archive").read_text() == "a backup"
    assert not (target / "ops" / "other").exists()


def test_new_directories_are_moved_as_a_whole(
    pool: CompressorPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rename for each that stands beside others, whatever is in it; what is rolled back is asked one by one."""
    source, target, moved = tmp_path / "source", tmp_path / "live", list[str]()
    for number in range(30):
        place = source / f"tenant-{number % 3}" / f"{number % 5}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.json").write_text(f"{number}")
    (source / "top.json").write_text("top")
    move = file_tree.move

    def noted(one: file_tree.Tree, other: file_tree.Tree, path: str, *new: str | None, make: bool = False) -> None:
        moved.append(path)
        move(one, other, path, *new, make=make)

    monkeypatch.setattr(file_journal, "move", noted)
    target.mkdir()
    report = run(restore_of(target), write_archive(tmp_path / NAME, pool, Recipe(media=source)))
    assert report.new == 31
    assert sorted(moved) == ["tenant-0", "tenant-1", "tenant-2", "top.json"]
    assert live_tree(target) == tree_on_disk(source)
    restore_of(target).rollback()
    assert live_tree(target).keys() == {b""}


def test_what_is_the_same_keeps_its_inode(archive: Path, target: Path) -> None:
    """A second restore of the same backup replaces nothing, and directories stay the ones they were."""
    run(restore_of(target), archive)
    inodes = {path: path.stat().st_ino for path in target.rglob("tenant-a*")}
    report = run(restore_of(target, restore_id="restore_2"), archive)
    assert (report.new, report.replaced, report.same) == (0, 0, 9)
    assert {path: path.stat().st_ino for path in inodes} == inodes


@pytest.mark.parametrize(
    ("backed_up", "live", "is_same"),
    [
        ({}, {}, True),
        ({}, {"user.a": b"x"}, True),
        ({"user.a": b"x"}, {"user.a": b"x"}, True),
        ({"user.a": b"x"}, {"user.a": b"y"}, False),
        ({"user.a": b"x"}, {"user.a": b"x", "user.b": b"x"}, False),
        ({"user.a": b"x"}, {}, False),
    ],
)
def test_file_with_other_attributes_is_replaced(
    target: Path, tmp_path: Path, backed_up: dict[str, bytes], live: dict[str, bytes], is_same: bool
) -> None:
    """If the backup has any: a backup without them says nothing of them."""
    xattrs = tuple((name, b64encode(value).decode()) for name, value in backed_up.items())
    archive = write_indexed(tmp_path, [directory("media"), file("media/a", xattrs=xattrs)])
    run(restore_of(target), archive)
    for name in os.listxattr(target / "a"):
        os.removexattr(target / "a", name)
    try:
        for name, value in live.items():
            os.setxattr(target / "a", name, value)
    except OSError:
        pytest.skip("this file system has no extended attributes")
    report = run(restore_of(target, restore_id="restore_2"), archive)
    assert (report.same, report.replaced) == (is_same, not is_same)


def test_live_file_with_more_attributes_than_an_archive_takes_is_replaced(tmp_path: Path) -> None:
    """It is another one than that in the backup, and moved aside with all that it has."""
    xattrs = (("user.a", b64encode(b"x").decode()),)
    archive = write_indexed(tmp_path, [directory("media"), file("media/a", xattrs=xattrs)])
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        target = Path(place) / "target"
        run(restore_of(target), archive)
        try:
            os.setxattr(target / "a", "user.b", bytes(1 << 16))
        except OSError:
            pytest.skip("this file system has no attributes of that size")
        report = run(restore_of(target, restore_id="restore_2"), archive)
        assert (report.same, report.replaced) == (0, 1)
        restore_of(target, restore_id="restore_2").rollback()
        assert len(os.getxattr(target / "a", "user.b")) == 1 << 16


def test_disk_without_room_for_a_hard_link_is_full(tmp_path: Path) -> None:
    """The archive is not to blame, and nothing is left of the stage."""
    links = [hardlink(f"media/{number}", "media/a") for number in range(100)]
    archive = write_indexed(tmp_path, [directory("media"), file("media/a"), *links])
    with small_disk(tmp_path / "small", "4m,nr_inodes=60"):
        with pytest.raises(DiskFullError, match="no space left"):
            run(restore_of(tmp_path / "small" / "target"), archive)
        assert os.listdir(tmp_path / "small") == []


def test_file_that_rotted_is_replaced(archive: Path, target: Path) -> None:
    """Size and time do not make a file the same: its bytes do."""
    run(restore_of(target), archive)
    put(target / "tenant-a" / "notes.json", "tenant-x")
    report = run(restore_of(target, restore_id="restore_2"), archive)
    assert report.replaced == 1
    assert (target / "tenant-a" / "notes.json").read_text() == "tenant-a"


def test_symlink_to_the_uploads_is_followed(archive: Path, source: Path, target: Path, tmp_path: Path) -> None:
    """A target that is a symlink to a directory stays one; the directory is restored."""
    link = tmp_path / "link"
    link.symlink_to(target)
    run(restore_of(link, exact=True), archive)
    assert link.is_symlink()
    assert live_tree(target) == tree_on_disk(source)


def test_live_symlink_is_not_followed(archive: Path, target: Path, tmp_path: Path) -> None:
    """A symlink in the tree where the backup has a directory is moved aside; what it points to is not touched."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (target / "empty").symlink_to(elsewhere)
    (target / "tenant-b").unlink()
    (target / "tenant-b").symlink_to(elsewhere)
    run(restore_of(target), archive)
    assert list(elsewhere.iterdir()) == []
    assert (target / "tenant-b" / "notes.json").read_text() == "tenant-b"
    restore_of(target).rollback()
    assert (target / "tenant-b").readlink() == elsewhere


def test_archive_of_tar_and_gzip_is_restored(target: Path, tmp_path: Path) -> None:
    """An archive without an index goes the same way."""
    pieces = [file("media/x/a.json", b"a"), hardlink("media/b.json", "media/x/a.json")]
    run(restore_of(target), write_plain(tmp_path, pieces, lambda _: None))
    assert (target / "x" / "a.json").read_bytes() == b"a"
    assert (target / "b.json").stat().st_ino == (target / "x" / "a.json").stat().st_ino


def test_failure_while_applying_takes_everything_back(archive: Path, target: Path) -> None:
    """A rename that cannot be done ends in an error, with everything as before and nothing left behind."""
    before = live_tree(target)
    restore = restore_of(target)
    restore.stage_from(open_archive(archive), 2)
    with RestoreDirectory(str(target), "restore_1").locked(), pytest.raises(BusyError):
        restore.apply()
    protected = restore_of(target, protected=(target / "tenant-b",))
    with pytest.raises(RestoreError, match="in the way"):
        protected.apply()
    assert live_tree(target) == before
    assert not (target / RESTORE_DIRECTORY).exists()


# -- what others do meanwhile -----------------------------------------------------------------------------------------


def test_rollback_keeps_what_was_written_since(archive: Path, target: Path) -> None:
    """A file uploaded into a restored directory stays, and is reported."""
    run(restore_of(target), archive)
    (target / "empty" / "upload.json").write_text("new")
    report = restore_of(target).rollback()
    assert (target / "empty" / "upload.json").read_text() == "new"
    assert report.kept == ("empty/upload.json",)


def test_rollback_keeps_what_has_taken_a_restored_files_place(archive: Path, target: Path) -> None:
    """Where a new upload and an old file have one name, the old one returns and the upload is kept beside."""
    run(restore_of(target), archive)
    name = "tenant-a/2024/scan-0.sarif"
    (target / "fresh").write_text("new upload")
    (target / "fresh").rename(target / name)
    report = restore_of(target).rollback()
    assert (target / name).read_text() == "an earlier upload"
    assert (target / RESTORE_DIRECTORY / "restore_1" / "kept" / name).read_text() == "new upload"
    assert name in report.kept


def test_rollback_reports_restored_files_that_were_changed(archive: Path, target: Path) -> None:
    """A restored file that was written to goes into the stage with the change."""
    run(restore_of(target), archive)
    (target / "tenant-a" / "notes.json").write_text("changed")
    report = restore_of(target).rollback()
    assert report.changed == ("tenant-a/notes.json",)
    assert (target / RESTORE_DIRECTORY / "restore_1" / "stage" / "tenant-a" / "notes.json").read_text() == "changed"


# -- what is remembered -----------------------------------------------------------------------------------------------


def test_restores_are_listed_and_forgotten(archive: Path, target: Path) -> None:
    """A restore is listed with what it holds, until it is forgotten; the tree's own time does not change by that."""
    run(restore_of(target), archive)
    (found,) = list_restores(target)
    assert (found.restore_id, found.state) == ("restore_1", FilesState.APPLIED)
    after = live_tree(target)
    assert discard_rollback_data(target, "restore_1") > 0
    assert list_restores(target) == []
    assert tree_on_disk(target) == after


def test_restore_that_is_applied_is_not_applied_again(archive: Path, target: Path) -> None:
    """A second call of `apply` says the same and does nothing."""
    first = run(restore_of(target), archive)
    (target / "tenant-a" / "notes.json").unlink()
    assert restore_of(target).apply() == first
    assert not (target / "tenant-a" / "notes.json").exists()


def test_rollback_that_was_complete_changes_nothing_more(target: Path) -> None:
    """Nothing is left of a restore that was rolled back, so taking it back once more finds nothing to do."""
    before = live_tree(target)
    report = restore_of(target, restore_id="restore_9").rollback()
    assert (report.state, report.taken_back) == (FilesState.ROLLED_BACK, 0)
    assert live_tree(target) == before


def test_backup_passes_over_what_restores_keep(archive: Path, target: Path) -> None:
    """The data of a restore is not backed up, nor counted."""
    run(restore_of(target), archive)
    ours = target / RESTORE_DIRECTORY / "restore_1" / "rollback" / "large"
    ours.write_bytes(bytes(MIB))
    assert not [item for item, _ in FileTree(root=target, prefix="media").items() if RESTORE_DIRECTORY in item[0]]
    assert tree_bytes(target) < MIB


class TestByName:
    """What is done with a restore of a name."""

    @pytest.fixture
    def two(self, archive: Path, target: Path) -> Path:
        """Uploads with two restores."""
        run(restore_of(target), archive)
        run(restore_of(target, restore_id="restore_2"), archive)
        return target

    def test_one_of_several_is_discarded(self, two: Path) -> None:
        """The one of that name, whichever comes first; the newest is listed first."""
        assert [one.restore_id for one in list_restores(two)] == ["restore_2", "restore_1"]
        assert discard_rollback_data(two, "restore_2") > 0
        assert [one.restore_id for one in list_restores(two)] == ["restore_1"]
        for name in ("restore_2", "restore_3"):
            with pytest.raises(RestoreError, match=f"there is no restore {name} in {two}"):
                discard_rollback_data(two, name)

    @pytest.mark.parametrize("state", FilesState)
    def test_what_is_unfinished_is_not_discarded(self, two: Path, state: FilesState) -> None:
        """It has to be finished or undone first."""
        made = RestoreDirectory(str(two), "restore_1")
        made.advance(made.read(), state)
        if state in (FilesState.APPLYING, FilesState.UNDOING):
            with pytest.raises(RestoreError, match="the restore restore_1 was interrupted"):
                discard_rollback_data(two, "restore_1")
        else:
            discard_rollback_data(two, "restore_1")
        assert made.exists() is (state in (FilesState.APPLYING, FilesState.UNDOING))

    @pytest.mark.parametrize("state", [FilesState.STAGING, FilesState.UNDOING, FilesState.ROLLED_BACK])
    def test_what_cannot_be_applied(self, two: Path, state: FilesState) -> None:
        """Its state says why, and nothing is changed."""
        made = RestoreDirectory(str(two), "restore_1")
        made.advance(made.read(), state)
        before = live_tree(two)
        with pytest.raises(RestoreError, match=f"restore_1 is {state.value.replace('_', ' ')}, and cannot be applied"):
            restore_of(two).apply()
        assert live_tree(two) == before

    @pytest.mark.parametrize("state", FilesState)
    def test_whether_live_data_was_changed(self, two: Path, state: FilesState) -> None:
        """By its state; a restore that is not there has changed nothing."""
        made = RestoreDirectory(str(two), "restore_1")
        made.advance(made.read(), state)
        is_begun = state in (FilesState.APPLYING, FilesState.APPLIED, FilesState.UNDOING)
        assert restore_of(two).is_begun() is is_begun
        assert not restore_of(two, restore_id="restore_3").is_begun()

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
    def test_names_that_are_none(self, tmp_path: Path, name: str) -> None:
        """They would be paths; nor is a database a tree of files."""
        with pytest.raises(ConfigurationError, match="cannot be restored as files under the name"):
            restore_of(tmp_path, restore_id=name)
        with pytest.raises(ConfigurationError, match="database cannot be restored as files"):
            FileRestore(tmp_path, restore_id="r", component=Component.DATABASE)


def test_undo_of_what_was_not_begun(target: Path) -> None:
    """It leaves the tree as it is."""
    before = tree_on_disk(target)
    restore_of(target).undo()
    (target / RESTORE_DIRECTORY).mkdir()
    os.utime(target, ns=(MTIME_NS, before[b""].mtime_ns))
    restore_of(target).undo()
    assert tree_on_disk(target).keys() == before.keys()
