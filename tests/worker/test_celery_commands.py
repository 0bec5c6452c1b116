"""Celery's own commands, as its users type them: they behave as ours do."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from demo.redis import EmbeddedRedis
from tests.support.flower import PASSWORD, FlowerProcess
from tests.support.portal import portal_with_broker
from tests.support.services import distant_slots, sent_tasks
from tests.support.waiting import LONG_SECONDS
from tests.support.workers import WorkerProcess, client_of, queued, result_of, submit, use_repository, wait_until
from worker.health import check_queues
from worker.operations import BACKUP_MEDIA, VERIFY_ARCHIVE, Queue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.portal import Portal

CELERY = [str(Path(sys.executable).with_name("celery")), "-A", "worker.app"]


def environment(portal: Portal, redis: EmbeddedRedis) -> dict[str, str]:
    return portal.environ(CELERY_BROKER_URL=redis.url, BACKUP_LOG_FORMAT="json")


def celery(portal: Portal, redis: EmbeddedRedis, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of the commands to its end."""
    return subprocess.run(
        [*CELERY, *arguments],
        cwd=portal.directory,
        env=environment(portal, redis),
        capture_output=True,
        text=True,
        timeout=60,
    )


class CeleryFlower(FlowerProcess):
    """`celery flower`."""

    command = (*CELERY, "flower")
    ready = "Visit me at"


class CeleryWorker(WorkerProcess):
    """`celery worker` for all queues."""

    command = (*CELERY, "worker", "-Q", ",".join(Queue), "-c", "2")

    def text(self) -> str:
        """What it has logged, without Celery's banner."""
        return "".join(line for line in super().text().splitlines(keepends=True) if line.startswith("{"))


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, postgres: Any
) -> Iterator[tuple[Portal, EmbeddedRedis, CeleryWorker]]:
    """Celery's own worker, with one archive and what a killed backup has left."""
    with portal_with_broker(tmp_path_factory.mktemp("service"), postgres) as (found, broker):
        assert found.job().backup_media().success
        (found.archives / ".media_20240115_120000_abcdef.tar.gz.partial").touch()
        with CeleryWorker(found, broker, BACKUP_SHUTDOWN_GRACE="300") as worker:
            yield found, broker, worker


def test_celery_worker_is_our_worker(service: tuple[Portal, EmbeddedRedis, CeleryWorker]) -> None:
    """It has swept what a killed backup left, logs JSON, checks signatures, and does the tasks of every queue."""
    portal, redis, worker = service
    assert not list(portal.archives.glob(".*.partial"))
    assert {event["queue"] for event in worker.events("worker_ready")} == set(Queue)
    assert result_of(redis, submit(redis, VERIFY_ARCHIVE, archive="latest")).result["success"]
    assert [event for event in worker.events("task_ended") if event["success"]]


def test_call_requests_a_task(service: tuple[Portal, EmbeddedRedis, CeleryWorker]) -> None:
    """It signs what it sends, so it is done; what the registry does not know is refused."""
    portal, redis, _ = service
    (portal.uploads / "called.json").write_text("new")
    called = celery(portal, redis, "call", BACKUP_MEDIA.name, "--kwargs", json.dumps({"actor": "ann"}))
    assert called.returncode == 0, called.stderr
    assert result_of(redis, called.stdout.strip()).result["success"]
    refused = celery(portal, redis, "call", "backup.everything")
    assert refused.returncode != 0
    assert "there is no task 'backup.everything'" in refused.stderr


@pytest.mark.parametrize("question", ["active", "active_queues", "stats", "registered"])
def test_inspect_answers(service: tuple[Portal, EmbeddedRedis, CeleryWorker], question: str) -> None:
    """What a worker is at can be asked by who knows the broker."""
    portal, redis, _ = service
    said = celery(portal, redis, "inspect", question, "--json")
    assert said.returncode == 0, said.stderr
    (answer,) = json.loads(said.stdout).values()
    assert answer or question == "active"


def test_status_shows_the_worker(service: tuple[Portal, EmbeddedRedis, CeleryWorker]) -> None:
    """One node is online."""
    portal, redis, _ = service
    assert "1 node online" in celery(portal, redis, "status").stdout


