"""The stage: the archive's files, written where nothing live is, so that only renames remain to be done.

An archive counts as hostile. Every entry is created as a new one, below a directory that was opened component by
component, and symlinks are created last: so no name, link or order of members reaches out of the stage. Also refused
are symlinks that lead out of the tree, duplicate names, more content than the index announces, and more than the disk
can hold.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from portal.ops.archive.damage import is_below
from portal.ops.archive.index import Member, MemberType
from portal.ops.filesystem.attributes import IS_ROOT, Attributes
from portal.ops.restore.files.file_writer import FileMaker, attributes_of, drain, no_file, twice
from portal.ops.restore.files.free_space import Room
from portal.ops.restore.files.helpers import Helpers
from portal.ops.restore.files.lost_attributes import LostAttributes
from portal.ops.restore.files.selection import LONG_FRAMES, chosen_runs, run_contents
from portal.ops.restore.files.tree_rules import TreeRules, staged_path
from portal.ops.restore.files.unpacker import CHECKED, PASSED
from portal.ops.restore.files.writers import Writers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from portal.ops.archive.reader import Layer
    from portal.ops.filesystem.tree import Tree
    from portal.ops.restore.files.selection import Choice
    from portal.ops.restore.files.unpacker import Use
    from portal.ops.runtime.progress import Advance

_EARLIEST_NS: Final = -(1 << 31) * 1_000_000_000
_LATEST_NS: Final = (1 << 31) * 1_000_000_000
"""All file systems can store times between these."""

_WORTH_HELPERS: Final = 500
"""Fewer members are written faster than helper processes start."""


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """The contents of a stage.

    Arguments:
        files: the number of files and links.
        directories: the number of directories.
        content_bytes: bytes of content, holes included.
        warnings: differences from the archive, and possible problems on other file systems.
    """

    files: int
    directories: int
    content_bytes: int
    warnings: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Stage:
    """Writes the members of one component into an empty directory.

    Arguments:
        tree: the empty directory.
        prefix: the name of the component in the archive.
        top: replaces the prefix in the tree; empty for none.
        allow_outside_links: restore symlinks that lead out of the tree.
        advance: called with the number of content bytes after each write, or when they are passed to a helper.
    """

    tree: Tree
    prefix: str
    top: str = ""
    allow_outside_links: bool = False
    advance: Advance = lambda _: None
    attributes: dict[str, Attributes] = field(default_factory=dict)
    _hardlinks: list[tuple[str, Member]] = field(default_factory=list)
    _symlinks: list[tuple[str, Member]] = field(default_factory=list)
    _files: int = 0
    _content_bytes: int = 0
    _uncommon: list[tuple[str, Attributes]] = field(default_factory=list)
    _lost: LostAttributes = field(default_factory=LostAttributes)

    def __post_init__(self) -> None:
        self._rules = TreeRules(prefix=self.prefix, top=self.top, allow_outside_links=self.allow_outside_links)

    def fill(self, contents: Iterable[tuple[Member, Iterator[memoryview]]]) -> StageReport:
        """Write everything that belongs to the component, and sync it.

        Raises:
            NotIntactError: the archive is damaged or hostile.
            DiskFullError: the disk is full.
            OSError: the operating system refused.
        """
        self._write(contents)
        return self._finish()

    def fill_from(self, layers: Iterable[Layer], choice: Choice, jobs: int) -> StageReport:
        """Like `fill`, from archives with an index; helper processes share the frames if there are many.

        Arguments:
            layers: the archives that hold the tree, oldest first.
            choice: the members to restore.
            jobs: the most helper processes, and the number of threads that decompress a large file.

        Raises:
            OpsError, OSError: as `fill`.
        """
        for layer in layers:
            with layer.named():
                if jobs > 1 and min(layer.most, choice.most) > _WORTH_HELPERS:
                    self._share(layer, choice, jobs)
                else:
                    self._write(choice.contents(layer, jobs))
        return self._finish()

    def _share(self, layer: Layer, choice: Choice, jobs: int) -> None:
        archive = layer.archive
        with Helpers(archive, self.tree, jobs) as helpers:
            for run, taken in chosen_runs(layer, choice):
                if len(run.frames) > LONG_FRAMES:
                    self._write(run_contents(archive, run, taken, jobs))
                else:
                    helpers.unpack(run, [self._prepare(member) for member in taken])

    def _write(self, contents: Iterable[tuple[Member, Iterator[memoryview]]]) -> None:
        with Writers() as writers:
            room = Room(self.tree.fileno(), self.tree.top)
            maker = FileMaker(self.tree, writers, room, advance=self.advance)
            for member, content in contents:
                path = self._place(member) if is_below(member.path, self.prefix) else None
                if path is None:
                    drain(content)
                else:
                    maker.make(path, member, content)

    def _prepare(self, member: Member | None) -> Use:
        """Prepare a member for the helper that writes its file; return what the helper does with it."""
        if member is None:
            return PASSED
        path = self._place(member)
        if path is None:
            return CHECKED
        try:
            self.tree.place(path, make=True)
        except NotADirectoryError as error:
            raise twice(member) from error
        self.advance(member.size)
        return path

    def _place(self, member: Member) -> str | None:
        """The path of a member's file; None for a directory, which is created here, or a link, which follows later."""
        path = self._rules.add(member)
        if member.type is MemberType.DIRECTORY:
            self._directory(path, member)
            return None
        self._files += 1
        if member.type is MemberType.FILE:
            self._content_bytes += member.size
            self._expect(path, member)
            return path
        links = self._hardlinks if member.type is MemberType.HARDLINK else self._symlinks
        links.append((path, member))
        return None

    def _finish(self) -> StageReport:
        for path, member in self._hardlinks:
            self._hardlink(path, member)
        for path, member in self._symlinks:
            self._symlink(path, member)
        self._check_expected()
        self.tree.sync()
        return StageReport(
            files=self._files,
            directories=len(self.attributes),
            content_bytes=self._content_bytes,
            warnings=(*self._rules.warnings(), *self._lost.warnings()),
        )

    def _expect(self, path: str, member: Member) -> None:
        """Note attributes of a member that the file system may be unable to keep."""
        if member.xattrs or not _EARLIEST_NS <= member.mtime_ns < _LATEST_NS:
            self._uncommon.append((path, attributes_of(member)))

    def _check_expected(self) -> None:
        """Check whether the file system kept those attributes."""
        for path, wanted in self._uncommon:
            found = self.tree.look(path)
            if found is None:
                continue
            if stat.S_ISDIR(found.st_mode):
                self._lost.directory(self.tree.directory(path), wanted, path)
                continue
            descriptor = self.tree.open_file(path)
            try:
                self._lost.file(descriptor, wanted, path)
            finally:
                os.close(descriptor)

    def _directory(self, path: str, member: Member) -> None:
        if path in self.attributes:
            raise twice(member)
        try:
            self.tree.directory(path, make=True)
        except NotADirectoryError as error:
            raise twice(member) from error
        self.attributes[path] = attributes_of(member)
        self._expect(path, member)

    def _hardlink(self, path: str, member: Member) -> None:
        source, above = self.tree.place(staged_path(member.link, self.prefix, self.top))
        directory = os.dup(above)
        try:
            name, target = self.tree.place(path, make=True)
            os.link(source, name, src_dir_fd=directory, dst_dir_fd=target, follow_symlinks=False)
        except (FileExistsError, NotADirectoryError) as error:
            raise twice(member) from error
        except FileNotFoundError as error:  # any other error is the file system's
            raise no_file(member) from error
        finally:
            os.close(directory)

    def _symlink(self, path: str, member: Member) -> None:
        try:
            name, above = self.tree.place(path, make=True)
            os.symlink(member.link, name, dir_fd=above)
        except (FileExistsError, NotADirectoryError) as error:
            raise twice(member) from error
        if IS_ROOT:
            os.chown(name, member.uid, member.gid, dir_fd=above, follow_symlinks=False)
        os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=above, follow_symlinks=False)
