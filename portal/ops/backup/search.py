"""Finds the differences between a tree of uploads and its recorded state.

A file counts as unchanged if its size, times, inode, mode and owner are the recorded ones: any write changes its ctime,
even if the mtime is reset afterwards. It is in doubt if it was read so soon after its last change that a later change
might not show, or if only ctime or inode differ: then its content is read and compared by digest. If one name of a file
with several names (hard links) is archived, all of them are.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass, field
from hashlib import sha256
from io import FileIO
from typing import TYPE_CHECKING, Any, Final

from portal.ops.archive.index import decode_name, encode_name
from portal.ops.archive.packer import same_content, source_of
from portal.ops.archive.sparse import SparsePayload
from portal.ops.backup.changes import KINDS, Delta, Found, TooMuchError
from portal.ops.backup.walk import check_length, open_root
from portal.ops.chains.state_cache import Known, MediaState, is_unsure, looked_at
from portal.ops.errors import SourceError
from portal.ops.filesystem.extents import data_extents
from portal.ops.filesystem.refusals import unreadable
from portal.ops.filesystem.tree import GONE, portable
from portal.ops.filesystem.xattrs import TooManyXattrsError, digest_of, read_xattrs
from portal.ops.model import RESTORE_DIRECTORY, Component

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from portal.ops.backup.walk import Identity
    from portal.ops.filesystem.tree import Tree

TOP: Final = encode_name(Component.MEDIA.member)
_RESTORES: Final = TOP + b"/" + encode_name(RESTORE_DIRECTORY)
_READ_BYTES: Final = 1 << 20
_MANY_CONFIRMED: Final = 10_000


@dataclass(kw_only=True)
class Search:
    """Finds the changes in one tree.

    Arguments:
        root: the uploads.
        state: the recorded state.
        excluded: directories to skip, wherever below the root they are.
        advance: called with the number of bytes after each file is read for comparison.
        most: the most changes, since they are kept in memory.
    """

    root: Path
    state: MediaState
    most: int = 100_000
    excluded: frozenset[Identity] = frozenset()
    advance: Callable[[int], None] = lambda _: None
    tree: Tree = field(init=False)
    _doubts: dict[bytes, Found] = field(default_factory=dict)
    _names: dict[Identity, dict[bytes, Found]] = field(default_factory=dict)
    _walked: set[bytes] = field(default_factory=set)
    _passed: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._delta = Delta()
        self.tree, file = open_root(self.root)
        if file is not None:
            self.tree.close()
            raise SourceError(
                f"{self.root} is not a directory", hint="Correct PORTAL_UPLOAD_DIR, or take a full backup of the file."
            )

    def everything(self) -> Delta:
        """Examine the whole tree.

        Raises:
            SourceError: part of it cannot be read.
            TooMuchError: there are too many changes.
        """
        self._whole()
        self._settle_doubts()
        self._take_all_names()
        return self._counted()

    def of(self, changed: Iterable[Sequence[bytes]]) -> Delta:
        """Examine only these paths, and everything below those that are directories.

        Arguments:
            changed: see `parts_of`.

        Raises:
            SourceError: a path cannot be read.
            TooMuchError: there are too many changes.
        """
        for parts in changed:
            self._look(parts)
        self._settle_doubts()
        self._look_at_other_names()
        self._take_all_names()
        return self._counted()

    def _counted(self) -> Delta:
        self._delta.count(self.state)
        return self._delta

    # -- looking ----------------------------------------------------------------------------------------------------

    def _whole(self) -> None:
        known = self.state.get(TOP)
        self._entry(TOP, Found(os.fstat(self.tree.fileno()), known))
        self._below(TOP, is_known=known is not None)

    def _look(self, parts: Sequence[bytes]) -> None:
        """Go to a path through real directories only, and examine their attributes on the way."""
        if not parts:
            self._whole()
            return
        path = TOP
        self._pass(path)
        self.tree.forget()  # the name may belong to another directory than the open one by now
        for number, name in enumerate(parts, 1):
            path = path + b"/" + name
            if path in self._walked:
                return
            if number < len(parts) and path in self._passed:
                continue
            if not self._step(path, is_last=number == len(parts)):
                return

    def _step(self, path: bytes, *, is_last: bool) -> bool:
        """Examine one path; return whether to examine what is below it."""
        known = self.state.get(path)
        found = self._stat(path)
        if found is None or self._is_passed_over(path, found):
            self._lose(path, known)
            return False
        is_back = path in self._delta.gone
        self._delta.gone.discard(path)
        self._entry(path, Found(found, known))
        if not stat.S_ISDIR(found.st_mode):
            return False
        was_directory = known is not None and stat.S_ISDIR(known.mode)
        if is_last or is_back or not was_directory:
            self._below(path, is_known=was_directory)
            return False
        self._passed.add(path)
        return True

    def _pass(self, path: bytes) -> None:
        """Examine the attributes of the top."""
        if path not in self._passed:
            self._passed.add(path)
            self._entry(path, Found(os.fstat(self.tree.fileno()), self.state.get(path)))

    def _below(self, top: bytes, *, is_known: bool) -> None:
        todo = [(top, is_known)]
        while todo:
            path, is_known = todo.pop()
            self._walked.add(path)
            known = self.state.children(path) if is_known else {}
            try:
                todo += self._within(path, known)
            except OSError as error:
                if error.errno not in GONE:
                    raise self._unreadable(path, error) from error
            self._delta.gone.update(path + b"/" + name for name in known)
            self._settle_doubts()
            if len(self._delta.taken) > self.most:
                raise TooMuchError(f"more than {self.most:,} files and directories differ")

    def _within(self, path: bytes, known: dict[bytes, tuple[Any, ...]]) -> list[tuple[bytes, bool]]:
        """Examine the entries of a directory; return its subdirectories, and whether each was recorded as one.

        Arguments:
            known: the recorded entries; existing ones are removed from it.
        """
        deeper = []
        check_length(decode_name(path))
        with self.tree.entries(_source(path)) as entries:
            for entry in entries:
                name = portable(entry.name).encode("utf-8", "surrogateescape")
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError as error:
                    if error.errno not in GONE:
                        raise self._unreadable(path + b"/" + name, error) from error
                    continue
                row = known.get(name)
                full = path + b"/" + name
                self._delta.gone.discard(full)
                if row is not None and _is_as_before(row, found):
                    del known[name]
                    continue
                before = Known._make(row) if row else None
                if stat.S_ISDIR(found.st_mode):
                    if self._is_passed_over(full, found):
                        continue
                    deeper.append((full, before is not None and stat.S_ISDIR(before.mode)))
                known.pop(name, None)
                self._entry(full, Found(found, before))
        return deeper

    def _entry(self, path: bytes, found: Found) -> None:
        """Compare an entry with its recorded state."""
        form, known = stat.S_IFMT(found.now.st_mode), found.known
        if form not in KINDS:
            self._delta.special.append(decode_name(path))
            self._lose(path, known)
            return
        if known is not None and stat.S_IFMT(known.mode) != form:
            self._lose(path, known)
            found, known = found._replace(known=None), None
        now = looked_at(found.now)
        if form == stat.S_IFREG and found.now.st_nlink > 1:
            self._names.setdefault(found.identity, {})[path] = found
        if known is None or (known.linked and found.now.st_nlink == 1):  # the name with the content may be gone
            self._delta.taken[path] = found
        elif form == stat.S_IFDIR:
            is_other = (now[0], now[2], now[3], now[4]) != (known.mode, known.uid, known.gid, known.mtime_ns)
            if is_other or (now[5] != known.ctime_ns and self._directory_xattrs(path) != known.xattrs):
                self._delta.taken[path] = found
        elif now == known.stat:
            if known.unsure:
                self._doubts[path] = found
        elif form == stat.S_IFREG and now[:5] == known.stat[:5] and found.now.st_nlink == 1:
            self._doubts[path] = found
        else:
            self._delta.taken[path] = found

    def _lose(self, path: bytes, known: Known | None) -> None:
        if known is not None:
            self._delta.gone.add(path)

    def _is_passed_over(self, path: bytes, found: os.stat_result) -> bool:
        return path == _RESTORES or (found.st_dev, found.st_ino) in self.excluded

    def _stat(self, path: bytes) -> os.stat_result | None:
        try:
            return self.tree.look(_source(path))
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # no file has such a name
                return None
            raise self._unreadable(path, error) from error

    def _unreadable(self, path: bytes, error: OSError) -> SourceError:
        return unreadable(self.tree.name(_source(path)), error)

    # -- doubts -----------------------------------------------------------------------------------------------------

    def _settle_doubts(self) -> None:
        while self._doubts:
            path, found = self._doubts.popitem()
            known, started = found.known, time.time_ns()
            assert known is not None
            if self._digests(path, found) != (known.digest, known.xattrs):
                self._delta.taken[path] = found
                continue
            *_, ctime_ns, inode = looked_at(found.now)
            unsure = int(is_unsure(ctime_ns, started))
            if (ctime_ns, inode, unsure) != (known.ctime_ns, known.inode, known.unsure):
                self._delta.confirmed.append(known._replace(ctime_ns=ctime_ns, inode=inode, unsure=unsure))
        if len(self._delta.confirmed) > _MANY_CONFIRMED:
            self.state.confirm(self._delta.confirmed)
            self._delta.confirmed = []

    def _directory_xattrs(self, path: bytes) -> bytes:
        try:
            return digest_of(read_xattrs(self.tree.directory(_source(path))))
        except (OSError, TooManyXattrsError):
            return b""

    def _digests(self, path: bytes, found: Found) -> tuple[bytes, bytes] | None:
        """The digests of a file's content and attributes; None if it changes or vanishes meanwhile."""
        try:
            descriptor = self.tree.open_file(_source(path))
        except OSError as error:
            if error.errno in GONE:
                return None
            raise self._unreadable(path, error) from error
        try:
            before = os.fstat(descriptor)
            if (before.st_dev, before.st_ino) != found.identity or not same_content(found.now, before):
                return None
            content, xattrs = sha256(), digest_of(read_xattrs(descriptor))
            for piece in self._payload(descriptor, before):
                content.update(piece)
            return (content.digest(), xattrs) if same_content(before, os.fstat(descriptor)) else None
        except TooManyXattrsError:
            return None
        except OSError as error:
            raise self._unreadable(path, error) from error
        finally:
            os.close(descriptor)

    def _payload(self, descriptor: int, found: os.stat_result) -> Iterator[memoryview]:
        """The data that a file's digest is computed from: its content or, for a sparse file, its payload."""
        extents = data_extents(descriptor, found)
        file = SparsePayload(descriptor, extents) if extents else FileIO(descriptor, closefd=False)
        buffer = memoryview(bytearray(min(found.st_size, _READ_BYTES) + 1))
        while count := file.readinto(buffer):
            self.advance(count)
            yield buffer[:count]

    # -- several names ----------------------------------------------------------------------------------------------

    def _look_at_other_names(self) -> None:
        """Find other names of the same files: of archived files, and of those that have lost a name."""
        asked: set[int] = set()
        while wanted := self._inodes() - asked:
            asked |= wanted
            alone = any(found.now.st_nlink > 1 for found in self._delta.taken.values() if not _is_directory(found))
            for known in self.state.names_of(sorted(wanted), alone=alone):
                self._look(known.path.split(b"/")[1:])
            self._settle_doubts()

    def _inodes(self) -> set[int]:
        """The inodes of files that have or had other names."""
        found = {
            looked_at(one.now)[6]
            for one in self._delta.taken.values()
            if one.now.st_nlink > 1 and not _is_directory(one)
        }
        known = [one.known for one in self._delta.taken.values() if one.known]
        known += [known for path in self._delta.gone for known in self.state.below(path)]
        return found | {one.inode for one in known if one.linked}

    def _take_all_names(self) -> None:
        """Archive all names of a file if one is archived, or if one is gone, which may be the one with the content."""
        below = (known for path in self._delta.gone for known in self.state.below(path))
        left = {known.inode for known in below if known.linked}
        for names in self._names.values():
            was = {found.known.inode for found in names.values() if found.known}
            if was & left or any(path in self._delta.taken for path in names):
                self._delta.taken.update(names)
                self._delta.confirmed = [known for known in self._delta.confirmed if known.path not in names]


def _is_as_before(row: tuple[Any, ...], found: os.stat_result) -> bool:
    """True if a file is certainly unchanged, which nearly all are.

    A directory never is, since its contents are examined: on some mounts it has one link and no size, like a file.
    """
    _, _, mode, size, uid, gid, mtime_ns, ctime_ns, inode, linked, unsure, *_ = row
    return (
        ctime_ns == found.st_ctime_ns
        and inode == found.st_ino
        and mtime_ns == found.st_mtime_ns
        and size == found.st_size
        and mode == found.st_mode
        and uid == found.st_uid
        and gid == found.st_gid
        and found.st_nlink == 1
        and not linked
        and not unsure
        and not stat.S_ISDIR(mode)
    )


def _is_directory(found: Found) -> bool:
    return stat.S_ISDIR(found.now.st_mode)


def _source(path: bytes) -> str:
    """The path of a recorded entry in the tree."""
    return source_of(decode_name(path))
