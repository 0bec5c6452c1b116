"""A disk that keeps only what was synced: a name by a sync of its directory, a content by a sync of its file.

File systems differ in what else they keep: on ext4 the sync of any file commits the names of all, so a sync of a
directory that is missing goes unnoticed there. Here every call of a sync is noted with what there was at that moment;
what a power cut would leave is made of these notes.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from portal.ops.filesystem import tree

if TYPE_CHECKING:
    from collections.abc import Iterator

_GONE: Final = "gone"


@dataclass(kw_only=True, eq=False)
class Node:
    """A file or a directory, as far as it is on the disk.

    Arguments:
        content: the digest of a file; empty where it was never synced.
        names: what is in a directory.
    """

    content: str = ""
    names: dict[str, Node] = field(default_factory=dict)


class StrictDisk:
    """What of a directory is on the disk.

    Arguments:
        root: the directory; what is in it now is on the disk.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.too_early: list[str] = []
        """Files that got a name before their content was on the disk, and sidecars that went before their archive."""
        self._nodes: dict[tuple[int, int], Node] = {}
        self.settle()

    def settle(self) -> None:
        """Put everything on the disk."""
        for directory, _, names in os.walk(self.root):
            self._note(directory)
            for name in names:
                self._note(os.path.join(directory, name))

    def lost(self, *volatile: str) -> set[str]:
        """What would not be after a power cut as it is now, as paths below the root.

        Arguments:
            volatile: patterns of names of files and directories that can be lost.
        """
        now, then = dict(self._there(volatile)), dict(self._on_disk(volatile))
        return {path for path in now.keys() | then.keys() if now.get(path, _GONE) != then.get(path, _GONE)}

    def synced(self, descriptor: int) -> None:
        """Note what is synced."""
        self._note(f"/proc/self/fd/{descriptor}")

    def named(self, source: str, target: str) -> None:
        """Note that a file gets another name, perhaps in another's place."""
        with suppress(FileNotFoundError):
            found = os.lstat(source)
            if stat.S_ISREG(found.st_mode) and self._node(found).content != _digest(source):
                self.too_early.append(source)
        self._forget(target)

    def removed(self, path: str) -> None:
        """Note that a name is removed."""
        archive = path.removesuffix(".sha256")
        if archive != path and Path(archive).name in self._node(os.stat(os.path.dirname(path))).names:
            self.too_early.append(path)
        self._forget(path)

    def _forget(self, path: str) -> None:
        """What has this name loses it: the number of what has no other may be given to something else."""
        with suppress(FileNotFoundError):
            found = os.lstat(path)
            if found.st_nlink == 1 or stat.S_ISDIR(found.st_mode):
                self._nodes.pop((found.st_dev, found.st_ino), None)

    def _node(self, found: os.stat_result) -> Node:
        return self._nodes.setdefault((found.st_dev, found.st_ino), Node())

    def _note(self, path: str) -> None:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            with os.scandir(path) as entries:
                inner = {entry.name: self._node(entry.stat(follow_symlinks=False)) for entry in entries}
            self._node(found).names = inner
        elif stat.S_ISREG(found.st_mode):
            self._node(found).content = _digest(path)

    def _there(self, volatile: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        for directory, inner, names in os.walk(self.root):
            inner[:] = [name for name in inner if not _is_any(name, volatile)]
            for name in (*inner, *names):
                path = Path(directory, name)
                if not _is_any(name, volatile):
                    yield str(path.relative_to(self.root)), _digest(path) if path.is_file() else ""

    def _on_disk(self, volatile: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        todo = [("", self._node(os.stat(self.root)))]
        while todo:
            above, directory = todo.pop()
            for name, node in directory.names.items():
                if not _is_any(name, volatile):
                    path = f"{above}{name}"
                    yield path, node.content
                    todo.append((f"{path}/", node))


def _is_any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _digest(path: str | Path) -> str:
    with open(path, "rb") as file:
        return sha256(file.read()).hexdigest()


@pytest.fixture
def strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StrictDisk:
    """The test's directory, on a disk that keeps only what this process syncs."""
    disk = StrictDisk(tmp_path)

    def before(name: str, tell: Any) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            tell(*arguments, **options)
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "fdatasync"):
        before(name, disk.synced)
    for name in ("rename", "replace", "link"):
        before(
            name,
            lambda source, target, *_, src_dir_fd=None, dst_dir_fd=None, **__: disk.named(
                _path(source, src_dir_fd), _path(target, dst_dir_fd)
            ),
        )
    for name in ("unlink", "remove", "rmdir"):
        before(name, lambda path, *_, dir_fd=None, **__: disk.removed(_path(path, dir_fd)))

    class Libc:
        @staticmethod
        def syncfs(_: int) -> int:
            disk.settle()
            return 0

    monkeypatch.setattr(tree, "_LIBC", Libc)
    return disk


def _path(path: Any, directory: int | None) -> str:
    name = os.fsdecode(path)
    return os.path.join(f"/proc/self/fd/{directory}", name) if directory is not None else name
