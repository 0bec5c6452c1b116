"""Restores the portal: the guide's Python API. `restoration`, `rollback` and `verify.job` do the work."""

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
    """Anything with a repository, such as a `BackupJob`."""

    repository: Repository


class RestoreJob:
    """Restores archives, and rolls restores back.

    Arguments:
        config: the targets and options.
        backup_job: its repository is used instead of that of `config`.
        confirm: receives the plan before anything is changed, and returns whether to continue; without it, nothing is
            asked.
        runner: starts pg_restore.
        clock: returns the current time.
        progress: receives progress reports.
        actor: the requester, for the access log; by default the user of this process.
        observer: receives every result.
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
        """Restore every component that the archive holds and the configuration has a target for.

        Arguments:
            path: the archive's path, its id or the start of one, or ``latest``.
            moment: the time of the request; now by default.
            request_id: identifies the request; the same id and moment give the same restore id.
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
        """Restore database and uploads as they were at a moment.

        Arguments:
            at: the moment, such as ``2026-11-28 14:03:07+00:00``, ``10 minutes ago`` or ``latest``.
            scope: both, or one of them.
            moment: the time of the request, from which ``… ago`` counts; with `request_id` as for `restore_full`.
        """
        return self._run(scope, at, moment, request_id, is_moment=True)

    def validate_backup(self, path: PathLike) -> tuple[bool, dict[str, Any]]:
        """Check an archive by itself; True if it could be restored, with the findings.

        Returns:
            the keys of the manifest and of a verification; and ``error`` if the archive is not intact.
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
        """The result of the same request, if an earlier delivery has finished its restore; otherwise None.

        Raises:
            OpsError: the records cannot be read.
        """
        return Restoration(self._context).earlier(moment=moment, request_id=request_id)

    def earlier_rollback(self, restore_id: str) -> RestoreResult | None:
        """The result of an earlier rollback of that restore, or None if it was not rolled back.

        Raises:
            OpsError: the records cannot be read.
        """
        return Rollback(self._context).earlier(restore_id)

    def recover(self) -> tuple[str, ...]:
        """Finish or undo interrupted restores; return one sentence for each.

        Raises:
            BusyError: a restore is running.
            OpsError: the records cannot be read.
        """
        history = self._context.history
        if not history.to_recover():
            return ()
        with self._context.records.locked():
            return history.recover()[0]

    def plan_rollback(self, restore_id: str | None = None) -> tuple[str, RestorePlan]:
        """The restore to be rolled back, by default the last one, and the plan for a person; changes nothing.

        Raises:
            RestoreError: there is none, or it cannot be rolled back.
        """
        return Rollback(self._context).plan(restore_id)

    def rollback(self, restore_id: str | None = None, *, is_repeated: bool = False) -> RestoreResult:
        """Roll a restore back.

        Arguments:
            restore_id: the restore; by default the last one.
            is_repeated: an interrupted delivery of the same request may have done it already.
        """
        return Rollback(self._context).run(restore_id, is_repeated=is_repeated)

    def discard(self, restore_id: str) -> RestoreResult:
        """Discard the rollback data of a restore: the previous database and files, and the record.

        A restore that was interrupted and cannot be finished is given up: whatever can be undone is undone.
        """
        return Rollback(self._context).discard(restore_id)

    def discard_old(self) -> tuple[str, ...]:
        """Discard rollback data older than `rollback_days`; return one sentence for each action.

        Raises:
            OpsError: a restore is running, or the records cannot be read.
        """
        return Rollback(self._context).discard_old()

    def list_restores(self) -> list[dict[str, Any]]:
        """Every restore with data left, interrupted ones too, newest first; no server is queried.

        Raises:
            RestoreError: a record is invalid.
            RepositoryError: the records cannot be read.
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
    """Make a job from the environment; arguments given here override it.

    Arguments:
        environ: replaces the environment of the process.
        others: other arguments of `RestoreConfig`.

    Raises:
        ConfigurationError: the environment or an argument is invalid.
    """
    config = RestoreConfig.from_settings(current_settings(environ))
    given = {"db_host": db_host, "db_name": db_name, "media_path": media_path, **others}
    chosen = {name: value for name, value in given.items() if value is not None}
    return RestoreJob(replace(config, dry_run=dry_run, **chosen), backup_job)
