"""The Celery worker of one queue."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from celery.signals import worker_ready, worker_shutting_down

from portal.ops.errors import OpsError
from portal.ops.runtime.environment import current_settings
from portal.ops.runtime.logs import engine_log
from worker.app import make_app
from worker.event_batches import EventBatches
from worker.logs import log_to_standard_error
from worker.operations import Queue
from worker.recovery import follow_kills, tidy, watch

if TYPE_CHECKING:
    from celery import Celery

    from portal.ops.settings.load import Settings

log = engine_log("worker.queue_worker")


_OURS: Final = (b"celeryev", b"celery.pidbox", b"reply.celery.pidbox", *(queue.value.encode() for queue in Queue))
_BINDING: Final = b"_kombu.binding."


def serve_queue(queue: Queue, processes: int) -> int:
    """Work until somebody asks this process to end; its exit code."""
    settings = current_settings()
    log_to_standard_error(settings.log_format)
    app = make_app(settings.worker)
    app.steps["consumer"].add(EventBatches)
    tidy(settings, queue)
    follow_kills(queue)
    _follow(app, settings, queue)
    worker = app.Worker(
        hostname=f"{queue.value}@{os.uname().nodename}",
        queues=[queue.value],
        concurrency=processes,
        loglevel="INFO",
        quiet=True,
        without_gossip=True,
        without_mingle=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _follow(app: Celery, settings: Settings, queue: Queue) -> None:
    """Log when the worker takes tasks and when it stops, and look after abandoned messages in between."""
    ends: list[Any] = []

    def ready(**_: Any) -> None:
        ends.append(watch(app, settings, queue))
        _warn_of_strangers(app)
        log.info("worker_ready", queue=queue.value, pid=os.getpid())

    def leaving(**_: Any) -> None:
        for end in ends:
            end()
        log.info("worker_leaving", queue=queue.value)

    worker_ready.connect(ready, weak=False)
    worker_shutting_down.connect(leaving, weak=False)


def _warn_of_strangers(app: Celery) -> None:
    """Say so where another application uses the same Redis database: its visibility timeout would count for us too."""
    with app.connection_for_write() as connection:
        names = [key.removeprefix(_BINDING) for key in connection.default_channel.client.scan_iter(_BINDING + b"*")]
    strangers = sorted(name.decode(errors="replace") for name in names if name not in _OURS and b"pidbox" not in name)
    if strangers:
        log.warning(
            "broker_shared",
            queues=strangers,
            hint="Give the backup workers a Redis database of their own: the number at the end of CELERY_BROKER_URL.",
        )


def main() -> int:
    """Serve the queue that the arguments name; the exit code."""
    try:
        return serve_queue(Queue(sys.argv[1]), int(sys.argv[2]))
    except OpsError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
