"""Drills."""

from __future__ import annotations

from portal.ops.drill.job import DrillJob
from portal.ops.drill.portal_checks import PortalCheckConfig
from portal.ops.offsite.local import copy_for_drill, note_drill
from portal.ops.restore.config import RestoreConfig
from worker.arguments import DrillArguments
from worker.errors import EXIT_CODE
from worker.execution import Outcome, TaskRequest
from worker.handlers.offsite import archive_at_hand


def drill(request: TaskRequest) -> Outcome:
    """Run a drill with an archive."""
    arguments = DrillArguments.of(request.given)
    copy = copy_for_drill(request.settings, arguments.archive, progress=request.progress, **request.known(arguments))
    archive = str(copy.path) if copy else archive_at_hand(request, arguments, arguments.archive)
    config = RestoreConfig.from_settings(request.settings)
    checks = PortalCheckConfig.from_settings(request.settings)
    job = DrillJob(config, checks=checks, progress=request.progress, **request.known(arguments))
    report = job.run(archive)
    if copy:
        note_drill(request.settings, copy, success=report.is_as_backed_up)
    return Outcome(result=report.to_dict() | {EXIT_CODE: report.exit_code}, success=report.success)
