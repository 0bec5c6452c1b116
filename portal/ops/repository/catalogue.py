"""The catalogue: facts about every archive of a repository, listed quickly even for very many.

It is only a cache. Facts read from a file (manifest, sidecar, finding) are stored with its size, ctime and inode; each
scan compares these and reads changed files again. Findings are replaced as whole files, so their directory shows every
change. A cache that is deleted, damaged, outdated or read-only makes a scan slower and changes nothing in its result,
with one exception: what an archive needs stays known when its manifest becomes unreadable.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from operator import attrgetter
from stat import S_ISLNK, S_ISREG
from typing import TYPE_CHECKING, Final

from portal.ops.archive.open import open_archive, peek_manifest
from portal.ops.errors import OpsError
from portal.ops.model import SIDECAR_SUFFIX, SUFFIX, BackupId, BackupType, Component, VerifyLevel, file_time
from portal.ops.repository.bulk_stat import ABSENT, STAMP, stamp, states
from portal.ops.repository.catalogue_cache import CatalogueCache, Memory
from portal.ops.repository.entry import Entry, Finding
from portal.ops.repository.faults import explain
from portal.ops.repository.pins import Pins
from portal.ops.repository.restorability import chain_faults
from portal.ops.repository.sidecar import read_sidecar
from portal.ops.repository.verifications import DIRECTORY as VERIFICATIONS
from portal.ops.repository.verifications import Verifications
from portal.ops.runtime.logs import engine_log
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from portal.ops.manifest import Manifest
    from portal.ops.repository.catalogue_cache import Row
    from portal.ops.repository.repository import Repository

log = engine_log("portal.ops.repository.catalogue")

CACHE: Final = ".cache"

_SUFFIX: Final = SUFFIX.encode()
_FINDINGS: Final = VERIFICATIONS.encode() + b"/"
_FINDING: Final = b".json"
_NAMES: Final = (sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
_NO_FINDING: Final = (None, 0.0, 0)
_FAULT: Final = 8
"""The place of the fault in a row."""

_AT_ONCE: Final = 5_000
"""The first scan saves its rows in steps of this many."""

_SETTLED_NS: Final = 2_000_000_000
"""A file changed more recently than this, in nanoseconds, could change again without looking different."""

_LATEST_NS: Final = 253_402_300_799 * 1_000_000_000
"""The end of the last year in a date."""
_UNUSABLE: Final = (sqlite3.Error, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""Errors caused by a damaged or manipulated cache."""

_TYPES: Final[dict[str | None, BackupType | None]] = {None: None, **{kind.value: kind for kind in BackupType}}
_LEVELS: Final = {level.value: level for level in VerifyLevel}


