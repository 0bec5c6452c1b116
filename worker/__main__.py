"""`python -m worker [lane …]`: the lanes of a worker, each in a process of its own, and the one that looks after them.

Where a lane ends by itself, all end: whoever started this (compose, systemd) starts it again, whole.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from typing import Final

from portal.ops.errors import OpsError
from portal.ops.job import read_text
from portal.ops.process import launch_command
from portal.ops.settings import load_settings
from worker.names import Lane

_POLL_SECONDS: Final = 0.2
_STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> int:
    """Run the lanes until somebody asks this process to end; the exit code."""
    arguments = _parser().parse_args()
    try:
        load_settings(os.environ, read_text)
    except OpsError as error:  # said once, not by each lane
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    lanes = [Lane(name) for name in arguments.lanes] or list(Lane)
    stopped: list[int] = []
    for number in _STOPPING:
        signal.signal(number, lambda got, _: stopped.append(got))
    running = [_start(lane, arguments.processes) for lane in lanes]
    while not stopped and all(process.poll() is None for process in running):
        time.sleep(_POLL_SECONDS)
    for process in running:
        process.send_signal(signal.SIGTERM)
    codes = [process.wait() for process in running]
    return 0 if stopped else next((abs(code) for code in codes if code), 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m worker", description="Take backup and restore tasks off the queue."
    )
    parser.add_argument(
        "lanes", nargs="*", metavar="LANE", choices=[*Lane, []], help=f"which work: {', '.join(Lane)} (default: all)"
    )
    parser.add_argument("--processes", type=int, metavar="N", help="tasks that a lane works on at once")
    return parser


def _start(lane: Lane, processes: int | None) -> subprocess.Popen[bytes]:
    """Start a lane that ends with this process. SIGTERM is to give a task its grace, which Celery does at SIGQUIT."""
    count = processes or _PROCESSES[lane]
    command = [sys.executable, "-m", "worker.lane", lane.value, str(count)]
    environment = {**os.environ, "REMAP_SIGTERM": "SIGQUIT"}
    # In `/`, where no file is taken for an archive that is named without its path.
    return subprocess.Popen(launch_command(command), env=environment, stdout=subprocess.DEVNULL, cwd="/")


_PROCESSES: Final = {Lane.BACKUP: 2, Lane.RESTORE: 1, Lane.MAINTENANCE: 2}
"""How many tasks a lane works on at once: the backup of an upload is not held up by a full one."""

if __name__ == "__main__":
    sys.exit(main())
