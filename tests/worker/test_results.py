"""Which stored results a process takes for results: those that ours can have written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import states
from celery.exceptions import TaskRevokedError
from redis import Redis

from portal.ops.errors import RepositoryError
from portal.ops.settings.load import load_settings
from tests.support.workers import client_environ
from worker import results as module
from worker.application import make_app
from worker.errors import OperationFailedError
from worker.progress import STATE
from worker.results import StoredError
from worker.signing import sign_result

if TYPE_CHECKING:
    from demo.redis import EmbeddedRedis
    from worker.results import Results

PENDING: dict[str, Any] = {"status": "PENDING", "result": None, "traceback": None, "children": []}


@pytest.fixture
def reader() -> Results:
    """What reads results, without a broker."""
    environ = {"CELERY_BROKER_URL": "redis://localhost:1/0", "BACKUP_LOCAL_PATH": "/nowhere"}
    found: Results = make_app(load_settings(environ, lambda _: "")).backend
    return found


@pytest.fixture
def results(redis: EmbeddedRedis) -> Results:
    """The results in a broker."""
    found: Results = make_app(load_settings(client_environ(redis), lambda _: "")).backend
    return found


def failed(name: Any, message: Any = ("why",), module: Any = "builtins") -> dict[str, Any]:
    return {"exc_type": name, "exc_module": module, "exc_message": message}


def read(reader: Results, **meta: Any) -> Any:
    return reader.read(json.dumps(meta).encode())


def signed(results: Results, task_id: str, result: dict[str, Any], *, success: bool = True) -> dict[str, Any]:
    return sign_result(results.app.task_keys.current(), task_id, result, success=success)


@pytest.mark.parametrize("status", [STATE, *sorted(states.ALL_STATES)])
def test_a_result_has_a_state_that_there_is(reader: Results, status: str) -> None:
    """Whether it is one of Celery's or our own."""
    assert read(reader, status=status, result=None)["status"] == status


def test_a_result_has_what_celery_reads(reader: Results) -> None:
    """Fields of another type are empty, and nobody waits for children."""
    moment = "2026-11-22T02:00:00+00:00"
    facts = {"status": "SUCCESS", "result": {"a": 1}, "traceback": "x", "name": "y", "date_done": moment, "more": 2}
    assert read(reader, **facts, children=[1]) == facts | {"children": []}
    for name in ("traceback", "name", "date_done"):
        for value in (7, ["x"], None):
            assert read(reader, **facts | {name: value})[name] is None
    assert read(reader, **facts | {"date_done": "yesterday"})["date_done"] is None
    bare = read(reader, status="STARTED", result=7)
    assert bare == {
        "status": "STARTED",
        "result": 7,
        **dict.fromkeys(("traceback", "name", "date_done")),
        "children": [],
    }


@pytest.mark.parametrize(
    "text",
    [
        None,
        b"",
        b"[]",
        b"7",
        b"{}",
        b'{"status": "SUCCESS"}',
        b'{"result": 1}',
        b'{"status": "OTHER", "result": 1}',
        b'{"status": [], "result": 1}',
        b'{"status": "FAILURE", "result": 1}',
        b'{"status": "FAILURE", "result": {}}',
        b'{"status": "FAILURE", "result": {"exc_type": "A"}}',
        b'{"status": "FAILURE", "result": {"exc_type": 7, "exc_module": "a"}}',
        b'{"status": "RETRY", "result": {"exc_type": "A", "exc_module": 7}}',
    ],
)
def test_anything_else_is_no_result(reader: Results, text: bytes | None) -> None:
    """Celery takes it for that of a task that has not ended."""
    assert reader.read(text) is None
    assert reader.decode_result(text) == PENDING


