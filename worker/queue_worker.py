"""`python -m worker.queue_worker QUEUE PROCESSES`: the Celery worker of one queue, as `python -m worker` starts it."""

from __future__ import annotations

import os
import sys

from portal.ops.errors import OpsError
from portal.ops.runtime.environment import current_settings
from worker.app import make_worker_app
from worker.logs import log_to_standard_error
from worker.operations import Queue


def serve_queue(queue: Queue, processes: int) -> int:
    """Serve a queue until this process is asked to end; return the exit code."""
    settings = current_settings()
    log_to_standard_error(settings.log_format)
    worker = make_worker_app(settings).Worker(
        hostname=f"{queue.value}@{os.uname().nodename}",
        queues=[queue.value],
        concurrency=processes,
        loglevel="INFO",
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def main() -> int:
    """Serve the queue in the arguments; return the exit code."""
    try:
        return serve_queue(Queue(sys.argv[1]), int(sys.argv[2]))
    except OpsError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