class Catalogue:
    """Lists the archives of a repository with their facts."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._cache = CatalogueCache(repository.path / CACHE / "catalogue.sqlite")

    def entries(self) -> list[Entry]:
        """Every archive, newest first. If its chain is incomplete, its fault says so.

        Raises:
            RepositoryError: the repository cannot be read, or the one that was used here is not there.
        """
        try:
            directory = os.open(self._repository.path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            self._repository.refuse_absent()
            return []
        except OSError as error:
            raise explain(error, "cannot read", self._repository.path) from error
        try:
            pinned = Pins(self._repository).names()
            try:
                found = _Look(self._repository, directory, pinned, self._cache).run(self._cache.load())
            except _UNUSABLE as error:
                log.debug("catalogue_discarded", detail=str(error))
                self._cache.discard()
                found = _Look(self._repository, directory, pinned, self._cache).run(Memory())
        finally:
            os.close(directory)
        archives = sorted(found, key=attrgetter("moment", "modified", "name"), reverse=True)
        return _with_chain_faults(self._repository.path, archives)


def _with_chain_faults(directory: Path, archives: list[Entry]) -> list[Entry]:
    """The archives with the faults of their chains, without those that were removed before what they need was seen."""
    while faults := chain_faults(archives):
        gone = {name for name in faults if not os.path.lexists(directory / f"{name}{SUFFIX}")}
        if not gone:
            return [one._replace(fault=faults[one.name]) if one.name in faults else one for one in archives]
        archives = [one for one in archives if one.name not in gone]
    return archives


class _Look:
    """One scan of the repository."""

    def __init__(self, repository: Repository, directory: int, pinned: frozenset[str], cache: CatalogueCache) -> None:
        self._repository = repository
        self._directory = directory
        self._cache = cache
        self._pinned = pinned
        self._verifications = Verifications(repository)
        self._settled = time.time_ns() - _SETTLED_NS
        self._changed: list[Row] = []
        self._strays: set[bytes] = set()
        self._once: dict[str, str] = {}  # the same string objects for names and parents

    def run(self, memory: Memory) -> list[Entry]:
        """Every archive in the order of names; new facts are cached."""
        now = stamp(self._directory, _FINDINGS)
        are_known = now == memory.findings
        rows, entries, is_complete = _Rows(memory.rows), [], True
        names = sorted(name for name in self._names() if not name.startswith(b"."))
        for name, (mode, size, modified_ns, stamps) in zip(names, states(self._directory, names), strict=True):
            if S_ISREG(mode) or S_ISLNK(mode):
                stem = name[: -len(_SUFFIX)]
                row = rows.find(stem)
                if row is None or row[1] != stamps or not (are_known or row[2] == self._finding_stamp(stem)):
                    old, (row, is_remembered) = row, self._read(stem, stamps, row)
                    if row[_FAULT] and not self._is_there(name):  # removed while it was read
                        is_complete = False
                        continue
                    is_complete &= is_remembered or old is None
                entries.append(self._entry(row, size, modified_ns))
                if len(self._changed) >= _AT_ONCE and rows.are_used_up:  # a first scan may be interrupted
                    memory = self._remember(memory, rows.gone, None)
        rows.finish()
        if not entries:  # before anything is written there
            self._repository.refuse_absent()
        self._remember(memory, rows.gone, now if is_complete and self._is_settled(now) else None)
        return entries

    def _remember(self, memory: Memory, gone: Sequence[bytes], findings: bytes | None) -> Memory:
        memory = self._cache.save(memory, self._changed, gone, findings)
        self._changed.clear()
        return memory

    def _entry(self, row: Row, size: int, modified_ns: int) -> Entry:
        stem, _, _, kind, taken, parent, base, components, fault, checksum, level, found_at, intact, read = row
        modified = file_time(modified_ns / 1_000_000_000)
        name = self._once.setdefault(name := stem.decode(*_NAMES), name)
        return Entry(
            name,
            _TYPES[kind],
            modified if taken is None else datetime.fromtimestamp(taken, UTC),
            modified,
            size,
            checksum,
            parent and self._once.setdefault(parent, parent),
            base and self._once.setdefault(base, base),
            _KNOWN_COMPONENTS.get(components) or _components(components),
            fault,
            Finding(_LEVELS[level], datetime.fromtimestamp(found_at, UTC), intact == 1) if level else None,
            name in self._pinned,
            stem in self._strays,
            None if read is None else file_time(read),
        )

    # -- reading ----------------------------------------------------------------------------------------------------

    def _read(self, stem: bytes, stamps: bytes, remembered: Row | None) -> tuple[Row, bool]:
        """Read facts from an archive's files; return whether they may be cached.

        If the manifest cannot be read, the cached one counts. Facts are cached unless the files are so new that they
        may change unnoticed, or one cannot be read: that may pass without changing the file's stamp.
        """
        name = os.fsdecode(stem)
        path = self._repository.path / f"{name}{SUFFIX}"
        backup_id = BackupId.parse(name)
        checksum, fault = _sidecar(path)
        found = self._finding_stamp(stem)
        manifest, unreadable = _manifest(path, backup_id)
        finding, unknown = self._finding(name)
        kin = (manifest.parent, manifest.base) if manifest else remembered and remembered[5:7]
        if kin is None and _may_follow(backup_id):
            self._strays.add(stem)
        row = (
            stem,
            stamps,
            found,
            backup_id.type.value if backup_id else None,
            int(backup_id.moment.timestamp()) if backup_id else None,
            *(kin or (None, None)),
            ",".join(manifest.components) if manifest else "",
            fault or unreadable or unknown,
            checksum,
            *finding,
            _read_at(manifest) if manifest else remembered and remembered[13],
        )
        is_read = not (unreadable or unknown) and (checksum or stamps.endswith(ABSENT))
        is_remembered = bool(is_read and self._is_settled(stamps + found))
        if is_remembered:
            self._changed.append(row)
        return row, is_remembered

    def _finding(self, name: str) -> tuple[tuple[str | None, float, int], str]:
        """The finding of an archive, and why there is none; the record may be damaged."""
        try:
            found = self._verifications.of(name)
        except OpsError as error:
            log.warning("record_unreadable", error=str(error))
            return _NO_FINDING, f"its verification record cannot be read: {error.message}"
        return (found.level.value, found.moment.timestamp(), found.intact) if found else _NO_FINDING, ""

    def _is_there(self, name: bytes) -> bool:
        try:
            os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return True

    def _is_settled(self, stamps: bytes) -> bool:
        """True if no file has changed so recently that it could change again unnoticed."""
        return all(changed < self._settled for _, changed, _ in STAMP.iter_unpack(stamps))

    def _finding_stamp(self, stem: bytes) -> bytes:
        return stamp(self._directory, _FINDINGS + stem + _FINDING)

    def _names(self) -> list[bytes]:
        path = self._repository.path
        try:
            return [name for name in os.listdir(os.fsencode(path)) if name.endswith(_SUFFIX)]
        except OSError as error:
            raise explain(error, "cannot read", path) from error


class _Rows:
    """Reads cached rows in step with the names of the files, both sorted."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows
        self._row: Row | None = next(rows, None)
        self.gone: list[bytes] = []

    @property
    def are_used_up(self) -> bool:
        """True if all rows have been read."""
        return self._row is None

    def find(self, name: bytes) -> Row | None:
        """The row of a name; names must be requested in order."""
        while self._row is not None and self._row[0] < name:
            self.gone.append(self._row[0])
            self._row = next(self._rows, None)
        if self._row is None or self._row[0] != name:
            return None
        found, self._row = self._row, next(self._rows, None)
        return found

    def finish(self) -> None:
        """Read to the end: the remaining rows are those of removed archives."""
        while self._row is not None:
            self.gone.append(self._row[0])
            self._row = next(self._rows, None)


