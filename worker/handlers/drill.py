"""Drills."""

from __future__ import annotations

from portal.ops.drill.job import DrillJob
from portal.ops.drill.portal_checks import PortalCheckConfig
from portal.ops.offsite.local import note_drill
from portal.ops.restore.config import RestoreConfig
from worker.arguments import DrillArguments
from worker.errors import EXIT_CODE
from worker.execution import Outcome, TaskRequest
from worker.handlers.offsite import archive_at_hand


def drill(request: TaskRequest) -> Outcome:
    """Restore an archive to a scratch place and compare."""
    arguments = DrillArguments.of(request.given)
    archive = archive_at_hand(request, arguments, arguments.archive)
    config = RestoreConfig.from_settings(request.settings)
    checks = PortalCheckConfig.from_settings(request.settings)
    job = DrillJob(config, checks=checks, progress=request.progress, **request.known(arguments))
    report = job.run(archive)
    note_drill(request.settings, arguments.archive, success=report.success, backup_id=report.backup_id)
    return Outcome(result=report.to_dict() | {EXIT_CODE: report.exit_code}, success=report.success)
