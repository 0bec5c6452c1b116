"""The uploads as the archives of a chain have them, by path: what an incremental backup is compared with.

The truth is in the archives: a base's index, and the deltas after it. This is a copy of it in an SQLite file, so that a
few paths among a million can be looked up at once. The file is changed in one transaction together with the name and
the digest of the archive that it stands for. Where it is missing, damaged or behind, it is made again from the
archives; where it cannot be written, it is kept in memory for once. What was read again and found unchanged is noted
here as well: that saves reading it once more, and is all that is lost with the file.
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
"""File systems may tell two changes apart only when that much time lies between them."""

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
"""What no directory has, from size to `unsure`: one that is back is taken anew."""

_BATCH: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class Content:
    """The relevant contents of an archive.

    Arguments:
        manifest: what it says of itself.
        members: everything in it.
        deleted: what it says is gone.
    """

    manifest: Manifest
    members: Iterable[Member]
    deleted: Iterable[str] = ()


class Known(NamedTuple):
    """The known state of one path.

    `parent` is the directory that it is in. `mode` has the type, as `stat` gives it. `linked` is 0 for a file with one
    name, 1 where it has more and the archive holds the content under this one, 2 for the others. `unsure` means that it
    was read so soon after its last change that a later one might not show. `xattrs` is a digest of extended attributes.
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
        """The path, relative to the archive's top directory."""
        return self.parent + b"/" + self.name if self.parent else self.name

    @property
    def stat(self) -> tuple[Any, ...]:
        """The result of `looked_at` for an unchanged path."""
        return self[2:9]

    @property
    def totals(self) -> Totals:
        """Its totals: only the first name of a file counts."""
        return Totals(1, self.size) if stat.S_ISREG(self.mode) and self.linked < _OTHER_NAME else Totals(0, 0)


class Totals(NamedTuple):
    """The number of files, names of the same content counted once, and their bytes."""

    files: int
    content_bytes: int

    def plus(self, other: Totals) -> Totals:
        """Both together."""
        return Totals(self.files + other.files, self.content_bytes + other.content_bytes)

    def less(self, other: Totals) -> Totals:
        """The difference from the others."""
        return Totals(self.files - other.files, self.content_bytes - other.content_bytes)


class MediaState:
    """The state, in a file or in memory; every method may raise `sqlite3.Error` where the file is damaged.

    Arguments:
        path: the file; nothing keeps the state in memory.
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
        """Bring the state to the end of a line of archives, from wherever in it this is.

        Returns:
            Whether the uploads were compared with this line before: with another one, or none, what had changed until
            then may be in no archive of this one, and nobody will name it again.

        Raises:
            NotIntactError: one of the archives is damaged, or was not made for that.
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
        """Go on to an archive that was just made on the one that this stands for."""
        with self._transaction():
            self._take(content)
            self._stand_for(content.manifest.backup_id, sha256)
            self._sql.execute("UPDATE head SET compared = 1")

    def restart(self, content: Content, sha256: str) -> None:
        """Begin a new line with a base that was just made; the uploads were not compared with it yet."""
        with self._transaction():
            self._sql.execute("DELETE FROM entry")
            self._take(content)
            self._stand_for(content.manifest.backup_id, sha256)
            self._sql.execute("UPDATE head SET compared = 0")

    # -- asking -----------------------------------------------------------------------------------------------------

    def get(self, path: bytes) -> Known | None:
        """The known state of one path."""
        parent, _, name = path.rpartition(b"/")
        found = self._sql.execute("SELECT * FROM entry WHERE parent = ? AND name = ?", [parent, name])
        return next(map(Known._make, found), None)

    def children(self, path: bytes) -> dict[bytes, tuple[Any, ...]]:
        """The known entries of a directory, by name: arguments for `Known._make`, since there may be very many."""
        return {row[1]: row for row in self._sql.execute(_IN, [path])}

    def below(self, path: bytes) -> Iterator[Known]:
        """The known state of a path and of everything below it."""
        known = self.get(path)
        if known is not None:
            yield known
        yield from map(Known._make, self._sql.execute(_IN, [path]))
        yield from map(Known._make, self._sql.execute(_DEEPER, _bounds(path)))

    def names_of(self, inodes: Iterable[int], *, alone: bool) -> list[Known]:
        """The files that had one of these inodes.

        Arguments:
            alone: also those that had one name only; every entry is looked at for that.
        """
        statement = _OF_ANY_INODE if alone else _OF_LINKED_INODE
        return [known for inode in inodes for known in map(Known._make, self._sql.execute(statement, [inode]))]

    # -- noting -----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Note that the uploads were compared, and nothing differs."""
        with self._transaction():
            self._sql.execute("UPDATE head SET compared = 1")

    def confirm(self, seen: Iterable[Known]) -> None:
        """Note what was read again, and has the content that it had."""
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
        """Know a directory that had gone when it was read, although files in it were: so that they can go with it."""
        while path and self.get(path) is None:
            parent, _, name = path.rpartition(b"/")
            self._sql.execute(_PUT, Known(parent, name, stat.S_IFDIR, *_IMPLIED, b""))
            path = parent

    def _linked(self, member: Member) -> list[Known]:
        """Another name of a file, and the one that the archive has its content under."""
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
    """A number of `stat`, as SQLite can keep it: two of them are never taken for the same where it matters."""
    return number if -_MOST <= number <= _MOST else number % _MOST


def is_unsure(ctime_ns: int, read_from_ns: int) -> bool:
    """True if a file was changed so late that a change after it was read might have the same time."""
    return ctime_ns > read_from_ns - GRANULE_NS


def looked_at(found: os.stat_result) -> tuple[int, ...]:
    """The values to compare with `Known.stat`: a path's present type and mode, size, owner, times and inode."""
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
    """The bounds between which the names of all directories below a directory lie."""
    return [path + b"/", path + b"0"]
