"""Drills."""

from __future__ import annotations

from portal.ops.drill.job import DrillJob
from portal.ops.drill.portal_checks import PortalCheckConfig
from portal.ops.restore.config import RestoreConfig
from worker.allowed_paths import check_archive
from worker.arguments import DrillArguments
from worker.errors import EXIT_CODE
from worker.execution import Outcome, TaskRequest


def drill(request: TaskRequest) -> Outcome:
    """Restore an archive to a scratch place and compare."""
    arguments = DrillArguments.of(request.given)
    check_archive(arguments.archive, request.repository, request.settings.worker.allowed_paths)
    config = RestoreConfig.from_settings(request.settings)
    checks = PortalCheckConfig.from_settings(request.settings)
    job = DrillJob(config, checks=checks, progress=request.progress, **request.known(arguments))
    report = job.run(arguments.archive)
    return Outcome(result=report.to_dict() | {EXIT_CODE: report.exit_code}, success=report.success)
