"""Verifications."""

from __future__ import annotations

from portal.ops.backup.config import BackupConfig
from portal.ops.backup.job import BackupJob
from portal.ops.model import VerifyLevel
from worker.allowed_paths import check_archive
from worker.arguments import VerifyArguments, word
from worker.errors import EXIT_CODE
from worker.execution import Outcome, TaskRequest


def verify(request: TaskRequest) -> Outcome:
    """Verify an archive as closely as asked."""
    arguments = VerifyArguments.of(request.given)
    check_archive(arguments.archive, request.repository, request.settings.worker.allowed_paths)
    job = BackupJob(BackupConfig.from_settings(request.settings), progress=request.progress, **request.known(arguments))
    found = job.verify(arguments.archive, word(VerifyLevel, arguments.level))
    return Outcome(result=found.to_dict() | {EXIT_CODE: 0 if found.intact else 4}, success=found.intact)
