"""The gate by itself: what passes it, and with which values; and what becomes of everything else."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from portal.ops.repository.rejected import NAME, rejected_counts
from portal.ops.runtime.progress import utc_now
from tests.support.workers import wait_until
from worker import gate as module
from worker.errors import RejectedError, Rejection
from worker.gate import Gate, show_arguments
from worker.keys import TaskKeys
from worker.operations import PING, RESTORE_ARCHIVE, VERIFY_ARCHIVE, Operation, Queue, Requester
from worker.rejections import ASIDE, Rejections
from worker.signing import sign_task

if TYPE_CHECKING:
    from pathlib import Path

    from demo.redis import EmbeddedRedis

ARGUMENTS = {"archive": "latest"}


class Entrance:
    """A gate of a repository, and messages for it."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.told: list[tuple[str, str, Rejection]] = []
        self.keys = TaskKeys(repository)
        self.gate = Gate(repository, tell=self._tell)

    def _tell(self, name: str, task_id: str, error: RejectedError) -> None:
        self.told.append((name, task_id, error.reason))

    def message(self, operation: Operation = VERIFY_ARCHIVE, task_id: str = "one", **given: Any) -> dict[str, Any]:
        """A message as a command sends it, with a valid signature over the arguments `given`."""
        given = given or ARGUMENTS
        signature = sign_task(self.keys.current(), operation, task_id, given, Requester.COMMAND, utc_now())
        return {
            "body": body([], given, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": operation.name,
                "id": task_id,
                "timelimit": [None, None],
                "retries": 0,
                "kekkai": signature,
            },
            "properties": {
                "correlation_id": task_id,
                "delivery_info": {"exchange": "", "routing_key": operation.queue.value},
                "delivery_tag": "0b1f0c8e-0000-4000-8000-000000000000",
                "body_encoding": "base64",
                "priority": 0,
            },
        }

    def admit(self, message: Any, queue: str = "maintenance") -> dict[str, Any] | None:
        """What Celery gets."""
        found = self.gate.admit(json.dumps(message).encode(), queue, None)
        return None if found is None else dict(json.loads(found))

    def counts(self) -> dict[str, int]:
        """How many messages were rejected, by reason."""
        return rejected_counts(self.repository)


def body(*parts: Any) -> str:
    return base64.b64encode(json.dumps(parts).encode()).decode()


@pytest.fixture
def entrance(tmp_path: Path) -> Entrance:
    return Entrance(tmp_path)


def test_a_task_passes_with_our_values_where_nothing_is_signed(entrance: Entrance) -> None:
    """What Flower shows, who is answered, and where it came from are not the sender's to say."""
    message = entrance.message()
    message["headers"] |= {"argsrepr": "forged", "kwargsrepr": "forged"}
    message["properties"] |= {"priority": 9, "correlation_id": "other", "reply_to": "somebody"}
    message["properties"]["delivery_info"] = {"exchange": "other", "routing_key": "other", "more": 1}
    passed = entrance.admit(message)
    assert passed is not None
    assert passed["body"] == message["body"]
    added = {"root_id": "one", "parent_id": None, "expires": None}
    assert passed["headers"] == message["headers"] | {"argsrepr": "", "kwargsrepr": "archive=latest"} | added
    assert passed["properties"] == message["properties"] | {
        "priority": 0,
        "correlation_id": "one",
        "reply_to": "",
        "delivery_info": {"exchange": "", "routing_key": "maintenance", "redelivered": False},
    }
    assert (entrance.counts(), entrance.told) == ({}, [])


@pytest.mark.parametrize(
    ("information", "is_again"),
    [({"redelivered": True}, True), ({"redelivered": "yes"}, False), ({}, False), (None, False), ([True], False)],
)
def test_a_delivery_is_the_second_one_only_if_the_broker_says_so(
    entrance: Entrance, information: Any, is_again: bool
) -> None:
    """A failure counts as the result of a task then."""
    message = entrance.message()
    message["properties"]["delivery_info"] = information
    passed = entrance.admit(message)
    assert passed is not None
    assert passed["properties"]["delivery_info"]["redelivered"] is is_again


