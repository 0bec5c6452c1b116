"""The uploads after the archives of a chain, by path, with which an incremental backup compares the tree.

The archives hold the truth: a base's index, and the changes after it. This is a copy in an SQLite file, so that some
paths among a million are found quickly. Each change is one transaction, which also updates the name and digest of the
archive that the state belongs to. If the file is missing, damaged or outdated, it is rebuilt from the archives; if it
cannot be written, the state is kept in memory. Files that were read again and found unchanged are recorded too; that
only saves reading them once more, and is all that is lost with the file.
"""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from portal.ops.archive.damage import is_below
from portal.ops.archive.index import Member, MemberType, encode_name
from portal.ops.archive.reader import ArchiveReader
from portal.ops.chains.deletions import deletions
from portal.ops.errors import NotIntactError
from portal.ops.filesystem.xattrs import digest_of
from portal.ops.model import Component

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from portal.ops.chains.lineage import Ancestor
    from portal.ops.manifest import Manifest

VERSION: Final = 4
GRANULE_NS: Final = 2_000_000_000
"""File systems may give two changes the same time if they are closer together than this, in nanoseconds."""

_PREFIX: Final = Component.MEDIA.member
_MOST: Final = (1 << 63) - 1
_SCHEMA: Final = """
    CREATE TABLE head (version INTEGER, backup_id TEXT, sha256 TEXT, compared INTEGER);
    CREATE TABLE entry (
        parent BLOB, name BLOB, mode INTEGER, size INTEGER, uid INTEGER, gid INTEGER, mtime_ns INTEGER,
        ctime_ns INTEGER, inode INTEGER, linked INTEGER, unsure INTEGER, digest BLOB, xattrs BLOB,
        PRIMARY KEY (parent, name)
    ) WITHOUT ROWID;
    CREATE INDEX linked ON entry (inode) WHERE linked > 0;
"""
_IN: Final = "SELECT * FROM entry WHERE parent = ?"
_DEEPER: Final = "SELECT * FROM entry WHERE parent >= ? AND parent < ?"
_OF_ANY_INODE: Final = "SELECT * FROM entry WHERE inode = ?"
_OF_LINKED_INODE: Final = "SELECT * FROM entry WHERE inode = ? AND linked > 0"
_PUT: Final = "INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_FORMS: Final = {
    MemberType.FILE: stat.S_IFREG,
    MemberType.HARDLINK: stat.S_IFREG,
    MemberType.SYMLINK: stat.S_IFLNK,
    MemberType.DIRECTORY: stat.S_IFDIR,
}
_CONTENT, _OTHER_NAME = 1, 2
_IMPLIED: Final = (0, -1, -1, 0, 0, 0, 0, 0)
"""Values for a directory from size to `unsure` that no directory has, so that it is archived again if it reappears."""

_BATCH: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class Content:
    """The relevant contents of an archive.

    Arguments:
        manifest: its manifest.
        members: all its members.
        deleted: its deletions.
    """

    manifest: Manifest
    members: Iterable[Member]
    deleted: Iterable[str] = ()


class Known(NamedTuple):
    """The recorded state of one path.

    `parent` is its directory. `mode` includes the type, as in `stat`. `linked` is 0 for a file with one name, 1 for the
    name of several under which the archive has the content, and 2 for the other names. `unsure` means that it was read
    so soon after its last change that a later change might not show. `xattrs` is a digest of extended attributes.
    """

    parent: bytes
    name: bytes
    mode: int
    size: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    linked: int
    unsure: int
    digest: bytes
    xattrs: bytes = b""

    @property
    def path(self) -> bytes:
        """The path relative to the archive's top directory."""
        return self.parent + b"/" + self.name if self.parent else self.name

    @property
    def stat(self) -> tuple[Any, ...]:
        """The values that `looked_at` returns for an unchanged path."""
        return self[2:9]

    @property
    def totals(self) -> Totals:
        """Its totals; only the first name of a file counts."""
        return Totals(1, self.size) if stat.S_ISREG(self.mode) and self.linked < _OTHER_NAME else Totals(0, 0)


