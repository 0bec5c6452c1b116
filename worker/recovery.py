"""What a worker looks after when it starts, and now and then: the work of processes that are no longer there.

A message whose process was killed would come back only when its visibility timeout is over, which is hours. The lock
on its delivery tells at once that nobody works on it any more.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from celery import states
from kombu.exceptions import OperationalError
from redis import RedisError

from portal.ops.drill import DrillJob
from portal.ops.errors import OpsError
from portal.ops.logs import engine_log
from portal.ops.repository import Repository
from portal.ops.restore import RestoreJob
from portal.ops.restore_model import RestoreConfig
from worker.configuration import RESULT_SECONDS
from worker.delivery import forget_old, is_abandoned, is_begun
from worker.names import Lane

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

    from portal.ops.settings import Settings

log = engine_log("worker.recovery")

_EVERY_SECONDS: Final = 5.0


def tidy(settings: Settings, lane: Lane) -> None:
    """Sweep what killed backups left, finish or undo restores that were cut off, throw remains of drills away.

    It says what it found. Whatever is wrong here is said, and keeps no worker from starting.
    """
    try:
        if lane is Lane.RESTORE:
            RestoreJob(RestoreConfig.from_settings(settings)).recover()
        elif lane is Lane.BACKUP:
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
            log.warning("remains_swept", name=name)


def requeue(app: Celery, settings: Settings, lane: Lane, *, at_start: bool) -> int:
    """Put messages back that nobody works on any more; how many.

    Whose process is gone, and whose task has its result although the message is still there: it was done while the
    broker was away. That one is answered with the result when it is delivered again.

    Arguments:
        at_start: also those that nobody has begun to work on: who had taken them is most likely the worker before this
            one. If it is not, the task is delivered twice, which does no harm.
    """
    count = 0
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        for tag, text in channel.client.hgetall(channel.unacked_key).items():
            task_id, queue = _task_of(text)
            if queue != lane.value or not task_id:
                continue
            idle = not is_begun(settings.local_path, task_id) and (at_start or _has_result(app, task_id))
            if idle or is_abandoned(settings.local_path, task_id):
                channel.qos.restore_by_tag(tag, leftmost=True)
                log.warning("message_requeued", task_id=task_id)
                count += 1
    return count


def _has_result(app: Celery, task_id: str) -> bool:
    found = app.backend.client.get(app.backend.get_key_for_task(task_id))
    return found is not None and app.backend.decode(found)["status"] in states.READY_STATES


def watch(app: Celery, settings: Settings, lane: Lane) -> Callable[[], None]:
    """Look for abandoned messages every few seconds, in a thread of its own; what ends it."""
    ended = threading.Event()

    def run() -> None:
        at_start = True
        while not ended.is_set():
            if lane is Lane.RESTORE and not at_start:
                _finish_restores(settings)
            try:
                requeue(app, settings, lane, at_start=at_start)
                at_start = False
            except (RedisError, OperationalError, OSError):  # the worker's own connection says it
                pass
            ended.wait(_EVERY_SECONDS)

    threading.Thread(target=run, name="recovery", daemon=True).start()
    return ended.set


def _finish_restores(settings: Settings) -> None:
    """See to restores whose process was killed while they were at it, as a time limit does in the end."""
    with suppress(OpsError, OSError):  # one is running; or it cannot be done now, which the next restore says
        RestoreJob(RestoreConfig.from_settings(settings)).recover()


def _task_of(text: bytes | str) -> tuple[str, str]:
    """The id of the task in a message, and the queue that it came from."""
    try:
        message, _, queue = json.loads(text)
        return str(message["headers"]["id"]), str(queue)
    except (ValueError, KeyError, TypeError):
        return "", ""
