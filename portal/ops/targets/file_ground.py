"""What in a live tree stands against its being changed by renames: mounts in it, and what must not be moved."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from portal.ops.errors import RestoreError
from portal.ops.targets.file_changes import must_stay
from portal.ops.targets.file_mounts import mounts_below

if TYPE_CHECKING:
    from portal.ops.targets.file_tree import Tree

_MOST_NAMED: Final = 3


class Ground:
    """Is told of every change that a restore would make to a tree, and says in the end what is in the way.

    Arguments:
        live: the tree.
        protected: paths in it that must not be moved.
    """

    def __init__(self, live: Tree, protected: frozenset[str]) -> None:
        self._live = live
        self._protected = protected
        self._mounts = mounts_below(os.path.realpath(live.top))
        self._device = self._device_of("")
        self._parent: tuple[str, str] = ("", "")
        self._elsewhere: dict[str, None] = {}
        self._stay: dict[str, None] = {}

    def change(self, path: str, *, moves: bool = False, makes: bool = False) -> None:
        """Something would be put at a path, or moved away from it.

        Arguments:
            moves: what is there is of another kind, and moved aside with all that is below it.
            makes: a directory is made, which works across file systems.
        """
        if moves and self._holds(self._protected, path):
            self._stay.setdefault(path)
        parent = path.rpartition("/")[0]
        if parent != self._parent[0]:
            self._parent = parent, self._mount_of(parent)
        mount = self._parent[1] or (self._mount_at(path, below=moves) if self._mounts else "")
        if mount and (moves or not makes):
            self._elsewhere.setdefault(mount)

    def strange(self, path: str) -> bool:
        """Something that the backup does not have would be moved aside, unless it is protected.

        Returns:
            whether all that is below it goes or stays with it.
        """
        if self._holds(self._protected, path):
            return path in self._protected
        self.change(path, moves=True)
        return True

    def obstacles(self) -> list[RestoreError]:
        """What is in the way."""
        found = [must_stay(path, self._live.top) for path in [*self._stay][:_MOST_NAMED]]
        if self._elsewhere:
            names = [*self._elsewhere]
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            found.append(
                RestoreError(
                    f"in {self._live.top}, another file system is mounted on {', '.join(names[:_MOST_NAMED])}{more}; "
                    "files are put in place by renames, which do not reach from one to the other",
                    hint="Unmount it for the restore, and copy its files afterwards; or restore to another directory "
                    "with --media-dir, or other files only with --path.",
                )
            )
        return found

    def _mount_of(self, directory: str) -> str:
        """The mount that a directory is on, or will be; nothing where that is the tree's own."""
        while directory and self._device_of(directory) is None:
            directory = directory.rpartition("/")[0]
        for mount in self._mounts:
            if directory == mount or directory.startswith(f"{mount}/"):
                return mount
        return directory if self._device_of(directory) != self._device else ""

    def _mount_at(self, path: str, *, below: bool) -> str:
        """The mount that a path itself is, or that is below it."""
        inside = f"{path}/"
        return next((one for one in self._mounts if one == path or (below and one.startswith(inside))), "")

    def _device_of(self, directory: str) -> int | None:
        found = self._live.look(directory)
        return found.st_dev if found is not None and stat.S_ISDIR(found.st_mode) else None

    @staticmethod
    def _holds(protected: frozenset[str], path: str) -> bool:
        return any(inner == path or inner.startswith(f"{path}/") for inner in protected)