def _with(part: str, **fields: Any) -> Any:
    def change(message: dict[str, Any]) -> None:
        message[part] |= fields

    return change


def _whole(**fields: Any) -> Any:
    return lambda message: message.update(fields)


NONE_OF_OURS = {
    "positional arguments": _whole(body=body(["latest"], ARGUMENTS, {})),
    "arguments in a list": _whole(body=body([], [["archive", "latest"]], {})),
    "options in a list": _whole(body=body([], ARGUMENTS, [])),
    "two parts": _whole(body=body([], ARGUMENTS)),
    "a callback": _whole(body=body([], ARGUMENTS, {"callbacks": [{"task": "prune.repository"}]})),
    "a chain": _whole(body=body([], ARGUMENTS, {"callbacks": None, "chain": [{"task": "prune.repository"}]})),
    "a delay": _with("headers", eta="2030-01-01T00:00:00+00:00"),
    "a group": _with("headers", group="one"),
    "another name": _with("headers", shadow="health.ping"),
    "no result": _with("headers", ignore_result=True),
    "stamps": _with("headers", stamps={"a": 1}),
    "stamped headers": _with("headers", stamped_headers=["a"]),
    "a try that is not the first": _with("headers", retries=1),
    "a hard limit": _with("headers", timelimit=[1, None]),
    "a soft limit": _with("headers", timelimit=[None, 1]),
    "a limit that is no pair": _with("headers", timelimit=7),
    "another content": _whole(**{"content-type": "application/x-python-serialize"}),
    "another encoding": _with("properties", body_encoding="utf-8"),
    "characters that are not base64": lambda message: message.update(body="\n" + message["body"]),
    "a tag of another form": _with("properties", delivery_tag="one two"),
    "a tag that is no text": _with("properties", delivery_tag=7),
    "headers in a list": _whole(headers=[]),
    "properties in a list": _whole(properties=[]),
}


@pytest.mark.parametrize("change", NONE_OF_OURS.values(), ids=NONE_OF_OURS)
def test_a_signature_does_not_let_anything_else_pass(entrance: Entrance, change: Any) -> None:
    """A signed task with something around it, or in another form, is counted as malformed, and nobody is answered."""
    message = entrance.message()
    change(message)
    assert entrance.admit(message) is None
    assert (entrance.counts(), entrance.told) == ({"malformed": 1}, [])


@pytest.mark.parametrize("task_id", ["../one", "", ".one", "one/two", "x" * 201])
def test_an_id_is_a_file_name(entrance: Entrance, task_id: str) -> None:
    """Even one that is signed."""
    assert entrance.admit(entrance.message(task_id=task_id)) is None
    assert (entrance.counts(), entrance.told) == ({"malformed": 1}, [])


@pytest.mark.parametrize("queue", list(Queue))
def test_a_task_is_taken_from_its_own_queue_alone(entrance: Entrance, queue: Queue) -> None:
    """A ping from every one."""
    passed = entrance.admit(entrance.message(RESTORE_ARCHIVE, archive="latest", moment="now"), queue)
    assert (passed is not None) is (queue is Queue.RESTORE)
    assert entrance.admit(entrance.message(PING, actor="ann"), queue) is not None


def test_an_answer_of_the_remote_control_passes(entrance: Entrance) -> None:
    """No task comes from its queue, and nothing of another form."""
    answer = entrance.message()
    answer["body"] = base64.b64encode(b'{"backup@host": {"ok": "pong"}}').decode()
    answer["headers"] = {"ticket": "one", "clock": 7}
    found = entrance.admit(answer, "0.reply.celery.pidbox")
    assert found is not None
    assert (found["body"], found["headers"]) == (answer["body"], {"ticket": "one"})
    assert entrance.gate.admit(b"\xff", "0.reply.celery.pidbox", None) is None
    assert entrance.admit(entrance.message(), "0.reply.celery.pidbox") is None
    assert entrance.counts() == {"malformed": 2}


