"""Verifications."""

from __future__ import annotations

from portal.ops.backup.config import BackupConfig
from portal.ops.backup.job import BackupJob
from portal.ops.model import VerifyLevel
from worker.arguments import VerifyArguments, word
from worker.errors import EXIT_CODE
from worker.execution import Outcome, TaskRequest
from worker.handlers.offsite import archive_at_hand


def verify(request: TaskRequest) -> Outcome:
    """Verify an archive to the requested level."""
    arguments = VerifyArguments.of(request.given)
    archive = archive_at_hand(request, arguments, arguments.archive)
    job = BackupJob(BackupConfig.from_settings(request.settings), progress=request.progress, **request.known(arguments))
    found = job.verify(archive, word(VerifyLevel, arguments.level))
    return Outcome(result=found.to_dict() | {EXIT_CODE: 0 if found.intact else 4}, success=found.intact)
