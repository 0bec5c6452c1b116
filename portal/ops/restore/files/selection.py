"""Selects the members that a restore of files takes, whole components or some files, and reads them."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Protocol

from portal.ops.archive.damage import is_below
from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.protocol import is_indexed_archive
from portal.ops.archive.runs import Run, runs
from portal.ops.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from portal.ops.archive.protocol import Archive
    from portal.ops.archive.reader import ArchiveReader, Layer

    Contents = Iterator[tuple[Member, Iterator[memoryview]]]

LONG_FRAMES: Final = 8
"""A run of more frames holds one or a few large files, which several threads decompress."""


def matches(path: str, patterns: Sequence[str]) -> bool:
    """True if a pattern matches a path below the component.

    Patterns are shell patterns; upper and lower case differ, and `*` also matches `/`: ``tenant-a/*.sarif`` matches
    files in all directories below ``tenant-a``. A pattern that matches a directory takes everything below it.
    """
    return any(fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern.rstrip('/')}/*") for pattern in patterns)


_FEW: Final = 50
"""Below this number of members, starting threads for reading ahead takes longer than reading."""


class Choice(Protocol):
    """The part of a tree to restore.

    `most` is about how many members that is; a very high number if nobody has counted them.
    """

    most: int

    def take(self, member: Member) -> Member | None:
        """The member as it is to be restored, or None. Called once for each member, in the order of the tree."""

    def contents(self, layer: Layer, jobs: int) -> Contents:
        """The selected members of one archive with their content.

        Arguments:
            jobs: how many threads decompress.

        Raises:
            NotIntactError: the archive is damaged.
        """


def choose(archive: Archive, prefix: str, patterns: Sequence[str]) -> Choice:
    """Select everything of a component or, with patterns, matching entries and the directories above them.

    A hard link that is selected without its target becomes a file of its own.

    Arguments:
        prefix: the name of the component in the archive.
        patterns: see `matches`; empty for everything.

    Raises:
        ConfigurationError: the patterns match nothing.
        NotIntactError: the archive is damaged.
    """
    if not patterns:
        return Everything(prefix)
    selection = Selection(prefix, patterns)
    selection.prepare(archive.members())
    return selection


def selected(archive: Archive, choice: Choice, jobs: int) -> Contents:
    """The selected members of a tree with their content; only their frames are read.

    Arguments:
        jobs: how many threads decompress.

    Raises:
        NotIntactError: the archive is damaged.
    """
    if not is_indexed_archive(archive):
        for member, content in archive.contents(1):
            if (taken := choice.take(member)) is not None:
                yield taken, content
        return
    for layer in archive.layers():
        with layer.named():
            for member, content in choice.contents(layer, jobs):
                yield member, _told(content, layer)


def chosen_runs(layer: Layer, choice: Choice) -> Iterator[tuple[Run, list[Member | None]]]:
    """The runs of an archive that hold something selected, with each member as it is to be restored, or None.

    Raises:
        NotIntactError: the index is invalid.
    """
    archive = layer.archive
    for run in runs(archive.members(), len(archive.frames)):
        taken = [choice.take(member) if layer.holds(member.path) else None for member in run.members]
        if any(taken):
            yield run, taken


def run_contents(archive: ArchiveReader, run: Run, taken: Sequence[Member | None], jobs: int) -> Contents:
    """The selected members of a run, with their content.

    Raises:
        NotIntactError: the archive is damaged.
    """
    contents = archive.contents_of(run, jobs if len(run.frames) > LONG_FRAMES else 1)
    for member, (_, content) in zip(taken, contents, strict=True):
        if member is not None:
            yield member, content


def _contents_by_runs(layer: Layer, choice: Choice, jobs: int) -> Contents:
    for run, taken in chosen_runs(layer, choice):
        yield from run_contents(layer.archive, run, taken, jobs)


def _told(content: Iterator[memoryview], layer: Layer) -> Iterator[memoryview]:
    with layer.named():
        yield from content


class Everything:
    """Selects a whole component.

    Arguments:
        prefix: the name of the component in the archive.
    """

    most = sys.maxsize

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def take(self, member: Member) -> Member | None:
        """The member if it belongs to the component."""
        return member if is_below(member.path, self._prefix) else None

    def contents(self, layer: Layer, jobs: int) -> Contents:
        """See `Choice`; the frames are read in order and, if there are many, ahead."""
        if layer.most <= _FEW:
            yield from _contents_by_runs(layer, self, jobs)
            return
        for member, content in layer.archive.contents(jobs, below=self._prefix, together=True):
            if layer.holds(member.path):
                yield member, content


class Selection:
    """Selects in two passes: the first finds what the patterns need, the second takes it.

    Arguments:
        prefix: the name of the component in the archive.
        patterns: see `matches`.
    """

    def __init__(self, prefix: str, patterns: Sequence[str]) -> None:
        self._prefix = prefix
        self._patterns = patterns
        self.most = 0
        self._above: set[str] = set()
        self._instead: dict[str, Member] = {}
        self._first_names: dict[str, str] = {}

    def prepare(self, members: Iterable[Member]) -> None:
        """The first pass.

        Raises:
            ConfigurationError: the patterns match nothing.
        """
        for member in members:
            if self._fits(member.path) and member.path != self._prefix:
                self.most += 1
                self._note(member)
        if not self.most:
            raise ConfigurationError(
                f"nothing in the archive's {self._prefix} fits {' or '.join(self._patterns)}",
                hint="Patterns are relative to the component, such as 'tenant-a/*.sarif'; tar tzf lists the files.",
            )

    def contents(self, layer: Layer, jobs: int) -> Contents:
        """See `Choice`; only frames that hold something selected are read."""
        return _contents_by_runs(layer, self, jobs)

    def take(self, member: Member) -> Member | None:
        """The next member of the second pass as it is to be restored, or None if it is not selected."""
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
        if member.type is MemberType.HARDLINK and is_below(member.link, self._prefix) and not self._fits(member.link):
            self._instead.setdefault(member.link, member)

    def _fits(self, path: str) -> bool:
        return is_below(path, self._prefix) and matches(path[len(self._prefix) + 1 :], self._patterns)
