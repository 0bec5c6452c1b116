"""What a command makes of a broker and of results, without a worker."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from celery import states
from celery.exceptions import TimeLimitExceeded
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError

from portal.ops.settings.load import load_settings
from tests.support.services import sent_tasks
from tests.support.waiting import LONG_SECONDS
from tests.support.workers import client_environ, queued
from worker.application import make_app
from worker.client import Client, QueueLoad, TaskState, _explained, _load, _serving
from worker.errors import EXIT_CODE, BrokerAwayError, BrokerRefusesError, OperationFailedError, RefusedError
from worker.operations import PRUNE_REPOSITORY, VERIFY_ARCHIVE, Queue, Requester
from worker.progress import STATE
from worker.signing import sign_result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.redis import EmbeddedRedis

MARK = "kekkai-backup-task-one"
META = "celery-task-meta-one"


class Broker:
    """A broker with what workers would have put there."""

    def __init__(self, redis: EmbeddedRedis, connection: Redis) -> None:
        self.redis = redis
        self.connection = connection
        self.settings = load_settings(client_environ(redis), lambda _: "")
        self.app = make_app(self.settings)
        self.client = Client(self.settings)

    def store(self, result: Any, status: str, task_id: str = "one") -> TaskState:
        """Store a state; what a command sees then."""
        self.app.backend.store_result(task_id, result, status)
        return self.client.look(task_id)

    def signed(self, result: dict[str, Any], *, success: bool = True) -> dict[str, Any]:
        """A result as a worker returns it."""
        return sign_result(self.app.task_keys.current(), "one", result, success=success)


@pytest.fixture
def broker(redis: EmbeddedRedis) -> Iterator[Broker]:
    with Redis(unix_socket_path=str(redis.socket)) as connection:
        yield Broker(redis, connection)


def test_a_task_is_on_its_queue_with_a_mark_beside_it(broker: Broker) -> None:
    """The mark lasts as long as a result; a task without one is lost."""
    assert broker.client.look("one") == TaskState(is_lost=True)
    before = time.time()
    broker.client.submit(VERIFY_ARCHIVE, {"archive": "latest"}, "one")
    (task,) = sent_tasks(broker.redis)
    assert (task.name, task.task_id, task.arguments) == ("verify.archive", "one", {"archive": "latest"})
    assert before <= float(broker.connection.get(MARK) or 0) <= time.time()
    assert 7 * 86400 - 60 < broker.connection.ttl(MARK) <= 7 * 86400
    assert broker.client.look("one") == TaskState()


def test_who_may_not_ask_for_a_task_sends_none(broker: Broker) -> None:
    """On behalf of whom a client sends is decided when it is made; a command's is the usual one."""
    with pytest.raises(RefusedError, match="by flower"):
        Client(broker.settings, Requester.FLOWER).submit(PRUNE_REPOSITORY, {}, "one")
    assert sent_tasks(broker.redis) == []
    broker.client.submit(PRUNE_REPOSITORY, {}, "one")
    assert len(sent_tasks(broker.redis)) == 1


@pytest.mark.parametrize(
    ("stored", "is_kept"),
    [
        ({"status": "SUCCESS", "result": {}}, True),
        ({"status": "PROGRESS", "result": {}}, True),
        ({"status": "FAILURE", "result": {}}, False),
        ({"status": "REVOKED", "result": None}, False),
        ({"result": None}, False),
        (7, False),
    ],
)
def test_an_earlier_failure_is_removed_when_a_task_is_sent_again(broker: Broker, stored: Any, is_kept: bool) -> None:
    """So it does not look finished; whatever makes no sense is removed as well, and a success is not."""
    broker.connection.set(META, json.dumps(stored))
    broker.client.submit(VERIFY_ARCHIVE, {"archive": "latest"}, "one")
    assert bool(broker.connection.exists(META)) is is_kept
    assert len(sent_tasks(broker.redis)) == 1


