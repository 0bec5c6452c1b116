"""The differences between a tree of uploads and its recorded state, in the order of the archive."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

from portal.ops.archive.index import decode_name, encode_name
from portal.ops.chains.state_cache import Known, MediaState, Totals
from portal.ops.errors import ConfigurationError, UnsteadyError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

    from portal.ops.archive.packer import Item
    from portal.ops.archive.writer import Tally
    from portal.ops.backup.walk import Identity

KINDS: Final = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
"""The types of entries that are backed up."""

_NOTHING: Final = Totals(0, 0)


class Found(NamedTuple):
    """An entry in the tree: its `stat` result and the recorded state of its path."""

    now: os.stat_result
    known: Known | None = None

    @property
    def identity(self) -> Identity:
        """The file's identity, whatever its name."""
        return self.now.st_dev, self.now.st_ino


class TooMuchError(Exception):
    """Raised if so much differs that a complete backup is better."""


@dataclass(kw_only=True)
class Delta:
    """The changes between the recorded and the present tree.

    Arguments:
        taken: entries to be archived, by their path there.
        gone: recorded paths that are gone; for a directory, including everything below it.
        confirmed: files that were read and have their recorded content, with their new state.
        special: sockets, FIFOs and devices.
        leaving: totals of recorded files that are gone or archived again.
    """

    taken: dict[bytes, Found] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)
    confirmed: list[Known] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    leaving: Totals = _NOTHING

    @property
    def is_empty(self) -> bool:
        """True if nothing differs."""
        return not self.taken and not self.gone

    @property
    def content_bytes(self) -> int:
        """About how many bytes have to be read."""
        return sum(found.now.st_size for found in self.taken.values() if stat.S_ISREG(found.now.st_mode))

    def items(self) -> Iterator[tuple[Item, int]]:
        """The members for the archive in tree order: a directory, its files, then its subdirectories."""
        firsts: dict[Identity, str] = {}
        for path in sorted(self.taken, key=self._order):
            found = self.taken[path]
            name, kind = decode_name(path), KINDS[stat.S_IFMT(found.now.st_mode)]
            size = found.now.st_size if kind == "file" else 0
            if kind != "file" or found.now.st_nlink == 1:
                yield (name, kind, ""), size
                continue
            first = firsts.setdefault(found.identity, name)
            yield (name, "file" if first == name else "hardlink", first), size

    def lose(self, tally: Tally, state: MediaState) -> None:
        """Note an entry that could not be read any more: its recorded state no longer holds.

        Arguments:
            state: the recorded state; for a directory, everything below it is lost too.

        Raises:
            UnsteadyError: a lost file has another name elsewhere, which may need its content.
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
        """Count recorded files that are gone or archived again."""
        gone = (state.below(path) for path in self.gone if not self.is_lost(path))
        replaced = (
            found.known
            for path, found in self.taken.items()
            if found.known and path not in self.gone and not self.is_lost(path)
        )
        self.leaving = sum_of(chain(chain.from_iterable(gone), replaced))

    def deleted(self) -> list[str]:
        """The deleted paths, without those below another deleted one."""
        return [decode_name(path) for path in sorted(self.gone) if not self.is_lost(path)]

    def is_lost(self, path: bytes) -> bool:
        """True if a recorded directory above a path is gone."""
        return any(above in self.gone for above in _above(path))

    def _order(self, path: bytes) -> tuple[tuple[bool, bytes], ...]:
        *above, name = path.split(b"/")
        is_directory = stat.S_ISDIR(self.taken[path].now.st_mode)
        return (*((True, part) for part in above), (is_directory, name))


def parts_of(path: str) -> tuple[bytes, ...]:
    """The names on the way from the uploads to a given path.

    Raises:
        ConfigurationError: the path is absolute, or leads out.
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


def sum_of(entries: Iterable[Known]) -> Totals:
    """The sum of their totals."""
    return reduce(Totals.plus, (known.totals for known in entries), _NOTHING)


def _above(path: bytes) -> Iterator[bytes]:
    """The directories above a path."""
    while path := path.rpartition(b"/")[0]:
        yield path
