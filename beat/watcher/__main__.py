"""`python -m beat.watcher`: sends changes of the uploads to be backed up."""

from __future__ import annotations

import logging
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from beat.heartbeat import WATCHER_NAME
from beat.service import run_service
from beat.task_queue import QueuedWorkers
from beat.watcher.loop import Watcher
from portal.ops.runtime.logs import engine_log
from worker.operations import Requester

if TYPE_CHECKING:
    from portal.ops.settings.load import Settings

log = engine_log("beat.watcher")


def serve(settings: Settings) -> NoReturn:
    """Run until the process ends."""
    logging.getLogger("watchdog").setLevel(logging.ERROR)  # the watcher reports an overflow itself
    threading.excepthook = _tell
    Watcher(settings, QueuedWorkers(settings, Requester.WATCHER)).run()


def _tell(failure: threading.ExceptHookArgs) -> None:
    """Log what has ended a thread of watchdog; the watcher notices, and starts again."""
    log.error("watching_failed", error=repr(failure.exc_value))


if __name__ == "__main__":
    sys.exit(
        run_service(
            "watcher", "Watch the uploads, and request a backup within seconds of a change.", WATCHER_NAME, serve
        )
    )