@pytest.mark.parametrize(
    ("progress", "seen"),
    [
        ({"phase": "media", "done": 1, "total": None}, {"phase": "media", "done": 1, "total": None}),
        ({"phase": "media", "done": 1, "total": 2, "rate": 3}, {"phase": "media", "done": 1, "total": 2}),
        ({"phase": "a\x1b" + "b" * 100, "done": 1, "total": 2}, {"phase": r"a\x1b" + "b" * 78, "done": 1, "total": 2}),
        ({"phase": "media", "done": "1", "total": 2}, {}),
        ({"phase": "media", "done": 1, "total": "2"}, {}),
        ({"phase": "media", "total": 2}, {}),
        ({"phase": 7, "done": 1, "total": 2}, {}),
        ("media", {}),
        (None, {}),
    ],
)
def test_progress_is_shown_if_it_has_the_form(broker: Broker, progress: Any, seen: Any) -> None:
    """Anyone may have written it; the task is under way in any case."""
    assert broker.store(progress, STATE) == TaskState(is_begun=True, progress=seen)


def test_the_states_of_celery_before_the_end(broker: Broker) -> None:
    """A task that is started is begun, one that is to be received is not."""
    assert broker.store(None, states.STARTED) == TaskState(is_begun=True)
    assert broker.store(None, states.RETRY) == TaskState(is_begun=False)


@pytest.mark.parametrize(
    ("exit_code", "success", "expected"), [(None, True, 0), (None, False, 1), (3, True, 3), (0, False, 0)]
)
def test_a_signed_success_is_the_result(broker: Broker, exit_code: int | None, success: bool, expected: int) -> None:
    """Without what is not the engine's; its exit code is the worker's word, or says whether it succeeded."""
    told = {"success": success, "path": "/a"} | ({} if exit_code is None else {EXIT_CODE: exit_code})
    assert broker.store(broker.signed(told), states.SUCCESS) == TaskState(
        is_begun=True, is_ended=True, is_signed=True, exit_code=expected, result={"success": success, "path": "/a"}
    )


@pytest.mark.parametrize("result", [{"success": True}, None, "yes", {"success": True, "_signature": {"key": "0"}}])
def test_a_success_that_nobody_signed_is_none(broker: Broker, result: Any) -> None:
    """It is said that it is not believed, and how to look at the archives."""
    state = broker.store(result, states.SUCCESS)
    assert (state.is_begun, state.is_ended, state.is_signed, state.exit_code) == (True, True, False, 1)
    assert state.is_checked
    assert state.result["success"] is False
    assert "has a result of one that no worker of this repository has signed\n  hint: " in state.result["error"]


@pytest.mark.parametrize(
    "text", [b"7", b"{}", b'{"status": "SUCCESS"}', b"\xff", b'{"status": "FAILURE", "result": 7}']
)
def test_what_is_no_result_is_a_forged_one(broker: Broker, text: bytes) -> None:
    """No command ends in a traceback."""
    broker.connection.set(META, text)
    state = broker.client.look("one")
    assert (state.is_ended, state.is_signed, state.exit_code) == (True, False, 1)
    assert not state.result["success"]


def test_without_the_repository_a_result_is_shown_and_not_checked(broker: Broker) -> None:
    """What the broker says is all that there is."""
    told = broker.signed({"success": True})
    broker.app.task_keys.path.write_text("damaged")
    state = broker.store(told, states.SUCCESS)
    assert state == TaskState(
        is_begun=True, is_ended=True, is_signed=False, is_checked=False, exit_code=0, result={"success": True}
    )


def test_a_failed_operation_says_why(broker: Broker) -> None:
    """Signed or not, it is a failure; its exit code is the worker's."""
    told = {"success": False, "error": "no disk", EXIT_CODE: 5}
    state = broker.store(OperationFailedError(broker.signed(told, success=False)), states.FAILURE)
    expected = {"success": False, "error": "no disk"}
    assert state == TaskState(is_begun=True, is_ended=True, is_signed=True, exit_code=5, result=expected)
    state = broker.store(OperationFailedError(told), states.FAILURE)
    assert state == TaskState(is_begun=True, is_ended=True, is_signed=False, exit_code=5, result=expected)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("odd\x1b"), states.FAILURE, r"the worker could not do it: odd\x1b" + "\n  hint: The worker's log"),
        (TimeLimitExceeded(7), states.FAILURE, "the task took longer than a task may, and was killed"),
        (ValueError("terminated"), states.REVOKED, "the task was stopped; what it had begun was undone"),
    ],
)
def test_other_ends_are_failures(broker: Broker, error: Exception, status: str, said: str) -> None:
    """Each with what to do about it; only a task that was revoked was stopped."""
    state = broker.store(error, status)
    assert (state.is_begun, state.is_ended, state.is_signed, state.exit_code) == (True, True, False, 1)
    assert state.is_stopped is (status == states.REVOKED)
    assert state.result.keys() == {"success", "error"}
    assert state.result["success"] is False
    assert str(state.result["error"]).startswith(said)


