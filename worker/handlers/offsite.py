"""Off-site copies, and archives that are fetched because a task names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from portal.ops.backup.config import BackupConfig
from portal.ops.offsite.config import OffsiteConfig
from portal.ops.offsite.copy import CopyJob
from portal.ops.offsite.fetch import is_offsite
from portal.ops.offsite.local import local_archive
from worker.allowed_paths import check_archive
from worker.arguments import OffsiteCopyArguments
from worker.errors import EXIT_CODE
from worker.execution import Outcome, TaskRequest

if TYPE_CHECKING:
    from worker.arguments import Arguments


def copy(request: TaskRequest) -> Outcome:
    """Copy what is missing, or one archive."""
    arguments = OffsiteCopyArguments.of(request.given)
    if arguments.archive is not None:
        check_archive(arguments.archive, request.repository, ())
    policy = BackupConfig.from_settings(request.settings).retention
    job = CopyJob(
        OffsiteConfig.from_settings(request.settings), policy, progress=request.progress, **request.known(arguments)
    )
    result = job.run(arguments.archive, again=arguments.again)
    return Outcome(
        result=result.to_dict() | {EXIT_CODE: result.exit_code}, success=result.success, retryable=result.retryable
    )


def archive_at_hand(request: TaskRequest, arguments: Arguments, archive: str) -> str:
    """An archive that a task names, fetched where its name asks for that.

    Raises:
        RefusedError: it is a path that no task may read.
        OpsError: it could not be fetched.
    """
    if is_offsite(archive):
        return local_archive(request.settings, archive, progress=request.progress, **request.known(arguments))
    check_archive(archive, request.repository, request.settings.worker.allowed_paths)
    return archive
