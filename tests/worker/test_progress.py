"""What a task tells of its progress: what is sent, when, and that no trouble with the broker is trouble of the task."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from redis import Redis

from portal.ops.runtime.progress import Step
from portal.ops.settings.load import load_settings
from tests.support.waiting import LONG_SECONDS
from tests.support.workers import client_environ, client_of, wait_until
from worker import progress as module
from worker.application import make_app
from worker.progress import Reporter

if TYPE_CHECKING:
    import pytest

    from demo.redis import EmbeddedRedis

KEY = "celery-task-meta-one"


def task_of(redis: EmbeddedRedis) -> Any:
    """A task, as far as a reporter looks at it."""
    app = make_app(load_settings(client_environ(redis), lambda _: ""))
    return SimpleNamespace(app=app, name="backup.full", request=SimpleNamespace(id="one"))


def step(phase: str, done: int, total: int | None = None) -> Step:
    return Step(phase=phase, done=done, expect=lambda: total)


def test_a_task_tells_how_far_it_is_until_it_ends(redis: EmbeddedRedis) -> None:
    """At first that it has begun; the last step counts; what a task waits for, instead of where it was."""
    client = client_of(redis)

    def progress() -> Any:
        return client.look("one").progress

    assert not client.look("one").is_begun
    with Reporter(task_of(redis)) as report:
        wait_until(lambda: progress() == {"phase": "starting", "done": 0, "total": None})
        state = client.look("one")
        assert (state.is_begun, state.is_ended, state.name) == (True, False, "backup.full")
        report(step("database", 1))
        report(step("media", 2, 10))
        wait_until(lambda: progress() == {"phase": "media", "done": 2, "total": 10})
        report.wait("waiting 2 s")
        wait_until(lambda: progress() == {"phase": "waiting 2 s", "done": 0, "total": None})
        report(step("media", 3, 10))
        wait_until(lambda: progress() == {"phase": "media", "done": 3, "total": 10})
    with Redis(unix_socket_path=str(redis.socket)) as connection:
        assert 7 * 86400 - 60 < connection.ttl(KEY) <= 7 * 86400
        connection.delete(KEY)
    report(step("late", 4))
    assert not report._thread.is_alive()
    assert not client.look("one").is_begun


def test_the_rate_is_that_of_a_part_of_the_job(redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins again with a part that begins again at nothing, and never divides by nothing."""
    now = [100.0]
    monkeypatch.setattr("worker.progress.time.monotonic", lambda: now[0])
    report = Reporter(task_of(redis))
    now[0] = 110.0
    report(step("verify", 55, 100))
    assert report._state() == {"phase": "verify", "done": 55, "total": 100, "rate": 5}
    report(step("verify", 55, 100))
    assert report._state()["rate"] == 5
    report(step("restore", 0, 100))
    assert report._state() == {"phase": "restore", "done": 0, "total": 100, "rate": 0}
    report(step("restore", 3, 100))
    assert report._state()["rate"] == 3000
    now[0] = 112.0
    assert report._state()["rate"] == 1
    now[0] = 109.0
    assert report._state()["rate"] == 3000


class Counting(Redis):
    """A connection that counts what it sends."""

    sent = 0

    def set(self, *arguments: Any, **options: Any) -> Any:
        """Count it."""
        type(self).sent += 1
        return super().set(*arguments, **options)


def test_nothing_is_told_twice(redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that waits for an hour says so once."""
    monkeypatch.setattr(module, "Redis", Counting)
    monkeypatch.setattr(module, "_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(Counting, "sent", 0)
    with Reporter(task_of(redis)) as report:
        wait_until(lambda: Counting.sent)
        looks = threading.Event()
        state, count = report._state, [0]

        def counted() -> dict[str, Any]:
            count[0] += 1
            if count[0] == 10:
                looks.set()
            return state()

        report._state = counted  # type: ignore[method-assign]
        assert looks.wait(LONG_SECONDS)
    assert Counting.sent == 1


def test_a_broker_that_is_away_is_no_trouble_of_the_task(redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is back, it is told again; the end of the task waits for no answer."""
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.2)
    client = client_of(redis)
    with Reporter(task_of(redis)) as report:
        wait_until(lambda: client.look("one").is_begun)
        redis.stop()
        report(step("media", 1))
        report(step("media", 2))
        redis.start()

        def is_told() -> bool:
            report(step("media", report._latest.done + 1))  # type: ignore[union-attr]
            return client.look("one").is_begun

        wait_until(is_told)
    assert not report._thread.is_alive()
