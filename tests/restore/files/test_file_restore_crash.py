"""A restore of files that is killed at any instant is finished or undone: wholly the new tree, or wholly the old."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING

import pytest

from portal.ops.archive.open import open_archive
from portal.ops.model import RESTORE_DIRECTORY, Component
from portal.ops.restore.files.restore import FileRestore
from tests.support.archives import tree_on_disk
from tests.support.crashes import rounds
from tests.support.hostile import directory, file, hardlink, symlink, write_indexed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.archives import Tree

ROUNDS = rounds(4, in_long=60)
WATCHED = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.utime", "os.link", "os.symlink", "open")
"""The events of the interpreter before each of which a child is killed once."""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A backup with every kind of member."""
    names = [f"media/new/{number}" for number in range(3)]
    return write_indexed(
        tmp_path,
        [
            directory("media"),
            file("media/replaced", b"from the backup"),
            symlink("media/link", "replaced"),
            file("media/was-a-directory"),
            directory("media/new"),
            *(file(name, name.encode()) for name in names),
            hardlink("media/new/linked", names[0]),
            directory("media/was-a-file"),
            file("media/was-a-file/inside"),
        ],
    )


class Site:
    """A live tree that is restored exactly, in a directory of its own.

    Arguments:
        place: an empty directory.
        archive: what is restored.
    """

    def __init__(self, place: Path, archive: Path) -> None:
        self.target = place / "live"
        self._archive = archive
        (self.target / "was-a-directory" / "deep").mkdir(parents=True)
        (self.target / "was-a-directory" / "deep" / "old").write_text("old")
        for name in ("replaced", "was-a-file", "not-in-the-backup"):
            (self.target / name).write_text(f"old {name}")
        os.utime(self.target, ns=(1, 1))
        self.before = self.tree()

    def restore(self) -> FileRestore:
        """One and the same restore, in whichever process."""
        return FileRestore(self.target, restore_id="restore_1", component=Component.MEDIA, exact=True)

    def stage(self) -> None:
        """Write the stage."""
        self.restore().stage_from(open_archive(self._archive), 1)

    def apply(self) -> None:
        """Put it in place, or go on with that."""
        self.restore().apply()

    def roll_back(self) -> None:
        """Take it back, or go on with that."""
        self.restore().rollback()

    def undo(self) -> None:
        """Leave no trace of it."""
        self.restore().undo()

    def tree(self) -> Tree:
        """The live tree, without what restores keep in it."""
        ours = RESTORE_DIRECTORY.encode()
        return {name: entry for name, entry in tree_on_disk(self.target).items() if name.split(b"/")[0] != ours}

    def is_clean(self) -> bool:
        """Whether nothing of the restore is left."""
        return not (self.target / RESTORE_DIRECTORY).exists()


def without_top(tree: Tree) -> Tree:
    """A tree without the attributes of its top."""
    return {name: entry for name, entry in tree.items() if name}


def killed_before_event(number: int, work: Callable[[], None]) -> bool:
    """Do the work in a child that is killed before its event of that number; whether it came to that."""
    child = os.fork()
    if not child:
        count = 0

        def watch(event: str, _: object) -> None:
            nonlocal count
            if event not in WATCHED:
                return
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        _run_and_exit(work)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def killed_after(seconds: float, work: Callable[[], None]) -> None:
    """Do the work in a child that is killed after a time."""
    child = os.fork()
    if not child:
        _run_and_exit(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _run_and_exit(work: Callable[[], None]) -> None:
    try:
        work()
    except BaseException:  # a child must not go on with the tests
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


@pytest.fixture
def new(tmp_path: Path, archive: Path) -> Tree:
    """The tree after a restore that nothing happened to."""
    place = tmp_path / "undisturbed"
    place.mkdir()
    site = Site(place, archive)
    site.stage()
    site.apply()
    return site.tree()


def sites(tmp_path: Path, archive: Path) -> Callable[[int], Site]:
    def make(number: int) -> Site:
        place = tmp_path / str(number)
        place.mkdir()
        return Site(place, archive)

    return make


def test_kill_while_staging_leaves_nothing_after_an_undo(tmp_path: Path, archive: Path) -> None:
    """Before every event of staging: nothing live has changed, and an undo leaves no trace."""
    make = sites(tmp_path, archive)
    for number in range(1, 1000):
        site = make(number)
        if not killed_before_event(number, site.stage):
            assert number > 20
            return
        site.undo()
        assert site.is_clean()
        assert {name: one for name, one in site.tree().items() if name} == {
            name: one for name, one in site.before.items() if name
        }
    pytest.fail("staging never came to its end")


@pytest.mark.parametrize("wanted", ["new", "old"])
def test_kill_while_applying_is_finished_or_undone(tmp_path: Path, archive: Path, new: Tree, wanted: str) -> None:
    """Before every event of applying: going on gives the new tree, undoing the old one."""
    make = sites(tmp_path, archive)
    for number in range(1, 1000):
        site = make(number)
        site.stage()
        if not killed_before_event(number, site.apply):
            assert number > 20
            return
        (site.apply if wanted == "new" else site.undo)()
        assert site.tree() == (new if wanted == "new" else site.before)
        assert site.is_clean() == (wanted == "old")
    pytest.fail("applying never came to its end")


def test_kill_while_taking_back_is_taken_back(tmp_path: Path, archive: Path) -> None:
    """Before every event of a rollback: a second one ends with the old tree."""
    make = sites(tmp_path, archive)
    for number in range(1, 1000):
        site = make(number)
        site.stage()
        site.apply()
        if not killed_before_event(number, site.roll_back):
            assert number > 20
            return
        site.roll_back()
        # The removal of the restore's own directory, which comes last, changes the time of the top.
        assert without_top(site.tree()) == without_top(site.before)
        assert site.is_clean()
    pytest.fail("the rollback never came to its end")


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_kills_at_random_instants_one_after_the_other(tmp_path: Path, seed: int) -> None:
    """A restore of many files is killed again and again, at any time, before it is finished or rolled back."""
    rng = random.Random(seed)
    place = tmp_path / "site"
    place.mkdir()
    files = [file(f"media/{number // 50}/{number}", b"x" * number) for number in range(400)]
    directories = [directory(f"media/{number}") for number in range(8)]
    site = Site(place, write_indexed(tmp_path, [directory("media"), *directories, *files]))
    killed_after(rng.uniform(0, 0.1), site.stage)
    site.undo()
    assert site.is_clean()
    site.stage()
    for _ in range(3):
        killed_after(rng.uniform(0, 0.03), site.apply)
    site.apply()
    assert len(site.tree()) == 409
    for _ in range(3):
        killed_after(rng.uniform(0, 0.03), site.roll_back)
    site.roll_back()
    assert without_top(site.tree()) == without_top(site.before)
