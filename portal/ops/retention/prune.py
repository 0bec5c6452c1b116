"""Removes archives that the retention policy does not keep.

    plan       decide with a reason about every archive
    claim      lock some of those to be removed; skip those in use
    look       check again: new archives and new pins keep what they need
    remove     remove archives, children before parents; then their sidecars and records
    sweep      remove what killed prunes and backups have left

It may be killed at any instant: an archive that exists has its sidecar and everything it needs. It runs next to
backups, restores and other readers, and writes nothing that it depends on, so a full disk does not stop it.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Self

from portal.ops.errors import BusyError, OpsError, RepositoryError
from portal.ops.limits import system_errors
from portal.ops.model import FORMAT_VERSION, SIDECAR_SUFFIX, SUFFIX, BackupId, BackupType
from portal.ops.pitr.prune_wal import prune_wal
from portal.ops.pitr.scratch import sweep_scratch
from portal.ops.repository.access_log import Action, Observer, Outcome, Witness, brief
from portal.ops.repository.catalogue import Catalogue, kin_of
from portal.ops.repository.durable import sync_directory, unfinished
from portal.ops.repository.faults import explain, explain_any
from portal.ops.repository.locks import claim, locked_alone
from portal.ops.repository.pins import Pins
from portal.ops.repository.repository import Repository
from portal.ops.repository.sidecar import sidecar_of
from portal.ops.repository.verifications import Verifications
from portal.ops.retention.plan import Decision, RetentionPlan, plan
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import utc_now

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from portal.ops.repository.repository import ArchiveFile
    from portal.ops.retention.policy import RetentionPolicy
    from portal.ops.runtime.progress import Clock

log = engine_log("portal.ops.retention.prune")

_UNHARMED: Final = "The archives that are left are complete."

_GROUP: Final = 50
"""How many archives are locked at once: a reader of one of them waits until all are done."""

_WRITTEN: Final = (".*", ".offsite/*", ".offsite/*/pending", "wal", "wal/*")
"""The directories in which small files are written; restored data lies in others."""

_UNFINISHED_SECONDS: Final = 86_400
"""A temporary file older than this, in seconds, is abandoned."""


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """The result of a prune.

    Arguments:
        success: everything to be removed is gone, except archives in use or needed.
        plan: the decisions; None if it failed before.
        wal_bytes: the bytes of removed WAL that no base backup needs.
        removed: removed archives or, for a dry run, those that would be.
        spared: archives to be removed that are in use, needed by now, or cannot be removed.
        swept: removed remains of killed backups and prunes.
        warnings: what should be known.
        fault: the error; archives in `removed` are gone nevertheless.
    """

    success: bool
    dry_run: bool
    plan: RetentionPlan | None
    wal_bytes: int
    removed: tuple[Decision, ...]
    spared: tuple[str, ...]
    swept: tuple[str, ...]
    warnings: tuple[str, ...]
    fault: OpsError | None
    duration_seconds: float

    @property
    def error(self) -> str | None:
        """The error with its hint."""
        return str(self.fault) if self.fault else None

    @property
    def exit_code(self) -> int:
        """The exit code for a program."""
        return self.fault.exit_code if self.fault else 0

    @property
    def freed_bytes(self) -> int:
        """The bytes that were or would be freed."""
        return sum(decision.entry.size for decision in self.removed)

    def raise_error(self) -> Self:
        """Return the result if it is a success.

        Raises:
            OpsError: it is a failure.
        """
        if self.fault:
            raise self.fault
        return self

    def to_dict(self) -> dict[str, Any]:
        """The result as types of JSON, without the reasons, of which there may be very many."""
        kept = sum(decision.keep for decision in self.plan.decisions) if self.plan else 0
        return {
            "success": self.success,
            "dry_run": self.dry_run,
            "removed": [decision.entry.name for decision in self.removed],
            "freed_bytes": self.freed_bytes,
            "wal_bytes": self.wal_bytes,
            "kept": kept + len(self.spared),
            "spared": list(self.spared),
            "swept": list(self.swept),
            "warnings": list(self.warnings),
            "error": self.error,
            "duration_seconds": round(self.duration_seconds, 3),
            "format_version": FORMAT_VERSION,
        }


class PruneJob:
    """Prunes a repository.

    Arguments:
        policy: the retention policy.
        clock: returns the current time.
        actor: the requester, for the access log; by default the user of this process.
        observer: receives each removal and the result.
    """

    def __init__(
        self,
        repository: Repository,
        policy: RetentionPolicy,
        *,
        clock: Clock = utc_now,
        actor: str | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.repository = repository
        self._policy = policy
        self._clock = clock
        self._witness = Witness(repository=repository, who=actor, clock=clock, observer=observer)
        self._pins = Pins(repository)
        self._verifications = Verifications(repository)

    def may_remove(self) -> bool:
        """True if names alone show archives past their days, or from the future; fast.

        Raises:
            RepositoryError: the repository cannot be read.
        """
        now = self._clock()
        days = {kind: self._policy.of(kind).days for kind in BackupType} | {BackupType.BASE: self._policy.pitr_days}
        least = min(days.values())

        def is_young(archive: ArchiveFile) -> bool:
            kept = days[archive.backup_id.type] if archive.backup_id else least
            return now - timedelta(days=kept) <= archive.moment <= now

        return not all(map(is_young, self.repository.archives()))

    def plan(self) -> RetentionPlan:
        """The plan of a prune now; changes nothing.

        Raises:
            RepositoryError: the repository cannot be read.
        """
        return plan(Catalogue(self.repository).entries(), self._policy, self._clock())

    def raise_if_busy(self) -> None:
        """Raise an error if another prune is running, so that an optional prune is not logged as a failure.

        Raises:
            BusyError: another prune is running.
            OSError: the directory does not exist or cannot be read.
        """
        with self._alone():
            pass

    def run(self, *, dry_run: bool = False) -> PruneResult:
        """One prune from plan to sweep; every error becomes a result.

        Arguments:
            dry_run: only decide.
        """
        builder = _ResultBuilder(dry_run=dry_run)
        fault: OpsError | None = None
        try:
            with system_errors():
                self.repository.refuse_another()
                if dry_run or not self.repository.path.exists():
                    builder.removed += self._decide(builder).removals
                else:
                    self._prune(builder)
        except OpsError as error:
            fault = error
        except OSError as error:
            fault = explain_any(error, _UNHARMED)
        if fault:
            log.error("prune_failed", error=str(fault))
        return builder.result(fault)

    def _decide(self, builder: _ResultBuilder) -> RetentionPlan:
        builder.plan = decided = self.plan()
        there = {decision.entry.name for decision in decided.decisions}
        builder.warn(decided.warnings)
        builder.warn(f"{name} is pinned, but it is not there" for name in sorted(self._pins.names() - there))
        return decided

    def _prune(self, builder: _ResultBuilder) -> None:
        with self._witness.watching(Action.PRUNE, str(self.repository.path)) as seen, self._alone():
            try:
                decided = self._decide(builder)
                crowd = _Crowd(decided)
                rest = iter(decided.removals)
                while group := list(islice(rest, _GROUP)):
                    self._remove(group, crowd, builder)
                builder.wal_bytes = prune_wal(self.repository, self._clock())
                builder.swept += (
                    *self.repository.sweep(),
                    *sweep_scratch(self.repository),
                    *self._sweep(),
                    *self._sweep_unfinished(),
                )
                if builder.refusals:
                    raise builder.refusals[0]
            finally:
                seen.details |= {"removed": len(builder.removed), "bytes": builder.freed_bytes}
        log.info("prune_finished", removed=len(builder.removed), bytes=builder.freed_bytes)

    def _remove(self, group: Sequence[Decision], crowd: _Crowd, builder: _ResultBuilder) -> None:
        """Remove archives that are not in use or needed; one that cannot be removed keeps only what it needs."""
        with ExitStack() as claims:
            free = {name for one in group if self._claimed(name := one.entry.name, claims, builder)}
            strays = crowd.welcome(self.repository.path)
            builder.warn(f"{name} has come, and cannot be read: it may need any of the archives" for name in strays)
            pinned = self._pins.names()
            gone = []
            for decision in group:
                name = decision.entry.name
                if strays or name not in free or name in pinned or crowd.needs(name):
                    builder.spared.append(name)
                    continue
                try:
                    self._path(name).unlink(missing_ok=True)  # the archive is gone now; the rest is cleaning up
                except OSError as error:
                    fault = explain(error, "cannot remove", self._path(name), denied=_UNHARMED, hint=_UNHARMED)
                    builder.refuse(name, fault)
                    continue
                crowd.leave(name)
                gone.append(decision)
                builder.removed.append(decision)
            if gone:
                self._tidy(gone)

    def _claimed(self, name: str, claims: ExitStack, builder: _ResultBuilder) -> bool:
        try:
            return claims.enter_context(claim(self._path(name)))
        except RepositoryError as error:
            builder.warn([f"{name} is passed over: {error.message}"])
            return False

    def _tidy(self, gone: Sequence[Decision]) -> None:
        """Log the removal of archives, and remove their records.

        If the same backup was requested again, a new archive has the same name: its records stay.
        """
        sync_directory(self.repository.path)
        for one in gone:
            log.info("archive_removed", backup_id=one.entry.name, bytes=one.entry.size, reason=one.reasons[0])
        names, reasons = [one.entry.name for one in gone], [one.reasons[0] for one in gone]
        self._witness.saw(Action.PRUNE, str(self.repository.path), Outcome.DONE, archives=names, reasons=reasons)
        for name in names:
            with self.repository.vacated(name) as is_gone:
                if is_gone:
                    sidecar_of(self._path(name)).unlink(missing_ok=True)
                    self._verifications.forget(name)

    def _sweep(self) -> list[str]:
        """Remove sidecars and findings without an archive; return their names.

        A sidecar exists shortly before its archive, so if a backup is running, this is left for the next prune.
        """
        swept = []
        try:
            with Repository(self.repository.path, lock_timeout=0).exclusive():
                names = set(os.listdir(self.repository.path))
                for name in sorted(names):
                    archive = name.removesuffix(SIDECAR_SUFFIX)
                    stem = archive.removesuffix(SUFFIX)
                    if name != archive and archive not in names and BackupId.parse(stem):
                        self.repository.path.joinpath(name).unlink(missing_ok=True)
                        swept.append(name)
                for stem in self._verifications.names():
                    if stem + SUFFIX not in names:
                        self._verifications.forget(stem)
        except (BusyError, RepositoryError) as error:
            log.debug("sweep_postponed", detail=brief(str(error)))
        return swept

    def _sweep_unfinished(self) -> list[str]:
        """Remove temporary files of killed writes; return their names."""
        before = self._clock().timestamp() - _UNFINISHED_SECONDS
        found = (path for pattern in _WRITTEN for path in self.repository.path.glob(pattern))
        places = (path for path in found if path.is_dir() and not path.is_symlink())
        swept = []
        for path in (path for directory in (self.repository.path, *places) for path in unfinished(directory)):
            with suppress(FileNotFoundError, PermissionError):
                if path.lstat().st_mtime < before:
                    path.unlink()
                    swept.append(path.name)
        return swept

    def _alone(self) -> AbstractContextManager[None]:
        """Exclude other prunes without writing anything, which a full disk would prevent."""
        return locked_alone(self.repository.path, f"another prune of {self.repository.path} is running")

    def _path(self, name: str) -> Path:
        return self.repository.path / f"{name}{SUFFIX}"


@dataclass(kw_only=True)
class _ResultBuilder:
    """Builds a result."""

    dry_run: bool
    plan: RetentionPlan | None = None
    wal_bytes: int = 0
    removed: list[Decision] = field(default_factory=list)
    spared: list[str] = field(default_factory=list)
    swept: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refusals: list[OpsError] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def freed_bytes(self) -> int:
        return sum(decision.entry.size for decision in self.removed)

    def warn(self, warnings: Iterable[str]) -> None:
        """Add a warning, once."""
        for warning in warnings:
            if warning not in self.warnings:
                self.warnings.append(warning)
                log.warning("prune_doubtful", detail=warning)

    def refuse(self, name: str, fault: OpsError) -> None:
        """Note that an archive cannot be removed."""
        self.spared.append(name)
        self.refusals.append(fault)
        self.warn([fault.message])

    def result(self, fault: OpsError | None) -> PruneResult:
        return PruneResult(
            success=fault is None,
            dry_run=self.dry_run,
            plan=self.plan,
            wal_bytes=self.wal_bytes,
            removed=tuple(self.removed),
            spared=tuple(self.spared),
            swept=tuple(self.swept),
            warnings=tuple(self.warnings),
            fault=fault,
            duration_seconds=time.monotonic() - self.started,
        )


class _Crowd:
    """The present dependencies of archives: planned and new ones, without removed ones."""

    def __init__(self, decided: RetentionPlan) -> None:
        self._known: set[str] = set()
        self._needs: dict[str, tuple[str, ...]] = {}
        self._needed_by: dict[str, set[str]] = defaultdict(set)
        for decision in decided.decisions:
            entry = decision.entry
            self._add(entry.name, tuple(name for name in (entry.parent, entry.base) if name))

    def welcome(self, directory: Path) -> list[str]:
        """Add archives that are new since the last look; return those with unknown dependencies."""
        strays = []
        for name in os.listdir(directory):
            stem = name.removesuffix(SUFFIX)
            if stem != name and stem not in self._known and not name.startswith("."):
                kin = kin_of(directory / name)
                if kin is not None:
                    self._add(stem, kin)
                elif os.path.lexists(directory / name):
                    strays.append(stem)
        return strays

    def needs(self, name: str) -> bool:
        """True if an existing archive needs this one."""
        return bool(self._needed_by.get(name))

    def leave(self, name: str) -> None:
        """Remove an archive; if one of that name appears again, it is another one."""
        self._known.discard(name)
        for other in self._needs.pop(name, ()):
            self._needed_by[other].discard(name)

    def _add(self, name: str, kin: tuple[str, ...]) -> None:
        self._known.add(name)
        if kin:
            self._needs[name] = kin
        for other in kin:
            self._needed_by[other].add(name)
