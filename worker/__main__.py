"""`python -m worker [queue …]`: starts and supervises one Celery worker for each queue.

One that fails or is killed after it has worked is started again, and the tasks of the others go on. If one ends in any
other way, all end: whatever started this (compose, systemd) restarts it as a whole.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from portal.ops.errors import OpsError
from portal.ops.runtime.environment import current_settings
from portal.ops.runtime.logs import configure_logging, engine_log
from portal.ops.runtime.process import launch_command
from worker.queue_option import add_queues, chosen_queues

if TYPE_CHECKING:
    from worker.operations import Queue

_POLL_SECONDS: Final = 0.2
_FAILED: Final = 1
_END_SECONDS: Final = 9.5
"""Seconds that a worker needs at most after its grace period; this process must end within ten seconds after that."""

_AT_LEAST_SECONDS: Final = 3.0
"""A worker that fails within this time, in seconds, would fail again."""

log = engine_log("worker")

_STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> int:
    """Run the workers until this process is asked to end; return the exit code."""
    arguments = _parser().parse_args()
    try:
        settings = current_settings()
    except OpsError as error:  # logged once, not by each worker
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    queues = chosen_queues(arguments)
    stopped: list[int] = []
    for number in _STOPPING:
        signal.signal(number, lambda got, _: stopped.append(got))
    configure_logging(settings.log_format, sys.stderr)
    running = {queue: (_start(queue, arguments.processes), time.monotonic()) for queue in queues}
    while not stopped and _are_up(running, arguments.processes):
        time.sleep(_POLL_SECONDS)
    for process, _ in running.values():
        process.send_signal(signal.SIGTERM)
    codes = _end({queue: process for queue, (process, _) in running.items()}, settings.worker.shutdown_grace)
    return 0 if stopped else next((abs(code) for code in codes if code), 1)


def _end(processes: dict[Queue, subprocess.Popen[bytes]], grace: float) -> list[int]:
    """Wait for the workers, which end within their grace period and ten seconds; kill those that do not."""
    deadline = time.monotonic() + grace + _END_SECONDS
    codes = []
    for queue, process in processes.items():
        try:
            codes.append(process.wait(max(0.0, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            log.error("queue_worker_killed", queue=queue.value, pid=process.pid, grace_seconds=grace)
            process.kill()
            codes.append(process.wait())
    return codes


def _are_up(running: dict[Queue, tuple[subprocess.Popen[bytes], float]], processes: int | None) -> bool:
    """True if all workers run; one that failed or was killed is restarted, unless it had hardly begun.

    A lost broker can cause a failure, and a lack of memory a kill.
    """
    for queue, (process, started) in running.items():
        code = process.poll()
        if code is None:
            continue
        is_accident = code == _FAILED or code < 0
        if not is_accident or time.monotonic() - started < _AT_LEAST_SECONDS:
            return False
        log.warning("queue_worker_restarted", queue=queue.value, exit_code=code)
        running[queue] = (_start(queue, processes), time.monotonic())
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/service.sh worker", description="Run the tasks of the queues.")
    add_queues(parser)
    parser.add_argument("--processes", type=_number, metavar="N", help="tasks of each queue that run at the same time")
    return parser


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of processes; it is at least 1")
    return int(text)


def _start(queue: Queue, processes: int | None) -> subprocess.Popen[bytes]:
    """Start a worker that ends with this process. SIGTERM gives tasks their grace period, like Celery's SIGQUIT."""
    count = processes or queue.processes
    command = [sys.executable, "-m", "worker.queue_worker", queue.value, str(count)]
    environment = {**os.environ, "REMAP_SIGTERM": "SIGQUIT"}
    # In `/`, where a relative path cannot name an archive.
    return subprocess.Popen(launch_command(command), env=environment, stdout=subprocess.DEVNULL, cwd="/")


if __name__ == "__main__":
    sys.exit(main())
