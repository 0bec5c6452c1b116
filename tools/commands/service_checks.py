"""The doctor's checks of services: broker, workers, beat and watcher."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from portal.ops.monitoring.doctor.run import Check, Finding, fault, ok, warning

if TYPE_CHECKING:
    from portal.ops.settings.load import Settings

_SECONDS: Final = 15.0


def service_checks(settings: Settings) -> list[Check]:
    """The checks of services; none without a broker."""
    wal = [Check(name="WAL service", look=lambda: _service("beat.wal", "wal"))] if settings.pitr.wal else []
    if settings.worker.broker_url is None:
        what = "CELERY_BROKER_URL is not set: commands do the work themselves, started by cron or systemd"
        return [Check(name="workers", look=lambda: ok(what)), *wal]
    checks = [
        Check(name="workers", look=lambda: _workers(settings)),
        Check(name="beat", look=lambda: _service("beat", "beat")),
    ]
    if settings.upload_dir is not None:
        checks.append(Check(name="watcher", look=lambda: _service("beat.watcher", "watcher")))
    return [*checks, *wal]


def _workers(settings: Settings) -> Finding:
    """Check the workers; a broker that does not answer is an error of its own."""
    from worker.client import Client
    from worker.health import check_queues
    from worker.operations import Queue

    found = check_queues(Client(settings), Queue)
    ill = [queue for queue in found if not queue.is_healthy]
    if ill:
        said = "; ".join(f"{queue.queue}: {queue.detail}" for queue in ill)
        return fault(said, ill[0].hint or "The log of the worker says more.")
    return ok("; ".join(f"{queue.queue}: {queue.detail}" for queue in found))


def _service(module: str, start: str) -> Finding:
    """Check a service like its own health check."""
    mend = f"Start it ('tools/service.sh {start}', or docker compose up) if it does not run; its log says more."
    try:
        ended = subprocess.run(
            [sys.executable, "-I", "-m", module, "--health"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return warning(f"its health check has not ended within {_SECONDS:g} s", mend)
    try:
        message = str(json.loads(ended.stdout)["message"])
    except (ValueError, KeyError):
        message = f"its health check ended with {ended.returncode}"
    if ended.returncode == 0:
        return ok(message)
    return warning(message, mend)