def test_flower_is_our_flower(service: tuple[Portal, EmbeddedRedis, CeleryWorker]) -> None:
    """It asks for the password and only shows; a failed task has its hint, and a health check no row of its own."""
    portal, redis, _ = service
    with CeleryFlower(portal, redis) as flower:
        assert flower.ask("/tasks", user=None)[0] == 401
        flower.listen()
        done, failed = (submit(redis, VERIFY_ARCHIVE, archive=name) for name in ("latest", "none_of_that_name"))
        for health in check_queues(client_of(redis), list(Queue)):
            assert health.is_healthy
        flower.wait_for(done, "SUCCESS")
        flower.wait_for(failed, "FAILURE")
        wait_until(lambda: "Hint: " in str(flower.task(failed)["result"]))
        assert flower.task(failed)["kwargs"] == "archive=none_of_that_name"
        wait_until(lambda: "is intact" in str(flower.task(done)["result"]))
        assert {task["name"] for task in json.loads(flower.ask("/api/tasks")[1]).values()} == {VERIFY_ARCHIVE.name}
        assert flower.ask("/api/task/send-task/backup.full", {"kwargs": {}})[0] == 403
        assert flower.end(signal.SIGTERM) == 0


def test_flower_without_a_password_does_not_start(portal: Portal) -> None:
    """The error says what to set, without a traceback."""
    with EmbeddedRedis() as redis:
        refused = celery(portal, redis, "flower")
    assert refused.returncode == 2
    assert "BACKUP_FLOWER_PASSWORD_FILE" in refused.stderr
    assert (refused.stderr.count("\n"), refused.stderr[:7]) == (2, "error: ")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_tasks_results_and_hints(service: tuple[Portal, EmbeddedRedis, CeleryWorker]) -> None:
    """What a person sees on Flower's page of tasks, once its scripts have run."""
    portal, redis, _ = service
    with CeleryFlower(portal, redis) as flower:
        flower.listen()
        failed = submit(redis, VERIFY_ARCHIVE, archive="none_of_that_name")
        flower.wait_for(failed, "FAILURE")
        wait_until(lambda: "Hint: " in str(flower.task(failed)["result"]))
        shown = subprocess.run(
            [
                *("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000"),
                *("--dump-dom", f"http://kekkai:{quote(PASSWORD)}@127.0.0.1:{flower.port}/tasks"),
            ],
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        ).stdout
    words = re.sub(r"<[^>]+>", " ", shown)
    assert "verify.archive" in words
    assert "archive=none_of_that_name" in words
    assert "archive not found" in words
    assert "Hint: " in words
    assert "health.ping" not in words
    assert "PENDING" not in words


def test_purge_empties_the_queues(portal: Portal) -> None:
    """What waits on the queues of ours is gone."""
    with EmbeddedRedis() as redis:
        use_repository(redis, portal.archives)
        submit(redis, VERIFY_ARCHIVE, archive="latest")
        purged = celery(portal, redis, "purge", "-f")
        assert purged.returncode == 0, purged.stderr
        assert queued(redis, Queue.MAINTENANCE) == 0


def test_beat_is_our_beat(portal: Portal) -> None:
    """It makes an empty repository's first backup due, keeps no file, and shows its life to our health check."""
    schedules = distant_slots()
    with EmbeddedRedis() as redis:
        environ = environment(portal, redis) | schedules
        for _ in range(2):
            before = len(sent_tasks(redis))
            with (portal.directory / "beat.log").open("ab") as log:
                beat = subprocess.Popen([*CELERY, "beat"], cwd=portal.directory, env=environ, stdout=log, stderr=log)
            wait_until(lambda before=before: len(sent_tasks(redis)) > before)  # type: ignore[misc]
            health = subprocess.run([sys.executable, "-I", "-m", "beat", "--health"], env=environ, capture_output=True)
            assert health.returncode == 0, health.stdout
            beat.send_signal(signal.SIGTERM)
            assert beat.wait(LONG_SECONDS) == 0
        first, second = sent_tasks(redis)
    assert (first.name, first.task_id) == ("backup.full", second.task_id)
    assert not [path.name for path in portal.directory.rglob("celerybeat*")]
    said = (portal.directory / "beat.log").read_text()
    assert f"Back up the database only: backup.database at {schedules['BACKUP_SCHEDULE_DATABASE']}" in said
    assert "Verify off-site copies: offsite.verify" not in said  # there is no destination


def test_celery_worker_ends_when_its_task_has(service: tuple[Portal, EmbeddedRedis, CeleryWorker]) -> None:
    """Not when the grace of a task is over, and with success. The last test: the worker is gone after it."""
    _, _, worker = service
    assert worker.terminate() == 0  # it would take five minutes otherwise
    assert not worker.processes()