class Totals(NamedTuple):
    """The number of files, counting hard links once, and their bytes."""

    files: int
    content_bytes: int

    def plus(self, other: Totals) -> Totals:
        """Both together."""
        return Totals(self.files + other.files, self.content_bytes + other.content_bytes)

    def less(self, other: Totals) -> Totals:
        """The difference from the others."""
        return Totals(self.files - other.files, self.content_bytes - other.content_bytes)


class MediaState:
    """The state in a file or in memory; every method may raise `sqlite3.Error` if the file is damaged.

    Arguments:
        path: the file; None for memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._sql = sqlite3.connect(str(path) if path else ":memory:", isolation_level=None)
        try:
            self._sql.execute("PRAGMA synchronous=FULL")
            self._sql.execute("PRAGMA temp_store=MEMORY")
            if self._sql.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                with self._transaction():
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        self._sql.execute(statement)
                    self._sql.execute("INSERT INTO head VALUES (?, '', '', 0)", [VERSION])
            if self._sql.execute("SELECT version FROM head").fetchall() != [(VERSION,)]:
                raise sqlite3.DatabaseError("another release made it")
        except BaseException:
            self._sql.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._sql.close()

    def follow(self, line: Sequence[Ancestor]) -> bool:
        """Advance the state to the end of a line of archives, from wherever in it the state is.

        Returns:
            whether the uploads were last compared with this line. Otherwise, earlier changes may be in no archive of
            it, and will not be reported again.

        Raises:
            NotIntactError: an archive is damaged, or does not belong to the line.
        """
        *head, compared = self._sql.execute("SELECT backup_id, sha256, compared FROM head").fetchone()
        known = [[ancestor.name, ancestor.sha256] for ancestor in line]
        is_on_it = head in known
        missing = line[known.index(head) + 1 :] if is_on_it else line
        if missing:
            with self._transaction():
                if not is_on_it:
                    self._sql.execute("DELETE FROM entry")
                for ancestor in missing:
                    with closing(ArchiveReader(ancestor.path)) as reader:
                        manifest = reader.manifest()
                        gone = deletions(reader) if manifest.parent else ()
                        self._take(Content(manifest=manifest, members=reader.members(), deleted=gone))
                self._stand_for(line[-1].name, line[-1].sha256)
                if not is_on_it:
                    self._sql.execute("UPDATE head SET compared = 0")
        return is_on_it and bool(compared)

    def take(self, content: Content, sha256: str) -> None:
        """Advance the state to a new archive, made on the present one."""
        with self._transaction():
            self._take(content)
            self._stand_for(content.manifest.backup_id, sha256)
            self._sql.execute("UPDATE head SET compared = 1")

    def restart(self, content: Content, sha256: str) -> None:
        """Start a new line with a new base; the uploads were not compared with it yet."""
        with self._transaction():
            self._sql.execute("DELETE FROM entry")
            self._take(content)
            self._stand_for(content.manifest.backup_id, sha256)
            self._sql.execute("UPDATE head SET compared = 0")

    # -- asking -----------------------------------------------------------------------------------------------------

    def get(self, path: bytes) -> Known | None:
        """The recorded state of a path."""
        parent, _, name = path.rpartition(b"/")
        found = self._sql.execute("SELECT * FROM entry WHERE parent = ? AND name = ?", [parent, name])
        return next(map(Known._make, found), None)

    def children(self, path: bytes) -> dict[bytes, tuple[Any, ...]]:
        """The recorded entries of a directory by name, as arguments for `Known._make`, since there may be very many."""
        return {row[1]: row for row in self._sql.execute(_IN, [path])}

    def below(self, path: bytes) -> Iterator[Known]:
        """The recorded state of a path and everything below it."""
        known = self.get(path)
        if known is not None:
            yield known
        yield from map(Known._make, self._sql.execute(_IN, [path]))
        yield from map(Known._make, self._sql.execute(_DEEPER, _bounds(path)))

    def names_of(self, inodes: Iterable[int], *, alone: bool) -> list[Known]:
        """The recorded files with these inodes.

        Arguments:
            alone: also files with a single name, which takes a scan of all entries.
        """
        statement = _OF_ANY_INODE if alone else _OF_LINKED_INODE
        return [known for inode in inodes for known in map(Known._make, self._sql.execute(statement, [inode]))]

    # -- noting -----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Record that the uploads were compared and nothing differs."""
        with self._transaction():
            self._sql.execute("UPDATE head SET compared = 1")

    def confirm(self, seen: Iterable[Known]) -> None:
        """Record files that were read again and have the same content."""
        with self._transaction():
            self._sql.executemany(_PUT, seen)

    def _take(self, content: Content) -> None:
        read_from = content.manifest.details.get(_PREFIX, {}).get("read_from_ns")
        if not isinstance(read_from, int):
            raise NotIntactError(f"{content.manifest.backup_id} does not say when its uploads were read")
        for path in content.deleted:
            self._remove(encode_name(path))
        batch: list[Known] = []
        directories: set[bytes] = set()
        parents: set[bytes] = set()
        for member in content.members:
            if not is_below(member.path, _PREFIX):
                continue
            encoded = encode_name(member.path)
            parents.add(encoded.rpartition(b"/")[0])
            if member.type is MemberType.DIRECTORY:
                directories.add(encoded)
            if member.type is MemberType.HARDLINK:
                self._sql.executemany(_PUT, batch)
                batch = self._linked(member)
            else:
                batch.append(_known(member, read_from))
            if len(batch) >= _BATCH:
                self._sql.executemany(_PUT, batch)
                batch = []
        self._sql.executemany(_PUT, batch)
        for parent in parents - directories:
            self._imply(parent)

    def _imply(self, path: bytes) -> None:
        """Record a directory that vanished while files in it were archived, so that they can be deleted with it."""
        while path and self.get(path) is None:
            parent, _, name = path.rpartition(b"/")
            self._sql.execute(_PUT, Known(parent, name, stat.S_IFDIR, *_IMPLIED, b""))
            path = parent

    def _linked(self, member: Member) -> list[Known]:
        """Record another name of a file whose content the archive has under the first name."""
        first = self.get(encode_name(member.link))
        if first is None:
            raise NotIntactError(f"{member.path} is a link to {member.link}, which is not in the archive before it")
        parent, _, name = encode_name(member.path).rpartition(b"/")
        return [first._replace(linked=_CONTENT), first._replace(parent=parent, name=name, linked=_OTHER_NAME)]

    def _remove(self, path: bytes) -> None:
        parent, _, name = path.rpartition(b"/")
        self._sql.execute("DELETE FROM entry WHERE parent = ? AND name = ?", [parent, name])
        self._sql.execute("DELETE FROM entry WHERE parent = ?", [path])
        self._sql.execute("DELETE FROM entry WHERE parent >= ? AND parent < ?", _bounds(path))

    def _stand_for(self, backup_id: str, sha256: str) -> None:
        self._sql.execute("UPDATE head SET backup_id = ?, sha256 = ?", [backup_id, sha256])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._sql.execute("COMMIT")
        except BaseException:
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")
            raise