@pytest.mark.parametrize(
    ("stored", "kind", "said"),
    [
        (failed("OperationFailedError", [{"error": "e"}]), OperationFailedError, ({"error": "e"},)),
        (failed("TimeLimitExceeded", [3600.5]), TimeLimitExceeded, (3600.5,)),
        (failed("TimeLimitExceeded", 3600), TimeLimitExceeded, (3600,)),
        (failed("TaskRevokedError", ["terminated"]), TaskRevokedError, ("terminated",)),
        (failed("WorkerLostError", ["killed"]), WorkerLostError, ("killed",)),
        (failed("OperationFailedError", [{}, {}]), StoredError, ("{}, {}",)),
        (failed("OperationFailedError", ["text"]), StoredError, ("text",)),
        (failed("WorkerLostError", ["a", "b"]), StoredError, ("a, b",)),
        (failed("WorkerLostError", [["a"]]), StoredError, ("['a']",)),
        (failed("SystemExit", [3], "builtins"), StoredError, ("3",)),
        (failed("ValueError", []), StoredError, ("ValueError",)),
        (failed("ValueError", "x" * 2000), StoredError, ("x" * 1000,)),
        ({"exc_type": "KeyError", "exc_module": "builtins"}, StoredError, ("KeyError",)),
    ],
)
def test_a_failure_is_one_that_we_know_or_a_text(
    reader: Results, stored: dict[str, Any], kind: type[Exception], said: tuple[Any, ...]
) -> None:
    """No class is looked up for it."""
    error = read(reader, status="FAILURE", result=stored)["result"]
    assert (type(error), error.args[: len(said)]) == (kind, said)


def test_a_task_can_be_revoked_without_a_reason(reader: Results) -> None:
    """Then there is no exception."""
    assert read(reader, status="REVOKED", result=None)["result"] is None


def test_the_texts_of_some_tasks(results: Results, redis: EmbeddedRedis) -> None:
    """In their order; without those that are too long, or are not there."""
    with Redis(unix_socket_path=str(redis.socket)) as connection:
        connection.set("celery-task-meta-a", b"12345")
        connection.set("celery-task-meta-b", b"123456")
        connection.set("celery-task-meta-d", b"1")
    assert results.texts(["a", "b", "c", "d"], 5) == [b"12345", None, None, b"1"]


def test_a_result_has_a_longest_length(results: Results, redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte more, and there is none."""
    monkeypatch.setattr(module, "_MOST_BYTES", 5)
    with Redis(unix_socket_path=str(redis.socket)) as connection:
        connection.set("a", b"12345")
        connection.set("b", b"123456")
    assert [results.get(key) for key in "abc"] == [b"12345", None, None]


def test_a_task_has_an_end_if_a_worker_has_signed_it(results: Results) -> None:
    """A success or a failure; and not while it is under way."""
    results.store_result("good", signed(results, "good", {"a": 1}), states.SUCCESS)
    failure = OperationFailedError(signed(results, "bad", {"a": 1}, success=False))
    results.store_result("bad", failure, states.FAILURE)
    results.store_result("other", signed(results, "good", {"a": 1}), states.SUCCESS)
    results.store_result("turned", signed(results, "turned", {"a": 1}, success=False), states.SUCCESS)
    results.store_result("begun", signed(results, "begun", {"a": 1}), states.STARTED)
    names = ("good", "bad", "other", "turned", "begun", "none")
    assert [name for name in names if results.has_end(name)] == ["good", "bad"]


def test_a_success_that_nobody_has_signed_is_not_shown(results: Results, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; anything else is shown as it is, with its id."""
    results.store_result("good", signed(results, "good", {"a": 1}), states.SUCCESS)
    results.store_result("forged", {"a": 1}, states.SUCCESS)
    results.store_result("begun", None, states.STARTED)
    results.client.set("celery-task-meta-odd", b"{}")
    shown = {name: results.get_task_meta(name, cache=False) for name in ("good", "forged", "begun", "odd", "none")}
    assert {name: meta["status"] for name, meta in shown.items()} == {
        "good": "SUCCESS",
        "forged": "PENDING",
        "begun": "STARTED",
        "odd": "PENDING",
        "none": "PENDING",
    }
    assert (shown["good"]["task_id"], shown["begun"]["task_id"]) == ("good", "begun")
    rejected = [line.partition("result_rejected' ")[2] for line in caplog.text.splitlines()]
    assert rejected == ["status='SUCCESS' rejected_id='forged'", "status='malformed' rejected_id='odd'"]


def test_who_may_not_read_the_keys_sees_results_all_the_same(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes none of them for an end."""
    results.store_result("good", signed(results, "good", {"a": 1}), states.SUCCESS)

    def refused(name: str) -> None:
        raise RepositoryError("the keys cannot be read", hint="none")

    monkeypatch.setattr(results.app.task_keys, "named", refused)
    assert not results.has_end("good")
    meta = results.get_task_meta("good", cache=False)
    assert (meta["status"], meta["task_id"], meta["result"]["a"]) == ("SUCCESS", "good", 1)
