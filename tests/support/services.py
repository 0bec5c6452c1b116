"""Beat and the watcher for tests: real processes on a real Redis, and what they have put on its queues."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from signal import SIGCONT, SIGKILL, SIGSTOP, Signals
from typing import TYPE_CHECKING, Any, Self

from redis import Redis

from tests.support.waiting import LONG_SECONDS
from tests.support.workers import use_repository, wait_until
from worker.operations import Queue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from demo.redis import EmbeddedRedis


def distant_slots() -> dict[str, str]:
    """Schedules that no test meets a slot of: the last hour's was half an hour ago, and the last day's half a day."""
    far = datetime.now(UTC) + timedelta(minutes=30)
    daily = f"{far.minute} {(far.hour + 11) % 24} * * *"
    days = {f"BACKUP_SCHEDULE_{name}": daily for name in ("FULL", "VERIFY", "PRUNE", "DRILL")}
    return {**days, "BACKUP_SCHEDULE_DATABASE": f"{far.minute} * * * *"}


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A task on a queue."""

    name: str
    task_id: str
    arguments: Mapping[str, Any]


def sent_tasks(redis: EmbeddedRedis) -> list[Sent]:
    """Every task that waits on a queue, those of one queue in the order in which they were sent."""
    with Redis(unix_socket_path=str(redis.socket)) as client:
        messages = [json.loads(one) for queue in Queue for one in reversed(client.lrange(queue.value, 0, -1))]
    return [
        Sent(
            name=message["headers"]["task"],
            task_id=message["headers"]["id"],
            arguments=json.loads(base64.b64decode(message["body"]))[1],
        )
        for message in messages
    ]


class ServiceProcess:
    """`python -m beat` or `python -m beat.watcher`; a context manager."""

    def __init__(self, module: str, directory: Path, redis: EmbeddedRedis, **environ: str) -> None:
        self.module = module
        use_repository(redis, directory / "archives")
        self._log = directory / f"{module}-{id(self)}.log"
        self.environ = {
            "CELERY_BROKER_URL": redis.url,
            "BACKUP_LOCAL_PATH": str(directory / "archives"),
            "PORTAL_UPLOAD_DIR": str(directory / "uploads"),
            "BACKUP_LOG_FORMAT": "json",
            **environ,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end(SIGKILL)

    def start(self) -> None:
        """Start it, and wait until it says that it has started."""
        before = len(self.events("watcher_ready", "beat_started", "uploads_missing"))
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self.command(), cwd="/", env=self.environ, stdout=log, stderr=log)
        wait_until(lambda: len(self.events("watcher_ready", "beat_started", "uploads_missing")) > before)

    def command(self) -> list[str]:
        """What is started."""
        return [sys.executable, "-I", "-m", self.module]

    def events(self, *names: str) -> list[dict[str, Any]]:
        """What it has said, line by line; all of it has to be JSON."""
        text = self._log.read_text() if self._log.exists() else ""
        whole, _, _ = text.rpartition("\n")  # a line that is just being written comes later
        found: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines() if line.endswith("}")]
        return [event for event in found if not names or event["event"] in names]

    def signal(self, number: Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have it stand still: what happens in the context is all one to it."""
        self.signal(SIGSTOP)
        try:
            yield
        finally:
            self.signal(SIGCONT)

    def end(self, number: Signals) -> int:
        """Send it a signal that ends it; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(LONG_SECONDS)

    def health(self) -> tuple[int, dict[str, Any]]:
        """What `--health` says, and its exit code."""
        done = subprocess.run(
            [sys.executable, "-I", "-m", self.module, "--health"], cwd="/", env=self.environ, capture_output=True
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return done.returncode, found
