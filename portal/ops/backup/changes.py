"""What of a tree of uploads differs from the state that is known: by metadata, and by content where there is a doubt.

A file whose size, times, inode, mode and owner are the known ones is the known one: whatever writes to it changes its
ctime, also where the mtime is set back afterwards. There is a doubt where it was read so soon after its last change
that a later one might not show, and where only ctime or inode are others: such a file is read, and its digest compared.
Where one name of a file with several (hard links) is taken, all of them are.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass, field
from functools import reduce
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from portal.ops.archive.index import decode_name, encode_name
from portal.ops.archive.packer import GONE, Item, open_file, same_content
from portal.ops.archive.writer import Tally, unreadable
from portal.ops.chains.state_cache import Known, MediaState, Totals, is_unsure, looked_at
from portal.ops.errors import ConfigurationError, SourceError, UnsteadyError
from portal.ops.model import RESTORE_DIRECTORY, Component

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from portal.ops.backup.walk import Identity

TOP: Final = encode_name(Component.MEDIA.member)
_RESTORES: Final = TOP + b"/" + encode_name(RESTORE_DIRECTORY)
_READ_BYTES: Final = 1 << 20
_PATH_BYTES: Final = 4096
"""A shorter path that is too long has a name that is: no file has that."""
_MANY_CONFIRMED: Final = 10_000
_KINDS: Final = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
_NOTHING: Final = Totals(0, 0)


class Found(NamedTuple):
    """What is in the tree now: where it can be read, what `stat` says, and what was known of the path."""

    source: bytes
    now: os.stat_result
    known: Known | None = None

    @property
    def identity(self) -> Identity:
        """Which file it is, whatever its name."""
        return self.now.st_dev, self.now.st_ino


class TooMuchError(Exception):
    """So much differs that everything can as well be taken."""


@dataclass(kw_only=True)
class Delta:
    """What leads from the known state to the tree as it is.

    Arguments:
        taken: what has to go into the archive, by its path there.
        gone: what was there; with a directory everything below it.
        confirmed: what was read, and has the content that is known, as it is to be known from now on.
        special: sockets, FIFOs and devices.
        leaving: what of the known files is gone, or taken anew.
    """

    taken: dict[bytes, Found] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)
    confirmed: list[Known] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    leaving: Totals = _NOTHING

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        return not self.taken and not self.gone

    @property
    def content_bytes(self) -> int:
        """About how many bytes have to be read."""
        return sum(found.now.st_size for found in self.taken.values() if stat.S_ISREG(found.now.st_mode))

    def items(self) -> Iterator[tuple[Item, int]]:
        """What goes into the archive, in the order of a tree: a directory, its files, then what is below it."""
        firsts: dict[Identity, str] = {}
        for path in sorted(self.taken, key=self._order):
            found = self.taken[path]
            name, kind = decode_name(path), _KINDS[stat.S_IFMT(found.now.st_mode)]
            size = found.now.st_size if kind == "file" else 0
            if kind != "file" or found.now.st_nlink == 1:
                yield (name, found.source, kind, ""), size
                continue
            first = firsts.setdefault(found.identity, name)
            yield (name, found.source, "file" if first == name else "hardlink", first), size

    def lose(self, tally: Tally, state: MediaState) -> None:
        """Note what was found, and could not be read any more: what is known of it is not so any longer.

        Arguments:
            state: what is known: with a directory goes all that was below it, also what nobody wanted to read.

        Raises:
            UnsteadyError: something that went with a directory has a name elsewhere, which may need its content.
        """
        paths = map(encode_name, (*tally.vanished, *tally.special))
        lost = {path for path in paths if path in self.taken}
        gone = {path for path in lost if self.taken.pop(path).known is not None}
        for path in gone:
            if any(known.linked for known in state.below(path) if known.path != path):
                raise UnsteadyError(
                    f"{decode_name(path)} vanished before it could be read, and files in it have other names",
                    hint="Start the backup again: it finds the tree as it is now.",
                )
        self.gone |= gone
        if lost:
            self.count(state)

    def count(self, state: MediaState) -> None:
        """Count what of the known files is gone, or taken anew."""
        gone = (state.below(path) for path in self.gone if not self.is_lost(path))
        replaced = (
            found.known
            for path, found in self.taken.items()
            if found.known and path not in self.gone and not self.is_lost(path)
        )
        self.leaving = sum_of(chain(chain.from_iterable(gone), replaced))

    def deleted(self) -> list[str]:
        """The paths that are gone, without those below one that is."""
        return [decode_name(path) for path in sorted(self.gone) if not self.is_lost(path)]

    def is_lost(self, path: bytes) -> bool:
        """Whether a directory above a path is gone, as it was known."""
        return any(above in self.gone for above in _above(path))

    def _order(self, path: bytes) -> tuple[tuple[bool, bytes], ...]:
        *above, name = path.split(b"/")
        is_directory = stat.S_ISDIR(self.taken[path].now.st_mode)
        return (*((True, part) for part in above), (is_directory, name))


@dataclass(kw_only=True)
class Search:
    """Finds the delta of one tree.

    Arguments:
        root: the uploads.
        state: what is known.
        excluded: directories that are passed over, wherever below the root they turn up.
        advance: called with every number of bytes that were read to compare them.
        most: so many files and directories can differ, since what differs is kept in memory.
    """

    root: Path
    state: MediaState
    most: int = 100_000
    excluded: frozenset[Identity] = frozenset()
    advance: Callable[[int], None] = lambda _: None
    _top: bytes = b""
    _doubts: dict[bytes, Found] = field(default_factory=dict)
    _names: dict[Identity, dict[bytes, Found]] = field(default_factory=dict)
    _walked: set[bytes] = field(default_factory=set)
    _passed: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._top = os.path.realpath(os.fsencode(self.root))
        self._delta = Delta()

    def everything(self) -> Delta:
        """Look at the whole tree.

        Raises:
            SourceError: a part of it cannot be read.
            TooMuchError: too much differs.
        """
        self._whole()
        self._settle_doubts()
        self._take_all_names()
        return self._counted()

    def of(self, changed: Iterable[Sequence[bytes]]) -> Delta:
        """Look at some paths only: at what they are, and at everything below those that are directories.

        Arguments:
            changed: see `parts_of`.

        Raises:
            SourceError: one of them cannot be read.
            TooMuchError: too much differs.
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
        found = os.stat(self._top)
        if not stat.S_ISDIR(found.st_mode):
            raise SourceError(
                f"{self.root} is not a directory", hint="Correct PORTAL_UPLOAD_DIR, or take a full backup of the file."
            )
        known = self.state.get(TOP)
        self._entry(TOP, Found(self._top, found, known))
        self._below(self._top, TOP, is_known=known is not None)

    def _look(self, parts: Sequence[bytes]) -> None:
        """Go down to one path by real directories only, and look at their attributes on the way."""
        if not parts:
            self._whole()
            return
        source, path = self._top, TOP
        self._pass(path, source)
        for number, name in enumerate(parts, 1):
            source, path = source + b"/" + name, path + b"/" + name
            if path in self._walked:
                return
            if number < len(parts) and path in self._passed:
                continue
            if not self._step(path, source, is_last=number == len(parts)):
                return

    def _step(self, path: bytes, source: bytes, *, is_last: bool) -> bool:
        """Look at one path; whether what is below it is still to be looked at."""
        known = self.state.get(path)
        found = self._stat(source)
        if found is None or self._is_passed_over(path, found):
            self._lose(path, known)
            return False
        is_back = path in self._delta.gone
        self._delta.gone.discard(path)
        self._entry(path, Found(source, found, known))
        if not stat.S_ISDIR(found.st_mode):
            return False
        was_directory = known is not None and stat.S_ISDIR(known.mode)
        if is_last or is_back or not was_directory:
            self._below(source, path, is_known=was_directory)
            return False
        self._passed.add(path)
        return True

    def _pass(self, path: bytes, source: bytes) -> None:
        """Look at the attributes of the top."""
        if path not in self._passed:
            self._passed.add(path)
            self._entry(path, Found(source, os.stat(source), self.state.get(path)))

    def _below(self, top: bytes, prefix: bytes, *, is_known: bool) -> None:
        todo = [(top, prefix, is_known)]
        while todo:
            directory, path, is_known = todo.pop()
            self._walked.add(path)
            known = self.state.children(path) if is_known else {}
            for entry in self._entries(directory):
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError as error:
                    if error.errno not in GONE:
                        raise unreadable(entry.path, error.errno or 0) from error
                    continue
                name = path + b"/" + entry.name
                self._delta.gone.discard(name)
                row = known.get(entry.name)
                if row is not None and _is_as_before(row, found):
                    del known[entry.name]
                    continue
                before = Known._make(row) if row else None
                if stat.S_ISDIR(found.st_mode):
                    if self._is_passed_over(name, found):
                        continue
                    todo.append((entry.path, name, before is not None and stat.S_ISDIR(before.mode)))
                known.pop(entry.name, None)
                self._entry(name, Found(entry.path, found, before))
            self._delta.gone.update(path + b"/" + name for name in known)
            self._settle_doubts()
            if len(self._delta.taken) > self.most:
                raise TooMuchError(f"more than {self.most:,} files and directories differ")

    def _entry(self, path: bytes, found: Found) -> None:
        """Hold one entry of the tree against what is known of it."""
        form, known = stat.S_IFMT(found.now.st_mode), found.known
        if form not in _KINDS:
            self._delta.special.append(decode_name(path))
            self._lose(path, known)
            return
        if known is not None and stat.S_IFMT(known.mode) != form:
            self._lose(path, known)
            found, known = found._replace(known=None), None
        now = looked_at(found.now)
        if form == stat.S_IFREG and found.now.st_nlink > 1:
            self._names.setdefault(found.identity, {})[path] = found
        if known is None or (known.linked and found.now.st_nlink == 1):  # the name that has the content may be gone
            self._delta.taken[path] = found
        elif form == stat.S_IFDIR:
            if (now[0], now[2], now[3], now[4]) != (known.mode, known.uid, known.gid, known.mtime_ns):
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

    def _stat(self, source: bytes) -> os.stat_result | None:
        try:
            return os.lstat(source)
        except OSError as error:
            if error.errno in GONE or (error.errno == errno.ENAMETOOLONG and len(source) < _PATH_BYTES):
                return None
            raise unreadable(source, error.errno or 0) from error

    def _entries(self, directory: bytes) -> list[os.DirEntry[bytes]]:
        try:
            with os.scandir(directory) as found:
                return list(found)
        except OSError as error:
            if error.errno in GONE:
                return []
            raise unreadable(directory, error.errno or 0) from error

    # -- doubts -----------------------------------------------------------------------------------------------------

    def _settle_doubts(self) -> None:
        while self._doubts:
            path, found = self._doubts.popitem()
            known, started = found.known, time.time_ns()
            assert known is not None
            if self._digest(found) != known.digest:
                self._delta.taken[path] = found
                continue
            *_, ctime_ns, inode = looked_at(found.now)
            unsure = int(is_unsure(ctime_ns, started))
            if (ctime_ns, inode, unsure) != (known.ctime_ns, known.inode, known.unsure):
                self._delta.confirmed.append(known._replace(ctime_ns=ctime_ns, inode=inode, unsure=unsure))
        if len(self._delta.confirmed) > _MANY_CONFIRMED:
            self.state.confirm(self._delta.confirmed)
            self._delta.confirmed = []

    def _digest(self, found: Found) -> bytes | None:
        """The digest of a file; nothing where it changes or goes meanwhile."""
        try:
            descriptor = open_file(found.source)
        except OSError as error:
            if error.errno in GONE:
                return None
            raise unreadable(found.source, error.errno or 0) from error
        try:
            before = os.fstat(descriptor)
            if (before.st_dev, before.st_ino) != found.identity or not same_content(found.now, before):
                return None
            digest = sha256()
            while data := os.read(descriptor, _READ_BYTES):
                digest.update(data)
                self.advance(len(data))
            return digest.digest() if same_content(before, os.fstat(descriptor)) else None
        finally:
            os.close(descriptor)

    # -- several names ----------------------------------------------------------------------------------------------

    def _look_at_other_names(self) -> None:
        """Find the names that nobody has named: those of what is taken, and of what lost a name."""
        asked: set[int] = set()
        while wanted := self._inodes() - asked:
            asked |= wanted
            alone = any(found.now.st_nlink > 1 for found in self._delta.taken.values() if not _is_directory(found))
            for known in self.state.names_of(sorted(wanted), alone=alone):
                self._look(known.path.split(b"/")[1:])
            self._settle_doubts()

    def _inodes(self) -> set[int]:
        """Of files that have, or had, other names."""
        found = {
            looked_at(one.now)[6]
            for one in self._delta.taken.values()
            if one.now.st_nlink > 1 and not _is_directory(one)
        }
        known = [one.known for one in self._delta.taken.values() if one.known]
        known += [known for path in self._delta.gone for known in self.state.below(path)]
        return found | {one.inode for one in known if one.linked}

    def _take_all_names(self) -> None:
        """Take all names of a file, where one is taken; and where one is gone, that may be the one with the content."""
        below = (known for path in self._delta.gone for known in self.state.below(path))
        left = {known.inode for known in below if known.linked}
        for names in self._names.values():
            was = {found.known.inode for found in names.values() if found.known}
            if was & left or any(path in self._delta.taken for path in names):
                self._delta.taken.update(names)
                self._delta.confirmed = [known for known in self._delta.confirmed if known.path not in names]


