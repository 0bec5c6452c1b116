"""What the tasks do: one engine call each, with what it needs made from settings and arguments."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from portal.ops.backup.config import BackupConfig
from portal.ops.backup.job import BackupJob
from portal.ops.drill.job import DrillJob
from portal.ops.errors import ConfigurationError, OpsError, RepositoryError
from portal.ops.model import BackupId, BackupType, VerifyLevel, timestamp
from portal.ops.monitoring.observer import Aftermath
from portal.ops.repository.access_log import Action, Witness
from portal.ops.repository.access_log import Outcome as AccessOutcome
from portal.ops.repository.repository import Repository
from portal.ops.restore.config import RestoreConfig, RestoreResult, RestoreScope
from portal.ops.restore.job import RestoreJob
from portal.ops.retention.prune import PruneJob
from portal.ops.runtime.progress import utc_now
from worker.arguments import (
    Arguments,
    BackupArguments,
    DrillArguments,
    PruneArguments,
    RestoreArguments,
    RollbackArguments,
    VerifyArguments,
    check_archive,
    check_place,
)
from worker.authorization import Permits
from worker.errors import EXIT_CODE, RefusedError
from worker.names import TaskName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from enum import StrEnum
    from pathlib import Path

    from portal.ops.backup.config import BackupResult
    from portal.ops.repository.access_log import Observer
    from portal.ops.runtime.progress import Progress
    from portal.ops.settings.load import Settings


_CLOCKS_DIFFER: Final = timedelta(minutes=5)
_MOST_NAMES: Final = 1000
"""So many names of archives that were removed are in a result at the most; the access log has all."""

_MOST_SHOWN: Final = 500
"""So many characters of what a task says of itself are in the access log."""

Word = TypeVar("Word", bound="StrEnum")


@dataclass(frozen=True, kw_only=True)
class Order:
    """One delivery of a task.

    Arguments:
        task: which task.
        task_id: of the request; the same for every delivery of it.
        given: the arguments as they came.
        attempt: how often it was begun, this time included.
        settings: of this process.
        progress: told how far it is.
        observer: told how what it does has ended.
    """

    task: TaskName
    task_id: str
    given: Mapping[str, Any]
    attempt: int
    settings: Settings
    progress: Progress
    observer: Observer

    @property
    def repository(self) -> Path:
        """The directory of the archives."""
        return self.settings.local_path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a task ended.

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


def write_down(settings: Settings, task: TaskName, task_id: str, given: Mapping[str, Any], error: OpsError) -> None:
    """Put a task that the engine knows nothing of into the access log, and tell those who are told; a ping is no deed.

    What the task says of itself has not been checked: it is taken down as it is, as far as a line can show it.

    Arguments:
        error: why it was not done, or not ended.
    """
    action = _ACTIONS.get(task)
    if action is None:
        return
    actor, subject = given.get("actor"), given.get("archive", given.get("restore_id", task_id))
    if task in _TYPES:
        with suppress(RefusedError):
            subject = str(BackupId.of(_TYPES[task], BackupArguments.of(given).when(), task_id))
    repository = Repository(settings.local_path, lock_timeout=settings.lock_timeout)
    witness = Witness(
        repository=repository, who=_shown(actor) if isinstance(actor, str) else None, observer=Aftermath(settings)
    )
    witness.saw(
        action,
        _shown(str(subject)),
        AccessOutcome.of(error.exit_code),
        task_id=_shown(task_id),
        dry_run=given.get("dry_run") is True or None,
        error=str(OpsError(_shown(error.message), hint=error.hint)),
    )


def _shown(text: str) -> str:
    """The text without what could pass for something else in a list: ends of lines, and what moves a cursor."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text[:_MOST_SHOWN])


def carry_out(order: Order) -> Outcome:
    """Do what a task is there for; every fault that was foreseen becomes an outcome."""
    try:
        return _OPERATIONS[order.task](order)
    except OpsError as error:
        return Outcome.of_error(error)
    except OSError as error:
        return Outcome.of_error(unusable(error))


