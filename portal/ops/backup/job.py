"""Backs the portal up: the guide's Python API. `run`, `listing` and `verify.job` do the work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portal.ops.backup.config import BackupConfig, BackupResult
from portal.ops.backup.listing import iterate_archives
from portal.ops.backup.run import BackupRequest, BackupRun
from portal.ops.errors import OpsError
from portal.ops.model import BackupType, VerifyLevel
from portal.ops.repository.access_log import Observer, Witness
from portal.ops.repository.repository import Repository
from portal.ops.runtime.environment import current_settings
from portal.ops.runtime.process import ProcessRunner, SystemRunner
from portal.ops.runtime.progress import Clock, PathLike, Progress, utc_now
from portal.ops.verify.job import VerifyJob

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from portal.ops.repository.verifications import Verification
    from portal.ops.restore.config import RestoreConfig

__all__ = ["BackupConfig", "BackupJob", "BackupResult", "BackupType", "create_backup_job"]


class BackupJob:
    """Makes, lists and verifies backups.

    Arguments:
        config: the sources and the destination.
        runner: starts pg_dump.
        clock: returns the current time.
        progress: receives progress reports, several a second.
        actor: the requester, for the access log; by default the user of this process.
        observer: receives every result.
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

    def backup_full(
        self, *, complete: bool = False, moment: datetime | None = None, request_id: str | None = None
    ) -> BackupResult:
        """Back up the database and, if configured, media and audit log.

        Arguments:
            complete: take all uploads, even if `full_uploads` is ``chain``.
            moment: the slot of the backup; by default the present time.
            request_id: identifies the request; the same id and moment give the same archive.
        """
        return self._run(BackupType.FULL, moment, request_id, complete=complete)

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
            incremental: take only changes since the newest archive with uploads. Without changes, no archive is made,
                and the result names that one; without such an archive, everything is taken.
            changed: for an incremental, the only paths to examine, relative to the uploads: files or directories, which
                may be gone. By default the metadata of the whole tree is compared.
        """
        return self._run(BackupType.MEDIA, moment, request_id, incremental=incremental, changed=changed)

    def backup_base(self, *, moment: datetime | None = None, request_id: str | None = None) -> BackupResult:
        """Back up the whole database cluster, for recoveries to any later moment; arguments as for `backup_full`."""
        return self._run(BackupType.BASE, moment, request_id)

    def list_backups(self) -> list[dict[str, Any]]:
        """The archives of the repository with their facts, newest first.

        Raises:
            RepositoryError: the repository cannot be read.
        """
        return list(self.iterate_backups())

    def iterate_backups(self) -> Iterator[dict[str, Any]]:
        """Like `list_backups`, one by one, since a repository may hold very many.

        Raises:
            RepositoryError: the repository cannot be read.
        """
        return iterate_archives(self.repository)

    def cleanup_old_backups(self) -> int:
        """Prune by the retention policy, and discard old rollback data; return the number of removed archives.

        Raises:
            OpsError: it failed, or was incomplete.
        """
        from portal.ops.restore.cleanup import CleanupJob  # imported late: a backup needs nothing of a restore

        job = CleanupJob(
            self.repository,
            self.config.retention,
            _restore_config(self.config),
            clock=self._clock,
            actor=self._witness.who,
            observer=self._witness.observer,
        )
        return len(job.run().pruned.raise_error().removed)

    def verify_backup(self, path: PathLike, level: VerifyLevel = VerifyLevel.CONTENTS) -> tuple[bool, str]:
        """Verify an archive; return whether it is intact, and the result in words."""
        try:
            found = self.verify(path, level)
        except OpsError as error:
            return False, str(error)
        return found.intact, found.message

    def verify(self, path: PathLike, level: VerifyLevel = VerifyLevel.CONTENTS) -> Verification:
        """Verify an archive, given by path, id or ``latest``.

        Raises:
            OpsError: it cannot be examined; damage is part of the result instead.
        """
        job = VerifyJob(
            repository=self.repository,
            witness=self._witness,
            runner=self._runner,
            pg_bin_dir=self.config.pg_bin_dir,
            jobs=self.config.jobs,
            lock_timeout=self.config.lock_timeout,
            clock=self._clock,
            progress=self._progress,
        )
        return job.run(path, level)

    def _run(self, kind: BackupType, moment: datetime | None, request_id: str | None, **asked: Any) -> BackupResult:
        request = BackupRequest.of(kind, moment or self._clock(), request_id, **asked)
        run = BackupRun(
            config=self.config,
            repository=self.repository,
            witness=self._witness,
            runner=self._runner,
            progress=self._progress,
        )
        return self._copied(run.run(request))

    def _copied(self, result: BackupResult) -> BackupResult:
        """Copy a new archive off-site if configured; a failure becomes a warning."""
        config = self.config.offsite_config()
        if config is None or not result.success or result.unchanged:
            return result
        from portal.ops.offsite.copy import CopyJob

        witness = self._witness
        job = CopyJob(
            config,
            self.config.retention,
            clock=self._clock,
            progress=self._progress,
            actor=witness.who,
            observer=witness.observer,
        )
        done = job.run(result.destination_path)
        failures = (f"off-site copies were not made: {fault}" for fault in done.faults)
        return replace(result, warnings=(*result.warnings, *done.warnings, *failures))


def _restore_config(config: BackupConfig) -> RestoreConfig:
    """The configuration of restores to the same portal, which says where rollback data is."""
    from portal.ops.restore.config import RestoreConfig  # imported late: a backup needs nothing of a restore

    return RestoreConfig(
        local_path=Path(config.local_path),
        db_host=config.db_host,
        db_port=config.db_port,
        db_name=config.db_name,
        db_user=config.db_user,
        db_password=config.db_password,
        db_options=config.db_options,
        media_path=Path(config.media_path) if config.media_path else None,
        audit_log_path=Path(config.audit_log_path) if config.audit_log_path else None,
        pg_bin_dir=Path(config.pg_bin_dir) if config.pg_bin_dir else None,
        lock_timeout=config.lock_timeout,
        rollback_days=config.rollback_days,
    )


def create_backup_job(
    local_path: PathLike | None = None,
    db_host: str | None = None,
    db_name: str | None = None,
    media_path: PathLike | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    **others: Any,
) -> BackupJob:
    """Make a job from the environment; arguments given here override it.

    Arguments:
        environ: replaces the environment of the process.
        others: other arguments of `BackupConfig`.

    Raises:
        ConfigurationError: the environment or an argument is invalid.
    """
    config = BackupConfig.from_settings(current_settings(environ))
    given = {"local_path": local_path, "db_host": db_host, "db_name": db_name, "media_path": media_path, **others}
    return BackupJob(replace(config, **{name: value for name, value in given.items() if value is not None}))
