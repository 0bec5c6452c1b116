"""Finds the versions of files in the archives of a repository: which archive has which content of a file.

Only indexes are read, and the lists of deleted paths. An incremental has what its parent has, except for what it
deletes or contains itself.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, cast

from portal.ops.archive.damage import is_below
from portal.ops.archive.index import MemberType
from portal.ops.archive.reader import ArchiveReader, is_indexed
from portal.ops.chains.deletions import deletions
from portal.ops.chains.reader import open_tree
from portal.ops.errors import ConfigurationError, NotIntactError, OpsError, UnsupportedError
from portal.ops.hints import another_archive
from portal.ops.model import SUFFIX, Component

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from portal.ops.archive.index import Member
    from portal.ops.archive.protocol import IndexedArchive
    from portal.ops.repository.entry import Entry

_MOST_FILES: Final = 1_000

_State = dict[str, "Version"]


@dataclass(frozen=True, kw_only=True)
class Version:
    """One content of a file.

    Arguments:
        mtime_ns: the file's time in the newest archive with this content, in nanoseconds since 1970.
        sha256: the digest of the content; empty for a symbolic link.
        link: the target of a symbolic link, otherwise empty.
        archives: the archives that have it, newest first.
    """

    size: int
    mtime_ns: int
    sha256: str
    link: str
    archives: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The version as types of JSON."""
        return {
            "size_bytes": self.size,
            "mtime_ns": self.mtime_ns,
            "sha256": self.sha256 or None,
            "link": self.link or None,
            "archives": list(self.archives),
        }


@dataclass(frozen=True, kw_only=True)
class FileVersions:
    """The versions of one file, the newest first.

    Arguments:
        path: its path in the archives.
        gone_since: the first archive without it after the last one that has it; empty if the newest archive has it.
    """

    path: str
    versions: tuple[Version, ...]
    gone_since: str

    def to_dict(self) -> dict[str, Any]:
        """The file as types of JSON."""
        return {
            "path": self.path,
            "gone_since": self.gone_since or None,
            "versions": [version.to_dict() for version in self.versions],
        }


@dataclass(frozen=True, kw_only=True)
class Found:
    """The result of a search.

    Arguments:
        files: the files in the order of their paths.
        searched: the number of archives that were searched.
        unread: archives that could not be searched, with the reason.
    """

    files: tuple[FileVersions, ...]
    searched: int
    unread: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The result as types of JSON."""
        return {
            "files": [found.to_dict() for found in self.files],
            "searched": self.searched,
            "unread": dict(self.unread),
        }


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The files to search for, by their paths in archives.

    Arguments:
        path: a path, the path of a directory, or a shell pattern, below the top directory: ``media/tenant-a/*.sarif``.
        everywhere: whether the part after the component may be below any directory.
    """

    path: str
    everywhere: bool = False

    @property
    def component(self) -> str:
        """The component to search, as a path in archives."""
        return self.path.partition("/")[0]

    def matches(self, path: str) -> bool:
        """True if a file is searched for."""
        if is_below(path, self.path) or fnmatchcase(path, self.path):
            return True
        name = self.path.partition("/")[2]
        return self.everywhere and is_below(path, self.component) and fnmatchcase(path, f"{self.component}/*/{name}")


def find_versions(entries: Iterable[Entry], directory: Path, wanted: Wanted) -> Found:
    """Search all archives for files.

    Arguments:
        entries: the archives, newest first, as the catalogue lists them.
        directory: the repository.

    Raises:
        ConfigurationError: too many files match.
    """
    return _Search(entries, directory, wanted).run()


@dataclass(kw_only=True)
class _History:
    """What archives had at one path, oldest first."""

    versions: dict[tuple[str, str], Version] = field(default_factory=dict)
    gone_since: str = ""

    def add(self, version: Version, archive: str) -> None:
        key = version.sha256, version.link
        before = self.versions.pop(key, None)  # the newest is last
        archives = (archive, *(before.archives if before else ()))
        self.versions[key] = replace(version, archives=archives)
        self.gone_since = ""


