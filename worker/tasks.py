"""The Celery tasks: each takes JSON arguments, runs one operation of the engine, and returns its result.

Every delivery goes through the same steps: wait for other deliveries, look for an existing result, check the number of
starts, run, and retry if that may help. Failure of the operation is a failure of the task.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from billiard.exceptions import SoftTimeLimitExceeded
from celery import shared_task, states

from portal.ops.errors import OpsError
from portal.ops.monitoring.observer import Observers
from portal.ops.runtime.environment import current_settings
from portal.ops.runtime.event_log import structlog
from portal.ops.runtime.logs import engine_log
from portal.ops.units import duration
from worker.authorization import Authorizations
from worker.client import Client
from worker.delivery import sole_delivery
from worker.errors import OperationFailedError, too_slow
from worker.execution import Outcome, TaskRequest, carry_out, unusable, write_down
from worker.keys import TaskKeys
from worker.operations import OFFSITE_COPY, OPERATIONS, Requester
from worker.progress import Reporter
from worker.signing import HEADER, is_signed_result, sign_result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from celery import Task

    from portal.ops.repository.access_log import AccessEntry
    from portal.ops.settings.load import Settings
    from worker.operations import Operation

log = engine_log("worker.tasks")

_FIRST_PAUSE_SECONDS: Final = 2.0
_PAUSE_GROWTH: Final = 4.0


def _perform(task: Task, operation: Operation, given: Mapping[str, Any]) -> dict[str, Any]:
    """One delivery of a task, from the queue to its result.

    Raises:
        OperationFailedError: the operation failed.
    """
    started = time.monotonic()
    outcome = _deliver(task, operation, given)
    if outcome.is_new:
        _tell_end(operation, outcome, time.monotonic() - started)
        if operation.backup_type is not None and outcome.success:
            _request_copy(outcome.result)
    result = _signed(task.request.id, outcome)
    if not outcome.success:
        raise OperationFailedError(result)
    return result


def _signed(task_id: str, outcome: Outcome) -> dict[str, Any]:
    """The result with its signature, or without one if the repository itself has failed."""
    try:
        key = TaskKeys(current_settings().local_path).current()
    except OpsError as error:
        log.error("result_unsigned", error=str(error))
        return outcome.result
    return sign_result(key, task_id, outcome.result, success=outcome.success)


def _tell_end(operation: Operation, outcome: Outcome, seconds: float) -> None:
    """Log how a task ended, except for successful pings."""
    if outcome.success and operation.is_shown:
        log.info("task_ended", success=True, seconds=round(seconds, 3))
    elif not outcome.success:
        log.error("task_ended", success=False, seconds=round(seconds, 3), error=outcome.result.get("error"))


def _request_copy(result: Mapping[str, Any]) -> None:
    """Request an off-site copy of a new archive, on its own queue; if that fails, beat makes up for it."""
    try:
        settings = current_settings()
        if settings.offsite.destinations() and not result.get("unchanged"):
            Client(settings, Requester.WORKER).submit(
                OFFSITE_COPY, {"actor": "worker"}, f"offsite-{result['backup_id']}"
            )
    except (OpsError, OSError) as error:
        log.warning("offsite_copy_not_requested", error=str(error))


def _is_redelivered(task: Task) -> bool:
    return bool((task.request.delivery_info or {}).get("redelivered"))


def _earlier(task: Task, keys: TaskKeys) -> Outcome | None:
    """The result of an earlier delivery, which was interrupted before it could acknowledge its message.

    A failure counts only for a redelivery: sending a task a second time means trying it again. Unsigned results do not
    count (see `results`), and a success only while the repository has the archive it names.
    """
    meta = task.backend.get_task_meta(task.request.id, cache=False)
    success = meta["status"] == states.SUCCESS
    result = meta["result"].result if isinstance(meta["result"], OperationFailedError) else meta["result"]
    if not success and not (_is_redelivered(task) and meta["status"] == states.FAILURE):
        return None
    if not is_signed_result(task.request.id, result, keys.named, success=success):
        log.warning("result_rejected", status=meta["status"])
        return None
    if success and not _still_holds(result):
        task.backend.forget(task.request.id)  # Celery never replaces a success
        return None
    log.info("result_found")
    return Outcome(result=result, success=success, is_new=False)


def _still_holds(result: Mapping[str, Any]) -> bool:
    """True if the archive in a result exists; it may have been removed, and another one wanted."""
    return not result.get("path") or os.path.exists(result["path"])


def _deliver(task: Task, operation: Operation, given: Mapping[str, Any]) -> Outcome:
    """Run the task exclusively; every error becomes an outcome."""
    settings: Settings | None = None
    try:
        settings = current_settings()
        with sole_delivery(settings.local_path, task.request.id, settings.worker.task_timeout) as attempt:
            structlog.contextvars.bind_contextvars(attempt=attempt)
            if earlier := _earlier(task, TaskKeys(settings.local_path)):
                return earlier
            if operation.is_shown:
                log.info("task_begun", is_redelivered=_is_redelivered(task))
            if attempt > settings.worker.attempts:
                given_up = _given_up(operation, settings.worker.attempts)
                Authorizations(settings.local_path).use_up(task.request.id)
                write_down(settings, operation, task.request.id, given, given_up)
                return Outcome.of_error(given_up)
            return _try(task, operation, given, settings, attempt)
    except SoftTimeLimitExceeded:
        return Outcome.of_error(too_slow(operation.name, "ended; nothing of it is left"))
    except OpsError as error:  # no delivery was begun; errors within one are outcomes already
        if settings:
            write_down(settings, operation, task.request.id, given, error)
        return Outcome.of_error(error)
    except OSError as error:
        return Outcome.of_error(unusable(error))


def _try(task: Task, operation: Operation, given: Mapping[str, Any], settings: Settings, attempt: int) -> Outcome:
    """Run the task, and retry after a pause if that may help. Only the last outcome is reported to people.

    Results that the engine has not recorded, such as refusals, are recorded here.
    """
    pause = _FIRST_PAUSE_SECONDS
    signature = task.request.get(HEADER)  # verified by the gate
    with Reporter(task) as progress, _told_at_the_end(settings) as heard:
        request = TaskRequest(
            operation=operation,
            task_id=task.request.id,
            given=given,
            requester=Requester(signature["requester"]),
            signed_at=datetime.fromisoformat(signature["at"]),
            attempt=attempt,
            settings=settings,
            progress=progress,
            observer=heard.append,
        )
        for left in reversed(range(settings.worker.attempts)):
            heard.clear()
            outcome = carry_out(request)
            if outcome.success or not outcome.retryable or not left:
                break
            log.warning("task_postponed", seconds=pause, error=outcome.result.get("error"))
            progress.wait(f"waiting {duration(pause)} to try again")
            time.sleep(pause)
            pause *= _PAUSE_GROWTH
        if outcome.fault and not heard:
            write_down(settings, operation, task.request.id, given, outcome.fault)
    return outcome


@contextmanager
def _told_at_the_end(settings: Settings) -> Iterator[list[AccessEntry]]:
    """Send the collected reports at the end, unless the process has to end and the task will be started again."""
    heard: list[AccessEntry] = []
    try:
        yield heard
    except (SystemExit, KeyboardInterrupt):
        heard.clear()
        raise
    finally:
        tell = Observers(settings)
        for entry in heard:
            tell(entry)
        tell.settle()


def _given_up(operation: Operation, attempts: int) -> OpsError:
    return OpsError(
        f"{operation.name} was begun {attempts} times, and each time the process that did it was killed",
        hint="Look for 'out of memory' in the system's log (dmesg) and at the worker's log; then start it again.",
    )


def _make(operation: Operation) -> Task:
    def run(self: Task, **given: Any) -> dict[str, Any]:
        return _perform(self, operation, given)

    run.__doc__ = f"{operation.description}."
    run.__name__ = operation.name.replace(".", "_")
    decorate: Callable[..., Task] = shared_task(
        bind=True,
        name=operation.name,
        typing=False,
        throws=(OperationFailedError,),
        send_events=operation.is_shown,  # Flower shows readable arguments
    )
    return decorate(run)


TASKS: Final = {operation.name: _make(operation) for operation in OPERATIONS.values()}