def unusable(error: OSError) -> OpsError:
    """What keeps a worker from its repository, as an error of ours."""
    return RepositoryError(
        f"the repository cannot be used: {error.strerror} ({error.filename})",
        hint="Look at BACKUP_LOCAL_PATH, its disk and its owner, as the worker sees them.",
    )


def _back_up(order: Order) -> Outcome:
    arguments = BackupArguments.of(order.given)
    job = BackupJob(BackupConfig.from_settings(order.settings), progress=order.progress, **_known(order, arguments))
    if order.task is TaskName.BACKUP_MEDIA:
        back_up = partial(job.backup_media, incremental=arguments.incremental, changed=arguments.changed)
    else:
        back_up = partial(job.backup_full if order.task is TaskName.BACKUP_FULL else job.backup_database)
    moment = arguments.when()
    if moment > utc_now() + _CLOCKS_DIFFER:
        raise RefusedError(
            f"a backup for {timestamp(moment)}, which is to come, would be the newest until then",
            hint="Look at the clock of the machine that asked for it.",
        )
    return Outcome.of(back_up(moment=moment, request_id=order.task_id))


def _verify(order: Order) -> Outcome:
    arguments = VerifyArguments.of(order.given)
    check_archive(arguments.archive, order.repository, order.settings.worker.allowed_paths)
    job = BackupJob(BackupConfig.from_settings(order.settings), progress=order.progress, **_known(order, arguments))
    found = job.verify(arguments.archive, _word(VerifyLevel, arguments.level))
    return Outcome(result=found.to_dict() | {EXIT_CODE: 0 if found.intact else 4}, success=found.intact)


def _restore(order: Order) -> Outcome:
    arguments = RestoreArguments.of(order.given)
    settings, allowed = order.settings, order.settings.worker.allowed_paths
    check_archive(arguments.archive, order.repository, allowed)
    if arguments.media_dir is not None:
        uploads = (settings.upload_dir,) if settings.upload_dir else ()
        check_place(arguments.media_dir, (*uploads, *allowed))
    job = RestoreJob(
        RestoreConfig.from_settings(settings, **_options(arguments)),
        progress=order.progress,
        **_known(order, arguments),
    )
    if arguments.dry_run:
        return Outcome.of(_restore_scope(job, order, arguments))
    if done := job.earlier(moment=arguments.when(), request_id=order.task_id):
        return Outcome.of(done)
    with _permitted(order):
        return Outcome.of(_restore_scope(job, order, arguments))


def _restore_scope(job: RestoreJob, order: Order, arguments: RestoreArguments) -> RestoreResult:
    restore = {
        RestoreScope.FULL: job.restore_full,
        RestoreScope.DATABASE: job.restore_database,
        RestoreScope.MEDIA: job.restore_media,
        RestoreScope.AUDIT_LOGS: job.restore_audit_logs,
    }[_word(RestoreScope, arguments.scope)]
    return restore(arguments.archive, moment=arguments.when(), request_id=order.task_id)


def _options(arguments: RestoreArguments) -> dict[str, Any]:
    """The arguments of `RestoreConfig` that a task has, beside those that the environment has."""
    given: dict[str, Any] = {
        "dry_run": arguments.dry_run,
        "mode": arguments.mode,
        "exact": arguments.exact,
        "patterns": arguments.patterns,
        "target_database": arguments.target_database,
        "create_database": arguments.create_database,
        "allow_unverified": arguments.allow_unverified,
        "allow_outside_links": arguments.allow_outside_links,
        "verify_before_restore": arguments.verify,
    }
    given |= {"media_path": arguments.media_dir} if arguments.media_dir is not None else {}
    return given | ({"jobs": arguments.jobs} if arguments.jobs is not None else {})


def _roll_back(order: Order) -> Outcome:
    arguments = RollbackArguments.of(order.given)
    job = RestoreJob(RestoreConfig.from_settings(order.settings), progress=order.progress, **_known(order, arguments))
    if done := job.earlier_rollback(arguments.restore_id):
        return Outcome.of(done)
    with _permitted(order):
        return Outcome.of(job.rollback(arguments.restore_id, is_repeated=True))