UNKNOWN_FIELDS = {
    "a number that is none": {"more": {"__type__": "decimal", "__value__": "x"}},
    "a compressed body": {"compression": "zlib"},
    "a moment to expire": {"expires": "2020-01-01T00:00:00+00:00"},
    "a redelivery": {"redelivered": True},
    "another language": {"lang": "c"},
    "a parent that is no id": {"parent_id": ["x"], "root_id": {"x": 1}},
}


@pytest.mark.parametrize("headers", UNKNOWN_FIELDS.values(), ids=UNKNOWN_FIELDS)
def test_a_header_that_no_task_needs_does_not_pass(entrance: Entrance, headers: dict[str, Any]) -> None:
    """The task itself does, if the message can be read: somebody may have added it on the way."""
    expected = entrance.admit(entrance.message())
    message = entrance.message()
    message["headers"] |= headers
    passed = entrance.admit(message)
    assert expected is not None
    if "more" in headers:
        assert passed is None
    else:
        assert passed is not None
        assert passed["headers"] | {"kekkai": 0} == expected["headers"] | {"kekkai": 0}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kekkai": None}, Rejection.UNSIGNED),
        ({"task": "prune.repository"}, Rejection.ALTERED),
        ({"id": "two"}, Rejection.ALTERED),
    ],
)
def test_who_sent_what_is_refused_is_told_why(
    entrance: Entrance, changes: dict[str, Any], reason: Rejection, caplog: pytest.LogCaptureFixture
) -> None:
    """By the id and the name that the message has; the log has them, too."""
    message = entrance.message()
    message["headers"] |= changes
    assert entrance.admit(message) is None
    name, task_id = changes.get("task", "verify.archive"), changes.get("id", "one")
    assert entrance.told == [(name, task_id, reason)]
    assert entrance.counts() == {reason.value: 1}
    for said in (f"reason='{reason}'", "queue='maintenance'", f"task='{name}'", f"rejected_id='{task_id}'"):
        assert said in caplog.text


def test_a_refused_message_whose_id_is_no_file_name_is_answered_by_nobody(entrance: Entrance) -> None:
    """There is no task of that id, and so nobody who waits for it."""
    message = entrance.message()
    message["headers"]["id"] = "../one"
    message["headers"]["kekkai"] = None
    assert entrance.admit(message) is None
    assert entrance.told == []


def test_a_gate_without_anybody_to_tell_refuses_as_well(tmp_path: Path) -> None:
    """A message is as bad there."""
    message = Entrance(tmp_path / "other").message()
    assert Gate(tmp_path).admit(json.dumps(message).encode(), "maintenance", None) is None
    assert rejected_counts(tmp_path) == {"unknown_key": 1}


def test_without_keys_nothing_passes_and_nothing_is_answered(entrance: Entrance) -> None:
    """Keys that cannot be read are no reason to believe a task, nor to end one that waits."""
    message = entrance.message()
    entrance.keys.path.write_text("damaged")
    assert entrance.admit(message) is None
    assert (entrance.counts(), entrance.told) == ({"unknown_key": 1}, [])


def test_an_old_task_is_refused(entrance: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the worker counts."""
    message = entrance.message()
    later = utc_now() + timedelta(days=8)
    monkeypatch.setattr(module, "utc_now", lambda: later)
    assert entrance.admit(message) is None
    assert entrance.told == [("verify.archive", "one", Rejection.EXPIRED)]


def test_a_message_has_a_longest_length(entrance: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of just that length passes; a longer one is not even parsed."""
    raw = json.dumps(entrance.message()).encode()
    monkeypatch.setattr(module, "_MOST_BYTES", len(raw))
    assert entrance.gate.admit(raw, "maintenance", None) is not None
    assert entrance.gate.admit(raw + b" ", "maintenance", None) is None
    assert entrance.counts() == {"malformed": 1}


def test_what_the_transport_cannot_parse_is_counted(entrance: Entrance, caplog: pytest.LogCaptureFixture) -> None:
    """It has no name and no id; the queue is known."""
    entrance.gate.note(b"\xff\xff", "backup")
    assert entrance.counts() == {"malformed": 1}
    assert "queue='backup'" in caplog.text
    assert "bytes=2" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({}, ""),
        ({"archive": "latest", "level": "dump"}, "archive=latest, level=dump"),
        ({"changed": ["a", "b", "c"]}, "changed=['a', 'b', 'c']"),
        ({"changed": ["a"] * 1234}, "changed=1,234 paths"),
        ({"changed": ("a",) * 4}, "changed=4 paths"),
        ({"archive": "long\x1b[2J"}, "archive=long\\x1b[2J"),
        ({"archive": "12345"}, "archive=12345"),
    ],
)
def test_arguments_are_shown_on_one_line(arguments: dict[str, Any], shown: str) -> None:
    """Up to three paths by name, more by their number, and nothing that moves a cursor."""
    assert show_arguments(arguments) == shown


