"""Uploads that live: written, moved, linked and removed in any order, with an incremental now and then.

Whatever becomes of them, each archive gives the tree back as it was when that was made, by every way of restoring.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portal.ops.restore.files import stage as file_stage
from portal.ops.restore.job import RestoreConfig, RestoreJob
from tests.support.archives import Tree, tree_on_disk
from tests.support.incrementals import Uploads, without_ours

LONG_FORM = os.environ.get("KEKKAI_LONG_TESTS")
PATHS = ("a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "f/a")
KINDS = ("write", "write", "write", "remove", "make", "symlink", "link", "rename", "mode")
BY_HELPERS, WITHOUT_HELPERS = -1, 1_000_000


class Act(NamedTuple):
    """Something that is done to a path; `number` is a content, a mode, or which other path it has to do with."""

    kind: str
    path: str
    number: int

    def do(self, root: Path) -> None:
        """Do it, where it can be done."""
        path, other = root / self.path, root / PATHS[self.number % len(PATHS)]
        if self.kind == "remove":
            remove(path)
        elif self.kind == "mode":
            if path.is_file() and not path.is_symlink():
                path.chmod(0o600 | self.number % 0o100)
        elif self.kind in ("link", "rename"):
            if not path.is_relative_to(other):
                make_way(root, path)
                self.take(path, other)
        else:
            make_way(root, path)
            self.make(path)

    def take(self, path: Path, other: Path) -> None:
        """Give a path what another one has, if it still has it."""
        if self.kind == "rename" and os.path.lexists(other):
            other.rename(path)
        elif self.kind == "link" and other.is_file() and not other.is_symlink():
            path.hardlink_to(other)

    def make(self, path: Path) -> None:
        """Make what is asked for where nothing is."""
        if self.kind == "make":
            path.mkdir(0o700)
        elif self.kind == "symlink":
            path.symlink_to("ab"[self.number % 2])
        else:
            path.write_bytes(b"%d" % self.number * (1 + self.number * 700))


def remove(path: Path) -> None:
    """Remove whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def make_way(root: Path, path: Path) -> None:
    """Have nothing at a path, and real directories above it."""
    for above in reversed(path.relative_to(root).parents[:-1]):
        if not (root / above).is_dir() or (root / above).is_symlink():
            remove(root / above)
            (root / above).mkdir()
    remove(path)


acts = st.builds(Act, st.sampled_from(KINDS), st.sampled_from(PATHS), st.integers(0, 200))
lives = st.lists(st.lists(acts, min_size=1, max_size=6), min_size=2, max_size=5)


def some_of(uploads: Uploads, backup_id: str, pattern: str) -> Tree:
    """What a restore by a pattern gives; nothing where nothing fits."""
    with tempfile.TemporaryDirectory(dir=uploads.directory) as target:
        config = RestoreConfig(local_path=uploads.archives, media_path=target, patterns=(pattern,), jobs=2)
        result = RestoreJob(config).restore_media(backup_id)
        assert result.success or "fits" in (result.error or ""), result.error
        return without_ours(tree_on_disk(Path(target)))


def contents(tree: Tree) -> dict[bytes, str]:
    """What is in the files and links below `d`, by path."""
    return {path: entry.content for path, entry in tree.items() if path.startswith(b"d/")}


@settings(
    max_examples=100 if LONG_FORM else 3,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(lives)
def test_every_moment_of_a_life_comes_back(life: list[list[Act]]) -> None:
    """The whole tree, by helper processes and without, and a part of it by a pattern."""
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patched:
        uploads = Uploads(directory=Path(place))
        uploads.write("first")
        moments = {uploads.base().backup_id: uploads.tree()}
        for part in life:
            for act in part:
                act.do(uploads.root)
            moments[uploads.incremental().backup_id] = uploads.tree()
        for least in (BY_HELPERS, WITHOUT_HELPERS):
            patched.setattr(file_stage, "_WORTH_HELPERS", least)
            for backup_id, tree in moments.items():
                assert uploads.restored(backup_id) == tree
                assert contents(some_of(uploads, backup_id, "d")) == contents(tree)
