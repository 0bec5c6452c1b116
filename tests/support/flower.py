"""Flower for tests: a real process, and a client of its API."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Final, Self

from demo.ports import ReservedPort
from tests.support.waiting import LONG_SECONDS
from tests.support.workers import wait_until

if TYPE_CHECKING:
    from demo.redis import EmbeddedRedis
    from tests.support.portal import Portal

PASSWORD: Final = "not, a: simple one"


class FlowerProcess:
    """`python -m worker.flower`, and a client of its API; a context manager."""

    command: tuple[str, ...] = (sys.executable, "-m", "worker.flower")
    ready = "flower_ready"

    def __init__(self, portal: Portal, redis: EmbeddedRedis, **environ: str) -> None:
        self._log = portal.directory / "flower.log"
        self._reserved = ReservedPort()
        self.port = self._reserved.number
        own = {"CELERY_BROKER_URL": redis.url, "BACKUP_FLOWER_PASSWORD": PASSWORD, "FLOWER_PORT": str(self.port)}
        self._environ = portal.environ(**(own | environ))
        self._popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGKILL)
        self._reserved.release()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        before = self.text().count(self.ready)
        with self._log.open("ab") as log:
            self.start_with(log.fileno())
        wait_until(lambda: self.text().count(self.ready) > before)

    def start_with(self, stderr: int) -> None:
        """Start it with that standard error."""
        self._popen = subprocess.Popen(self.command, env=self._environ, stderr=stderr)

    def end(self, number: signal.Signals) -> int:
        """Ask it to end, or make it; its exit code."""
        assert self._popen is not None
        self._popen.send_signal(number)
        return self._popen.wait(LONG_SECONDS)

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._popen is not None
        return self._popen.pid

    def text(self) -> str:
        """Everything that it has said."""
        return self._log.read_text() if self._log.exists() else ""

    def ask(self, path: str, data: Any = None, *, user: str | None = f"kekkai:{PASSWORD}") -> tuple[int, str]:
        """Status and body of an answer."""
        body = None if data is None else json.dumps(data)
        headers = {} if user is None else {"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=LONG_SECONDS)
        try:
            connection.request("GET" if body is None else "POST", path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def task(self, task_id: str) -> dict[str, Any]:
        """What it knows of a task."""
        status, body = self.ask(f"/api/task/info/{task_id}")
        return dict(json.loads(body)) if status == 200 else {}

    def listen(self) -> None:
        """Wait until it hears what workers say: it serves before it does."""
        wait_until(lambda: "flower_worker_online{" in self.ask("/metrics")[1])

    def wait_for(self, task_id: str, state: str) -> dict[str, Any]:
        """A task, once it is in a state."""
        wait_until(lambda: self.task(task_id).get("state") == state)
        return self.task(task_id)
