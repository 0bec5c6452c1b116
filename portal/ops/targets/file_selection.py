"""Which members of an archive a restore of files takes, and how they are read: a whole component, or some of it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.plain import PlainArchive
from portal.ops.archive.reader import is_below
from portal.ops.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
    return _Selection(archive, prefix, patterns).contents()


class _Selection:
    """Two passes: the first finds what belongs to what is asked for, the second reads it."""

    def __init__(
        self, archive: ArchiveReader | PlainArchive | ChainReader, prefix: str, patterns: Sequence[str]
    ) -> None:
        self._archive = archive
        self._prefix = prefix
        self._patterns = patterns
        self._above: set[str] = set()
        self._instead: dict[str, Member] = {}

    def contents(self) -> Contents:
        found = False
        for member, _ in self._all():
            if self._fits(member.path) and member.path != self._prefix:
                found = True
                self._note(member)
        if not found:
            raise ConfigurationError(
                f"nothing in the archive's {self._prefix} fits {' or '.join(self._patterns)}",
                hint="Patterns are relative to the component, such as 'tenant-a/*.sarif'; tar tzf lists what there is.",
            )
        return self._second_pass()

    def _second_pass(self) -> Contents:
        first_names: dict[str, str] = {}
        for member, content in self._all():
            if member.path in self._instead:
                link = self._instead[member.path]
                first_names[member.path] = link.path
                yield member._replace(path=link.path), content
            elif self._fits(member.path) or member.path in self._above:
                name = first_names.get(member.link, member.link)
                if member.type is not MemberType.HARDLINK:
                    yield member, content
                elif name != member.path:
                    yield member._replace(link=name), content

    def _note(self, member: Member) -> None:
        parent = member.path.rpartition("/")[0]
        while parent and parent not in self._above:
            self._above.add(parent)
            parent = parent.rpartition("/")[0]
        if member.type is MemberType.HARDLINK and not self._fits(member.link):
            self._instead.setdefault(member.link, member)

    def _fits(self, path: str) -> bool:
        return is_below(path, self._prefix) and matches(path[len(self._prefix) + 1 :], self._patterns)

    def _all(self) -> Contents:
        """Every member; where there is an index, content is read only of those whose content is asked for."""
        if isinstance(self._archive, PlainArchive):
            yield from self._archive.contents(1)
        else:
            for member in self._archive.members():
                yield member, self._archive.extract(member)