def _components(names: str) -> tuple[Component, ...]:
    """The components in a row, as shared tuples."""
    return _KNOWN_COMPONENTS.setdefault(names, tuple(Component(name) for name in names.split(",") if name))


_KNOWN_COMPONENTS: Final[dict[str, tuple[Component, ...]]] = {}


def _sidecar(path: Path) -> tuple[str | None, str]:
    """The checksum in a sidecar, or what is wrong with it."""
    try:
        checksum = read_sidecar(path)
    except OpsError as error:
        return None, error.message
    return checksum, "" if checksum else f"there is no {path.name}{SIDECAR_SUFFIX} beside it"


def _manifest(path: Path, backup_id: BackupId | None) -> tuple[Manifest | None, str]:
    """The manifest, or why it cannot be read or belongs to another archive."""
    try:
        manifest = peek_manifest(path)
        if manifest is None or not manifest.writer:  # the portal's own scripts list components that are not there
            with closing(open_archive(path)) as archive:
                manifest = archive.manifest()
    except (OpsError, OSError) as error:
        return (
            None,
            f"its manifest cannot be read: {error.message if isinstance(error, OpsError) else system_reason(error)}",
        )
    if backup_id and manifest.backup_id != str(backup_id):
        return None, "its manifest is another archive's"
    return manifest, ""


def _read_at(manifest: Manifest) -> float | None:
    """The time when reading the source began, in seconds since 1970; None if the manifest does not say."""
    begun = [detail["read_from_ns"] for detail in manifest.details.values() if "read_from_ns" in detail]
    if not begun or not all(type(moment) is int and 0 <= moment < _LATEST_NS for moment in begun):
        return None
    return float(min(begun) / 1_000_000_000)


def _may_follow(backup_id: BackupId | None) -> bool:
    """True if the type in an archive's name can have a parent."""
    return backup_id is not None and backup_id.type in (BackupType.MEDIA, BackupType.FULL, BackupType.BASE)


def kin_of(path: Path) -> tuple[str, ...] | None:
    """The archives that an archive needs directly: its parent and its chain's base; None if unreadable."""
    if os.path.exists(path) and not os.path.isfile(path):
        return ()
    backup_id = BackupId.parse(path.name.removesuffix(SUFFIX))
    manifest, _ = _manifest(path, backup_id)
    if manifest is None:
        return None if _may_follow(backup_id) else ()
    return tuple(name for name in (manifest.parent, manifest.base) if name)