def parts_of(path: str) -> tuple[bytes, ...]:
    """The names on the way from the uploads to a path that somebody has named.

    Raises:
        ConfigurationError: it is absolute, or leads out.
    """
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if path.startswith("/") or ".." in parts or "\x00" in path:
        raise ConfigurationError(
            f"{path!r} is no path in the uploads", hint="Name paths relative to PORTAL_UPLOAD_DIR, without '..'."
        )
    try:
        return tuple(encode_name(part) for part in parts)
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"{path!r} is no name that a file can have", hint="Give bytes that are not UTF-8 as Python does (PEP 383)."
        ) from error


def _is_as_before(row: tuple[Any, ...], found: os.stat_result) -> bool:
    """Whether a file is beyond doubt the known one: the quick answer for nearly all of them.

    A directory never is, since what is in it is not: on some mounts it has one name and no size, as a file may.
    """
    _, _, mode, size, uid, gid, mtime_ns, ctime_ns, inode, linked, unsure, _ = row
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


def sum_of(entries: Iterable[Known]) -> Totals:
    """What they count for together."""
    return reduce(Totals.plus, (known.totals for known in entries), _NOTHING)


def _is_directory(found: Found) -> bool:
    return stat.S_ISDIR(found.now.st_mode)


def _above(path: bytes) -> Iterator[bytes]:
    """The directories that a path lies in."""
    while path := path.rpartition(b"/")[0]:
        yield path
