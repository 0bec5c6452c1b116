"""The plan of a restore of files: what it counts, and what it finds in the way."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.archive.index import Member, MemberType
from portal.ops.errors import AccessDeniedError, DiskFullError, RestoreError
from portal.ops.filesystem.attributes import Attributes
from portal.ops.filesystem.mounts import read_mounts
from portal.ops.filesystem.tree import Tree
from portal.ops.restore.files import plan as files_plan
from portal.ops.restore.files import preflight
from portal.ops.restore.files.changes import protected_paths
from portal.ops.restore.files.plan import Comparison
from portal.ops.restore.files.preflight import Preflight, closed, mounts_below, obstacles_in
from tests.support.repositories import as_nobody, public_directory

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.restore.files.report import FilesPlan

__all__ = ["public_directory"]

MOMENT = 1_700_000_000_000_000_000


def member(path: str, kind: MemberType = MemberType.FILE, size: int = 3, **facts: Any) -> Member:
    found: dict[str, Any] = {"mode": 0o600, "uid": os.getuid(), "gid": os.getgid(), "mtime_ns": MOMENT}
    return Member(f"media/{path}", kind, size, **(found | facts))


def put(path: Path, text: str = "abc", moment: int = MOMENT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    os.utime(path, ns=(moment, moment))


def planned(root: Path, *members: Member, **options: Any) -> FilesPlan:
    chosen: dict[str, Any] = {"top": "", "exact": False}
    return Comparison(root=str(root), prefix="media", **(chosen | options)).plan(members, root)


class TestCounts:
    """What would be new, replaced, the same, and left."""

    def test_of_files(self, tmp_path: Path) -> None:
        """By kind, size, time, mode and owner; with their bytes, and the room for all of them."""
        for name in ("same", "longer", "later", "open", "directory/x", "alone", "deep/alone"):
            put(tmp_path / name)
        (tmp_path / "longer").write_text("abcd")
        os.utime(tmp_path / "longer", ns=(MOMENT, MOMENT))
        os.utime(tmp_path / "later", ns=(MOMENT + 1, MOMENT + 1))
        (tmp_path / "open").chmod(0o644)
        found = planned(
            tmp_path,
            *(member(name, size=3) for name in ("same", "longer", "later", "open", "directory")),
            member("new"),
        )
        assert (found.new, found.new_bytes) == (1, 3)
        assert (found.replaced, found.replaced_bytes) == (4, 12)
        assert (found.same, found.content_bytes, found.stage_bytes) == (1, 18, 18 + 6 * 4096)
        assert found.left == 3
        assert found.in_the_way == ("directory is a directory, and a file in the backup",)
        assert found.examples == ("longer", "later", "open")
        assert (found.blockers, found.exact, found.place) == ((), False, tmp_path)
        assert found.free_bytes > 0

    @pytest.mark.parametrize("facts", [{"size": 2}, {"size": 4}, {"mtime_ns": MOMENT - 1}, {"mtime_ns": MOMENT + 1}])
    def test_of_one_difference(self, tmp_path: Path, facts: dict[str, Any]) -> None:
        """Either way, it is another file."""
        put(tmp_path / "a")
        found = planned(tmp_path, member("a", **facts))
        assert (found.replaced, found.same) == (1, 0)

    def test_of_links(self, tmp_path: Path) -> None:
        """A symlink is not judged by its size, a hard link by its time alone; a directory is no file."""
        put(tmp_path / "hard", "other")
        (tmp_path / "soft").symlink_to("x")
        os.utime(tmp_path / "soft", ns=(MOMENT, MOMENT), follow_symlinks=False)
        (tmp_path / "place").mkdir()
        members = [
            member("soft", MemberType.SYMLINK, size=0, link="yy", mode=0o777),
            member("place", MemberType.DIRECTORY, size=0),
        ]
        target = member("f", mtime_ns=MOMENT)
        found = planned(tmp_path, target, member("hard", MemberType.HARDLINK, link="media/f", size=0), *members)
        assert (found.new, found.replaced, found.same, found.left) == (1, 0, 2, 0)
        for moment in (MOMENT - 1, MOMENT + 1):
            os.utime(tmp_path / "hard", ns=(moment, moment))
            found = planned(tmp_path, target, member("hard", MemberType.HARDLINK, link="media/f", size=0), *members)
            assert (found.replaced, found.same) == (1, 1)

    @pytest.mark.parametrize(
        ("kind", "says"),
        [("file", "a file"), ("symlink", "a symlink"), ("directory", None)],
    )
    def test_what_is_of_another_kind(self, tmp_path: Path, kind: str, says: str | None) -> None:
        """It is in the way of a directory; a directory is not."""
        if kind == "file":
            put(tmp_path / "a")
        elif kind == "symlink":
            (tmp_path / "a").symlink_to("b")
        else:
            (tmp_path / "a").mkdir()
        found = planned(tmp_path, member("a", MemberType.DIRECTORY, size=0))
        assert found.in_the_way == (() if says is None else (f"a is {says}, and a directory in the backup",))
        assert (found.new, found.replaced, found.same, found.left) == (0, 0, 0, 0)

    @pytest.mark.parametrize("count", [9, 10, 11])
    def test_ten_of_them_are_named(self, tmp_path: Path, count: int) -> None:
        """And no more."""
        for number in range(count):
            (tmp_path / f"{number:02d}").mkdir()
        found = planned(tmp_path, *(member(f"{number:02d}") for number in range(count)))
        assert len(found.in_the_way) == min(count, 10)

    def test_what_is_below_a_missing_directory_is_not_looked_for(self, tmp_path: Path) -> None:
        """It is new, and so is what comes after it if it is not there."""
        put(tmp_path / "b" / "f")
        directories = [member(name, MemberType.DIRECTORY, size=0) for name in ("a", "b")]
        found = planned(tmp_path, directories[0], member("a/f"), member("ab"), directories[1], member("b/f"))
        assert (found.new, found.same) == (2, 1)

    def test_a_part_is_not_held_against_the_rest(self, tmp_path: Path) -> None:
        """What is left is not counted; nor what restores keep in the tree."""
        put(tmp_path / "a")
        put(tmp_path / "b")
        put(tmp_path / ".kekkai-restore" / "r" / "x")
        assert planned(tmp_path, member("a"), partial=True).left == 0
        assert planned(tmp_path, member("a")).left == 1

    def test_examples_are_for_uploads(self, tmp_path: Path) -> None:
        """A log that is put beside has a name of its own."""
        assert planned(tmp_path, member("a"), top="log", partial=True).examples == ()
        assert planned(tmp_path, member("a")).examples == ("a",)

    def test_where_nothing_is(self, tmp_path: Path) -> None:
        """Everything is new, and the disk is that of the directory above."""
        found = planned(tmp_path / "a" / "b", member("x"), member("y"))
        assert (found.new, found.left, found.blockers) == (2, 0, ())


class TestBlockers:
    """What makes it impossible."""

    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """To the byte."""
        monkeypatch.setattr(files_plan, "room", lambda _: 4099)
        assert planned(tmp_path, member("a")).blockers == ()
        (error,) = planned(tmp_path, member("a", size=4)).blockers
        assert isinstance(error, DiskFullError)
        assert error.message == f"the stage needs about 4.1 kB in {tmp_path}; 4.1 kB are free"

    def test_a_file_in_the_place_of_the_directory(self, tmp_path: Path) -> None:
        """Or above it; a link to nowhere is one."""
        put(tmp_path / "file")
        (tmp_path / "link").symlink_to("nowhere")
        for place, there in (("file", "file"), ("file/a/b", "file"), ("link", "link")):
            error = planned(tmp_path / place, member("a")).blockers[0]
            assert isinstance(error, RestoreError)
            assert error.message.startswith(f"{tmp_path}/{there} is no directory, so nothing can be restored to ")

    @pytest.mark.parametrize("exact", [True, False])
    def test_what_must_not_be_moved(self, tmp_path: Path, exact: bool) -> None:
        """An exact restore passes it over; nothing can take its place."""
        put(tmp_path / "ops" / "backups" / "archive")
        put(tmp_path / "ops" / "other")
        protected = [str(tmp_path / "ops" / "backups")]
        assert planned(tmp_path, exact=exact, protected=protected).blockers == ()
        for path in ("ops", "ops/backups"):
            found = planned(tmp_path, member(path), exact=exact, protected=protected)
            (error,) = found.blockers
            assert error.message == f"{path} in {tmp_path} is in the way, and must not be moved: the backups are there"
        assert planned(tmp_path, member("ops/other"), exact=exact, protected=protected).blockers == ()

    def test_a_tree_that_lies_in_it(self, tmp_path: Path) -> None:
        """Nothing of it may be changed."""
        for protected in (tmp_path, tmp_path.parent):
            (error,) = planned(tmp_path, member("a"), protected=[str(protected)]).blockers
            assert error.message == f"{tmp_path} lies in {protected}, which must not be changed"

    def test_faults_of_the_archive(self, tmp_path: Path) -> None:
        """Five of them; what is well is counted all the same."""
        found = planned(tmp_path, *(member("a") for _ in range(9)))
        assert (len(found.blockers), found.new) == (5, 1)


@pytest.mark.parametrize(
    ("protected", "expected"),
    [(["/up/a", "/up/b/c"], {"a", "b/c"}), (["/upper", "/other/up"], set()), ([], set())],
)
def test_protected_paths_in_a_tree(protected: list[str], expected: set[str]) -> None:
    """Relative to it; a name that begins alike is another one."""
    assert protected_paths("/up", iter(protected)) == expected


class TestMounts:
    """File systems that are mounted in the tree."""

    @pytest.fixture
    def mounts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A tree with two of them, as the kernel would list them."""
        listed = [
            f"1 2 0:1 / {place} rw - tmpfs tmpfs rw"
            for place in (tmp_path, tmp_path / "m", tmp_path / "a" / "n\\040n", f"{tmp_path}x", "/")
        ]
        (tmp_path / "mountinfo").write_text("\n".join(listed))
        monkeypatch.setattr(preflight, "read_mounts", lambda: read_mounts(tmp_path / "mountinfo"))
        for name in ("m/inner", "a/n n", "b"):
            (tmp_path / name).mkdir(parents=True)
        return tmp_path

    def test_they_are_listed(self, mounts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Relative to the tree, in order; of the root too; where the kernel lists none there is none."""
        assert mounts_below(str(mounts)) == ("a/n n", "m")
        assert mounts_below("/")[-1] == f"{mounts}x".lstrip("/")
        (mounts / "mountinfo").unlink()
        assert mounts_below(str(mounts)) == ()

    @pytest.mark.parametrize(
        ("path", "options", "mount"),
        [
            ("m/x", {}, "m"),
            ("m/inner/x", {}, "m"),
            ("m/inner/x", {"makes": True}, ""),
            ("m", {}, "m"),
            ("m", {"makes": True}, ""),
            ("m", {"makes": True, "moves": True}, "m"),
            ("a/n n", {}, "a/n n"),
            ("a", {}, ""),
            ("a", {"moves": True}, "a/n n"),
            ("b/x", {}, ""),
            ("mm", {}, ""),
            ("new/deep/x", {}, ""),
            ("m/new/deep/x", {}, "m"),
        ],
    )
    def test_renames_do_not_reach_onto_them(
        self, mounts: Path, path: str, options: dict[str, bool], mount: str
    ) -> None:
        """Neither in a directory of one, nor over one, nor with one inside; a directory can be made there."""
        with Tree(str(mounts)) as live:
            found = Preflight(live, frozenset(), partial=False)
            found.change(path, **options)
            errors = found.obstacles()
        assert len(errors) == bool(mount)
        assert all(f"another file system is mounted on {mount}; files are put" in error.message for error in errors)

    def test_each_is_named_once(self, mounts: Path) -> None:
        """Three of many."""
        names = [f"m{number}" for number in range(5)]
        text = "".join(f"1 2 0:1 / {mounts}/{name} rw - tmpfs x rw\n" for name in names)
        (mounts / "mountinfo").write_text(text)
        for count, said in ((1, "m0;"), (3, "m0, m1, m2;"), (5, "m0, m1, m2 and 2 more;")):
            with Tree(str(mounts)) as live:
                found = Preflight(live, frozenset(), partial=False)
                for name in names[:count] * 2:
                    found.change(name)
                (error,) = found.obstacles()
            assert f"is mounted on {said}" in error.message


class TestRights:
    """What another user may do."""

    def test_directories_of_others(self, public_directory: Path) -> None:
        """They are not changed; with the right to write some files can be put there. Root may do everything."""
        for name, mode in (("theirs", 0o755), ("shared", 0o777)):
            (public_directory / name).mkdir()
            (public_directory / name).chmod(mode)
        wanted = Attributes(0o700, 0, 0, 0)

        def look(path: str, *, partial: bool, sets: bool = False) -> list[str]:
            with Tree(str(public_directory)) as live:
                found = Preflight(live, frozenset(), partial=partial)
                if sets:
                    found.set_attributes(path, os.stat(public_directory / path), wanted)
                else:
                    found.change(f"{path}/new" if path else "new")
                return [error.message for error in found.obstacles()]

        assert look("theirs", partial=False) == []
        with as_nobody():
            told = f"in {public_directory}, this user may not change {{}}: another user owns it"
            for path, partial, is_refused in (
                ("theirs", False, True),
                ("theirs", True, True),
                ("shared", False, True),
                ("shared", True, False),
                ("", True, True),
            ):
                named = told.format(path or "the directory itself")
                assert look(path, partial=partial) == ([named] if is_refused else [])
            assert look("theirs", partial=False, sets=True) == [told.format("theirs")]
            assert look("theirs", partial=True, sets=True) == []

    def test_attributes_that_stay_need_no_right(self, public_directory: Path) -> None:
        """But those of the top are set in any case."""
        (public_directory / "d").mkdir()
        with as_nobody(), Tree(str(public_directory)) as live:
            for path, count in (("d", 0), ("", 1)):
                found = Preflight(live, frozenset(), partial=False)
                seen = os.stat(public_directory / path)
                found.set_attributes(path, seen, Attributes.of(seen))
                assert len(found.obstacles()) == count

    def test_a_closed_directory(self, public_directory: Path) -> None:
        """It is named, with what was to be put there."""
        assert closed(str(public_directory), "x") == []
        with as_nobody():
            (error,) = closed(str(public_directory), str(public_directory))
            assert isinstance(error, AccessDeniedError)
            assert error.message == f"this user may not write to {public_directory}"
            (error,) = closed(str(public_directory), "/up")
            assert error.message == f"this user may not write to {public_directory}, where a restore puts /up"

    def test_obstacles_to_restoring_it_as_it_is(self, public_directory: Path) -> None:
        """Of the directories with files in them, as far as is looked; or of one more name in the top."""
        for name in ("a/f", "b/f", ".kekkai-restore/f"):
            put(public_directory / name)
        public_directory.chmod(0o777)
        for path in ("a", "b", ".kekkai-restore"):
            (public_directory / path).chmod(0o755)
        assert obstacles_in(str(public_directory), most=100) == []
        with as_nobody():
            assert obstacles_in(str(public_directory), most=100, partial=True) == []
            (error,) = obstacles_in(str(public_directory), most=100)
            assert "may not change the directory itself, a, b: " in error.message
            for most, named in (
                (0, "the directory itself"),
                (3, "the directory itself"),
                (4, "the directory itself, a"),
            ):
                (error,) = obstacles_in(str(public_directory), most=most)
                assert f"may not change {named}: " in error.message


def test_an_entry_that_is_not_in_the_backup(tmp_path: Path) -> None:
    """It would be moved with all that is in it, unless something in it has to stay."""
    (tmp_path / "a" / "keep").mkdir(parents=True)
    with Tree(str(tmp_path)) as live:
        found = Preflight(live, frozenset({"a/keep"}), partial=False)
        assert [found.strange(path) for path in ("a", "a/keep", "b")] == [False, True, True]
        assert found.obstacles() == []
        for path in ("a", "a", "a/keep"):
            found.change(path, moves=True)
        assert len(found.obstacles()) == 2


@pytest.mark.parametrize(("is_fixed", "count"), [(True, 1), (False, 0)])
def test_files_that_cannot_be_replaced(
    tmp_path: Path, is_fixed: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are told; a link cannot be opened, and is passed over. No descriptor is left."""
    monkeypatch.setattr(
        preflight, "is_fixed", lambda descriptor: is_fixed and stat.S_ISREG(os.fstat(descriptor).st_mode)
    )
    put(tmp_path / "a")
    (tmp_path / "link").symlink_to("a")
    with Tree(str(tmp_path)) as live:
        found = Preflight(live, frozenset(), partial=False)
        before = len(os.listdir("/proc/self/fd"))
        for path in ("a", "link", "absent", "a"):
            found.replaces(path)
        assert len(os.listdir("/proc/self/fd")) == before
        errors = found.obstacles()
    assert len(errors) == count
    assert all(f"in {tmp_path}, a may not be changed, not even by root" in error.message for error in errors)
