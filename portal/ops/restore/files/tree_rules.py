"""Checks that the members of an archive, one after the other, describe a possible tree.

Plan and stage use the same rules, which see only the members: so a plan finds what a stage would refuse. What only a
file system can know, such as two names that it treats as one, the stage finds.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from typing import Final

from portal.ops.archive.damage import is_below
from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.links import leads_out
from portal.ops.errors import NotIntactError
from portal.ops.filesystem.attributes import SPECIAL_BITS
from portal.ops.hints import another_archive
from portal.ops.model import RESTORE_DIRECTORY
from portal.ops.restore.files.file_writer import no_file, twice
from portal.ops.restore.files.name_set import Kind, Names

MOST_WARNINGS: Final = 50
_MOST_BYTES: Final = 1 << 63
_MOST_SECONDS: Final = 1 << 63
_SECOND_NS: Final = 1_000_000_000
_MOST_OWNER: Final = (1 << 32) - 1
_LINK_HINT: Final = (
    "Do not trust the archive, unless you know this link and where it leads; then allow it with --allow-outside-links."
)
_KINDS: Final = {
    MemberType.FILE: Kind.FILE,
    MemberType.HARDLINK: Kind.FILE,
    MemberType.SYMLINK: Kind.SYMLINK,
    MemberType.DIRECTORY: Kind.DIRECTORY,
}
_DIRECTORIES: Final = (Kind.IMPLIED, Kind.DIRECTORY)


@dataclass(kw_only=True)
class TreeRules:
    """Checks the members of one component, in the order of the archive.

    Arguments:
        prefix: the name of the component in the archive.
        top: replaces the prefix in the tree; empty for none.
        allow_outside_links: symlinks that lead out of the tree cause only a warning.
        names: all names in the tree so far.
    """

    prefix: str
    top: str
    allow_outside_links: bool = False
    names: Names = field(default_factory=Names)
    _folded: Names = field(default_factory=Names)
    _parent: str = ""
    _warnings: list[str] = field(default_factory=list)
    _warned: int = 0

    def add(self, member: Member) -> str:
        """Add the next member; return its path in the tree.

        Raises:
            NotIntactError: no portal's tree can hold the member, alone or together with earlier ones.
        """
        path = staged_path(member.path, self.prefix, self.top)
        check_member(member, path, self.top)
        if member.type is MemberType.HARDLINK:
            self._check_hardlink(member)
        self._enter(member, path)
        if path:
            self._watch_name(path)
        if member.type is MemberType.SYMLINK and leads_out(path, member.link, self.top):
            self._check_symlink(member)
        if member.type is MemberType.FILE and member.mode & SPECIAL_BITS:
            self._warn(f"{member.path} loses its setuid or setgid bit: no file of a portal needs one")
        return path

    def warnings(self) -> tuple[str, ...]:
        """Members that are restored with changes, or that may cause problems on other file systems."""
        more = self._warned - len(self._warnings)
        return (*self._warnings, f"and {more} more of this kind") if more else tuple(self._warnings)

    def _enter(self, member: Member, path: str) -> None:
        """Add the member and the directories above it to the tree."""
        parent = path.rpartition("/")[0]
        if parent != self._parent:
            above = parent
            while above and (there := self.names.add(above, Kind.IMPLIED)) not in _DIRECTORIES:
                if there is not Kind.NOTHING:
                    raise twice(member)
                above = above.rpartition("/")[0]
            self._parent = parent
        kind = _KINDS[member.type]
        there = self.names.add(path, kind)
        if there is Kind.IMPLIED and kind is Kind.DIRECTORY:
            self.names.change(path, kind)
        elif there is not Kind.NOTHING:
            raise twice(member)

    def _check_hardlink(self, member: Member) -> None:
        if not is_below(member.link, self.prefix):
            raise NotIntactError(
                f"{member.path} is a link to {member.link}, outside of the {self.prefix}", hint=another_archive()
            )
        if self.names.kind(staged_path(member.link, self.prefix, self.top)) is not Kind.FILE:
            raise no_file(member)

    def _check_symlink(self, member: Member) -> None:
        where = f"the link {member.path} leads out of the tree, to {member.link}"
        if not self.allow_outside_links:
            raise NotIntactError(where, hint=_LINK_HINT)
        self._warn(f"{where}: it is restored with --allow-outside-links only")

    def _watch_name(self, path: str) -> None:
        """Warn of names that other file systems treat as one; nearly all names are in the form that those use."""
        parent, _, name = path.rpartition("/")
        folded = (name if name.isascii() else unicodedata.normalize("NFC", name)).casefold()
        if folded == name:
            is_known = len(self._folded) > 0 and self._folded.kind(path) is not Kind.NOTHING
        else:
            folded = f"{parent}/{folded}" if parent else folded
            is_known = self.names.kind(folded) is not Kind.NOTHING or self._folded.kind(folded) is not Kind.NOTHING
            self._folded.add(folded, Kind.FILE)
        if is_known:
            self._warn(f"{path} differs from another name only in case or in its Unicode form")

    def _warn(self, warning: str) -> None:
        self._warned += 1
        if len(self._warnings) < MOST_WARNINGS:
            self._warnings.append(warning)


def staged_path(path: str, prefix: str, top: str) -> str:
    """The path of a component's member below the stage."""
    below = path[len(prefix) + 1 :]
    return f"{top}/{below}" if top and below else top or below


def check_member(member: Member, path: str, top: str = "") -> None:
    """Refuse a member that no portal's tree can hold.

    Raises:
        NotIntactError: the member is refused.
    """
    if path == top and member.type is not MemberType.DIRECTORY:
        raise NotIntactError(
            f"{member.path} should be a directory, and is a {member.type.value}", hint=another_archive()
        )
    if path.partition("/")[0] == RESTORE_DIRECTORY:
        raise NotIntactError(f"{member.path} lies where a restore keeps its own files", hint=another_archive())
    can_be = (
        0 <= member.size < _MOST_BYTES
        and 0 <= member.mode < 0o10000
        and 0 <= member.uid < _MOST_OWNER
        and 0 <= member.gid < _MOST_OWNER
        and -_MOST_SECONDS <= member.mtime_ns // _SECOND_NS < _MOST_SECONDS
    )
    if not can_be:
        raise NotIntactError(f"{member.path} has a size, mode, owner or time that cannot be", hint=another_archive())
    if member.type is MemberType.SYMLINK and not member.link:
        raise NotIntactError(f"{member.path} is a link to nowhere", hint=another_archive())
