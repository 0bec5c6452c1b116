"""Recovers the work of dead processes, when a worker starts and regularly after that.

A message whose process was killed would only return after its visibility timeout, which is hours. The lock of its
delivery shows at once that no process works on it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from celery import states
from celery.exceptions import TimeLimitExceeded
from celery.signals import task_failure, worker_ready, worker_shutting_down
from kombu.exceptions import OperationalError
from redis import RedisError

from portal.ops.drill.job import DrillJob
from portal.ops.errors import OpsError
from portal.ops.repository.repository import Repository
from portal.ops.restore.config import RestoreConfig
from portal.ops.restore.job import RestoreJob
from portal.ops.restore.journal import RestoreRecords
from portal.ops.runtime.environment import current_settings
from portal.ops.runtime.logs import configure_logging, engine_log
from portal.ops.units import printable
from worker.application import make_app
from worker.authorization import Authorizations
from worker.command_lines import show_commands
from worker.configuration import RESULT_SECONDS
from worker.delivery import TASK_ID, forget_old, is_abandoned, is_begun, sole_delivery
from worker.errors import OperationFailedError, too_slow
from worker.execution import Outcome, write_down
from worker.gate import Gate
from worker.operations import OPERATIONS, Queue
from worker.signing import sign_result
from worker.transport import taken_message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from celery import Celery, Task

    from portal.ops.settings.load import Settings
    from worker.celery_internals import Application
    from worker.operations import Operation

log = engine_log("worker.recovery")

_OURS: Final = (b"celeryev", b"celery.pidbox", b"reply.celery.pidbox", *(queue.value.encode() for queue in Queue))
_BINDING: Final = b"_kombu.binding."
_AT_ONCE: Final = 1000
_MOST_NAMES: Final = 100
_EVERY_SECONDS: Final = 2.0
_KILLED_SECONDS: Final = 60.0
"""Seconds that the kernel may take to end a killed process."""

_APART_SECONDS: Final = 3600.0
"""Seconds to wait for the process that recovers; it continues after that."""

_AGAIN_SECONDS: Final = 60.0
"""Seconds between attempts to finish or undo a restore for which both have failed."""


def tidy(settings: Settings, queue: Queue) -> None:
    """Remove remains of killed backups and drills, and finish or undo interrupted restores.

    It logs what it finds. Errors are logged and keep no worker from starting.
    """
    try:
        if queue is Queue.RESTORE:
            RestoreJob(RestoreConfig.from_settings(settings)).recover()
        elif queue is Queue.BACKUP:
            _sweep(Repository(settings.local_path, lock_timeout=settings.lock_timeout))
        else:
            forget_old(settings.local_path, RESULT_SECONDS)
            DrillJob(RestoreConfig.from_settings(settings)).recover()
    except (OpsError, OSError) as error:
        log.error("recovery_failed", error=str(error))


def _sweep(repository: Repository) -> None:
    repository.prepare()
    with repository.shared():
        for name in repository.sweep():
            log.warning("unfinished_work_removed", name=name)


def requeue(app: Application, settings: Settings, queue: Queue, *, at_start: bool) -> int:
    """Return messages to their queues if no process works on them; return their number.

    These are messages whose process is gone, and tasks that have a result although their message was not acknowledged,
    since the broker was away. Their next delivery returns the existing result. What the gate does not accept returns as
    well, and is rejected there. Data that is no message is dropped.

    Arguments:
        at_start: also return messages that no process has begun: the previous worker had most likely reserved them. If
            it still runs, the task is delivered twice, which is harmless.
    """
    count, invalid, gate = 0, list[bytes](), Gate(settings.local_path)
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        for tag, text in channel.client.hscan_iter(channel.unacked_key, count=_AT_ONCE):
            if (found := _task_of(text)) is None:  # kombu puts messages there, and nobody anything else
                gate.note(text, channel.unacked_key)
                invalid.append(tag)
                continue
            task_id, source, message = found
            if source != queue.value:
                continue
            if _is_left(app, task_id, at_start=at_start) or not gate.accepts(message, source):
                channel.qos.restore_by_tag(tag, leftmost=True)
                log.warning("message_requeued", task_id=printable(task_id))
                count += 1
        for first in range(0, len(invalid), _AT_ONCE):
            channel.client.hdel(channel.unacked_key, *invalid[first : first + _AT_ONCE])
            channel.client.zrem(channel.unacked_index_key, *invalid[first : first + _AT_ONCE])
    return count


def _is_left(app: Application, task_id: str, *, at_start: bool) -> bool:
    """True if no process works on a task."""
    repository = app.settings.local_path
    idle = not is_begun(repository, task_id) and (at_start or app.backend.has_end(task_id))
    return idle or is_abandoned(repository, task_id)


def begin_recovery(app: Application) -> None:
    """Recover what an earlier worker of these queues has left, and repeat that while this one runs."""
    settings = app.settings
    queues = [queue for queue in Queue if queue.value in app.amqp.queues.consume_from]
    for queue in queues:
        tidy(settings, queue)
    follow_kills(queues)
    ends: list[Callable[[], None]] = []

    def ready(**_: Any) -> None:
        ends.extend(watch(app, settings, queue) for queue in queues)
        _warn_of_strangers(app)
        for queue in queues:
            log.info("worker_ready", queue=queue.value, pid=os.getpid())

    def leaving(**_: Any) -> None:
        for end in ends:
            end()
        if ends:  # tried at each signal, but logged once
            log.info("worker_stopping", queues=[queue.value for queue in queues])
        ends.clear()

    worker_ready.connect(ready, weak=False)
    worker_shutting_down.connect(leaving, weak=False)


def _warn_of_strangers(app: Celery) -> None:
    """Warn if another application uses the same Redis database: its visibility timeout would affect ours."""
    with app.connection_for_write() as connection:
        found = connection.default_channel.client.scan_iter(_BINDING + b"*", count=_AT_ONCE)
        names = [key.removeprefix(_BINDING) for key in islice(found, _MOST_NAMES)]
    strangers = sorted(name.decode(errors="replace") for name in names if name not in _OURS and b"pidbox" not in name)
    if strangers:
        log.warning(
            "broker_shared",
            queues=[printable(name) for name in strangers],
            hint="Give the backup workers a Redis database of their own: the number at the end of CELERY_BROKER_URL.",
        )


def watch(app: Application, settings: Settings, queue: Queue) -> Callable[[], None]:
    """Look for abandoned messages every few seconds, in a thread; returns the function that ends it."""
    ended = threading.Event()

    def run() -> None:
        at_start, patient_until = True, 0.0
        while not ended.is_set():
            if (
                queue is Queue.RESTORE
                and not at_start
                and time.monotonic() > patient_until
                and _finish_restores(settings)
            ):
                patient_until = time.monotonic() + _AGAIN_SECONDS
            try:
                requeue(app, settings, queue, at_start=at_start)
                at_start = False
            except (RedisError, OperationalError, OSError):  # the worker's own connection reports that
                pass
            except Exception as error:  # it has to continue: otherwise abandoned messages would wait for hours
                log.error("recovery_failed", error=repr(error))
            ended.wait(_EVERY_SECONDS)

    threading.Thread(target=run, name="recovery", daemon=True).start()
    return ended.set


def _finish_restores(settings: Settings) -> bool:
    """Finish or undo interrupted restores; return whether there were any."""
    records = RestoreRecords(Repository(settings.local_path))
    with suppress(OpsError, OSError):  # the next restore reports it
        if any(not record.state.is_settled for record in records.all()) and not records.are_locked():
            _run_apart(Queue.RESTORE)
            return True
    return False


def follow_kills(queues: Sequence[Queue]) -> None:
    """Handle tasks killed by the hard time limit: their messages are acknowledged, so no delivery would."""

    def ended(sender: Task, task_id: str, exception: BaseException, kwargs: Mapping[str, Any], **_: Any) -> None:
        if (
            isinstance(exception, TimeLimitExceeded) and OPERATIONS[sender.name].queue in queues
        ):  # Celery reports it twice; the second call finds nothing
            killed = {"name": sender.name, "task_id": task_id, "given": kwargs}
            queue = OPERATIONS[sender.name].queue
            threading.Thread(target=_run_apart, args=(queue, killed), name="killed", daemon=True).start()

    task_failure.connect(ended, weak=False)


def _run_apart(queue: Queue, killed: Mapping[str, Any] | None = None) -> None:
    """Run this in another process: a worker's main process forks, and a child would inherit locks and keep them.

    That process outlives this one, so that it can finish.
    """
    command = [sys.executable, "-I", "-m", "worker.recovery", queue.value]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        process.communicate(json.dumps(killed).encode() + b"\n", timeout=_APART_SECONDS)
    except subprocess.TimeoutExpired:
        log.error("recovery_not_ended", pid=process.pid, seconds=_APART_SECONDS, hint="It continues; look at its log.")


def _see_to_killed(settings: Settings, operation: Operation, task_id: str, given: Mapping[str, Any]) -> None:
    """When a killed task's process is gone, record the task's end, and remove its authorization and delivery file.

    A process that ended late but in good order has done that itself, and removed its file.
    """
    with sole_delivery(settings.local_path, task_id, _KILLED_SECONDS) as begun:
        if begun > 1:
            fault = too_slow(operation.name, "killed")
            Authorizations(settings.local_path).use_up(task_id)
            write_down(settings, operation, task_id, given, fault)
            app = make_app(settings)
            if not app.backend.has_end(task_id):  # its last state was progress
                result = sign_result(app.task_keys.current(), task_id, Outcome.of_error(fault).result, success=False)
                app.backend.store_result(task_id, OperationFailedError(result), states.FAILURE)


def main() -> int:
    """Handle the killed task on standard input, if any, and clean up; return the exit code."""
    show_commands()
    settings = current_settings()
    configure_logging(settings.log_format, sys.stderr)
    try:
        if killed := json.loads(sys.stdin.readline()):
            _see_to_killed(settings, OPERATIONS[killed["name"]], killed["task_id"], killed["given"])
    except (OpsError, OSError, RedisError) as error:
        log.error("recovery_failed", error=str(error))
    tidy(settings, Queue(sys.argv[1]))
    return 0


def _task_of(text: bytes | str) -> tuple[str, str, dict[str, Any]] | None:
    """The id of the task in a message, its queue, and the message; None if it is none, or ours without a task."""
    try:
        message, _, queue = taken_message(text)
    except ValueError:
        return None
    task_id = str(message["headers"].get("id") or "")
    return (task_id, queue, message) if TASK_ID.fullmatch(task_id) or queue not in set(Queue) else None


if __name__ == "__main__":
    sys.exit(main())