class _Search:
    """A search through archives from the oldest to the newest."""

    def __init__(self, entries: Iterable[Entry], directory: Path, wanted: Wanted) -> None:
        component = wanted.component
        self._entries = {
            entry.name: entry
            for entry in sorted(entries, key=attrgetter("read_at", "name"))
            if not entry.components or component in {one.member for one in entry.components}
        }
        self._directory = directory
        self._wanted = wanted
        self._states: dict[str, _State] = {}
        self._unread: dict[str, str] = {}

    def run(self) -> Found:
        histories: dict[str, _History] = {}
        for name in self._entries:
            self._read_line_of(name)
        for name in (name for name in self._entries if name in self._states):
            state = self._states[name]
            for path, version in state.items():
                histories.setdefault(path, _History()).add(version, name)
            for path, history in histories.items():
                if path not in state and not history.gone_since:
                    history.gone_since = name
        return Found(
            files=tuple(
                FileVersions(
                    path=path, versions=tuple(reversed(history.versions.values())), gone_since=history.gone_since
                )
                for path, history in sorted(histories.items())
            ),
            searched=len(self._states),
            unread=self._unread,
        )

    def _read_line_of(self, name: str) -> None:
        """Read an archive, after those that it follows."""
        line = [name]
        while (parent := self._entries[line[-1]].parent) in self._entries and parent not in line:
            line.append(parent)
        for one in reversed(line):
            if one in self._states or one in self._unread:
                continue
            try:
                self._states[one] = self._read(self._entries[one])
            except ConfigurationError:
                raise
            except OpsError as error:
                self._unread[one] = error.message

    def _read(self, entry: Entry) -> _State:
        """The wanted files of an archive and its chain."""
        path = self._directory / f"{entry.name}{SUFFIX}"
        if not is_indexed(path):
            raise UnsupportedError(
                "it has no index: 'tar tzvf' lists its files", hint="Only archives of this project have an index."
            )
        with closing(ArchiveReader(path)) as reader:
            inherited = self._inherited(entry, reader)
            own: _State = {}
            gone, links = [], []
            for member in reader.members():
                if not self._wanted.matches(member.path):
                    continue
                if member.type is MemberType.HARDLINK:
                    links.append(member)
                elif member.type is MemberType.DIRECTORY:
                    gone.append(member.path)
                else:
                    own[member.path] = _version(member)
                if len(own) > _MOST_FILES:
                    raise _too_many(self._wanted.path)
            for link in links:
                target = reader.find(link.link) or _in_chain(path, link.link)
                if target is not None:
                    own[link.path] = _version(target)
        changed = own or any(one in inherited for one in gone)
        return {one: it for one, it in inherited.items() if one not in gone} | own if changed else inherited

    def _inherited(self, entry: Entry, reader: ArchiveReader) -> _State:
        """What the parent has, without what the archive deletes."""
        if entry.parent is None or self._wanted.component != Component.MEDIA.member:
            return {}
        if entry.parent not in self._states:
            raise NotIntactError(f"it needs {entry.parent}, which could not be searched", hint=another_archive())
        state = self._states[entry.parent]
        gone = {path for one in deletions(reader) for path in state if is_below(path, one)}
        return {path: version for path, version in state.items() if path not in gone} if gone else state


def _in_chain(path: Path, target: str) -> Member | None:
    with closing(cast("IndexedArchive", open_tree(path))) as tree:
        return tree.find(target)


def _version(member: Member) -> Version:
    link = member.link if member.type is MemberType.SYMLINK else ""
    return Version(size=member.size, mtime_ns=member.mtime_ns, sha256=member.sha256, link=link)


def _too_many(path: str) -> ConfigurationError:
    return ConfigurationError(
        f"more than {_MOST_FILES:,} files match {path!r}", hint="Give a narrower path or pattern."
    )
