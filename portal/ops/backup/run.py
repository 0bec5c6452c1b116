"""One backup, from the first check to the archive.

    check      can the repository be written, do the sources exist?
    compare    for an incremental, find the changes since its parent
    collect    archive the database, then the uploads, then the audit log
    describe   write the manifest
    publish    sync and hash the archive, write the sidecar, rename

A backup reported as successful is complete: every requested component is in it, or there is no archive.
"""

from __future__ import annotations

import os
import time
import uuid
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from portal.ops.archive.open import open_archive
from portal.ops.backup.collect import Collection
from portal.ops.backup.config import BackupResult
from portal.ops.backup.increment import BaseNeededError
from portal.ops.backup.strategy import Base, ChainedFull, plan_incremental, plan_incremental_cluster
from portal.ops.backup.walk import identity
from portal.ops.errors import ConfigurationError, DiskFullError, OpsError, SourceError
from portal.ops.filesystem.refusals import unreadable
from portal.ops.hints import Advice
from portal.ops.limits import system_errors
from portal.ops.model import BackupId, BackupType, Component, FullUploads, Loss
from portal.ops.pitr.base_chain import FullBaseNeededError
from portal.ops.pitr.scratch import sweep_scratch
from portal.ops.repository.access_log import Action, Outcome
from portal.ops.repository.faults import disk_full, explain_any, is_full
from portal.ops.repository.sidecar import file_digest, read_sidecar
from portal.ops.runtime.commands import Around, within
from portal.ops.runtime.event_log import structlog
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import Meter
from portal.ops.settings.load import refuse_unbuilt
from portal.ops.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from portal.ops.backup.config import BackupConfig
    from portal.ops.backup.strategy import Strategy
    from portal.ops.chains.lineage import Ancestor
    from portal.ops.manifest import Manifest
    from portal.ops.repository.access_log import Witness
    from portal.ops.repository.pending import PendingArchive
    from portal.ops.repository.repository import Repository
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.runtime.progress import Progress

log = engine_log("portal.ops.backup")

_DISK_RESERVE: Final = 64 << 20
_AGAIN: Final = "Then start the backup again; nothing of this one is left."
_VARIABLES: Final = {Component.MEDIA: "PORTAL_UPLOAD_DIR", Component.AUDIT_LOGS: "PORTAL_AUDIT_DIR"}


@dataclass(frozen=True, kw_only=True)
class BackupRequest:
    """The request for a backup.

    Arguments:
        backup_id: the id of the backup.
        moment: the slot, or the time of the request.
        incremental: whether only changes are wanted.
        changed: for an incremental, the only paths to examine.
        complete: whether all uploads are wanted, whatever the configuration says.
    """

    backup_id: BackupId
    moment: datetime
    incremental: bool = False
    changed: Sequence[str] | None = None
    complete: bool = False

    @classmethod
    def of(
        cls,
        kind: BackupType,
        moment: datetime,
        request_id: str | None,
        *,
        incremental: bool = False,
        changed: Sequence[str] | None = None,
        complete: bool = False,
    ) -> Self:
        """The request for a backup; the same moment and request id give the same backup id."""
        backup_id = BackupId.of(kind, moment, request_id or uuid.uuid4().hex)
        return cls(backup_id=backup_id, moment=moment, incremental=incremental, changed=changed, complete=complete)


