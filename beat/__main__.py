"""`python -m beat`: sends scheduled tasks, and catches up on missed ones."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

from beat.heartbeat import BEAT_NAME
from beat.loop import Beat
from beat.service import run_service
from beat.task_queue import QueuedWorkers
from portal.ops.monitoring.observer import Observers
from worker.operations import Requester

if TYPE_CHECKING:
    from portal.ops.settings.load import Settings


def serve(settings: Settings) -> NoReturn:
    """Run until the process ends."""
    if settings.targets.metrics_port:
        from portal.ops.monitoring.metrics import serve as serve_metrics

        serve_metrics(settings, port=settings.targets.metrics_port)
    Beat(settings, QueuedWorkers(settings, Requester.BEAT), after_look=Observers(settings).refresh).run()


if __name__ == "__main__":
    sys.exit(
        run_service(
            "beat", "Send the tasks of the schedules when they are due, and make up for missed ones.", BEAT_NAME, serve
        )
    )
