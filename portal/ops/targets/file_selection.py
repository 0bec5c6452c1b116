"""Which members of an archive a restore of files takes, and how they are read: a whole component, or some of it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.plain import PlainArchive
from portal.ops.archive.reader import is_below
from portal.ops.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from portal.ops.archive.reader import ArchiveReader
    from portal.ops.chain_reader import ChainReader

    Contents = Iterator[tuple[Member, Iterator[memoryview]]]


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path below the component is asked for.

    A pattern is one of the shell's; upper and lower case differ, and `*` also stands for `/`: ``tenant-a/*.sarif``
    takes files of all directories below ``tenant-a``. A pattern that fits a directory takes everything below it.
    """
    return any(fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern.rstrip('/')}/*") for pattern in patterns)


def selected(
    archive: ArchiveReader | PlainArchive | ChainReader, prefix: str, patterns: Sequence[str], jobs: int
) -> Contents:
    """The members of a component with their content; with patterns, what they fit, and the directories above that.

    A hard link that is taken without the file that it is another name of becomes that file.

    Arguments:
        prefix: the component's name in the archive.
        patterns: see `matches`; none takes everything.
        jobs: how many threads decompress.

    Raises:
        ConfigurationError: the patterns fit nothing.
        NotIntactError: the archive is damaged.
    """
    if not patterns:
        return archive.contents(jobs, below=prefix)
    selection = Selection(prefix, patterns)
    selection.prepare(member for member, _ in _all(archive))
    return selection.taken_of(_all(archive))


class Selection:
    """Two passes: the first finds what belongs to what is asked for, the second takes it.

    Arguments:
        prefix: the component's name in the archive.
        patterns: see `matches`.
    """

    def __init__(self, prefix: str, patterns: Sequence[str]) -> None:
        self._prefix = prefix
        self._patterns = patterns
        self._above: set[str] = set()
        self._instead: dict[str, Member] = {}
        self._first_names: dict[str, str] = {}

    def prepare(self, members: Iterable[Member]) -> None:
        """The first pass.

        Raises:
            ConfigurationError: the patterns fit nothing.
        """
        found = False
        for member in members:
            if self._fits(member.path) and member.path != self._prefix:
                found = True
                self._note(member)
        if not found:
            raise ConfigurationError(
                f"nothing in the archive's {self._prefix} fits {' or '.join(self._patterns)}",
                hint="Patterns are relative to the component, such as 'tenant-a/*.sarif'; tar tzf lists what there is.",
            )

    def taken_of(self, contents: Contents) -> Contents:
        """The second pass, over the members with their content."""
        for member, content in contents:
            taken = self.take(member)
            if taken is not None:
                yield taken, content

    def take(self, member: Member) -> Member | None:
        """The next member of the second pass, as it is to be restored; nothing where it is not asked for."""
        if member.path in self._instead:
            link = self._instead[member.path]
            self._first_names[member.path] = link.path
            return member._replace(path=link.path)
        if not self._fits(member.path) and member.path not in self._above:
            return None
        if member.type is not MemberType.HARDLINK:
            return member
        name = self._first_names.get(member.link, member.link)
        return None if name == member.path else member._replace(link=name)

    def _note(self, member: Member) -> None:
        parent = member.path.rpartition("/")[0]
        while parent and parent not in self._above:
            self._above.add(parent)
            parent = parent.rpartition("/")[0]
        if member.type is MemberType.HARDLINK and not self._fits(member.link):
            self._instead.setdefault(member.link, member)

    def _fits(self, path: str) -> bool:
        return is_below(path, self._prefix) and matches(path[len(self._prefix) + 1 :], self._patterns)


def _all(archive: ArchiveReader | PlainArchive | ChainReader) -> Contents:
    """Every member; where there is an index, content is read only of those whose content is asked for."""
    if isinstance(archive, PlainArchive):
        yield from archive.contents(1)
    else:
        for member in archive.members():
            yield member, archive.extract(member)
