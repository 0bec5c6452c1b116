"""`python -m beat.watcher`: sends what changes below the uploads."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, NoReturn

from beat.heartbeat import WATCHER_NAME
from beat.service import run_service
from beat.watcher.loop import Watcher
from beat.workers import QueuedWorkers

if TYPE_CHECKING:
    from portal.ops.settings import Settings


def serve(settings: Settings) -> NoReturn:
    """Go on until the process ends."""
    logging.getLogger("watchdog").setLevel(logging.ERROR)  # an overflow is told of by the watcher
    Watcher(settings, QueuedWorkers(settings.worker)).run()


if __name__ == "__main__":
    sys.exit(run_service("watcher", "Have uploads backed up as they come.", WATCHER_NAME, serve))
