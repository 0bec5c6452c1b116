"""Whoever can write to the broker, and may not read the repository, gets nothing done and stops nothing."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from redis import Redis

from demo.redis import EmbeddedRedis
from portal.ops.repository.rejected import rejected_counts
from portal.ops.settings.load import load_settings
from tests.support.portal import portal_with_broker
from tests.support.waiting import LONG_SECONDS
from tests.support.workers import (
    MOMENT,
    WorkerProcess,
    client_environ,
    client_of,
    result_of,
    run_task,
    submit,
    wait_until,
)
from worker.application import make_app
from worker.operations import BACKUP_MEDIA, PING, PRUNE_REPOSITORY, VERIFY_ARCHIVE
from worker.rejections import ASIDE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.portal import Portal

Service = tuple["Portal", EmbeddedRedis, WorkerProcess]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, postgres: Any) -> Iterator[Service]:
    """A worker of two queues, with one archive."""
    with portal_with_broker(tmp_path_factory.mktemp("service"), postgres) as (found, broker):
        assert found.job().backup_media().success
        with WorkerProcess(found, broker, "backup", "maintenance") as worker:
            yield found, broker, worker


def connection(redis: EmbeddedRedis) -> Redis:
    return Redis(unix_socket_path=str(redis.socket))


def attacker(redis: EmbeddedRedis) -> Celery:
    """A Celery application that knows the broker and nothing else."""
    return Celery(broker=redis.url, backend=redis.url, set_as_current=False)


def archives(portal: Portal) -> set[str]:
    return {path.name for path in portal.archives.glob("*.tar.gz")}


def message(**changes: Any) -> bytes:
    """A message as Celery makes them, with something changed."""
    whole = {
        "body": base64.b64encode(b"[[], {}, {}]").decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "backup.media", "id": "x1"},
        "properties": {
            "correlation_id": "x1",
            "delivery_info": {"exchange": "", "routing_key": "backup"},
            "delivery_tag": "t",
            "body_encoding": "base64",
            "priority": 0,
        },
    }
    return json.dumps({**whole, **changes}).encode()


MALFORMED = {
    "no JSON": b"\xff\x00{",
    "no object": b"[1, 2]",
    "nothing": b"",
    "no id": message(headers={"lang": "py", "task": "backup.media"}),
    "no headers": message(headers=None),
    "no properties": message(properties=7),
    "no tag": message(properties={"body_encoding": "base64", "delivery_info": {}}),
    "a body that is no triple": message(body="NQ=="),
    "a body that is no base64": message(body="%%%"),
    "a pickle": message(**{"content-type": "application/x-python-serialize"}),
    "deep": b"[" * 100_000,
}


def test_malformed_messages_stop_nothing(service: Service) -> None:
    """They are logged, counted and kept aside, and the next task of the same queue is done."""
    portal, redis, worker = service
    before = sum(rejected_counts(portal.archives).values())
    with connection(redis) as broker:
        for text in MALFORMED.values():
            broker.lpush("backup", text)
            broker.hset("unacked", f"tag{len(text)}", text)
            broker.publish("/0.celery.pidbox", text or b"x")
        assert run_task(redis, BACKUP_MEDIA, moment=MOMENT).result["success"]
        wait_until(lambda: sum(rejected_counts(portal.archives).values()) >= before + len(MALFORMED))
        assert broker.llen(ASIDE) >= len(MALFORMED)
    assert {event["reason"] for event in worker.events("message_rejected")} >= {"malformed"}
    assert not worker.events("queue_worker_restarted")


def test_back_dated_and_unsigned_tasks_are_refused(service: Service) -> None:
    """No archive is made and none is removed; who sent them is told why."""
    portal, redis, _ = service
    before = archives(portal)
    app, now = attacker(redis), datetime.now(UTC)
    sent = [
        app.send_task("backup.media", kwargs={"moment": (now - timedelta(days=day)).isoformat()}, queue="backup")
        for day in (1, 30)
    ]
    sent.append(app.send_task("prune.repository", kwargs={}, queue="maintenance"))
    for result in sent:
        refused = result_of(redis, result.id)
        assert "not signed" in refused.result["error"]
    assert archives(portal) == before
    assert rejected_counts(portal.archives)["unsigned"] >= len(sent)


@pytest.mark.parametrize("change", ["arguments", "callbacks", "queue", "limit", "replay"])
def test_a_signed_message_is_good_for_what_it_says_alone(service: Service, change: str) -> None:
    """With other arguments, with callbacks, on another queue or with another time limit it is rejected."""
    _, redis, worker = service
    app = make_app(load_settings(client_environ(redis), lambda _: ""))
    app.conf.task_routes = {}
    task_id = f"captured-{change}"
    app.send_task(VERIFY_ARCHIVE.name, kwargs={"archive": "latest"}, queue="captured", task_id=task_id)
    with connection(redis) as broker:
        captured = json.loads(broker.rpop("captured") or b"")
        arguments, embedded, queue = {"archive": "latest"}, {}, "maintenance"
        if change == "arguments":
            arguments = {"archive": "latest", "level": "dump"}
        elif change == "callbacks":
            embedded = {"callbacks": [{"task": PRUNE_REPOSITORY.name, "args": [], "kwargs": {}, "options": {}}]}
        elif change == "queue":
            queue = "backup"
        elif change == "limit":
            captured["headers"]["timelimit"] = [1, 1]
        captured["body"] = base64.b64encode(json.dumps([[], arguments, embedded]).encode()).decode()
        broker.lpush(queue, json.dumps(captured))
        if change == "replay":
            broker.lpush(queue, json.dumps(captured))
            assert result_of(redis, task_id).result["success"]
            return
    wait_until(lambda: [one for one in worker.events("message_rejected") if one["rejected_id"] == task_id])
    assert not [one for one in worker.events("task_begun") if one["task_id"] == task_id]


def test_a_forged_result_hides_no_backup(service: Service) -> None:
    """A result under the id of a slot is no reason not to do it, nor for anybody to believe that it was done."""
    portal, redis, _ = service
    meta: dict[str, Any] = {
        "status": "SUCCESS",
        "result": {"success": True, "backup_id": "forged"},
        "traceback": None,
        "children": [],
    }
    with connection(redis) as broker:
        broker.set("celery-task-meta-slot-forged", json.dumps({**meta, "task_id": "slot-forged"}))
    forged = client_of(redis).look("slot-forged")
    assert (forged.exit_code, forged.is_signed, forged.result["success"]) == (1, False, False)
    before = archives(portal)
    (portal.uploads / "new.json").write_text("new")
    submit(redis, BACKUP_MEDIA, "slot-forged", moment=MOMENT)
    wait_until(lambda: client_of(redis).look("slot-forged").is_signed)
    assert len(archives(portal)) == len(before) + 1


def test_a_forged_result_gives_way_at_once(service: Service) -> None:
    """A task too short to report progress stores its own result too."""
    _, redis, _ = service
    meta: dict[str, Any] = {"status": "SUCCESS", "result": {}, "traceback": None, "children": [], "task_id": "short"}
    with connection(redis) as broker:
        broker.set("celery-task-meta-short", json.dumps(meta))
    submit(redis, PING, "short")
    wait_until(lambda: client_of(redis).look("short").is_signed)


@pytest.mark.parametrize(
    "text", [b"\xff", b"7", b'{"status": "FAILURE"}', b'{"status": "PROGRESS", "result": "\\u001b"}']
)
def test_a_result_of_any_form_can_be_read(service: Service, text: bytes) -> None:
    """Invalid data is nobody's result, and no command ends in a traceback."""
    _, redis, _ = service
    with connection(redis) as broker:
        broker.set("celery-task-meta-odd", text)
    assert not client_of(redis).look("odd").is_signed


def test_the_remote_control_only_answers(service: Service) -> None:
    """It says what workers do; without a signature it revokes no task and stops no worker."""
    portal, redis, worker = service
    app = attacker(redis)
    for command, arguments in (("revoke", {"task_id": "wanted"}), ("shutdown", {}), ("pool_shrink", {"n": 9})):
        app.control.broadcast(command, arguments=arguments)
    wait_until(lambda: len(worker.events("command_rejected")) >= 6)  # each of two workers, each of three commands
    assert len(app.control.ping(timeout=LONG_SECONDS, limit=2)) == 2
    (portal.uploads / "wanted.json").write_text("new")
    assert result_of(redis, submit(redis, BACKUP_MEDIA, "wanted", moment=MOMENT)).result["success"]


def test_who_may_read_the_repository_may_stop_a_task(service: Service) -> None:
    """The command's own message is signed."""
    _, redis, _ = service
    app = make_app(load_settings(client_environ(redis), lambda _: ""))
    answers = app.control.revoke("given-up", reply=True, timeout=LONG_SECONDS, limit=2)
    assert [next(iter(answer.values())).keys() for answer in answers] == [{"ok"}, {"ok"}]
    submit(redis, PING, "given-up")
    assert result_of(redis, "given-up").is_stopped
