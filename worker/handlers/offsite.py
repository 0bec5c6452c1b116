"""Off-site copies, and fetching archives that a task names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from portal.ops.backup.aftercare import copy_job
from portal.ops.backup.config import BackupConfig
from portal.ops.model import VerifyLevel
from portal.ops.offsite.config import OffsiteConfig
from portal.ops.offsite.fetch import is_offsite
from portal.ops.offsite.local import local_archive
from portal.ops.offsite.prune import OffsitePruneJob, offsite_policy
from portal.ops.offsite.verify import OffsiteVerifyJob
from worker.allowed_paths import check_archive
from worker.arguments import OffsiteCopyArguments, OffsiteVerifyArguments, PruneArguments, word
from worker.errors import EXIT_CODE
from worker.execution import Outcome, TaskRequest

if TYPE_CHECKING:
    from worker.arguments import Arguments


def copy(request: TaskRequest) -> Outcome:
    """Copy everything missing, or one archive."""
    arguments = OffsiteCopyArguments.of(request.given)
    if arguments.archive is not None:
        check_archive(arguments.archive, request.repository, ())
    job = copy_job(request.settings, progress=request.progress, **request.known(arguments))
    result = job.run(arguments.archive, again=arguments.again)
    return Outcome(
        result=result.to_dict() | {EXIT_CODE: result.exit_code}, success=result.success, retryable=result.retryable
    )


def verify(request: TaskRequest) -> Outcome:
    """Verify the copies that are due, or one."""
    arguments = OffsiteVerifyArguments.of(request.given)
    config = OffsiteConfig.from_settings(request.settings)
    policy = offsite_policy(BackupConfig.from_settings(request.settings).retention, request.settings.offsite.rules)
    job = OffsiteVerifyJob(config, policy, progress=request.progress, **request.known(arguments))
    level = word(VerifyLevel, arguments.level)
    found = job.run(arguments.archive, level) if arguments.archive else job.run_rotation(level)
    retryable = any(fault.retryable for fault in found.faults)
    return Outcome(result=found.to_dict() | {EXIT_CODE: found.exit_code}, success=found.intact, retryable=retryable)


def prune(request: TaskRequest) -> Outcome:
    """Prune the copies."""
    arguments = PruneArguments.of(request.given)
    policy = BackupConfig.from_settings(request.settings).retention
    job = OffsitePruneJob(OffsiteConfig.from_settings(request.settings), policy, **request.known(arguments))
    result = job.run(dry_run=arguments.dry_run)
    return Outcome(
        result=result.to_dict() | {EXIT_CODE: result.exit_code}, success=result.success, retryable=result.retryable
    )


def archive_at_hand(request: TaskRequest, arguments: Arguments, archive: str) -> str:
    """The archive that a task names, fetched if the name requests that.

    Raises:
        RefusedError: it is the path of a file that no task may read.
        OpsError: fetching failed.
    """
    if is_offsite(archive):
        return local_archive(request.settings, archive, progress=request.progress, **request.known(arguments))
    check_archive(archive, request.repository, request.settings.worker.allowed_paths)
    return archive
