"""Finds obstacles to changing a live tree: mounts in it, other users' directories, protected entries."""

from __future__ import annotations

import os
import stat
from itertools import islice
from typing import TYPE_CHECKING, Final

from portal.ops.errors import AccessDeniedError, RestoreError
from portal.ops.filesystem.attributes import Attributes
from portal.ops.filesystem.fixed import is_fixed
from portal.ops.filesystem.mounts import read_mounts
from portal.ops.filesystem.tree import Tree
from portal.ops.model import RESTORE_DIRECTORY
from portal.ops.restore.files.changes import OURS, must_stay

if TYPE_CHECKING:
    from collections.abc import Collection

    from portal.ops.errors import OpsError

_MOST_NAMED: Final = 3


class Preflight:
    """Receives every change that a restore would make to a tree, and lists the obstacles at the end.

    Arguments:
        live: the live tree.
        protected: paths in it that must not be moved.
        partial: only some files are restored, and existing directories keep their attributes.
    """

    def __init__(self, live: Tree, protected: frozenset[str], *, partial: bool) -> None:
        self._live = live
        self._partial = partial
        self._protected = protected
        self._mounts = mounts_below(os.path.realpath(live.top))
        self._device = self._device_of("")
        self._parent: tuple[str, str] = ("/", "")
        self._elsewhere: dict[str, None] = {}
        self._stay: dict[str, None] = {}
        self._foreign: dict[str, None] = {}
        self._fixed: dict[str, None] = {}

    def change(self, path: str, *, moves: bool = False, makes: bool = False) -> None:
        """Note that an entry would be put at a path or moved away from it.

        Arguments:
            moves: the present entry is of another kind, and moved aside with everything below it.
            makes: a directory is created, which works across file systems.
        """
        if moves and self._holds(self._protected, path):
            self._stay.setdefault(path)
        parent = path.rpartition("/")[0]
        if parent != self._parent[0]:
            self._enter(parent)
        mount = self._parent[1] or (self._mount_at(path, below=moves) if self._mounts else "")
        if mount and (moves or not makes):
            self._elsewhere.setdefault(mount)

    def replaces(self, path: str) -> None:
        """Note that the entry at a path would be replaced."""
        try:
            descriptor = self._live.open_file(path)
        except OSError:
            return  # a link, or a directory that this user may not open
        try:
            if is_fixed(descriptor):
                self._fixed.setdefault(path)
        finally:
            os.close(descriptor)

    def set_attributes(self, path: str, found: os.stat_result, wanted: Attributes) -> None:
        """Note that an existing directory would get the attributes of the backup, which only its owner can set."""
        is_changed = Attributes.of(found) != wanted or not path
        if is_changed and not self._partial and self._is_foreign(found):
            self._foreign.setdefault(path)

    def strange(self, path: str) -> bool:
        """Note an entry that the backup does not have; it would be moved aside unless it is protected.

        Returns:
            whether everything below it stays or moves with it.
        """
        if self._holds(self._protected, path):
            return path in self._protected
        self.change(path, moves=True)
        return True

    def obstacles(self) -> list[OpsError]:
        """The obstacles."""
        found: list[OpsError] = [must_stay(path, self._live.top) for path in [*self._stay][:_MOST_NAMED]]
        if self._fixed:
            found.append(
                AccessDeniedError(
                    f"in {self._live.top}, {_few(self._fixed)} may not be changed, not even by root: immutable or "
                    "append-only",
                    hint="'lsattr -d' shows that. Remove the attribute with 'chattr -i' or 'chattr -a', or restore to "
                    "another directory with --media-dir.",
                )
            )
        if self._foreign:
            found.append(
                AccessDeniedError(
                    f"in {self._live.top}, this user may not change {_few(self._foreign)}: another user owns it",
                    hint="Run the restore as the portal's user or as root, or let the portal's user own all of it.",
                )
            )
        if self._elsewhere:
            found.append(
                RestoreError(
                    f"in {self._live.top}, another file system is mounted on {_few(self._elsewhere)}; "
                    "files are put in place by renames, which do not reach from one to the other",
                    hint="Unmount it for the restore, and copy its files afterwards; or restore to another directory "
                    "with --media-dir, or other files only with --path.",
                )
            )
        return found

    def _enter(self, parent: str) -> None:
        """Examine the directory in which an entry would be created, or the existing one above it."""
        directory = parent
        while directory and self._device_of(directory) is None:
            directory = directory.rpartition("/")[0]
        self._parent = parent, self._mount_of(directory)
        found = self._live.look(directory)
        if found is not None and stat.S_ISDIR(found.st_mode) and is_fixed(self._live.directory(directory)):
            self._fixed.setdefault(directory)
        if found is not None and self._is_foreign(found) and not (self._partial and self._may_write(directory)):
            self._foreign.setdefault(directory)

    def _mount_of(self, directory: str) -> str:
        """The mount that holds a directory; empty if it is the tree's own."""
        for mount in self._mounts:
            if directory == mount or directory.startswith(f"{mount}/"):
                return mount
        return directory if self._device_of(directory) != self._device else ""

    def _mount_at(self, path: str, *, below: bool) -> str:
        """The mount at a path or below it."""
        inside = f"{path}/"
        return next((one for one in self._mounts if one == path or (below and one.startswith(inside))), "")

    def _device_of(self, directory: str) -> int | None:
        found = self._live.look(directory)
        return found.st_dev if found is not None and stat.S_ISDIR(found.st_mode) else None

    @staticmethod
    def _is_foreign(found: os.stat_result) -> bool:
        return os.geteuid() not in (0, found.st_uid)

    def _may_write(self, directory: str) -> bool:
        name, above = self._live.place(directory) if directory else (self._live.top, None)
        return os.access(name, os.W_OK | os.X_OK, dir_fd=above, effective_ids=True)

    @staticmethod
    def _holds(protected: frozenset[str], path: str) -> bool:
        return any(inner == path or inner.startswith(f"{path}/") for inner in protected)


