"""`backup.sh status`: shows the backup status; exit code 1 if a target is missed, for use by monitoring systems."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from tools.terminal.output import print_result, say
from tools.terminal.run import watched_log

if TYPE_CHECKING:
    import argparse


def add_arguments(_parser: argparse.ArgumentParser, _name: str) -> None:
    """Define no arguments."""


def run(_: argparse.Namespace) -> int:
    """Compare the repository with the targets."""
    from portal.ops.monitoring.facts import read_status
    from portal.ops.monitoring.observer import Observers
    from portal.ops.monitoring.text import status_lines
    from portal.ops.runtime.environment import current_settings
    from portal.ops.runtime.progress import utc_now

    gc.disable()  # there may be very many archives, without garbage to collect
    settings = current_settings()
    watched_log(settings.log_format)
    status = read_status(settings, utc_now())
    Observers(settings).refresh(status)
    for line in status_lines(status):
        say(line)
    print_result(status.to_dict())
    return 0 if status.ok else 1
