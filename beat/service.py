"""The common part of `python -m beat`, `beat.watcher` and `beat.wal`: options, logging, signals, exit codes.

They end immediately when asked to. The next start finds unfinished work.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from beat.heartbeat import Heartbeat
from portal.ops.errors import OpsError
from portal.ops.runtime.environment import current_settings
from portal.ops.runtime.progress import utc_now
from worker.command_lines import show_commands

if TYPE_CHECKING:
    from collections.abc import Callable

    from portal.ops.settings.load import Settings


def run_service(name: str, meaning: str, heartbeat_name: str, serve: Callable[[Settings], NoReturn]) -> int:
    """Run the service, or check the health of a running one; return the exit code.

    Arguments:
        name: the service's name.
        heartbeat_name: the file of its heartbeat in the repository.
        serve: runs until the process ends.
    """
    parser = argparse.ArgumentParser(
        prog=f"tools/service.sh {name}",
        description=meaning,
        epilog="Settings come from the environment and from the settings file.",
    )
    parser.add_argument(
        "--health", action="store_true", help="check the running one: exit code 0, or 1 if it is unhealthy"
    )
    is_health_asked = parser.parse_args().health
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    show_commands()
    try:
        settings = current_settings()
        if is_health_asked:
            return _tell_health(name, Heartbeat(settings.local_path / heartbeat_name))
        from worker.logs import log_to_standard_error

        log_to_standard_error(settings.log_format)
        serve(settings)
    except OpsError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


def _tell_health(name: str, heartbeat: Heartbeat) -> int:
    health = heartbeat.health("WAL service" if name == "wal" else name, utc_now())
    sys.stderr.write(f"{health.message}\n")
    sys.stdout.write(f"{json.dumps({'healthy': health.is_well, 'message': health.message, **health.facts})}\n")
    return 0 if health.is_well else 1


def _end(number: int, _frame: object) -> NoReturn:
    sys.exit(0 if number == signal.SIGTERM else 128 + number)
