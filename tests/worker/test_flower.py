"""Flower, over its real HTTP API: what it shows, to whom, and what it can have done."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from redis import Redis

from demo.compare import table_contents, tree_contents
from demo.redis import EmbeddedRedis
from portal.ops.repository.access_log import AccessLog, Action
from portal.ops.repository.repository import LOCK_NAME
from tests.support.flower import PASSWORD, FlowerProcess
from tests.support.impostor import Impostor
from tests.support.portal import portal_with_broker
from tests.support.workers import MOMENT, WorkerProcess, client_of, result_of, run_task, submit, wait_until
from worker.health import check_queues
from worker.operations import BACKUP_FULL, BACKUP_MEDIA, PING, VERIFY_ARCHIVE, Queue
from worker.progress import STATE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.postgres import EmbeddedPostgres
    from tests.support.portal import Portal


@pytest.fixture
def redis() -> Iterator[EmbeddedRedis]:
    """A broker of the test's own."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres
) -> Iterator[tuple[EmbeddedRedis, FlowerProcess]]:
    """Flower, for the tests that only look, with a worker and what it has told."""
    with (
        portal_with_broker(tmp_path_factory.mktemp("service"), postgres) as (found, broker),
        WorkerProcess(found, broker, "maintenance"),
        FlowerProcess(found, broker) as flower,
    ):
        flower.listen()
        yield broker, flower


