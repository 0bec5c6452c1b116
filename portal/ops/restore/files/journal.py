"""The journal: all changes of a restore to a live tree, written before the first of them is made.

A step can be taken and rolled back any number of times: each looks at the present state and does what is left. So an
interrupted restore continues by repeating all steps from the first, and a rollback all steps from the last, whatever
was done before.

    aside        move a live entry to the rollback data, under its own path
    make         create a directory; if there is none yet, move the staged one there with its contents
    place        move a staged entry to its path
    attributes   set a directory's mode, owner and time; these steps come last in both directions

Data that others have written since the restore is never lost: if it is in the way, it is moved to `kept/`; otherwise it
stays.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from json.encoder import encode_basestring_ascii as quote
from typing import TYPE_CHECKING, Final, NamedTuple

from portal.ops.errors import RestoreError
from portal.ops.filesystem.attributes import Attributes
from portal.ops.filesystem.tree import Tree, move

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_OWNER_MAY_WRITE: Final = stat.S_IRWXU
_BLOCK: Final = 1 << 18
_ATTRIBUTES_LINE: Final = b'["attributes"'


class Do(StrEnum):
    """The kinds of steps."""

    ASIDE = "aside"
    MAKE = "make"
    PLACE = "place"
    ATTRIBUTES = "attributes"


class Step(NamedTuple):
    """One line of the journal.

    `inode` identifies the entry to be moved; `size` and `mtime_ns` show later whether a placed file was changed.
    `before` and `after` are a directory's attributes: None if it did not exist before, or if its attributes stay.
    """

    do: Do
    path: str
    inode: int = 0
    size: int = 0
    mtime_ns: int = 0
    before: Attributes | None = None
    after: Attributes | None = None

    def encode(self) -> str:
        """The step as a line of JSON."""
        before, after = _encode(self.before), _encode(self.after)
        return f'["{self.do}",{quote(self.path)},{self.inode},{self.size},{self.mtime_ns},{before},{after}]\n'

    @classmethod
    def decode(cls, line: bytes) -> Step:
        """Decode a line."""
        do, path, inode, size, mtime_ns, before, after = json.loads(line.decode("ascii"))
        known = [values and Attributes.decode(values) for values in (before, after)]
        return cls(Do(do), path, inode, size, mtime_ns, *known)


@dataclass(kw_only=True)
class Tally:
    """The findings of a rollback.

    Arguments:
        moved: the number of files and directories moved.
        kept: paths that others have written since; they are still in the tree, or in `kept/`.
        changed: paths that the restore had placed and others have changed since.
    """

    moved: int = 0
    kept: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def write_journal(path: Path, steps: Iterable[Step]) -> None:
    """Write the steps durably; the file appears complete or not at all."""
    unfinished = path.with_name(f"{path.name}.partial")
    with unfinished.open("w", encoding="ascii") as file:
        for step in steps:
            file.write(step.encode())
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)


def read_forward(path: Path) -> Iterator[Step]:
    """The steps in order.

    Raises:
        RestoreError: the journal is damaged.
    """
    with path.open("rb") as file:
        for line in file:
            yield _decoded(line, path)


def read_attributes(path: Path) -> Iterator[Step]:
    """The steps that set attributes, in order; other lines are not decoded.

    Raises:
        RestoreError: the journal is damaged.
    """
    with path.open("rb") as file:
        for line in file:
            if line.startswith(_ATTRIBUTES_LINE):
                yield _decoded(line, path)


def read_backward(path: Path) -> Iterator[Step]:
    """The steps in reverse order; the file is not loaded into memory.

    Raises:
        RestoreError: the journal is damaged.
    """
    with path.open("rb") as file:
        end, tail = file.seek(0, os.SEEK_END), b""
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            first, *lines = (file.read(end - start) + tail).splitlines(keepends=True)
            for line in reversed(lines):
                yield _decoded(line, path)
            tail, end = first, start
        if tail:
            yield _decoded(tail, path)


@dataclass(frozen=True, kw_only=True)
class Places:
    """The trees between which steps move entries; all are on one file system.

    Arguments:
        live: the tree to restore.
        stage: holds what is to be put in place, or was rolled back.
        rollback: holds the previous data.
        kept: holds what others have written and was in the way.
    """

    live: Tree
    stage: Tree
    rollback: Tree
    kept: Tree

    def take(self, steps: Iterable[Step]) -> None:
        """Take steps in order; of a step that was begun, only what is left."""
        moved: set[str] = set()
        for step in steps:
            with self._named(step):
                self._take(step, moved)

    @contextmanager
    def _named(self, step: Step) -> Iterator[None]:
        """Put the whole path into an error, since the operating system names only its last part."""
        try:
            yield
        except OSError as error:
            error.filename = self.live.name(step.path)
            raise

    def _take(self, step: Step, moved: set[str]) -> None:
        """Take one step.

        Arguments:
            moved: directories that were moved with their contents.
        """
        if step.do is Do.ASIDE:
            self._aside(step)
        elif step.do is Do.ATTRIBUTES:
            if step.after is not None and self._is_directory(step.path):
                step.after.give_to(self.live.directory(step.path))
        elif _is_in_one_of(moved, step.path):
            pass  # moved with its directory
        elif step.do is Do.PLACE:
            self._place(step)
        elif self._make(step.path):
            moved.add(step.path)

    def take_back(self, step: Step, tally: Tally) -> None:
        """Reverse one step, or what is left of it."""
        with self._named(step):
            if step.do is Do.ASIDE:
                self._put_back(step, tally)
            elif step.do is Do.MAKE:
                self._unmake(step, tally)
            elif step.do is Do.PLACE:
                self._displace(step, tally)
            elif step.before is not None and self._is_directory(step.path):
                step.before.give_to(self.live.directory(step.path))

    def open_up(self, step: Step) -> None:
        """Let the owner write to a directory; its final attributes are set later."""
        found = self.live.look(step.path)
        if found is not None and stat.S_ISDIR(found.st_mode) and found.st_mode & _OWNER_MAY_WRITE != _OWNER_MAY_WRITE:
            name, above = self.live.place(step.path) if step.path else (self.live.top, None)
            os.chmod(name, stat.S_IMODE(found.st_mode) | _OWNER_MAY_WRITE, dir_fd=above)

    def _aside(self, step: Step) -> None:
        if self.rollback.look(step.path) is None and self.live.look(step.path) is not None:
            self._move(self.live, self.rollback, step.path)

    def _make(self, path: str) -> bool:
        """Create a directory; returns True if the staged one was moved there with its contents."""
        if self.live.look(path) is not None:
            return False
        if (staged := self.stage.look(path)) is not None and stat.S_ISDIR(staged.st_mode):
            self._move(self.stage, self.live, path)
            return True
        name, above = self.live.place(path)
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=above)
        return False

    def _place(self, step: Step) -> None:
        if self.live.look(step.path) is not None:
            if self.stage.look(step.path) is None:
                return
            self._keep(step.path)  # another process wrote it between two of our steps
        with suppress(FileNotFoundError):  # placed earlier, and removed by another process since
            move(self.stage, self.live, step.path, make=True)

    def _displace(self, step: Step, tally: Tally) -> None:
        found = self.live.look(step.path)
        if found is None:
            return
        if found.st_ino != step.inode:
            self._pass_over(step.path, tally)
            return
        if (found.st_size, found.st_mtime_ns) != (step.size, step.mtime_ns):
            tally.changed.append(step.path)
        move(self.live, self.stage, step.path, make=True)
        tally.moved += 1

    def _pass_over(self, path: str, tally: Tally) -> None:
        """Handle another entry at the place of a staged file: the previous one, or another process's."""
        if self.stage.look(path) is not None:
            return
        tally.kept.append(path)
        if self.rollback.look(path) is not None:
            self._keep(path)

    def _put_back(self, step: Step, tally: Tally) -> None:
        if self.rollback.look(step.path) is None:
            return
        if self.live.look(step.path) is not None:
            tally.kept.append(step.path)
            self._keep(step.path)
        self._move(self.rollback, self.live, step.path)
        tally.moved += 1

    def _unmake(self, step: Step, tally: Tally) -> None:
        if not self._is_directory(step.path):
            return
        self.live.forget()
        name, above = self.live.place(step.path)
        try:
            os.rmdir(name, dir_fd=above)
        except OSError:
            tally.kept += [f"{step.path}/{inner}" for inner in self.live.names(step.path)]

    def _keep(self, path: str) -> None:
        free = path
        while self.kept.look(free) is not None:
            free += "~"
        self._move(self.live, self.kept, path, free)

    def _move(self, source: Tree, target: Tree, path: str, new: str | None = None) -> None:
        found = source.look(path)
        if found is not None and stat.S_ISDIR(found.st_mode):
            source.forget()
            target.forget()
        move(source, target, path, new, make=True)

    def _is_directory(self, path: str) -> bool:
        found = self.live.look(path)
        return found is not None and stat.S_ISDIR(found.st_mode)


def _encode(attributes: Attributes | None) -> str:
    return "null" if attributes is None else json.dumps(attributes, separators=(",", ":"))


def _is_in_one_of(directories: set[str], path: str) -> bool:
    """True if a path is below one of the directories."""
    while directories and (path := path.rpartition("/")[0]):
        if path in directories:
            return True
    return False


def _decoded(line: bytes, path: Path) -> Step:
    try:
        return Step.decode(line)
    except (ValueError, TypeError) as error:
        raise RestoreError(
            f"the journal {path} is damaged",
            hint="What was live before is in rollback/ beside it, under its own paths.",
        ) from error
