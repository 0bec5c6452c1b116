"""Measures the cost of a worker: a command's way through the queue, and many small tasks on two processes.

It starts its own Redis and worker. The work is a backup of a small tree of uploads and its verification, and many
verifications of that archive and of one as large as a small portal's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from benchmarks.table import Table
from demo.portal_files import write_uploads
from demo.redis import EmbeddedRedis
from portal.ops.runtime.process import launch_command
from portal.ops.settings.load import load_settings
from worker.client import Client
from worker.operations import VERIFY_ARCHIVE, Queue
from worker.task_ids import new_task_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.rounds import Workshop

NAME: Final = "queue"

_TOOLS: Final = Path(__file__).resolve().parents[1] / "tools"
_TASKS: Final = 200
_PROCESSES: Final = 2
_POLL_SECONDS: Final = 0.1


def play_queue(workshop: Workshop) -> Table:
    """Measure; return the figures with their targets."""
    with tempfile.TemporaryDirectory(prefix="queue-", dir=workshop.directory) as directory, EmbeddedRedis() as redis:
        home = Path(directory)
        write_uploads(home / "uploads", tenants=4, files_per_tenant=50)
        write_uploads(home / "portal", tenants=4, files_per_tenant=600)
        environ = {
            **os.environ,
            "CELERY_BROKER_URL": redis.url,
            "BACKUP_LOCAL_PATH": str(home / "backups"),
            "PORTAL_UPLOAD_DIR": str(home / "uploads"),
        }
        with _worker(home / "worker.log", environ):
            measured = _Measured(environ=environ, log=home / "worker.log")
            for _ in range(workshop.rounds):
                measured.round()
            workshop.tell(f"{NAME}: {_TASKS} verifications, twice")
            measured.many()  # then everything has been imported
            small = measured.many()
            measured.back_up_portal()
            large = measured.many()
    return Table(
        title=f"{NAME}: a backup of 200 small uploads by a worker, and {_TASKS} verifications of it",
        header=("", "wanted", "measured"),
        rows=(
            ("from Enter to the start of the task", "under 0.6 s", f"{median(measured.starts):.2f} s"),
            ("overhead against the same with --local", "under 1 s", f"{measured.overhead():.2f} s"),
            (f"{_TASKS} tasks on {_PROCESSES} processes, against their share of the work", "at most 1.2", small),
            ("the same with an archive as large as a small portal's", "at most 1.2", large),
        ),
    )


@contextmanager
def _worker(log: Path, environ: dict[str, str]) -> Iterator[None]:
    with log.open("wb") as file:
        command = [sys.executable, "-I", "-m", "worker", "--processes", str(_PROCESSES)]
        process = subprocess.Popen(launch_command(command), env=environ, stdout=file, stderr=file)
    try:
        while log.read_text().count('"worker_ready"') < len(Queue):
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


@dataclass(kw_only=True)
class _Measured:
    """The figures so far."""

    environ: dict[str, str]
    log: Path

    def __post_init__(self) -> None:
        self.starts: list[float] = []
        self._remote: list[float] = []
        self._local: list[float] = []

    def round(self) -> None:
        """One backup by the worker, and one by the command alone."""
        begun, seconds = time.time(), self._run("backup.sh", "media")
        self.starts.append(self._last_start() - begun)
        self._remote.append(seconds)
        self._local.append(self._run("backup.sh", "media", "--local"))

    def back_up_portal(self) -> None:
        """Make an archive as large as a small portal's."""
        uploads = str(Path(self.environ["PORTAL_UPLOAD_DIR"]).with_name("portal"))
        environ = {**self.environ, "PORTAL_UPLOAD_DIR": uploads}
        subprocess.run([_TOOLS / "backup.sh", "media", "--local"], env=environ, capture_output=True, check=True)

    def overhead(self) -> float:
        """The additional seconds by the worker."""
        return median(self._remote) - median(self._local)

    def many(self) -> str:
        """Queue many verifications at once; return the total time, and the work divided by the processes."""
        client = Client(load_settings(self.environ, lambda _: ""))
        names = [new_task_id(VERIFY_ARCHIVE) for _ in range(_TASKS)]
        for name in names:
            client.submit(VERIFY_ARCHIVE, {"archive": "latest"}, name)
        while not client.look(names[-1]).is_ended or not all(client.look(name).is_ended for name in names):
            time.sleep(_POLL_SECONDS)
        wanted = set(names)
        begun = [event for event in self._events("task_begun") if event["task_id"] in wanted]
        ended = [event for event in self._events("task_ended") if event["task_id"] in wanted]
        took = _moment(ended[-1]) - _moment(begun[0])
        share = sum(event["seconds"] for event in ended) / _PROCESSES
        size = max(Path(self.environ["BACKUP_LOCAL_PATH"]).glob("*.tar.gz"), key=os.path.getmtime).stat().st_size
        return f"{took / share:.2f} ({took:.1f} s for {share:.1f} s; {size / 1e6:.1f} MB)"

    def _run(self, command: str, *arguments: str) -> float:
        started = time.monotonic()
        subprocess.run([_TOOLS / command, *arguments], env=self.environ, capture_output=True, check=True)
        return time.monotonic() - started

    def _last_start(self) -> float:
        return _moment(self._events("task_begun")[-1])

    def _events(self, name: str) -> list[dict[str, Any]]:
        found = map(json.loads, self.log.read_text().splitlines())
        return [event for event in found if event["event"] == name]


def _moment(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["timestamp"]).timestamp()
