"""Backing the portal up: the guide's Python API, and the job behind it.

    check      the repository can be written, the sources are there
    compare    an incremental only: what differs from the archive that it follows
    collect    database, then media, then audit log, each into frames of one archive
    describe   the manifest: what is in it, and what there is to know of it
    publish    on the disk, hashed, sidecar in place, renamed

A backup that is reported is whole: every component that was asked for is in it, or there is no archive.
"""

from __future__ import annotations

import os
import time
import uuid
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from portal.ops.archive.open import open_archive
from portal.ops.backup.collect import Collection
from portal.ops.backup.config import BackupConfig, BackupResult
from portal.ops.backup.increment import CACHE, BaseNeededError, Increment, held, plan_increment, remember
from portal.ops.backup.walk import identity
from portal.ops.chains.lineage import is_incremental
from portal.ops.errors import (
    ConfigurationError,
    DiskFullError,
    OpsError,
    SourceError,
)
from portal.ops.filesystem.refusals import unreadable
from portal.ops.model import SUFFIX, BackupId, BackupType, Component, VerifyLevel, timestamp
from portal.ops.repository.access_log import Action, Observer, Outcome, Witness
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.faults import disk_full, explain_any, is_full
from portal.ops.repository.locks import archive_lock
from portal.ops.repository.repository import ArchiveFile, Repository
from portal.ops.repository.sidecar import file_digest, read_sidecar
from portal.ops.repository.verifications import Verification, Verifications
from portal.ops.retention.prune import PruneJob
from portal.ops.runtime.commands import Around, within
from portal.ops.runtime.environment import current_settings
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.process import ProcessRunner, SystemRunner
from portal.ops.runtime.progress import Clock, Meter, PathLike, Progress, available_cores, utc_now
from portal.ops.settings.load import refuse_unbuilt
from portal.ops.verify.verify import Expected, Verifier

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from portal.ops.manifest import Manifest
    from portal.ops.repository.entry import Entry
    from portal.ops.repository.pending import Draft

__all__ = ["BackupConfig", "BackupJob", "BackupResult", "BackupType", "create_backup_job"]

log = engine_log("portal.ops.backup")