class TestRejections:
    """What is kept of a message that is no task."""

    def test_the_newest_hundred_are_kept_and_of_each_the_beginning(self, tmp_path: Path, redis: EmbeddedRedis) -> None:
        """Whoever fills the queue does not fill the broker for good."""
        rejections = Rejections(tmp_path)
        with Redis(unix_socket_path=str(redis.socket)) as client:
            for number in range(103):
                text = f"{number:03}".encode() + b"x" * 70_000
                rejections.note(
                    Rejection.ALTERED, text, queue="backup", task="backup.full", task_id="one", client=client
                )
            kept = client.lrange(ASIDE, 0, -1)
        assert [int(one[:3]) for one in kept] == list(range(102, 2, -1))
        assert {len(one) for one in kept} == {65_536}
        assert rejected_counts(tmp_path) == {"altered": 103}

    def test_of_very_many_at_once_most_are_only_counted(
        self, tmp_path: Path, redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
    ) -> None:
        """All of them are, soon; a later one is logged and kept again."""
        now = [7.0]
        rejections = Rejections(tmp_path, clock=lambda: now[0])

        def note(client: Redis) -> bool:
            told = {"queue": "backup", "task": "backup.full", "task_id": "one"}
            return rejections.note(Rejection.ALTERED, b"x", client=client, **told)

        with Redis(unix_socket_path=str(redis.socket)) as client:
            assert [note(client) for _ in range(1000)].count(True) == 200
            wait_until(lambda: rejected_counts(tmp_path) == {"altered": 1000})
            now[0] = 8.0
            assert note(client)
        assert rejected_counts(tmp_path) == {"altered": 1001}
        assert caplog.text.count("event='message_rejected'") == 201
        assert "event='messages_rejected' altered=" in caplog.text

    def test_one_that_cannot_be_counted_is_kept_all_the_same(
        self, tmp_path: Path, redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A repository that is not there is said, and stops no worker."""
        with Redis(unix_socket_path=str(redis.socket)) as client:
            Rejections(tmp_path / "away").note(
                Rejection.ALTERED, b"text", queue="a\nb", task="c\nd", task_id="e\nf", client=client
            )
            assert client.lrange(ASIDE, 0, -1) == [b"text"]
        assert "rejection_uncounted" in caplog.text
        for said in (r"a\\nb", r"c\\nd", r"e\\nf"):  # escaped once by us, and shown by the log
            assert said in caplog.text
        assert not (tmp_path / "away" / NAME).exists()


def test_a_message_that_was_taken_can_be_told_from_others(entrance: Entrance) -> None:
    """Nothing is counted; while the keys cannot be read, each counts as a task."""
    message = entrance.message()
    assert entrance.gate.accepts(message, "maintenance")
    assert not entrance.gate.accepts(message, "backup")
    assert not entrance.gate.accepts({"headers": {}, "properties": {}}, "maintenance")
    assert not entrance.gate.accepts(message | {"body": body([], {"archive": "x"}, {})}, "maintenance")
    (entrance.repository / ".keys" / "tasks.json").write_text("{}")
    assert entrance.gate.accepts(message, "maintenance")
    assert entrance.counts() == {}