def test_a_ping_expires_and_can_be_cleared_away(broker: Broker) -> None:
    """With its message and its result; others stay."""
    broker.client.submit(VERIFY_ARCHIVE, {"archive": "latest"}, "one")
    first, second = (broker.client.send_ping(Queue.MAINTENANCE, 7) for _ in range(2))
    messages = [json.loads(one) for one in broker.connection.lrange("maintenance", 0, -1)]
    assert {message["headers"]["id"] for message in messages} == {"one", first, second}
    expiries = [message["headers"]["expires"] for message in messages if message["headers"]["id"] != "one"]
    assert all(expiries) and len(expiries) == 2
    broker.store({}, states.SUCCESS, first)
    broker.store({}, states.SUCCESS, second)
    broker.client.clear_away(Queue.MAINTENANCE, first)
    assert {task.task_id for task in sent_tasks(broker.redis)} == {"one", second}
    assert broker.client.look(first).is_lost
    assert not broker.client.look(second).is_lost
    broker.client.clear_away(Queue.MAINTENANCE, second)  # the newest message of the queue
    assert {task.task_id for task in sent_tasks(broker.redis)} == {"one"}
    broker.client.clear_away(Queue.MAINTENANCE, first)
    broker.client.send_ping(Queue.RESTORE, 7)
    assert queued(broker.redis, Queue.RESTORE) == 1


def test_without_a_broker_a_question_ends_at_once(broker: Broker) -> None:
    """With one error that says where to look; where a library would try again and again, the broker is asked first."""
    broker.redis.stop()
    client, started = broker.client, time.monotonic()
    for question in (
        lambda: client.look("one"),
        lambda: client.submit(VERIFY_ARCHIVE, {"archive": "latest"}, "one"),
        lambda: client.send_ping(Queue.BACKUP, 1),
    ):
        with pytest.raises(BrokerAwayError, match=r"the broker does not answer\n.*CELERY_BROKER_URL"):
            question()
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("kind", [AuthenticationError, NoPermissionError])
def test_a_broker_that_refuses_us_is_named_as_such(kind: type[Exception]) -> None:
    """Also where a library has wrapped it, however deep; anything else is a broker that does not answer."""
    wrapped, outer = OperationalError("it failed"), OSError("it failed")
    wrapped.__cause__ = kind("invalid password.")
    outer.__cause__ = wrapped
    for error in (kind("invalid password."), wrapped, outer):
        refused = _explained(error)
        assert isinstance(refused, BrokerRefusesError)
        assert refused.message == "the broker refuses the user or the password (invalid password)"
    assert type(_explained(OSError("it failed"))) is BrokerAwayError