@contextmanager
def _permitted(order: Order) -> Iterator[None]:
    """Only with a permit, which is used up by any end but that of the process."""
    permits = Permits(order.repository)
    permits.take(order.task, order.task_id, order.given)
    try:
        yield
    except (SystemExit, KeyboardInterrupt):  # it goes back to the queue, and is begun again with the same permit
        raise
    except BaseException:
        permits.use_up(order.task_id)
        raise
    permits.use_up(order.task_id)


def _prune(order: Order) -> Outcome:
    arguments = PruneArguments.of(order.given)
    repository = Repository(order.repository, lock_timeout=order.settings.lock_timeout)
    policy = BackupConfig.from_settings(order.settings).retention
    result = PruneJob(repository, policy, **_known(order, arguments)).run(dry_run=arguments.dry_run)
    facts = result.to_dict() | {"removed": [decision.entry.name for decision in result.removed[:_MOST_NAMES]]}
    if result.success and not arguments.dry_run:
        job = RestoreJob(RestoreConfig.from_settings(order.settings), **_known(order, arguments))
        facts["restores_forgotten"] = list(job.forget_old())
    return Outcome(
        result=facts | {EXIT_CODE: result.exit_code}, success=result.success, retryable=_may_pass(result.fault)
    )


def _drill(order: Order) -> Outcome:
    arguments = DrillArguments.of(order.given)
    check_archive(arguments.archive, order.repository, order.settings.worker.allowed_paths)
    config = RestoreConfig.from_settings(order.settings)
    report = DrillJob(config, progress=order.progress, **_known(order, arguments)).run(arguments.archive)
    return Outcome(result=report.to_dict() | {EXIT_CODE: report.exit_code}, success=report.success)


def _known(order: Order, arguments: Arguments) -> dict[str, Any]:
    """Who asked for it, and who is told of the end."""
    return {"actor": arguments.actor, "observer": order.observer}


def _may_pass(fault: OpsError | None) -> bool:
    return fault is not None and fault.retryable


def _ping(order: Order) -> Outcome:
    Arguments.of(order.given)
    return Outcome(result={"success": True, "pid": os.getpid()}, success=True)


def _word(kind: type[Word], text: str) -> Word:
    try:
        return kind(text)
    except ValueError:
        raise ConfigurationError(
            f"{text!r} is none of {', '.join(kind)}", hint="Correct the task's argument."
        ) from None


_ACTIONS: Final = {
    TaskName.BACKUP_FULL: Action.BACKUP,
    TaskName.BACKUP_DATABASE: Action.BACKUP,
    TaskName.BACKUP_MEDIA: Action.BACKUP,
    TaskName.VERIFY_ARCHIVE: Action.VERIFY,
    TaskName.RESTORE_ARCHIVE: Action.RESTORE,
    TaskName.RESTORE_ROLLBACK: Action.ROLLBACK,
    TaskName.PRUNE_REPOSITORY: Action.PRUNE,
    TaskName.DRILL_RESTORE: Action.DRILL,
}
_TYPES: Final = {
    TaskName.BACKUP_FULL: BackupType.FULL,
    TaskName.BACKUP_DATABASE: BackupType.DATABASE,
    TaskName.BACKUP_MEDIA: BackupType.MEDIA,
}
_OPERATIONS: Final[Mapping[TaskName, Callable[[Order], Outcome]]] = {
    TaskName.BACKUP_FULL: _back_up,
    TaskName.BACKUP_DATABASE: _back_up,
    TaskName.BACKUP_MEDIA: _back_up,
    TaskName.VERIFY_ARCHIVE: _verify,
    TaskName.RESTORE_ARCHIVE: _restore,
    TaskName.RESTORE_ROLLBACK: _roll_back,
    TaskName.PRUNE_REPOSITORY: _prune,
    TaskName.DRILL_RESTORE: _drill,
    TaskName.PING: _ping,
}
