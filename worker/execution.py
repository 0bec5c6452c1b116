"""Executes one delivery of a task: calls the operation's function, and turns expected errors into an outcome."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from portal.ops.errors import OpsError, RepositoryError
from portal.ops.limits import limit_hint, system_errors
from portal.ops.model import BackupId
from portal.ops.monitoring.observer import Observers
from portal.ops.repository.access_log import Outcome as AccessOutcome
from portal.ops.repository.access_log import Witness
from portal.ops.repository.repository import Repository
from portal.ops.units import printable, system_reason
from worker.arguments import RequestArguments
from worker.errors import EXIT_CODE, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime
    from pathlib import Path

    from portal.ops.backup.config import BackupResult
    from portal.ops.repository.access_log import Observer
    from portal.ops.restore.config import RestoreResult
    from portal.ops.runtime.progress import Progress
    from portal.ops.settings.load import Settings
    from worker.arguments import Arguments
    from worker.operations import Operation, Requester


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    """One delivery of a task.

    Arguments:
        operation: the requested operation.
        task_id: the task's id, the same for every delivery.
        given: the arguments as received.
        requester: the kind of requester that signed it.
        signed_at: when it was signed.
        attempt: the number of starts, including this one.
        settings: the settings of this process.
        progress: receives progress reports.
        observer: receives the results of its operations.
    """

    operation: Operation
    task_id: str
    given: Mapping[str, Any]
    requester: Requester
    signed_at: datetime
    attempt: int
    settings: Settings
    progress: Progress
    observer: Observer

    @property
    def repository(self) -> Path:
        """The directory of the archives."""
        return self.settings.local_path

    def known(self, arguments: Arguments) -> dict[str, Any]:
        """The common arguments of every job: the actor and the observer."""
        return {"actor": arguments.actor, "observer": self.observer}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a task.

    Arguments:
        result: the output of the engine's `to_dict`, with the exit code for a command.
        success: whether the operation succeeded.
        retryable: whether another start may succeed.
        is_new: whether it was done now, and not by an earlier delivery.
        fault: the error if the engine returned no result; the caller then has to record it.
    """

    result: dict[str, Any]
    success: bool
    retryable: bool = False
    is_new: bool = True
    fault: OpsError | None = None

    @classmethod
    def of(cls, result: BackupResult | RestoreResult) -> Outcome:
        """The outcome of a job with a result."""
        retryable = not result.success and getattr(result, "retryable", False)
        exit_code = {EXIT_CODE: result.exit_code}
        return cls(result=result.to_dict() | exit_code, success=result.success, retryable=retryable)

    @classmethod
    def of_error(cls, error: OpsError) -> Outcome:
        """The outcome if no job was run, or none returned a result."""
        result = {"success": False, "error": str(error), EXIT_CODE: error.exit_code}
        return cls(result=result, success=False, retryable=error.retryable, fault=error)


def write_down(
    settings: Settings, operation: Operation, task_id: str, given: Mapping[str, Any], error: OpsError
) -> None:
    """Record a task that the engine did not record in the access log, and inform observers; pings are not logged.

    The task's own data has not been checked; it is logged as printable text.

    Arguments:
        error: why it was not done or not finished.
    """
    if operation.action is None:
        return
    actor, subject = given.get("actor"), given.get("archive", given.get("restore_id", task_id))
    if operation.backup_type:
        with suppress(RefusedError):
            moment = RequestArguments.of({"moment": given.get("moment")}).when()
            subject = str(BackupId.of(operation.backup_type, moment, task_id))
    repository = Repository(settings.local_path, lock_timeout=settings.lock_timeout)
    witness = Witness(
        repository=repository,
        who=printable(actor) if isinstance(actor, str) else None,
        observer=Observers(settings),
    )
    witness.saw(
        operation.action,
        printable(str(subject)),
        AccessOutcome.of(error.exit_code),
        task_id=printable(task_id),
        dry_run=given.get("dry_run") is True or None,
        error=str(OpsError(printable(error.message), hint=error.hint)),
    )


def carry_out(request: TaskRequest) -> Outcome:
    """Execute a task; expected errors become outcomes."""
    try:
        handle: Callable[[TaskRequest], Outcome] = resolve_name(request.operation.handler)
        with system_errors():
            return handle(request)
    except OpsError as error:
        return Outcome.of_error(error)
    except OSError as error:
        return Outcome.of_error(unusable(error))


def unusable(error: OSError) -> OpsError:
    """The error for a repository that the worker cannot use."""
    where = f" ({error.filename})" if error.filename else ""
    return RepositoryError(
        f"the repository cannot be used: {system_reason(error)}{where}",
        hint=limit_hint(error) or "Look at BACKUP_LOCAL_PATH, its disk and its owner, as the worker sees them.",
    )