def fitted(number: int) -> int:
    """A number of `stat` that fits into SQLite's integers; different numbers stay different where it matters."""
    return number if -_MOST <= number <= _MOST else number % _MOST


def is_unsure(ctime_ns: int, read_from_ns: int) -> bool:
    """True if a file was changed so recently that a change after it was read might have the same time."""
    return ctime_ns > read_from_ns - GRANULE_NS


def looked_at(found: os.stat_result) -> tuple[int, ...]:
    """The values to compare with `Known.stat`: type and mode, size, owner, times and inode."""
    return (
        found.st_mode,
        found.st_size,
        found.st_uid,
        found.st_gid,
        fitted(found.st_mtime_ns),
        fitted(found.st_ctime_ns),
        fitted(found.st_ino),
    )


def _known(member: Member, read_from_ns: int) -> Known:
    parent, _, name = encode_name(member.path).rpartition(b"/")
    size = len(encode_name(member.link)) if member.type is MemberType.SYMLINK else member.size
    times = fitted(member.mtime_ns), fitted(member.ctime_ns), fitted(member.inode)
    unsure = int(member.type is MemberType.FILE and is_unsure(member.ctime_ns, read_from_ns))
    mode = _FORMS[member.type] | member.mode
    digest = bytes.fromhex(member.sha256)
    return Known(
        parent, name, mode, fitted(size), member.uid, member.gid, *times, 0, unsure, digest, digest_of(member.xattrs)
    )


def _bounds(path: bytes) -> list[bytes]:
    """The bounds of all paths of directories below a directory."""
    return [path + b"/", path + b"0"]
