"""The plan of a restore of files: the members of an archive held against a live tree, without touching anything."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from portal.ops.archive.index import Member, MemberType
from portal.ops.errors import AccessDeniedError, DiskFullError
from portal.ops.targets.file_changes import OURS
from portal.ops.targets.file_report import FilesPlan
from portal.ops.targets.file_stage import check_member, room, staged_path
from portal.ops.targets.file_tree import IS_ROOT, Tree

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from portal.ops.errors import OpsError

_EXAMPLES: Final = 3
_MOST_IN_THE_WAY: Final = 10
_ENTRY_BYTES: Final = 4096
"""What a file takes on the disk beside its content, at the most, in whole blocks and an inode."""

_KINDS: Final = {
    MemberType.FILE: stat.S_IFREG,
    MemberType.HARDLINK: stat.S_IFREG,
    MemberType.SYMLINK: stat.S_IFLNK,
    MemberType.DIRECTORY: stat.S_IFDIR,
}


@dataclass(kw_only=True)
class Comparison:
    """Counts what would happen to a tree.

    Arguments:
        root: the top of the tree; it need not exist.
        prefix: the component's name in the archive.
        top: what stands in its place in the tree: nothing, or a name.
        exact: what the backup does not have would be moved aside.
        partial: only a part of the backup is looked at, so what it does not have is not counted.
    """

    root: str
    prefix: str
    top: str
    exact: bool
    partial: bool = False
    _counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("new", "replaced", "same"), 0))
    _bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("new", "replaced", "same"), 0))
    _met: int = 0
    _stage_bytes: int = 0
    _examples: list[str] = field(default_factory=list)
    _in_the_way: list[str] = field(default_factory=list)

    def plan(self, members: Iterable[Member], place: Path) -> FilesPlan:
        """Hold the members against the tree."""
        with ExitStack() as stack:
            live = stack.enter_context(Tree(self.root)) if os.path.isdir(self.root) else None
            for member in members:
                path = staged_path(member.path, self.prefix, self.top)
                check_member(member, path, self.top)
                self._compare(member, path, live)
            present = _count_files(live) if live is not None and not self.partial else self._met
        above = _existing(self.root)
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
            free_bytes=free,
            examples=tuple(self._examples),
            in_the_way=tuple(self._in_the_way),
            blockers=tuple(self._blockers(above, free)),
        )

    def _compare(self, member: Member, path: str, live: Tree | None) -> None:
        found = live.look(path) if live is not None else None
        fits = found is not None and stat.S_IFMT(found.st_mode) == _KINDS[member.type]
        if found is not None and not fits and len(self._in_the_way) < _MOST_IN_THE_WAY:
            self._in_the_way.append(f"{path} is {_named(found)}, and a {member.type.value} in the backup")
        if found is not None and not stat.S_ISDIR(found.st_mode):
            self._met += 1
        if member.type is MemberType.DIRECTORY:
            return
        self._stage_bytes += member.size + _ENTRY_BYTES
        outcome = "new" if found is None else "same" if fits and _looks_same(member, found) else "replaced"
        self._counts[outcome] += 1
        self._bytes[outcome] += member.size
        if outcome != "same" and len(self._examples) < _EXAMPLES:
            self._examples.append(path)

    def _blockers(self, above: str, free: int) -> list[OpsError]:
        blockers: list[OpsError] = []
        if not os.access(above, os.W_OK | os.X_OK):
            blockers.append(
                AccessDeniedError(
                    f"this user may not write to {above}",
                    hint="Run the restore as the portal's user or as root, or mount it so that it can be written to.",
                )
            )
        if free < self._stage_bytes:
            blockers.append(
                DiskFullError(
                    f"the stage needs about {self._stage_bytes >> 20} MiB in {above}, and {free >> 20} are free",
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


def _count_files(live: Tree) -> int:
    return sum(not stat.S_ISDIR(found.st_mode) for path, found in live.below("") if not path.startswith(OURS))


def _existing(path: str) -> str:
    """The path, or the first directory above it that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
