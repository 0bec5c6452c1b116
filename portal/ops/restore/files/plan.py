"""Plans a restore of files: compares the members of an archive with a live tree, and changes nothing."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from portal.ops.archive.damage import is_below
from portal.ops.archive.index import Member, MemberType, encode_name
from portal.ops.errors import DiskFullError, NotIntactError, RestoreError
from portal.ops.filesystem.attributes import IS_ROOT, Attributes
from portal.ops.filesystem.tree import Tree
from portal.ops.model import RESTORE_DIRECTORY
from portal.ops.restore.files.changes import OURS, protected_paths
from portal.ops.restore.files.free_space import room
from portal.ops.restore.files.name_set import Kind
from portal.ops.restore.files.preflight import Preflight, closed
from portal.ops.restore.files.refusals import explained
from portal.ops.restore.files.report import FilesPlan
from portal.ops.restore.files.tree_rules import TreeRules
from portal.ops.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from portal.ops.errors import OpsError

_EXAMPLES: Final = 3
_MOST_FAULTS: Final = 5
_MOST_IN_THE_WAY: Final = 10
_ENTRY_BYTES: Final = 4096
"""The most bytes that a file takes on the disk besides its content: rounding to blocks, and an inode."""

_KINDS: Final = {
    MemberType.FILE: stat.S_IFREG,
    MemberType.HARDLINK: stat.S_IFREG,
    MemberType.SYMLINK: stat.S_IFLNK,
    MemberType.DIRECTORY: stat.S_IFDIR,
}


@dataclass(kw_only=True)
class Comparison:
    """Counts what would happen to a tree, and finds obstacles.

    Arguments:
        root: the top of the tree; it need not exist.
        prefix: the name of the component in the archive.
        top: replaces the prefix in the tree; empty for none.
        exact: entries that the backup does not have would be moved aside.
        partial: only a part of the backup is restored, so other entries are not counted.
        protected: real paths that must not be moved.
        allow_outside_links: symlinks that lead out of the tree cause only a warning.
    """

    root: str
    prefix: str
    top: str
    exact: bool
    partial: bool = False
    protected: Iterable[str] = ()
    allow_outside_links: bool = False
    _counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("new", "replaced", "same"), 0))
    _bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("new", "replaced", "same"), 0))
    _met: int = 0
    _absent: str = "\0"
    _name_bytes: int = 0
    _stage_bytes: int = 0
    _examples: list[str] = field(default_factory=list)
    _in_the_way: list[str] = field(default_factory=list)
    _faults: list[OpsError] = field(default_factory=list)
    _obstacles: list[OpsError] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rules = TreeRules(prefix=self.prefix, top=self.top, allow_outside_links=self.allow_outside_links)

    def plan(self, members: Iterable[Member], place: Path) -> FilesPlan:
        """Compare the members with the tree."""
        above = _existing(self.root)
        self._name_bytes = os.pathconf(above, "PC_NAME_MAX")
        present = self._look_at_all(members)
        free = room(above)
        return FilesPlan(
            place=place,
            new=self._counts["new"],
            new_bytes=self._bytes["new"],
            replaced=self._counts["replaced"],
            replaced_bytes=self._bytes["replaced"],
            same=self._counts["same"],
            left=max(0, present - self._met),
            exact=self.exact,
            stage_bytes=self._stage_bytes,
            content_bytes=sum(self._bytes.values()),
            free_bytes=free,
            examples=tuple(self._examples),
            in_the_way=tuple(self._in_the_way),
            warnings=self._rules.warnings(),
            blockers=(*self._faults, *self._obstacles, *self._blockers(above, free)),
        )

    def _look_at_all(self, members: Iterable[Member]) -> int:
        """Examine all members and all other entries of the tree; return the number of files in it."""
        with ExitStack() as stack:
            live = stack.enter_context(Tree(self.root)) if os.path.isdir(self.root) else None
            protected = self._protected()
            preflight = Preflight(live, protected, partial=self.partial) if live is not None else None
            for member in members:
                try:
                    path = self._rules.add(member)
                    self._check_name(path)
                    self._compare(member, path, live, preflight)
                except NotIntactError as error:
                    if len(self._faults) < _MOST_FAULTS:
                        self._faults.append(error)
            if live is None or preflight is None or self.partial:
                self._obstacles += preflight.obstacles() if preflight else ()
                return self._met
            present = self._count_files(live, preflight)
            self._obstacles += preflight.obstacles()
            return present

    def _protected(self) -> frozenset[str]:
        try:
            return protected_paths(self.root, iter(self.protected))
        except RestoreError as error:
            self._obstacles.append(error)
            return frozenset()

    def _check_name(self, path: str) -> None:
        """Refuse a name that is too long for the file system."""
        if 4 * len(path) > self._name_bytes and any(
            len(encode_name(name)) > self._name_bytes for name in path.split("/")
        ):
            raise explained(OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG)), "", self.root)

    def _compare(self, member: Member, path: str, live: Tree | None, preflight: Preflight | None) -> None:
        found = self._look(live, path)
        fits = found is not None and stat.S_IFMT(found.st_mode) == _KINDS[member.type]
        if found is not None and not fits and len(self._in_the_way) < _MOST_IN_THE_WAY:
            self._in_the_way.append(f"{path} is {_named(found)}, and a {member.type.value} in the backup")
        if found is not None and not stat.S_ISDIR(found.st_mode):
            self._met += 1
        is_directory = member.type is MemberType.DIRECTORY
        if preflight is not None and found is not None and fits and is_directory:
            preflight.set_attributes(path, found, Attributes(member.mode, member.uid, member.gid, member.mtime_ns))
        elif preflight is not None:
            preflight.change(path, moves=found is not None and not fits, makes=is_directory)
        if is_directory:
            return
        self._stage_bytes += member.payload_bytes + _ENTRY_BYTES
        outcome = "new" if found is None else "same" if fits and _looks_same(member, found) else "replaced"
        if outcome == "replaced" and preflight is not None:
            preflight.replaces(path)
        self._counts[outcome] += 1
        self._bytes[outcome] += member.size
        if outcome != "same" and not self.top and len(self._examples) < _EXAMPLES:
            self._examples.append(path)

    def _look(self, live: Tree | None, path: str) -> os.stat_result | None:
        """The present entry. If a directory is missing, nothing below it is looked up."""
        if live is None or is_below(path, self._absent):
            return None
        try:
            found = live.look(path)
        except OSError as error:
            raise explained(error, "to look at what is there", self.root) from error
        if found is None:
            self._absent = path
        return found

    def _count_files(self, live: Tree, preflight: Preflight) -> int:
        """Count files, and note those that would be moved aside."""
        count = 0
        settled: set[str] = set()  # directories whose contents stay or move with them
        for path, found in live.below("", unopened=RESTORE_DIRECTORY):
            if path.startswith(OURS):
                continue
            is_directory = stat.S_ISDIR(found.st_mode)
            count += not is_directory
            if not self.exact or self._rules.names.kind(path) is not Kind.NOTHING:
                continue
            goes_with_it = path.rpartition("/")[0] in settled
            if (goes_with_it or preflight.strange(path)) and is_directory:
                settled.add(path)
        return count

    def _blockers(self, above: str, free: int) -> list[OpsError]:
        blockers: list[OpsError] = []
        if (there := _no_directory(self.root)) is not None:
            blockers.append(
                RestoreError(
                    f"{there} is no directory, so nothing can be restored to {self.root}",
                    hint="Move it away, or name another directory with --media-dir, PORTAL_UPLOAD_DIR or "
                    "PORTAL_AUDIT_DIR.",
                )
            )
        blockers += closed(above, self.root)
        if free < self._stage_bytes:
            blockers.append(
                DiskFullError(
                    f"the stage needs about {human_bytes(self._stage_bytes)} in {above}; {human_bytes(free)} are free",
                    hint="Make room there, or restore a part of the files only.",
                )
            )
        return blockers


def _looks_same(member: Member, found: os.stat_result) -> bool:
    if member.type is MemberType.HARDLINK:
        return member.mtime_ns == found.st_mtime_ns
    size = member.size if member.type is MemberType.FILE else found.st_size
    owner = (member.uid, member.gid) if IS_ROOT else (found.st_uid, found.st_gid)
    said = (size, member.mtime_ns, member.mode, *owner)
    return said == (found.st_size, found.st_mtime_ns, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)


def _named(found: os.stat_result) -> str:
    if stat.S_ISDIR(found.st_mode):
        return "a directory"
    return "a symlink" if stat.S_ISLNK(found.st_mode) else "a file"


def _existing(path: str) -> str:
    """The path, or the nearest directory above it that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _no_directory(path: str) -> str | None:
    """The path, or an entry above it, if it exists and is no directory; otherwise None."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return None if os.path.isdir(path) else path
