"""Backups."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from portal.ops.backup.config import BackupConfig
from portal.ops.backup.job import BackupJob
from portal.ops.model import BackupType, timestamp
from portal.ops.runtime.progress import utc_now
from worker.arguments import BackupArguments, MediaArguments
from worker.errors import RefusedError
from worker.execution import Outcome, TaskRequest

_CLOCKS_DIFFER: Final = timedelta(minutes=5)


def back_up(request: TaskRequest) -> Outcome:
    """Make the archive of the operation's type."""
    arguments = request.operation.arguments.of(request.given)
    assert isinstance(arguments, BackupArguments)
    moment = arguments.when()
    if moment > utc_now() + _CLOCKS_DIFFER:
        raise RefusedError(
            f"a backup for {timestamp(moment)}, which is to come, would be the newest until then",
            hint="Look at the clock of the machine that asked for it.",
        )
    job = BackupJob(BackupConfig.from_settings(request.settings), progress=request.progress, **request.known(arguments))
    if isinstance(arguments, MediaArguments):
        result = job.backup_media(
            incremental=arguments.incremental,
            changed=arguments.changed,
            moment=moment,
            request_id=request.task_id,
        )
    elif request.operation.backup_type is BackupType.FULL:
        result = job.backup_full(moment=moment, request_id=request.task_id)
    elif request.operation.backup_type is BackupType.BASE:
        result = job.backup_base(moment=moment, request_id=request.task_id)
    else:
        result = job.backup_database(moment=moment, request_id=request.task_id)
    return Outcome.of(result)
