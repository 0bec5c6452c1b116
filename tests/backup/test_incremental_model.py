"""Uploads that are changed at random, backed up in between: every archive stands for the tree of its moment."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.support.incrementals import Uploads, tree_of_chain

if TYPE_CHECKING:
    from tests.support.archives import Tree

_NAMES: Final = ("a", "b", "d/a", "d/b", "d/e/a", "d/e", "d", "f/a", "f", "ü\udcff")
_PATHS: Final = st.sampled_from(_NAMES)
_CONTENTS: Final = st.sampled_from([b"", b"one", b"two", b"x" * 3000])
_PLACE: Final = "/dev/shm" if os.path.isdir("/dev/shm") else None


class ChangingUploads(RuleBasedStateMachine):
    """Random changes; `touched` is what a watcher would have seen since the last backup."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(dir=_PLACE))
        self.uploads = Uploads(directory=self.directory)
        self.uploads.root.mkdir()
        self.touched: set[str] = set()
        self.recorded: dict[str, Tree] = {}
        self.old_cache = b""

    def teardown(self) -> None:
        """Restore every recorded moment, the last one as an operator would."""
        try:
            for backup_id, tree in self.recorded.items():
                assert tree_of_chain(self.uploads.archive(backup_id)) == tree
            for backup_id in list(self.recorded)[-2:]:
                assert self.uploads.restored(backup_id) == self.recorded[backup_id]
        finally:
            shutil.rmtree(self.directory)

    @initialize(based=st.booleans())
    def start(self, based: bool) -> None:
        """With a file, and with or without a base."""
        self.uploads.write("a", b"one")
        if based:
            self.record(self.uploads.base().backup_id)

    # -- changes ----------------------------------------------------------------------------------------------------

    @rule(path=_PATHS, content=_CONTENTS)
    def write(self, path: str, content: bytes) -> None:
        """A new file, or another content; what was in the way is gone."""
        self.make_way(path)
        self.uploads.write(path, content)
        self.touched.add(path)

    @rule(path=_PATHS, content=st.sampled_from([b"one", b"two"]))
    def rewrite_with_old_time(self, path: str, content: bytes) -> None:
        """The same size, and the mtime set back: only the ctime tells."""
        file = self.uploads.root / path
        if file.is_file() and not file.is_symlink():
            before = file.stat()
            file.write_bytes(content)
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
            self.touched.add(path)
            self.touched |= self.other_names(file)

    @rule(path=_PATHS)
    def remove(self, path: str) -> None:
        """A file, or a directory with everything in it."""
        if os.path.lexists(self.uploads.root / path):
            self.remove_all(path)
            self.touched.add(path)

    @rule(source=_PATHS, onto=_PATHS)
    def rename(self, source: str, onto: str) -> None:
        """A file or a directory gets another name."""
        old = self.uploads.root / source
        if os.path.lexists(old) and not f"{onto}/".startswith(f"{source}/") and not f"{source}/".startswith(f"{onto}/"):
            self.make_way(onto)
            old.rename(self.uploads.root / onto)
            self.touched |= {source, onto}

    @rule(path=_PATHS)
    def make_directory(self, path: str) -> None:
        """A directory, perhaps where a file was."""
        if not (self.uploads.root / path).is_dir():
            self.make_way(path)
            (self.uploads.root / path).mkdir()
            self.touched.add(path)

    @rule(path=_PATHS, mode=st.sampled_from([0o600, 0o640, 0o700]))
    def change_mode(self, path: str, mode: int) -> None:
        """Other rights; a directory stays one that can be entered."""
        place = self.uploads.root / path
        if os.path.lexists(place) and not place.is_symlink():
            place.chmod(mode | (0o700 if place.is_dir() else 0))
            self.touched.add(path)
            self.touched |= self.other_names(place)

    @rule(source=_PATHS, onto=_PATHS)
    def link(self, source: str, onto: str) -> None:
        """Another name of the same file; a watcher tells of the new one alone."""
        old = self.uploads.root / source
        if old.is_file() and not old.is_symlink() and not os.path.lexists(self.uploads.root / onto):
            self.make_way(onto)
            if old.is_file():
                os.link(old, self.uploads.root / onto)
                self.touched.add(onto)

    @rule(path=_PATHS, onto=st.sampled_from(["a", "nowhere"]))
    def symlink(self, path: str, onto: str) -> None:
        """A symlink that stays inside."""
        self.make_way(path)
        (self.uploads.root / path).symlink_to(onto)
        self.touched.add(path)

    # -- backups ----------------------------------------------------------------------------------------------------

    @rule()
    def back_up_all(self) -> None:
        """A new base."""
        self.record(self.uploads.base().backup_id)

    @rule()
    def scan(self) -> None:
        """An incremental that looks at everything."""
        self.record(self.uploads.incremental().backup_id)

    @rule()
    def back_up_what_was_touched(self) -> None:
        """An incremental that looks at what a watcher saw."""
        self.record(self.uploads.incremental(sorted(self.touched)).backup_id)

    @rule(data=st.data())
    @precondition(lambda self: self.touched)
    def back_up_a_part(self, data: st.DataObject) -> None:
        """The watcher has lost events: the scan that follows finds the rest."""
        some = data.draw(st.lists(st.sampled_from(sorted(self.touched)), unique=True))
        self.uploads.incremental(some)
        self.scan()

    # -- the cache --------------------------------------------------------------------------------------------------

    @rule()
    def lose_the_cache(self) -> None:
        """Somebody has removed it."""
        self.uploads.cache.unlink(missing_ok=True)

    @rule()
    def keep_the_cache(self) -> None:
        """A copy, for later."""
        if self.uploads.cache.exists():
            self.old_cache = self.uploads.cache.read_bytes()

    @rule()
    @precondition(lambda self: self.old_cache)
    def put_back_an_old_cache(self) -> None:
        """It stands for an archive of before."""
        self.uploads.cache.write_bytes(self.old_cache)

    @rule()
    def damage_the_cache(self) -> None:
        """It is no database any more."""
        if self.uploads.cache.exists():
            data = self.uploads.cache.read_bytes()
            self.uploads.cache.write_bytes(data[: len(data) // 2] + b"garbage" * 100)

    # -- inside -----------------------------------------------------------------------------------------------------

    def record(self, backup_id: str) -> None:
        """Hold the archive against the tree as it is now."""
        tree = self.uploads.tree()
        assert self.recorded.setdefault(backup_id, tree) == tree
        assert tree_of_chain(self.uploads.archive(backup_id)) == tree
        self.touched = set()

    def make_way(self, path: str) -> None:
        """Remove what is at the path, and what is no directory above it."""
        if os.path.lexists(self.uploads.root / path):
            self.remove_all(path)
            self.touched.add(path)
        for above in reversed(Path(path).parents[:-1]):
            place = self.uploads.root / above
            if os.path.lexists(place) and (place.is_symlink() or not place.is_dir()):
                self.remove_all(str(above))
                self.touched.add(str(above))
            place.mkdir(exist_ok=True)

    def remove_all(self, path: str) -> None:
        """Remove a file, or a directory with all in it."""
        place = self.uploads.root / path
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink()

    def other_names(self, file: Path) -> set[str]:
        """The names of the same file."""
        number = file.stat().st_ino
        return {
            name
            for name in _NAMES
            if os.path.lexists(self.uploads.root / name) and os.lstat(self.uploads.root / name).st_ino == number
        }


TestChangingUploads = ChangingUploads.TestCase
TestChangingUploads.settings = settings(
    max_examples=10, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