_DISK_RESERVE: Final = 64 << 20
_AGAIN: Final = "Look at the disk and the permissions there, then start the backup again; nothing of this one is left."


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What was asked for: the id of the backup, and for an incremental one the paths that may have changed."""

    backup_id: BackupId
    incremental: bool = False
    changed: Sequence[str] | None = None


class BackupJob:
    """Makes, lists and verifies backups.

    Arguments:
        config: what and where.
        runner: what starts pg_dump.
        clock: what time it is.
        progress: told how far a backup is, several times a second.
        actor: who asked for it, for the access log; the user of this process by default.
        observer: told of everything that was done, once it has ended.
    """

    def __init__(
        self,
        config: BackupConfig,
        *,
        runner: ProcessRunner | None = None,
        clock: Clock = utc_now,
        progress: Progress | None = None,
        actor: str | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.config = config
        self.repository = Repository(Path(config.local_path), lock_timeout=config.lock_timeout)
        self._witness = Witness(repository=self.repository, who=actor, clock=clock, observer=observer)
        self._runner = runner or SystemRunner()
        self._clock = clock
        self._progress = progress

    def backup_full(self, *, moment: datetime | None = None, request_id: str | None = None) -> BackupResult:
        """Back up the database, and media and audit log where they are configured.

        Arguments:
            moment: the slot that the backup is for; now by default.
            request_id: what asked for it; the same moment and request give the same archive.
        """
        return self._run(BackupType.FULL, moment, request_id)

    def backup_database(self, *, moment: datetime | None = None, request_id: str | None = None) -> BackupResult:
        """Back up the database; arguments as for `backup_full`."""
        return self._run(BackupType.DATABASE, moment, request_id)

    def backup_media(
        self,
        *,
        incremental: bool = False,
        changed: Sequence[str] | None = None,
        moment: datetime | None = None,
        request_id: str | None = None,
    ) -> BackupResult:
        """Back up the uploads; moment and request as for `backup_full`.

        Arguments:
            incremental: take only what differs from the newest archive that holds the uploads. Where nothing does, none
                is made, and the result names that one; where there is none to follow, everything is taken.
            changed: for an incremental one, the only paths to look at, relative to the uploads: files or directories,
                there or gone. Without them the whole tree is compared, by metadata.
        """
        return self._run(BackupType.MEDIA, moment, request_id, incremental=incremental, changed=changed)

    def backup_base(self, *, moment: datetime | None = None, request_id: str | None = None) -> BackupResult:
        """Back up the whole database cluster, for recoveries to any later moment; arguments as for `backup_full`."""
        return self._run(BackupType.BASE, moment, request_id)

    def list_backups(self) -> list[dict[str, Any]]:
        """The archives of the repository, newest first, with what is known of each.

        Raises:
            RepositoryError: the repository cannot be read.
        """
        return list(self.iterate_backups())

    def iterate_backups(self) -> Iterator[dict[str, Any]]:
        """As `list_backups`, one after the other: a repository may hold very many.

        Raises:
            RepositoryError: the repository cannot be read.
        """
        directory = str(self.repository.path)
        return (_listed(entry, directory) for entry in Catalogue(self.repository).entries())

    def cleanup_old_backups(self) -> int:
        """Remove what the policy of retention does not keep; how many archives were removed.

        Raises:
            OpsError: it could not be done, or not to its end.
        """
        who, observer = self._witness.who, self._witness.observer
        job = PruneJob(self.repository, self.config.retention, clock=self._clock, actor=who, observer=observer)
        return len(job.run().raise_error().removed)

    def verify_backup(self, path: PathLike, level: VerifyLevel = VerifyLevel.CONTENTS) -> tuple[bool, str]:
        """Whether an archive is intact, and what was found."""
        try:
            found = self.verify(path, level)
        except OpsError as error:
            return False, str(error)
        return found.intact, found.message

    def verify(self, path: PathLike, level: VerifyLevel = VerifyLevel.CONTENTS) -> Verification:
        """Look at an archive, given by path, id or ``latest``.

        Raises:
            OpsError: it cannot be looked at; damage is no error, but in what is returned.
        """
        with self._witness.watching(Action.VERIFY, os.fspath(path), level=str(level)) as seen:
            archive = self.repository.find(path)
            seen.subject = archive.name
            found = self._look_at(archive, VerifyLevel(level))
            seen.note(Outcome.DONE if found.intact else Outcome.FAILED, damages=len(found.damages))
        return found

    def _look_at(self, archive: ArchiveFile, level: VerifyLevel) -> Verification:
        """Verify an archive, and keep what was found."""
        meter = Meter(self._progress)
        meter.phase = "verify"
        meter.expect = Expected([archive.path])
        verifier = Verifier(
            runner=self._runner,
            pg_bin_dir=Path(self.config.pg_bin_dir) if self.config.pg_bin_dir else None,
            jobs=self.config.jobs or available_cores(),
            advance=meter.advance,
        )
        with self._held(archive), archive_lock(archive.path, self.config.lock_timeout):
            found = verifier.verify(archive.path, level)
        tell, event = (log.info, "archive_verified") if found.intact else (log.error, "archive_damaged")
        tell(
            event,
            backup_id=archive.name,
            verify_level=found.level.value,
            damages=len(found.damages),
            seconds=round(found.duration_seconds, 3),
        )
        Verifications(self.repository).note(found, self._clock())
        return found

    @contextmanager
    def _held(self, archive: ArchiveFile) -> Iterator[None]:
        """Keep a prune away from an archive of the repository; who may only read there, reads without."""
        if archive.path.parent == self.repository.path and os.access(self.repository.path, os.W_OK):
            with self.repository.shared():
                yield
        else:
            yield

    # -- one backup -------------------------------------------------------------------------------------------------

    def _run(self, kind: BackupType, moment: datetime | None, request_id: str | None, **asked: Any) -> BackupResult:
        """One backup from check to publish; every fault becomes a result."""
        started = time.monotonic()
        submitted = moment or self._clock()
        backup_id = BackupId.of(kind, submitted, request_id or uuid.uuid4().hex)
        result = BackupResult(success=False, backup_id=str(backup_id), backup_type=kind, timestamp=submitted)
        with (
            structlog.contextvars.bound_contextvars(backup_id=str(backup_id)),
            self._witness.watching(Action.BACKUP, str(backup_id)) as seen,
        ):
            around = Around(commands=self.config.commands, runner=self._runner, target=self.config.database)
            around.note(operation="backup", backup_id=backup_id, backup_type=kind.value, actor=self._witness.name)
            try:
                with within(around):
                    result = self._back_up(_Request(backup_id=backup_id, **asked), result)
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

    def _back_up(self, request: _Request, result: BackupResult) -> BackupResult:
        refuse_unbuilt(self.config.unbuilt)
        backup_id = request.backup_id
        components = self._components(backup_id.type)
        if request.changed is not None and not request.incremental:
            raise ConfigurationError(
                "paths that have changed were named for a backup of everything", hint="Ask for an incremental one."
            )
        self.repository.prepare()
        self._check_sources(components)
        chain = self.repository.chain() if request.incremental else nullcontext()
        with self.repository.shared(), chain:
            for name in self.repository.sweep():
                log.warning("remains_swept", name=name)
            with self.repository.draft(backup_id) as draft:
                if draft is None:
                    return self._existing(self.repository.archive_path(backup_id), result)
                if request.incremental:
                    try:
                        return self._back_up_changes(request, draft, result)
                    except BaseNeededError as reason:
                        log.info("base_needed", reason=str(reason))
                self._check_space(self._last_size(backup_id.type))
                done = self._write(self._collection(components, draft, backup_id), result)
            if request.incremental:
                remember(self.repository, Path(done.destination_path))
            elif Component.MEDIA in components and (self.repository.path / CACHE).exists():
                self._remember(Path(done.destination_path))
            return done

    def _remember(self, base: Path) -> None:
        """Fill the cache with a base that is there; where that cannot be, the next incremental does it."""
        try:
            with self.repository.chain():
                remember(self.repository, base)
        except OpsError as error:
            log.warning("cache_left_behind", error=error.message)

    def _back_up_changes(self, request: _Request, draft: Draft, result: BackupResult) -> BackupResult:
        """An incremental; without an archive where nothing has changed."""
        meter = Meter(self._progress)
        meter.phase = "compare"
        planned = plan_increment(
            self.repository,
            self.config,
            changed=request.changed,
            begun=draft.partial.stat().st_mtime,
            advance=meter.advance,
        )
        with closing(planned) as increment, held(increment, self.config.lock_timeout):
            if increment.delta.is_empty:
                draft.discard()
                increment.settle()
                return self._unchanged(increment, result)
            self._check_space(increment.delta.content_bytes)
            collection = self._collection((Component.MEDIA,), draft, request.backup_id, increment)
            done = self._write(collection, result)
            increment.publish(Path(done.destination_path), done.checksum)
            return done

    def _collection(
        self,
        components: tuple[Component, ...],
        draft: Draft,
        backup_id: BackupId,
        increment: Increment | None = None,
    ) -> Collection:
        return Collection(
            config=self.config,
            draft=draft,
            backup_id=backup_id,
            components=components,
            runner=self._runner,
            meter=Meter(self._progress),
            increment=increment,
        )

    def _write(self, collection: Collection, result: BackupResult) -> BackupResult:
        manifest, digest = collection.run(result.timestamp)
        path = collection.draft.commit(digest)
        return self._finished(path, digest, manifest, result)

    def _unchanged(self, increment: Increment, result: BackupResult) -> BackupResult:
        """The archive that has everything already."""
        newest = increment.parent
        done = self._finished(newest.path, newest.sha256, newest.manifest, result)
        return replace(done, backup_id=newest.name, unchanged=True, warnings=())

    def _components(self, kind: BackupType) -> tuple[Component, ...]:
        """What the backup has to hold."""
        if kind is BackupType.FULL:
            files = (component for component in Component if self.config.source(component))
            return (Component.DATABASE, *files)
        if kind is BackupType.BASE:
            if not self.config.wal:
                raise ConfigurationError(
                    "a base backup is worth nothing without the WAL that follows it, and BACKUP_WAL is off",
                    hint="Set BACKUP_WAL=on and start the WAL service: tools/service.sh wal.",
                )
            return (Component.CLUSTER,)
        component = Component(kind.value)
        if component is not Component.DATABASE and self.config.source(component) is None:
            raise ConfigurationError(
                f"there is no directory of {component.value} to back up",
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
                    f"{source} does not exist, so the {component.value} cannot be backed up",
                    hint=f"Mount or create it, or correct {name}; set {name} to nothing to leave it out on purpose.",
                ) from error
            except OSError as error:
                raise unreadable(str(source), error.errno or 0) from error
            if any(identity(parent) == repository for parent in (place, *place.parents)):
                raise ConfigurationError(
                    f"{source} lies inside the repository {self.repository.path}",
                    hint=f"Move BACKUP_LOCAL_PATH out of it, or correct {name}.",
                )

    def _last_size(self, kind: BackupType) -> int:
        """How large the last backup of the same type was that took everything."""
        alike = [one for one in self.repository.archives() if one.backup_id and one.backup_id.type is kind]
        return next((one.size for one in alike if not is_incremental(one.path)), 0)

    def _check_space(self, expected: int) -> None:
        """Refuse to start what cannot fit, by the bytes that it will take."""
        needed = _DISK_RESERVE + expected
        disk = os.statvfs(self.repository.path)
        free = disk.f_bavail * disk.f_frsize
        if free < needed:
            raise DiskFullError(
                f"{self.repository.path} has {free >> 20} MiB free, and this backup needs about {needed >> 20} MiB",
                hint="Remove old archives, or move BACKUP_LOCAL_PATH to a larger disk; nothing was written yet.",
            )

    def _existing(self, path: Path, result: BackupResult) -> BackupResult:
        """The result of a request that was fulfilled before."""
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


_VARIABLES: Final = {Component.MEDIA: "PORTAL_UPLOAD_DIR", Component.AUDIT_LOGS: "PORTAL_AUDIT_DIR"}


def create_backup_job(
    local_path: PathLike | None = None,
    db_host: str | None = None,
    db_name: str | None = None,
    media_path: PathLike | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    **others: Any,
) -> BackupJob:
    """A job as the environment describes it; what is given here wins over the environment.

    Arguments:
        environ: the variables to read instead of the process's own.
        others: any other argument of `BackupConfig`.

    Raises:
        ConfigurationError: the environment or an argument makes no sense.
    """
    config = BackupConfig.from_settings(current_settings(environ))
    given = {"local_path": local_path, "db_host": db_host, "db_name": db_name, "media_path": media_path, **others}
    return BackupJob(replace(config, **{name: value for name, value in given.items() if value is not None}))


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


def _listed(entry: Entry, directory: str) -> dict[str, Any]:
    name = entry.name + SUFFIX
    finding = entry.finding
    return {
        "path": f"{directory}/{name}",
        "name": name,
        "backup_id": entry.name,
        "type": entry.type.value if entry.type else None,
        "timestamp": timestamp(entry.moment),
        "size_bytes": entry.size,
        "modified": timestamp(entry.modified),
        "checksum": entry.checksum,
        "components": list(entry.components),
        "parent": entry.parent,
        "base": entry.base,
        "pinned": entry.pinned,
        "fault": entry.fault or None,
        "verified": {"level": finding.level.value, "moment": timestamp(finding.moment), "intact": finding.intact}
        if finding
        else None,
    }
