"""Carries out one delivery of a task: finds the operation's function, and makes every foreseen fault an outcome."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from portal.ops.errors import OpsError, RepositoryError
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
        operation: what is to be done.
        task_id: of the request; the same for every delivery of it.
        given: the arguments as they came.
        requester: who has signed it.
        signed_at: when.
        attempt: how often it was begun, this time included.
        settings: of this process.
        progress: told how far it is.
        observer: told how what it does has ended.
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
        result: what the engine's `to_dict` gave, and the exit code that a command should end with.
        success: whether it did what was asked.
        retryable: whether it may succeed if it is begun again.
        is_new: whether it was done now, and is not what an earlier delivery has done.
        fault: what kept it from a result of the engine's; whoever was told of nothing has to write that down.
    """

    result: dict[str, Any]
    success: bool
    retryable: bool = False
    is_new: bool = True
    fault: OpsError | None = None

    @classmethod
    def of(cls, result: BackupResult | RestoreResult) -> Outcome:
        """The outcome of a job."""
        retryable = not result.success and getattr(result, "retryable", False)
        exit_code = {EXIT_CODE: result.exit_code}
        return cls(result=result.to_dict() | exit_code, success=result.success, retryable=retryable)

    @classmethod
    def of_error(cls, error: OpsError) -> Outcome:
        """The outcome where there was no job, or none that gave a result."""
        result = {"success": False, "error": str(error), EXIT_CODE: error.exit_code}
        return cls(result=result, success=False, retryable=error.retryable, fault=error)


def write_down(
    settings: Settings, operation: Operation, task_id: str, given: Mapping[str, Any], error: OpsError
) -> None:
    """Put a task that the engine knows nothing of into the access log, and tell the observers; pings are not logged.

    What the task says of itself has not been checked: it is logged as far as a line can show it.

    Arguments:
        error: why it was not done, or not ended.
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
    """Do what a task is there for; every fault that was foreseen becomes an outcome."""
    try:
        handle: Callable[[TaskRequest], Outcome] = resolve_name(request.operation.handler)
        return handle(request)
    except OpsError as error:
        return Outcome.of_error(error)
    except OSError as error:
        return Outcome.of_error(unusable(error))


def unusable(error: OSError) -> OpsError:
    """The error for a repository that a worker cannot use."""
    return RepositoryError(
        f"the repository cannot be used: {system_reason(error)} ({error.filename})",
        hint="Look at BACKUP_LOCAL_PATH, its disk and its owner, as the worker sees them.",
    )