@dataclass(frozen=True, kw_only=True)
class BackupRun:
    """Runs backups.

    Arguments:
        config: the sources and the destination.
        repository: the repository of the archive.
        witness: writes the access log in the name of the requester.
        runner: starts pg_dump.
        progress: receives progress reports.
    """

    config: BackupConfig
    repository: Repository
    witness: Witness
    runner: ProcessRunner
    progress: Progress | None

    def run(self, request: BackupRequest) -> BackupResult:
        """Run one backup from check to publish; every error becomes a result."""
        started = time.monotonic()
        backup_id, kind = request.backup_id, request.backup_id.type
        result = BackupResult(success=False, backup_id=str(backup_id), backup_type=kind, timestamp=request.moment)
        with (
            structlog.contextvars.bound_contextvars(backup_id=str(backup_id)),
            self.witness.watching(Action.BACKUP, str(backup_id)) as seen,
        ):
            around = Around(commands=self.config.commands, runner=self.runner, target=self.config.database)
            around.note(operation="backup", backup_id=backup_id, backup_type=kind.value, actor=self.witness.name)
            try:
                with system_errors(), within(around):
                    result = self._back_up(request, result)
                    around.note(result="succeeded", archive=result.destination_path, components=result.components)
                result = replace(result, warnings=(*result.warnings, *around.warnings))
            except OpsError as error:
                result = _failed(result, error)
            except OSError as error:
                full = is_full(error)
                result = _failed(result, disk_full(self.repository.path) if full else explain_any(error, _AGAIN))
            result = replace(result, duration_seconds=time.monotonic() - started)
            _log_result(result)
            seen.note(Outcome.of(result.exit_code), error=result.error)
        return result

    def _back_up(self, request: BackupRequest, result: BackupResult) -> BackupResult:
        components = self._check(request)
        chain = self.repository.chain() if request.incremental else nullcontext()
        with self.repository.shared(), chain:
            for name in (*self.repository.sweep(), *sweep_scratch(self.repository)):
                log.warning("unfinished_work_removed", name=name)
            with self.repository.pending(request.backup_id) as pending:
                if pending is None:
                    return self._existing(self.repository.archive_path(request.backup_id), result)
                with closing(self._choose(request, components, pending)) as strategy:
                    if strategy.increment and strategy.increment.delta.is_empty:
                        pending.discard()
                        strategy.increment.settle()
                        return self._unchanged(strategy.increment.parent, result)
                    self._check_space(strategy.expected_bytes)
                    try:
                        return self._write(request, strategy, pending, result)
                    except FullBaseNeededError as reason:
                        log.info("full_base_needed", reason=str(reason))
                        pending.out.truncate(0)
                strategy = self._whole(request, components)
                self._check_space(strategy.expected_bytes)
                return self._write(request, strategy, pending, result)

    def _check(self, request: BackupRequest) -> tuple[Component, ...]:
        """Check the sources; return the components to back up."""
        refuse_unbuilt(self.config.unbuilt)
        components = self._components(request.backup_id.type)
        if request.changed is not None and not request.incremental:
            raise ConfigurationError(
                "paths that have changed were named for a backup of everything", hint="Ask for an incremental one."
            )
        is_confirmed = self.config.is_confirmed(Loss.REPOSITORY)
        self.repository.prepare_for_backup(self.config.repository_id, is_confirmed=is_confirmed)
        self._check_sources(components)
        return components

    def _choose(self, request: BackupRequest, components: tuple[Component, ...], pending: PendingArchive) -> Strategy:
        """An incremental, if requested and possible."""
        meter = Meter(self.progress)
        meter.phase = "compare"
        if self._is_chained(request, components):
            return ChainedFull(
                repository=self.repository,
                config=self.config,
                components=components,
                moment=request.moment,
                pending=pending,
                check_space=self._check_space,
                advance=meter.advance,
            )
        if request.incremental:
            try:
                return plan_incremental(self.repository, self.config, request.changed, pending, meter.advance)
            except BaseNeededError as reason:
                log.info("base_needed", reason=str(reason))
        if request.backup_id.type is BackupType.BASE:
            try:
                return plan_incremental_cluster(self.repository, self.config.lock_timeout)
            except FullBaseNeededError as reason:
                log.info("full_base_needed", reason=str(reason))
        return self._whole(request, components)

    def _whole(self, request: BackupRequest, components: tuple[Component, ...]) -> Base:
        """A complete backup."""
        return Base(
            repository=self.repository,
            components=components,
            kind=request.backup_id.type,
            is_chain_locked=request.incremental,
            is_followed=self.config.full_uploads is FullUploads.CHAIN,
        )

    def _is_chained(self, request: BackupRequest, components: tuple[Component, ...]) -> bool:
        """True if a full backup should follow another archive; uploads that are no directory have no chain."""
        source = self.config.source(Component.MEDIA)
        is_wanted = self.config.full_uploads is FullUploads.CHAIN and not request.complete
        is_full = request.backup_id.type is BackupType.FULL and Component.MEDIA in components
        return is_wanted and is_full and source is not None and source.is_dir()

    def _write(
        self, request: BackupRequest, strategy: Strategy, pending: PendingArchive, result: BackupResult
    ) -> BackupResult:
        collection = Collection(
            config=self.config,
            repository=self.repository,
            pending=pending,
            backup_id=request.backup_id,
            strategy=strategy,
            runner=self.runner,
            meter=Meter(self.progress),
        )
        with closing(collection.run(result.timestamp)) as written:
            path = pending.commit(written.digest)
            strategy.note(written)
            return self._finished(path, written.digest, written.manifest, result)

    def _unchanged(self, newest: Ancestor, result: BackupResult) -> BackupResult:
        """The result if nothing has changed since the parent."""
        done = self._finished(newest.path, newest.sha256, newest.manifest, result)
        return replace(done, backup_id=newest.name, unchanged=True, warnings=())

    def _components(self, kind: BackupType) -> tuple[Component, ...]:
        """The components to back up."""
        if kind is BackupType.FULL:
            files = (component for component in Component if self.config.source(component))
            return (Component.DATABASE, *files)
        if kind is BackupType.BASE:
            if not self.config.wal:
                raise ConfigurationError(
                    "a base backup is worth nothing without the WAL that follows it, and BACKUP_WAL is off",
                    hint=f"Set BACKUP_WAL=on and start the WAL service: {Advice.RECEIVE_WAL}.",
                )
            return (Component.CLUSTER,)
        component = Component(kind.value)
        if component is not Component.DATABASE and self.config.source(component) is None:
            raise ConfigurationError(
                f"no place of the {component.spoken} is configured",
                hint="Set PORTAL_UPLOAD_DIR (or media_path) to the portal's uploads.",
            )
        return (component,)

    def _check_sources(self, components: tuple[Component, ...]) -> None:
        repository = identity(self.repository.path)
        for component in components:
            source = self.config.source(component)
            if source is None:
                continue
            name = _VARIABLES[component]
            try:
                place = Path(os.path.realpath(source, strict=True))
            except (FileNotFoundError, NotADirectoryError) as error:
                raise SourceError(
                    f"{source} does not exist, so the {component.spoken} cannot be backed up",
                    hint=f"Mount or create it, or correct {name}; set {name} to nothing to leave it out on purpose.",
                ) from error
            except OSError as error:
                raise unreadable(str(source), error) from error
            if any(identity(parent) == repository for parent in (place, *place.parents)):
                raise ConfigurationError(
                    f"{source} lies inside the repository {self.repository.path}",
                    hint=f"Move BACKUP_LOCAL_PATH out of it, or correct {name}.",
                )

    def _check_space(self, expected: int) -> None:
        """Refuse a backup without enough room for its remaining bytes."""
        needed = _DISK_RESERVE + expected
        disk = os.statvfs(self.repository.path)
        free = disk.f_bavail * disk.f_frsize
        if free < needed:
            raise DiskFullError(
                f"{self.repository.path} has {human_bytes(free)} free, "
                f"and this backup needs about {human_bytes(needed)}",
                hint="Remove old archives, or move BACKUP_LOCAL_PATH to a larger disk; nothing of this backup is left.",
            )

    def _existing(self, path: Path, result: BackupResult) -> BackupResult:
        """The result of an earlier backup for the same request."""
        log.info("archive_found", path=str(path))
        reader = open_archive(path)
        try:
            manifest = reader.manifest()
        finally:
            reader.close()
        return self._finished(path, read_sidecar(path) or file_digest(path), manifest, result)

    def _finished(self, path: Path, digest: str, manifest: Manifest, result: BackupResult) -> BackupResult:
        return replace(
            result,
            success=True,
            size_bytes=path.stat().st_size,
            checksum=digest,
            destination_path=str(path),
            components=tuple(component.value for component in manifest.components),
            warnings=manifest.warnings,
            parent=manifest.parent,
            base=manifest.base,
        )


def _failed(result: BackupResult, error: OpsError) -> BackupResult:
    return replace(result, error=str(error), exit_code=error.exit_code, retryable=error.retryable)


def _log_result(result: BackupResult) -> None:
    seconds = round(result.duration_seconds, 3)
    if result.unchanged:
        log.info("nothing_changed", path=result.destination_path, seconds=seconds)
    elif result.success:
        log.info("archive_published", path=result.destination_path, bytes=result.size_bytes, seconds=seconds)
    else:
        log.error("backup_failed", seconds=seconds, error=result.error)