def test_without_a_password_it_does_not_start(portal: Portal, redis: EmbeddedRedis) -> None:
    """Flower without a password ends with exit code 2, and says what to set."""
    ended = subprocess.run(
        [sys.executable, "-m", "worker.flower"],
        env=portal.environ(CELERY_BROKER_URL=redis.url),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "BACKUP_FLOWER_PASSWORD_FILE" in ended.stderr


def test_a_variable_that_flower_cannot_use_is_named(portal: Portal, redis: EmbeddedRedis) -> None:
    """A port that is none ends with exit code 2, not with a traceback."""
    ended = subprocess.run(
        [sys.executable, "-m", "worker.flower"],
        env=portal.environ(CELERY_BROKER_URL=redis.url, BACKUP_FLOWER_PASSWORD=PASSWORD, FLOWER_PORT="web"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 2)
    assert "FLOWER_" in ended.stderr


def test_what_it_answers_to_whom(service: tuple[EmbeddedRedis, FlowerProcess]) -> None:
    """Without the password there are metrics, health and static files, and nothing else; the password shows nowhere."""
    _, flower = service
    for path in ("/metrics", "/healthcheck", "/static/css/flower.css"):
        assert flower.ask(path, user=None)[0] == 200
    for path in ("/", "/tasks", "/workers", "/broker", "/api/tasks", "/api/workers", "/api/task/types"):
        assert flower.ask(path, user=None)[0] == 401
        assert flower.ask(path, user="kekkai:wrong")[0] == 401
        assert flower.ask(path)[0] == 200
    assert flower.ask("/api/task/send-task/backup.full", {"kwargs": {}}, user=None)[0] == 401
    command = Path(f"/proc/{flower.pid}/cmdline").read_text()
    text = flower.text()
    assert PASSWORD not in command + text
    assert all(json.loads(line)["event"] for line in text.splitlines())


def test_it_only_shows_things_by_default(service: tuple[EmbeddedRedis, FlowerProcess]) -> None:
    """Whoever has the password can neither start a task nor stop a worker, unless the operator allows it."""
    _, flower = service
    for path in ("task/send-task/backup.full", "task/async-apply/backup.full", "worker/shutdown/backup@host"):
        assert flower.ask(f"/api/{path}", {"kwargs": {}})[0] == 403


def test_a_backup_is_shown_from_its_start_to_its_result(portal: Portal, redis: EmbeddedRedis) -> None:
    """Name, arguments, how far it is, and the result of a real backup are in the API, and stay there over a restart."""
    portal.archives.mkdir()
    with WorkerProcess(portal, redis, "backup"), FlowerProcess(portal, redis) as flower:
        flower.listen()
        with (portal.archives / LOCK_NAME).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            task_id = submit(redis, BACKUP_FULL, moment=MOMENT)
            assert flower.wait_for(task_id, "PROGRESS")["result"] == "starting"
        done = flower.wait_for(task_id, "SUCCESS")
        assert (done["name"], done["kwargs"]) == ("backup.full", f"moment={MOMENT}")
        wait_until(lambda: flower.task(task_id)["result"].startswith("full_"))
        done = flower.task(task_id)
        assert json.loads(flower.ask("/api/tasks")[1]).keys() == {task_id}
        assert flower.end(signal.SIGTERM) == 0
        flower.start()
        assert flower.task(task_id) == done


def test_pings_are_not_shown(service: tuple[EmbeddedRedis, FlowerProcess]) -> None:
    """Health checks come all the time, and would soon be all that there is to see."""
    redis, flower = service
    for health in check_queues(client_of(redis), [Queue.MAINTENANCE]):
        assert health.is_healthy
    run_task(redis, VERIFY_ARCHIVE, archive="nothing")

    def shown() -> set[str]:
        return {str(task["name"]) for task in json.loads(flower.ask("/api/tasks")[1]).values()}

    wait_until(lambda: VERIFY_ARCHIVE.name in shown())
    assert PING.name not in shown()


def last_save(portal: Portal) -> int:
    """When the oldest file of Flower's history was written, in nanoseconds since 1970; a save replaces them all."""
    files = [path for path in portal.directory.glob("history*") if ".tmp" not in path.name]
    return min((path.stat().st_mtime_ns for path in files), default=0)


def test_history_outlives_a_kill(portal: Portal, redis: EmbeddedRedis) -> None:
    """What was there when the history was last saved is there after Flower was killed."""
    with (
        WorkerProcess(portal, redis, "maintenance"),
        FlowerProcess(
            portal, redis, FLOWER_STATE_SAVE_INTERVAL="1000", FLOWER_DB=str(portal.directory / "history")
        ) as flower,
    ):
        flower.listen()
        task_id = submit(redis, VERIFY_ARCHIVE, archive="none_of_that_name")
        flower.wait_for(task_id, "FAILURE")
        known = time.time_ns()
        wait_until(lambda: last_save(portal) > known)
        flower.end(signal.SIGKILL)
        flower.start()
        assert flower.task(task_id)["state"] == "FAILURE"


def test_a_history_that_cannot_be_saved_is_refused(portal: Portal, redis: EmbeddedRedis) -> None:
    """Flower does not start where it would run, look healthy, and lose its history."""
    environ = portal.environ(
        CELERY_BROKER_URL=redis.url, BACKUP_FLOWER_PASSWORD=PASSWORD, FLOWER_DB="/proc/self/history"
    )
    command = [sys.executable, "-m", "worker.flower"]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, "directory of Flower's history cannot be written" in ended.stderr) == (2, True)


def test_an_end_that_flower_missed_is_found_out(portal: Portal, redis: EmbeddedRedis) -> None:
    """A task that ended while Flower did not run is not shown as at work for ever."""
    portal.archives.mkdir()
    with WorkerProcess(portal, redis, "backup"), FlowerProcess(portal, redis) as flower:
        flower.listen()
        with (portal.archives / LOCK_NAME).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            task_id = submit(redis, BACKUP_MEDIA, moment=MOMENT)
            flower.wait_for(task_id, "PROGRESS")
            flower.end(signal.SIGTERM)
        result_of(redis, task_id)
        flower.start()
        assert flower.wait_for(task_id, "SUCCESS")["result"].startswith("media_")


def test_it_ends_while_the_broker_says_nothing(portal: Portal, redis: EmbeddedRedis) -> None:
    """SIGTERM ends Flower at once and in good order, whatever its threads wait for."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with FlowerProcess(portal, redis, CELERY_BROKER_URL=url) as flower:
            silent.accept()  # it waits for an answer from here on
            assert flower.end(signal.SIGTERM) == 0
            assert "flower_stopping" in flower.text()


def test_it_ends_when_nobody_reads_what_it_says(portal: Portal, redis: EmbeddedRedis) -> None:
    """What holds up its end, such as a log that takes nothing more, holds it up for a few seconds only."""
    reader, writer = os.pipe()
    flower = FlowerProcess(portal, redis)
    try:
        flower.start_with(writer)
        said = b""
        while b"flower_ready" not in said:
            said += os.read(reader, 1 << 16)
        os.set_blocking(writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, b"\n")
        os.set_blocking(writer, True)
        assert flower.end(signal.SIGTERM) == -signal.SIGALRM
    finally:
        flower.end(signal.SIGKILL)
        os.close(reader)
        os.close(writer)


def test_a_restore_from_there_is_refused(portal: Portal, redis: EmbeddedRedis, postgres: EmbeddedPostgres) -> None:
    """The registry lets Flower start no restore: its API answers so, and nothing is queued or changed."""
    with WorkerProcess(portal, redis), FlowerProcess(portal, redis, FLOWER_READ_ONLY="false") as flower:
        flower.listen()
        archive = run_task(redis, BACKUP_FULL, moment=MOMENT).result["backup_id"]
        (portal.uploads / "later.sarif").write_text("{}")
        with postgres.connect(portal.database.name) as connection:
            before = table_contents(connection), tree_contents(portal.uploads)
            for way in ("send-task", "async-apply"):
                asked = {"kwargs": {"archive": archive, "moment": MOMENT, "exact": True}}
                status, body = flower.ask(f"/api/task/{way}/restore.archive", asked)
                assert (status, "cannot be requested by flower" in str(body)) == (403, True)
            status, body = flower.ask("/api/task/send-task/verify.archive", {"kwargs": {"archive": archive}})
            assert status == 200
            assert archive in flower.wait_for(json.loads(body)["task-id"], "SUCCESS")["result"]
            assert (table_contents(connection), tree_contents(portal.uploads)) == before
    assert not [one for one in AccessLog(portal.job().repository).entries() if one.action is Action.RESTORE]


def test_forged_events_and_states_are_shown_escaped(service: tuple[EmbeddedRedis, FlowerProcess]) -> None:
    """Whoever reaches the broker can name a task as he likes; no page has a control character of his."""
    redis, flower = service
    evil = "\x1b[2J\u202egnp.exe"
    attacker = Celery(broker=redis.url, backend=redis.url, set_as_current=False)

    def shown() -> dict[str, Any]:
        with attacker.connection() as connection, attacker.events.Dispatcher(connection, hostname=evil) as events:
            events.send("task-received", uuid="forged", name=evil, args=evil, kwargs=evil)
        attacker.backend.store_result("forged", {"phase": evil, "done": evil, "total": evil}, STATE)
        return dict(json.loads(flower.ask("/api/tasks")[1]).get("forged", {}))

    wait_until(lambda: shown().get("result"))
    task = shown()
    assert evil not in flower.ask("/task/forged")[1]
    assert "\\x1b[2J" in task["name"]
    assert all(value.isprintable() for value in task.values() if isinstance(value, str))


def test_hostile_events_answers_and_results_stop_nothing(service: tuple[EmbeddedRedis, FlowerProcess]) -> None:
    """Flower hears the events of genuine tasks afterwards, shows each page, and took no trouble to reconnect."""
    redis, flower = service
    with Redis(unix_socket_path=str(redis.socket)) as broker, Impostor(redis) as impostor:
        for text in events_of_any_form():
            broker.publish("/0.celeryev/worker.heartbeat", text)
        broker.publish(b"/0.celeryev/\xff", b"{}")
        for text in (b"\xff", b"7", b"[" * 100_000, b'{"status": "SUCCESS", "result": 1, "date_done": "x"}'):
            broker.set("celery-task-meta-known", text)
        for page in ("/", "/workers", "/worker/maintenance@nowhere", "/tasks", "/broker", "/metrics", "/api/workers"):
            assert flower.ask(page)[0] in (200, 404)
        flower.ask("/api/workers?refresh=true")
        task_id = submit(redis, VERIFY_ARCHIVE, archive="none")
        flower.wait_for(task_id, "FAILURE")
        assert impostor.answered
    assert flower.ask("/workers")[0] == flower.ask("/api/workers")[0] == 200
    assert "Failed to capture events" not in flower.text()


def events_of_any_form() -> list[bytes]:
    """Broadcasts on the channel of events."""
    sound: dict[str, Any] = {"type": "task-started", "uuid": "known", "hostname": "x@y", "timestamp": time.time()}
    sound |= {"utcoffset": 0, "clock": 1, "pid": 1}
    odd: list[Any] = [7, [], [7], [None], {}, {"type": 7}, {"type": "task-started"}, [sound | {"type": "worker-x"}]]
    values: list[Any] = [None, 7, -1, 2**62, "x", [], {}, ["x"], float("inf")]
    for name in sound:
        odd += [[sound | {name: value}] for value in values]
    odd += [[sound | {name: value}] for name in ("name", "runtime", "args", "parent_id") for value in values]
    beat = sound | {"type": "worker-heartbeat"}
    odd += [[beat | {name: value}] for name in ("freq", "active", "loadavg", "heartbeats") for value in values]
    bodies = [json.dumps(one).encode() for one in odd] + [b"\xff", b"[" * 100_000, b'[{"clock": ' + b"9" * 4300 + b"}]"]
    return [b"\xff", b"7", b"[" * 100_000, *(broadcast(body) for body in bodies)]


def broadcast(body: bytes) -> bytes:
    """A message as kombu publishes it."""
    properties = {"delivery_tag": "one", "delivery_info": {"exchange": "celeryev"}, "body_encoding": "base64"}
    whole = {"content-encoding": "utf-8", "content-type": "application/json", "headers": {"hostname": "x@y"}}
    return json.dumps({**whole, "body": base64.b64encode(body).decode(), "properties": properties}).encode()