def test_a_connection_that_breaks_is_tried_again(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a second or two, of a task as of a ping."""
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(broker.client._app, "send_task", lambda name, **options: sent.append(options))
    broker.client.submit(VERIFY_ARCHIVE, {"archive": "latest"}, "one")
    broker.client.send_ping(Queue.BACKUP, 7)
    for options in sent:
        assert options["retry"] is True
        assert 1 <= options["retry_policy"]["max_retries"] <= 3
    assert (sent[1]["queue"], sent[1]["expires"], sent[1]["kwargs"]) == ("backup", 7, {})


QUEUES = {"name": "backup"}, {"name": "restore"}


def test_who_serves_a_queue_is_told_by_the_workers(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of another form are passed over; without any, nobody does."""
    answers: Any = [
        {"a@x": [QUEUES[0]]},
        {"b@x": [QUEUES[1]], "c@x": [*QUEUES]},
        {"d@x": {"error": "no"}},
        {"e@x": [{}]},
    ]
    assert _serving(Queue.BACKUP, answers) == ["a@x", "c@x"]
    assert _serving(Queue.OFFSITE, answers) == []
    asked: list[dict[str, Any]] = []

    connections: list[Any] = []

    def broadcast(question: str, connection: Any, **options: Any) -> Any:
        connections.append(connection)
        assert connection.default_channel.client.ping()
        asked.append({"question": question, **options})
        return answers

    monkeypatch.setattr(broker.client._app.control, "broadcast", broadcast)
    assert broker.client.is_attended(Queue.BACKUP)
    assert asked == [{"question": "active_queues", "reply": True, "timeout": 2.0}]
    assert not broker.client.is_attended(Queue.OFFSITE, 1.0)
    answers = None
    assert not broker.client.is_attended(Queue.BACKUP)
    assert broker.client.loads(Queue.BACKUP) == []
    assert len(set(map(id, connections))) == len(connections) >= 4
    assert not any(connection.connected for connection in connections)


def test_whoever_hears_a_question_and_is_silent_is_asked_again(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer each time: a worker on a busy machine takes its time. Where nobody hears it, nobody is waited for."""
    asked: list[float] = []
    broadcast, answer = broker.client._app.control.broadcast, [{"slow@x": [QUEUES[0]]}]

    def quick(question: str, *, timeout: float, **options: Any) -> Any:
        asked.append(timeout)
        found = broadcast(question, timeout=0.01, **options)
        return answer if timeout == 4.0 else found

    monkeypatch.setattr(broker.client._app.control, "broadcast", quick)
    assert not broker.client.is_attended(Queue.BACKUP)
    assert asked == [2.0]
    asked.clear()
    with broker.connection.pubsub() as worker:  # type: ignore[no-untyped-call]
        worker.psubscribe("/*.celery.pidbox")
        assert worker.get_message(timeout=LONG_SECONDS)["type"] == "psubscribe"
        assert broker.client.is_attended(Queue.BACKUP)
        assert asked == [2.0, 4.0]
        answer = [{"other@x": [QUEUES[1]]}]
        assert not broker.client.is_attended(Queue.BACKUP)
    assert asked == [2.0, 4.0, 2.0, 4.0]


def test_the_load_of_a_queue_is_that_of_its_workers(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pings are no load; a worker that does not say enough is left out, and one without tasks has none."""
    said: dict[str, Any] = {
        "active_queues": [{"b@x": [QUEUES[0]]}, {"a@x": [QUEUES[0]]}, {"c@x": [QUEUES[0]]}, {"d@x": [QUEUES[1]]}],
        "stats": [
            {"b@x": {"pool": {"max-concurrency": 2}, "total": {"backup.full": 3, "health.ping": 9, "backup.media": 4}}},
            {"a@x": {"pool": {"max-concurrency": 1}, "total": {}}},
            {"c@x": {"error": "busy"}},
        ],
        "active": [{"b@x": [{"name": "backup.full"}, {"name": "health.ping"}, {"name": "backup.media"}]}],
    }
    asked: list[dict[str, Any]] = []

    def broadcast(question: str, connection: Any, **options: Any) -> Any:
        asked.append({"question": question, **options})
        return said[question]

    monkeypatch.setattr(broker.client._app.control, "broadcast", broadcast)
    assert broker.client.loads(Queue.BACKUP) == [
        QueueLoad(worker="a@x", processes=1, busy=0, begun=0),
        QueueLoad(worker="b@x", processes=2, busy=2, begun=7),
    ]
    assert asked[0] == {"question": "active_queues", "reply": True, "timeout": 1.0}
    to_them = {"destination": ["b@x", "a@x", "c@x"], "reply": True, "timeout": 4.0, "limit": 3}
    assert asked[1:] == [{"question": "stats", **to_them}, {"question": "active", **to_them}]
    said["stats"] = None
    assert broker.client.loads(Queue.BACKUP) == []


@pytest.mark.parametrize(
    ("stats", "tasks"),
    [
        (7, []),
        ({}, []),
        ({"pool": 7, "total": {}}, []),
        ({"pool": {"max-concurrency": "x"}, "total": {}}, []),
        ({"pool": {"max-concurrency": 1}, "total": 7}, []),
        ({"pool": {"max-concurrency": 1}, "total": {"backup.full": None}}, []),
        ({"pool": {"max-concurrency": 1}, "total": {}}, [7]),
        ({"pool": {"max-concurrency": 1}, "total": {}}, [{}]),
    ],
)
def test_an_answer_of_another_form_says_nothing_of_the_load(stats: Any, tasks: Any) -> None:
    """Anybody can answer."""
    assert _load("a@x", stats, tasks) is None


def test_a_task_is_stopped_by_the_signal_that_its_process_reacts_to(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every worker is told, since nobody knows which one has it."""
    asked: list[Any] = []
    monkeypatch.setattr(broker.client._app.control, "revoke", lambda *given, **options: asked.append((given, options)))
    broker.client.stop("one")
    assert asked == [(("one",), {"terminate": True, "signal": "SIGQUIT"})]
