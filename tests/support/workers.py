"""Workers for tests: real processes on a real Redis, to be killed piece by piece, and found to the last child."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from portal.ops.settings.load import load_settings
from tests.support import waiting
from worker.client import Client, TaskState
from worker.operations import Queue
from worker.task_ids import new_task_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from demo.redis import EmbeddedRedis
    from tests.support.portal import Portal
    from worker.operations import Operation

MARK = "PGSSLTESTMARK"
"""A variable that every process of a worker inherits, pg_dump too: it is given those that begin with PGSSL."""

_REPOSITORIES: dict[str, Path] = {}

MOMENT = (datetime.now(UTC) - timedelta(hours=1)).isoformat(timespec="seconds")
"""A moment that somebody could have requested a backup for just now."""


def name_of_moment(kind: str) -> str:
    """How the id of a backup of that type for `MOMENT` begins."""
    return f"{kind}_{datetime.fromisoformat(MOMENT):%Y%m%d_%H%M%S}_"


def wait_until(condition: Callable[[], object], seconds: float = 2 * waiting.LONG_SECONDS) -> None:
    """As that of `waiting`, for as long as a worker may take."""
    waiting.wait_until(condition, seconds=seconds)


class WorkerProcess:
    """`python -m worker`, with its queues, their pools, and whatever these start; a context manager."""

    command: tuple[str, ...] = (sys.executable, "-I", "-m", "worker")

    def __init__(self, portal: Portal, redis: EmbeddedRedis, *arguments: str, **environ: str) -> None:
        self._mark = uuid4().hex
        use_repository(redis, portal.archives)
        self._arguments = arguments
        self._environ = portal.environ(**{MARK: self._mark, "CELERY_BROKER_URL": redis.url}, **environ)
        self._log = portal.directory / f"worker-{self._mark}.log"
        self._popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()

    def start(self) -> None:
        """Start it, and wait until every queue takes work."""
        before = self.text().count('"worker_ready"')
        with self._log.open("ab") as log:
            self._popen = subprocess.Popen(
                [*self.command, *self._arguments],
                cwd="/",
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        queues = set(self._arguments) & set(Queue) or set(Queue)
        wait_until(lambda: self.text().count('"worker_ready"') >= before + len(queues))

    def text(self) -> str:
        """Everything that it has said."""
        return self._log.read_text() if self._log.exists() else ""

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """What it has said, line by line; all of it has to be JSON."""
        whole, _, _ = self.text().rpartition("\n")  # a line that is just being written comes later
        found: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
        return [event for event in found if not name or event["event"] == name]

    def processes(self) -> dict[int, bytes]:
        """Every process that belongs to it, with its command line."""
        mark = f"{MARK}={self._mark}".encode()
        found = {}
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (directory / "environ").read_bytes():
                    found[int(directory.name)] = (directory / "cmdline").read_bytes()
        return found

    def queues(self) -> list[int]:
        """The main process of each queue."""
        assert self._popen is not None
        return [
            pid
            for pid, line in self.processes().items()
            if b"worker.queue_worker" in line and _parent(pid) == self._popen.pid
        ]

    def pool(self) -> list[int]:
        """The processes that do the tasks."""
        queues = self.queues()
        return [pid for pid in self.processes() if _parent(pid) in queues]

    def ask_to_end(self) -> subprocess.Popen[bytes]:
        """Ask it to end; the process that then does."""
        assert self._popen is not None
        self._popen.send_signal(signal.SIGTERM)
        return self._popen

    def terminate(self) -> int:
        """Ask it to end; its exit code."""
        return self.ask_to_end().wait(waiting.LONG_SECONDS)

    def kill(self) -> None:
        """Kill the queues and the process above them, at once; nobody tells their children."""
        for pid in [*self.queues(), *([self._popen.pid] if self._popen else [])]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._popen:
            self._popen.wait()

    def kill_all(self) -> None:
        """Leave no process."""
        while found := self.processes():
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        if self._popen:
            self._popen.wait()

    def all_ended_soon(self) -> bool:
        """Wait for the end of every process that belongs to it."""
        with suppress(AssertionError):
            wait_until(lambda: not self.processes(), waiting.LONG_SECONDS)
        return not self.processes()


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def client_environ(redis: EmbeddedRedis) -> dict[str, str]:
    """The settings of a client: the broker, and the repository of the portal that was last used with it."""
    return {"CELERY_BROKER_URL": redis.url, "BACKUP_LOCAL_PATH": str(_repository_of(redis))}


def _repository_of(redis: EmbeddedRedis) -> Path:
    return _REPOSITORIES.get(redis.url, redis.socket.parent / "repository")


def use_repository(redis: EmbeddedRedis, repository: Path) -> None:
    """Have the clients of a broker sign with the key of a repository; it takes over the key that they have used."""
    used = _repository_of(redis) / ".keys"
    if used.exists() and not (repository / ".keys").exists():
        copytree(used, repository / ".keys")
    _REPOSITORIES[redis.url] = repository


def client_of(redis: EmbeddedRedis) -> Client:
    """A way to the workers of a Redis."""
    return Client(load_settings(client_environ(redis), lambda _: ""))


def submit(redis: EmbeddedRedis, task: Operation, task_id: str = "", **arguments: Any) -> str:
    """Put a task on the queue; its id."""
    task_id = task_id or new_task_id(task)
    client_of(redis).submit(task, arguments, task_id)
    return task_id


def result_of(redis: EmbeddedRedis, task_id: str, seconds: float = 2 * waiting.LONG_SECONDS) -> TaskState:
    """Wait for the end of a task."""
    client = client_of(redis)
    found: list[TaskState] = []

    def is_ended() -> bool:
        found.append(client.look(task_id))
        return found[-1].is_ended

    wait_until(is_ended, seconds)
    return found[-1]


def run_task(redis: EmbeddedRedis, task: Operation, **arguments: Any) -> TaskState:
    """Have a task done."""
    return result_of(redis, submit(redis, task, **arguments))


def queued(redis: EmbeddedRedis, queue: Queue) -> int:
    """How many messages wait for a queue."""
    from redis import Redis

    with Redis(unix_socket_path=str(redis.socket)) as connection:
        return int(connection.llen(queue.value))


def unacknowledged(redis: EmbeddedRedis) -> int:
    """How many messages somebody has taken and not yet done with."""
    from redis import Redis

    with Redis(unix_socket_path=str(redis.socket)) as connection:
        return int(connection.hlen("unacked"))
