"""The health check: a ping through every queue, and what it makes of a queue that has no time for it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from redis import Redis

from portal.ops.repository.repository import LOCK_NAME
from tests.support.workers import MOMENT, WorkerProcess, client_of, submit, wait_until
from worker.health import check_queues
from worker.operations import BACKUP_MEDIA, VERIFY_ARCHIVE, Queue

if TYPE_CHECKING:
    from demo.redis import EmbeddedRedis
    from tests.support.portal import Portal

Ended = subprocess.CompletedProcess[str]


def check(portal: Portal, redis: EmbeddedRedis, *queues: str) -> Ended:
    """Run the health check as compose does."""
    return subprocess.run(
        [sys.executable, "-m", "worker.health", *queues],
        env=portal.environ(CELERY_BROKER_URL=redis.url),
        capture_output=True,
        text=True,
        check=False,
    )


def keys(redis: EmbeddedRedis) -> set[bytes]:
    """Everything that Redis keeps, but what Celery itself keeps for its own connections."""
    with Redis(unix_socket_path=str(redis.socket)) as connection:
        found: list[bytes] = connection.keys()
        return {key for key in found if not key.startswith(b"_kombu.binding")}


def test_every_queue_answers_and_nothing_is_left(portal: Portal, redis: EmbeddedRedis) -> None:
    """Queues with time answer; the check exits with 0, and leaves no key in Redis and no word in the worker's log.

    On a busy machine a queue may need longer than the check waits: that is no fault, and the check is made again.
    """
    checks: list[Ended] = []

    def all_answer() -> bool:
        checks.append(check(portal, redis))
        return checks[-1].returncode == 0

    with WorkerProcess(portal, redis) as worker:
        before, said = keys(redis), worker.text()
        wait_until(all_answer)
        ended, after = checks[-1], keys(redis)
        events = worker.events()
    assert [line.partition(":")[0] for line in ended.stdout.splitlines()] == list(Queue)
    assert after == before
    assert not any("health.ping" in str(event) for event in events[said.count("\n") :])


def test_a_queue_that_nobody_works_for_is_named(portal: Portal, redis: EmbeddedRedis) -> None:
    """Where one queue has no worker, the check exits with 1 and says which; its ping does not stay in the queue."""
    with WorkerProcess(portal, redis, "backup"):
        ended = check(portal, redis, "backup", "restore")
        assert not any(b"restore" in key for key in keys(redis))
    assert ended.returncode == 1
    assert ended.stdout.startswith("backup: answered")
    assert ended.stderr.startswith("restore: no worker listens for restore tasks\n  hint: ")


def test_a_broker_that_is_away_is_said(portal: Portal, redis: EmbeddedRedis) -> None:
    """Without a broker the check exits with 1 and says so."""
    redis.stop()
    ended = check(portal, redis)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: the broker does not answer\n  hint: ")


def test_a_repository_that_cannot_be_written_is_said(portal: Portal, redis: EmbeddedRedis) -> None:
    """A worker that takes tasks and cannot use its repository is not healthy."""
    with WorkerProcess(portal, redis, "backup"):
        (portal.archives / ".deliveries").write_text("in the way")
        ended = check(portal, redis, "backup")
    assert ended.returncode == 1
    assert ended.stderr.startswith("backup: the repository cannot be used")


def test_a_busy_queue_is_healthy(portal: Portal, redis: EmbeddedRedis) -> None:
    """A queue whose every process works on a task is healthy, and its ping does not wait behind it."""
    portal.archives.mkdir()
    with (
        (portal.archives / LOCK_NAME).open("a") as lock,
        WorkerProcess(portal, redis, "backup", "--processes", "1") as worker,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        submit(redis, BACKUP_MEDIA, moment=MOMENT)
        wait_until(lambda: worker.events("task_begun"))
        (found,) = check_queues(client_of(redis), [Queue.BACKUP], seconds=1)
        assert b"backup" not in keys(redis)
    assert (found.is_healthy, found.detail) == (True, "every process is at work on something")


def test_an_idle_queue_that_does_not_answer_is_not_healthy(portal: Portal, redis: EmbeddedRedis) -> None:
    """A queue whose main process answers while its idle pool does not is named, with its worker."""
    with WorkerProcess(portal, redis, "maintenance", "--processes", "1") as worker:
        for pid in worker.pool():
            os.kill(pid, signal.SIGSTOP)
        (found,) = check_queues(client_of(redis), [Queue.MAINTENANCE], seconds=1)
        for pid in worker.pool():
            os.kill(pid, signal.SIGCONT)
    assert not found.is_healthy
    assert found.detail == f"maintenance@{os.uname().nodename} has nothing to do, and did not answer within 1 s"


def test_a_long_queue_of_short_tasks_is_healthy(portal: Portal, redis: EmbeddedRedis) -> None:
    """A queue that has no time for a ping since much was queued before it is healthy, whenever it is looked at."""
    for _ in range(400):
        submit(redis, VERIFY_ARCHIVE, archive="none_of_that_name")
    with WorkerProcess(portal, redis, "maintenance", "--processes", "1"):
        (found,) = check_queues(client_of(redis), [Queue.MAINTENANCE], seconds=0.1)
    assert found.is_healthy, found.detail