def closed(directory: str, what: str) -> list[OpsError]:
    """The obstacle to writing to a directory as the effective user; empty if there is none.

    Arguments:
        what: what a restore puts there, for the message.
    """
    if os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        return []
    return [
        AccessDeniedError(
            f"this user may not write to {directory}{'' if what == directory else f', where a restore puts {what}'}",
            hint="Run the restore as the portal's user or as root, or mount it so that it can be written to.",
        )
    ]


def obstacles_in(top: str, *, most: int, partial: bool = False) -> list[OpsError]:
    """The obstacles to restoring a backup of a tree to its present state.

    Arguments:
        top: the tree, which must exist.
        most: the most entries to examine.
        partial: only one more name would be put into its top.

    Raises:
        OSError: the tree cannot be read.
    """
    with Tree(top) as live:
        preflight = Preflight(live, frozenset(), partial=partial)
        if partial:
            preflight.change("one more")
        else:
            preflight.set_attributes("", found := os.stat(top), Attributes.of(found))
            for path, found in islice(live.below("", unopened=RESTORE_DIRECTORY), most):
                if not path.startswith(OURS) and not stat.S_ISDIR(found.st_mode):
                    preflight.change(path)
        return preflight.obstacles()


def _few(paths: Collection[str]) -> str:
    """Some of the paths, in words; the top of the tree needs no name."""
    names = [path or "the directory itself" for path in paths]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"


def mounts_below(top: str) -> tuple[str, ...]:
    """The mounts below a directory, relative to it; none if the kernel does not list them.

    Arguments:
        top: the real path of the directory.
    """
    inside = f"{top.rstrip('/')}/"
    places = {mount.place for mount in read_mounts()}
    return tuple(sorted(place.removeprefix(inside) for place in places if place.startswith(inside) and place != inside))
