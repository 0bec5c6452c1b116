"""The services for a demonstration: Redis, a worker, beat, the watcher and Flower, as child processes."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from demo.ports import ReservedPort
from demo.redis import EmbeddedRedis
from portal.ops.errors import OpsError
from portal.ops.runtime.process import launch_command
from worker.operations import Queue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_READY_SECONDS: Final = 60.0
_END_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.05


@dataclass(kw_only=True)
class Service:
    """Runs services; a context manager, in which each service is started by a method.

    Arguments:
        environ: the settings of the portal.
        directory: the directory for logs.
    """

    environ: Mapping[str, str]
    directory: Path
    redis: EmbeddedRedis = field(default_factory=EmbeddedRedis)
    flower_password: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    flower_port: int = 0
    _reserved: ReservedPort = field(default_factory=ReservedPort)
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self.redis.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        running = list(reversed(self._running.values()))
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.redis.__exit__()
        self._reserved.release()

    def start_worker(self) -> float:
        """Start a worker for all queues, and wait until it takes tasks; return the seconds that took."""
        return self._start("worker", lambda said: said.count("worker_ready") == len(Queue))

    def start_watcher(self) -> float:
        """Start the watcher; return the seconds that took."""
        return self._start("beat.watcher", lambda said: "watcher_ready" in said)

    def wait_for_scan(self) -> None:
        """Wait until the watcher's initial scan is done."""
        deadline = time.monotonic() + _READY_SECONDS
        log = self.directory / "worker.log"
        while not any('"task_id": "scan-' in line and '"task_ended"' in line for line in log.read_text().splitlines()):
            if time.monotonic() > deadline:
                raise OpsError("the first scan was not done", hint="This is a fault of ours; please report it.")
            time.sleep(_POLL_SECONDS)

    def start_wal(self) -> float:
        """Start the WAL service; return the seconds that took."""
        return self._start("beat.wal", lambda said: "wal_receiving" in said)

    def start_beat(self) -> float:
        """Start beat; return the seconds that took."""
        return self._start("beat", lambda said: "beat_started" in said)

    def start_flower(self) -> str:
        """Start Flower; return its address."""
        self.flower_port = self._reserved.number
        self._start("worker.flower", lambda said: "flower_ready" in said)
        return f"http://127.0.0.1:{self.flower_port}"

    def client_environ(self) -> dict[str, str]:
        """The settings for commands that let the worker do their work."""
        flower = {"FLOWER_PORT": str(self.flower_port), "BACKUP_FLOWER_PASSWORD": self.flower_password}
        return {**self.environ, "CELERY_BROKER_URL": self.redis.url, "BACKUP_LOG_FORMAT": "json", **flower}

    def resident_bytes(self, module: str) -> int:
        """The resident memory of a service's process, in bytes."""
        pages = Path(f"/proc/{self._running[module].pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def _start(self, module: str, is_ready: Callable[[str], bool]) -> float:
        started = time.monotonic()
        log = self.directory / f"{module}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                launch_command([sys.executable, "-I", "-m", module]),
                env=self.client_environ(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._running[module] = process
        while not is_ready(log.read_text(errors="replace")):
            if process.poll() is not None or time.monotonic() - started > _READY_SECONDS:
                said = log.read_text(errors="replace")[-2000:].strip()
                raise OpsError(f"{module} did not start: {said}", hint="This is a fault of ours; please report it.")
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - started


def own_environment() -> dict[str, str]:
    """The environment of this process without a portal's settings."""
    families = ("DD_", "BACKUP_", "PORTAL_", "CELERY_", "FLOWER_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(families)}
    return {**own, "BACKUP_ENV_FILE": os.devnull}
