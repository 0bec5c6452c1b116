"""Reads the tree of an incremental as it was when it was made, from all archives of its chain.

A file is read from the last archive that has it, unless a later one deletes it. Only the entries of incrementals are
kept in memory, not those of the base. Other components, such as the database of a full backup, are read from the last
archive alone.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from portal.ops.archive.damage import is_below
from portal.ops.archive.open import open_archive
from portal.ops.archive.reader import ArchiveReader, Layer
from portal.ops.chains.deletions import deletions
from portal.ops.chains.graph import missing_link
from portal.ops.chains.lineage import line_of
from portal.ops.errors import NotIntactError, OpsError
from portal.ops.model import Component

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.archive.index import Contents, Member
    from portal.ops.archive.protocol import Archive
    from portal.ops.chains.lineage import Ancestor
    from portal.ops.manifest import Manifest

_PREFIX: Final = Component.MEDIA.member
_MOST_OPEN: Final = 8


class ChainReader:
    """An incremental with the archives it needs, opened for reading as one tree.

    Arguments:
        path: the incremental's file; the others must be in the same directory.

    Raises:
        NotIntactError: an archive is missing or damaged, or is not the one that its child was made on.
    """

    has_index: Final = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.line = line_of(path)
        self.backup_id = self.line[-1].name
        self._newest: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        self._open: OrderedDict[int, ArchiveReader] = OrderedDict()
        frames = []
        for number, ancestor in enumerate(self.line):
            with _named(ancestor), closing(ArchiveReader(ancestor.path)) as reader:
                frames.append(len(reader.frames))
                if number:
                    self._gone.update(dict.fromkeys(deletions(reader), number))
                    paths = (member.path for member in reader.members() if is_below(member.path, _PREFIX))
                    self._newest.update(dict.fromkeys(paths, number))
        self._first_frames = [0, *accumulate(frames)]
        self._holds = Counter(self._newest.values())
        self._last = len(self.line) - 1
        components = self.line[-1].manifest.components
        self._own = tuple(component.member for component in components if component is not Component.MEDIA)

    def close(self) -> None:
        """Close the files."""
        for reader in self._open.values():
            reader.close()
        self._open.clear()

    def manifest(self) -> Manifest:
        """The manifest of the incremental, with the totals of the whole tree.

        Raises:
            NotIntactError: the manifest does not have them.
        """
        manifest = self.line[-1].manifest
        details = manifest.details.get(_PREFIX, {})
        tree = details.get("tree")
        if not isinstance(tree, dict):
            raise NotIntactError(f"{self.backup_id} does not say how much its tree holds", hint=missing_link())
        return replace(manifest, details={**manifest.details, _PREFIX: {**details, **tree}})

    def members(self) -> Iterator[Member]:
        """Everything in the tree, oldest archive first, and the other components of the last archive.

        Raises:
            NotIntactError: an index is invalid.
        """
        for number, ancestor in self._holding():
            with _named(ancestor), closing(ArchiveReader(ancestor.path)) as reader:
                for member in reader.members():
                    if self._is_live(member.path, number):
                        yield self._numbered(member, number)

    def layers(self) -> Iterator[Layer]:
        """The archives with parts of the tree, oldest first; each is open while it is the current one.

        Raises:
            NotIntactError: an index is invalid.
        """
        for number, ancestor in self._holding():
            with _named(ancestor):
                reader = ArchiveReader(ancestor.path)
            with closing(reader):
                most = self._holds[number] if number and not self._is_whole(number) else reader.member_count
                yield Layer(reader, most, partial(self._is_live, number=number), partial(_named, ancestor))

    def find(self, path: str) -> Member | None:
        """The member with that path, in any of the archives."""
        number = self._newest.get(path, 0) if is_below(path, _PREFIX) else self._last
        if not self._is_live(path, number):
            return None
        with _named(self.line[number]):
            member = self._reader(number).find(path)
        return self._numbered(member, number) if member else None

    def extract(self, member: Member) -> Iterator[memoryview]:
        """The content of one file, piece by piece.

        Raises:
            NotIntactError: as for `ArchiveReader`.
        """
        number = next(number for number, first in enumerate(self._first_frames[1:]) if member.frame < first)
        with _named(self.line[number]):
            yield from self._reader(number).extract(member._replace(frame=member.frame - self._first_frames[number]))

    def contents(self, jobs: int, *, below: str | None = None) -> Contents:
        """Everything in the tree with its content; each archive is read once from front to back.

        Arguments:
            jobs: how many threads decompress.
            below: return only the member of this path and those below it.

        Raises:
            NotIntactError: as for `ArchiveReader`.
        """
        for number, ancestor in self._holding(below):
            part = (below if self._is_own(below) else _PREFIX) if below is not None else None
            if part is None and not self._is_whole(number):
                part = _PREFIX
            with _named(ancestor), closing(ArchiveReader(ancestor.path)) as reader:
                for member, content in reader.contents(jobs, below=part):
                    if self._is_live(member.path, number) and (below is None or is_below(member.path, below)):
                        yield self._numbered(member, number), _told(content, ancestor)

    def _holding(self, below: str | None = None) -> Iterator[tuple[int, Ancestor]]:
        """The archives with parts of the tree, or of a subtree."""
        if below is not None and self._is_own(below):
            return iter([(self._last, self.line[-1])])
        return (
            (number, one)
            for number, one in enumerate(self.line)
            if not number or self._holds[number] or (self._is_whole(number) and below is None)
        )

    def _is_whole(self, number: int) -> bool:
        """True if all contents of an archive count, and not only its uploads."""
        return number == self._last and bool(self._own)

    def _is_own(self, path: str) -> bool:
        """True if a path is not part of the uploads, so that only the last archive counts."""
        return any(is_below(path, own) for own in self._own)

    def _is_live(self, path: str, number: int) -> bool:
        """True if an archive's entry for a path is in the tree."""
        if not is_below(path, _PREFIX):
            return number == self._last and self._is_own(path)
        if self._newest.get(path, number) > number:
            return False
        while path and self._gone:
            if self._gone.get(path, number) > number:
                return False
            path = path.rpartition("/")[0]
        return True

    def _numbered(self, member: Member, number: int) -> Member:
        """The member, with its frame numbered across all archives."""
        return member._replace(frame=member.frame + self._first_frames[number])

    def _reader(self, number: int) -> ArchiveReader:
        """An archive's reader; a few are kept open."""
        if number not in self._open:
            if len(self._open) >= _MOST_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[number] = ArchiveReader(self.line[number].path)
        self._open.move_to_end(number)
        return self._open[number]


def open_tree(path: Path) -> Archive:
    """Open an archive for a restore, an incremental together with the archives it needs.

    Raises:
        NotIntactError: an archive is missing, or damaged where opening has to read it.
        RepositoryError: it cannot be read.
    """
    archive = open_archive(path)
    try:
        manifest = archive.manifest()
    except OpsError:
        return archive  # reading its manifest reports the same error
    if manifest.parent is None or Component.CLUSTER in manifest.components:  # PostgreSQL combines these
        return archive
    archive.close()
    return ChainReader(path)


def _told(content: Iterator[memoryview], ancestor: Ancestor) -> Iterator[memoryview]:
    with _named(ancestor):
        yield from content


@contextmanager
def _named(ancestor: Ancestor) -> Iterator[None]:
    """Add the archive's name to errors about damage."""
    try:
        yield
    except NotIntactError as error:
        raise NotIntactError(f"in {ancestor.name}: {error.message}", hint=error.hint or missing_link()) from error
