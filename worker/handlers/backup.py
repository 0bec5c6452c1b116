"""Backups."""

from __future__ import annotations

from dataclasses import replace

from portal.ops.backup.config import BackupConfig
from portal.ops.backup.job import BackupJob
from portal.ops.model import BackupType
from worker.arguments import BackupArguments, FullArguments, MediaArguments
from worker.execution import Outcome, TaskRequest
from worker.moments import check_moment


def back_up(request: TaskRequest) -> Outcome:
    """Make a backup of the operation's type."""
    arguments = request.operation.arguments.of(request.given)
    assert isinstance(arguments, BackupArguments)
    moment = arguments.when()
    check_moment(request.operation, moment, request.requester, request.signed_at, request.settings.schedules)
    config = replace(BackupConfig.from_settings(request.settings), confirm_loss=arguments.confirm_loss)
    job = BackupJob(config, progress=request.progress, **request.known(arguments))
    if isinstance(arguments, MediaArguments):
        result = job.backup_media(
            incremental=arguments.incremental,
            changed=arguments.changed,
            moment=moment,
            request_id=request.task_id,
        )
    elif isinstance(arguments, FullArguments):
        result = job.backup_full(complete=arguments.complete, moment=moment, request_id=request.task_id)
    elif request.operation.backup_type is BackupType.BASE:
        result = job.backup_base(moment=moment, request_id=request.task_id)
    else:
        result = job.backup_database(moment=moment, request_id=request.task_id)
    return Outcome.of(result)
