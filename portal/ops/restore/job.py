"""Restoring the portal: the guide's Python API. The work is done by `restoration`, `rollback` and `verify.job`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from portal.ops.errors import OpsError
from portal.ops.model import VerifyLevel
from portal.ops.repository.access_log import Observer, Witness
from portal.ops.repository.repository import Repository
from portal.ops.restore.config import RestoreConfig, RestoreResult, RestoreScope
from portal.ops.restore.context import Confirm, RestoreContext
from portal.ops.restore.database.model import RestoreMode
from portal.ops.restore.plan import RestorePlan
from portal.ops.restore.restoration import Restoration, RestoreRequest, verify_job
from portal.ops.restore.rollback import Rollback
from portal.ops.restore.select_archive import name_of
from portal.ops.runtime.environment import current_settings
from portal.ops.runtime.process import ProcessRunner, SystemRunner
from portal.ops.runtime.progress import Clock, PathLike, Progress, utc_now

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

__all__ = [
    "RestoreConfig",
    "RestoreJob",
    "RestoreMode",
    "RestorePlan",
    "RestoreResult",
    "RestoreScope",
    "create_restore_job",
]


class HasRepository(Protocol):
    """Something with a repository, such as a `BackupJob`."""

    repository: Repository


class RestoreJob:
    """Restores, and takes restores back.

    Arguments:
        config: where to, and how.
        backup_job: whose repository archives are looked for in; by default that of `config`.
        confirm: shown the plan before anything is touched, and says whether to go on; without it nobody is asked.
        runner: what starts pg_restore.
        clock: what time it is.
        progress: told how far a restore is.
        actor: who asked for it, for the access log; the user of this process by default.
        observer: told of everything that was done, once it has ended.
    """

    def __init__(
        self,
        config: RestoreConfig,
        backup_job: HasRepository | None = None,
        *,
        confirm: Confirm | None = None,
        runner: ProcessRunner | None = None,
        clock: Clock = utc_now,
        progress: Progress | None = None,
        actor: str | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.config = config
        path = Path(config.local_path) if backup_job is None else backup_job.repository.path
        self.repository = Repository(path, lock_timeout=config.lock_timeout)
        self._context = RestoreContext(
            config=config,
            repository=self.repository,
            witness=Witness(repository=self.repository, who=actor, clock=clock, observer=observer),
            confirm=confirm,
            runner=runner or SystemRunner(),
            clock=clock,
            progress=progress,
        )

    def restore_full(
        self, path: PathLike, *, moment: datetime | None = None, request_id: str | None = None
    ) -> RestoreResult:
        """Restore everything that an archive holds and this configuration has a place for.

        Arguments:
            path: the archive's path, its id or the start of one, or ``latest``.
            moment: when it was asked for; now by default.
            request_id: what asked for it; the restore's id is made of this and the moment.
        """
        return self._run(RestoreScope.FULL, path, moment, request_id)

    def restore_database(
        self, path: PathLike, *, moment: datetime | None = None, request_id: str | None = None
    ) -> RestoreResult:
        """Restore the database alone; see `restore_full`."""
        return self._run(RestoreScope.DATABASE, path, moment, request_id)

    def restore_media(
        self, path: PathLike, *, moment: datetime | None = None, request_id: str | None = None
    ) -> RestoreResult:
        """Restore the uploads alone; see `restore_full`."""
        return self._run(RestoreScope.MEDIA, path, moment, request_id)

    def restore_audit_logs(
        self, path: PathLike, *, moment: datetime | None = None, request_id: str | None = None
    ) -> RestoreResult:
        """Restore the audit log alone, beside the live one; see `restore_full`."""
        return self._run(RestoreScope.AUDIT_LOGS, path, moment, request_id)

    def restore_at(
        self,
        at: str,
        *,
        scope: RestoreScope = RestoreScope.FULL,
        moment: datetime | None = None,
        request_id: str | None = None,
    ) -> RestoreResult:
        """Restore the database and the uploads as they were at a moment.

        Arguments:
            at: the moment, such as ``2026-11-28 14:03:07+00:00``, ``10 minutes ago`` or ``latest``.
            scope: both, or one of them alone.
            moment: when it was asked for, which ``… ago`` counts from; with `request_id` as for `restore_full`.
        """
        return self._run(scope, at, moment, request_id, is_moment=True)

    def validate_backup(self, path: PathLike) -> tuple[bool, dict[str, Any]]:
        """True if an archive by itself could be restored, and the findings.

        Returns:
            the manifest's keys beside those of a verification; an ``error`` where it is not intact.
        """
        try:
            archive = self.repository.find(path)
            (found,) = verify_job(self._context).examine([archive.path], VerifyLevel.CONTENTS)
        except OpsError as error:
            return False, {"error": str(error), "components": []}
        manifest = json.loads(found.manifest.encode()) if found.manifest else {"components": []}
        named = {"backup_id": name_of(archive, found.manifest)} if found.manifest else {}
        fault = {} if found.intact else {"error": found.message}
        return found.intact, {**manifest, **found.to_dict(), **named, **fault}

    def earlier(self, *, moment: datetime, request_id: str) -> RestoreResult | None:
        """The result of an earlier delivery of the same request, if its restore was finished.

        Raises:
            OpsError: the records of restores cannot be read.
        """
        return Restoration(self._context).earlier(moment=moment, request_id=request_id)

    def earlier_rollback(self, restore_id: str) -> RestoreResult | None:
        """The result of a rollback that was made before, if that restore was rolled back.

        Raises:
            OpsError: the records of restores cannot be read.
        """
        return Rollback(self._context).earlier(restore_id)

    def recover(self) -> tuple[str, ...]:
        """Finish or undo the restores that were interrupted; what was done, in words.

        Raises:
            BusyError: a restore is running.
            OpsError: the records of restores cannot be read.
        """
        history = self._context.history
        if not history.to_recover():
            return ()
        with self._context.records.locked():
            return history.recover()[0]

    def plan_rollback(self, restore_id: str | None = None) -> tuple[str, RestorePlan]:
        """Which restore would be rolled back, by default the last one, and the plan for a person; touches nothing.

        Raises:
            RestoreError: there is none, or it cannot be rolled back.
        """
        return Rollback(self._context).plan(restore_id)

    def rollback(self, restore_id: str | None = None, *, is_repeated: bool = False) -> RestoreResult:
        """Take a restore back.

        Arguments:
            restore_id: which one; the last one by default.
            is_repeated: the same was asked for before and was interrupted, so it may have been done.
        """
        return Rollback(self._context).run(restore_id, is_repeated=is_repeated)

    def discard(self, restore_id: str) -> RestoreResult:
        """Discard the rollback data of a restore: the old database, the old files, and the record of it.

        A restore that was interrupted, and cannot be finished, is given up: what can be undone of it is undone.
        """
        return Rollback(self._context).discard(restore_id)

    def discard_old(self) -> tuple[str, ...]:
        """Discard rollback data that is older than `rollback_days`; what was done, in words.

        Raises:
            OpsError: a restore is running, or the records cannot be read.
        """
        return Rollback(self._context).discard_old()

    def list_restores(self) -> list[dict[str, Any]]:
        """Every restore that something is kept of, also one that was interrupted, newest first; no server is asked.

        Raises:
            RestoreError: the record of one is invalid.
            RepositoryError: they cannot be read.
        """
        return self._context.history.listed()

    def _run(
        self,
        scope: RestoreScope,
        path: PathLike,
        moment: datetime | None,
        request_id: str | None,
        *,
        is_moment: bool = False,
    ) -> RestoreResult:
        request = RestoreRequest(scope=scope, path=path, is_moment=is_moment, moment=moment, request_id=request_id)
        return Restoration(self._context).run(request)


def create_restore_job(
    db_host: str | None = None,
    db_name: str | None = None,
    media_path: PathLike | None = None,
    dry_run: bool = False,
    backup_job: HasRepository | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    **others: Any,
) -> RestoreJob:
    """A job as the environment describes it; what is given here wins over the environment.

    Arguments:
        environ: the variables to read instead of the process's own.
        others: any other argument of `RestoreConfig`.

    Raises:
        ConfigurationError: the environment or an argument is invalid.
    """
    config = RestoreConfig.from_settings(current_settings(environ))
    given = {"db_host": db_host, "db_name": db_name, "media_path": media_path, **others}
    chosen = {name: value for name, value in given.items() if value is not None}
    return RestoreJob(replace(config, dry_run=dry_run, **chosen), backup_job)
