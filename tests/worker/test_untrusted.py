"""What is parsed of the broker's data, and in which form events, commands and answers are passed on."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from worker.broker_messages import COMMANDS, EVENTS, REPLIES, sound_broadcast, sound_reply
from worker.key_types import type_of
from worker.untrusted import parse


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(1 << 63), 1 << 63, 1.5, "\udcff\x00", [], {"__type__": 1}, {"a": [{"b": None}]}],
)
def test_plain_values_are_parsed(value: Any) -> None:
    """From text and from bytes."""
    text = json.dumps(value)
    assert parse(text) == parse(text.encode()) == value


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"9223372036854775809",
        b"-9223372036854775809",
        b"9" * 5000,
        b"[" * 100_000,
        b'{"__type__": "decimal", "__value__": "x"}',
        b'[{"a": {"__value__": 1, "__type__": "uuid"}}]',
    ],
)
def test_anything_else_is_refused(text: bytes) -> None:
    """With one kind of error, whatever is wrong."""
    with pytest.raises(ValueError, match=r"."):
        parse(text)


def test_values_are_nested_forty_times_at_most() -> None:
    """Long before a process would run out of stack."""
    assert parse("[" * 40 + "]" * 40)
    with pytest.raises(ValueError, match="too deeply"):
        parse("[" * 41 + "]" * 41)
    with pytest.raises(ValueError, match="too deeply"):
        parse('{"a":' * 41 + "1" + "}" * 41)


def test_a_text_has_a_longest_length() -> None:
    """In bytes."""
    assert parse(b"[1]", 3) == [1]
    with pytest.raises(ValueError, match="too long"):
        parse(b"[1]", 2)


def _message(body: Any, **headers: Any) -> bytes:
    return json.dumps(
        {
            "body": base64.b64encode(json.dumps(body).encode()).decode(),
            "content-type": "application/json",
            "content-encoding": "other",
            "headers": headers,
            "properties": {"delivery_tag": "one", "body_encoding": "base64", "more": 1},
            "more": 1,
        }
    ).encode()


def _opened(text: bytes | None) -> tuple[Any, Any]:
    assert text is not None
    found = json.loads(text)
    assert found.keys() == {"body", "content-encoding", "content-type", "headers", "properties"}
    assert (found["content-encoding"], found["content-type"]) == ("utf-8", "application/json")
    assert found["properties"].keys() == {"delivery_tag", "delivery_info", "body_encoding", "priority"}
    return json.loads(base64.b64decode(found["body"])), found["headers"]


HEARTBEAT = {
    "type": "worker-heartbeat",
    "hostname": "backup@host",
    "timestamp": 1.5,
    "utcoffset": -2,
    "clock": 7,
    "pid": 9,
    "freq": 2.0,
    "active": 1,
    "loadavg": [0.5, 1, 2],
}


def test_events_pass_with_the_fields_that_we_know() -> None:
    """Of the right types, alone or several together; one that lacks what Flower needs does not, and keeps none away."""
    assert _opened(sound_broadcast(EVENTS, _message(HEARTBEAT | {"more": 1}, clock=5))) == ([HEARTBEAT], {})
    assert _opened(sound_broadcast(EVENTS, _message([7, HEARTBEAT | {"loadavg": [1, 2]}])))[0] == [
        {name: value for name, value in HEARTBEAT.items() if name != "loadavg"}
    ]
    for name in ("type", "hostname", "timestamp", "utcoffset", "clock", "pid"):
        lacking = {key: value for key, value in HEARTBEAT.items() if key != name}
        assert sound_broadcast(EVENTS, _message([lacking])) is None
        assert _opened(sound_broadcast(EVENTS, _message([lacking, HEARTBEAT])))[0] == [HEARTBEAT]


def test_an_event_of_a_task_has_its_id() -> None:
    """And the fields of tasks."""
    event = {name: HEARTBEAT[name] for name in ("hostname", "timestamp", "utcoffset", "clock", "pid")}
    event |= {"type": "task-succeeded", "uuid": "one", "result": "x", "runtime": 0.5}
    assert _opened(sound_broadcast(EVENTS, _message(event | {"freq": 1})))[0] == [event]
    assert sound_broadcast(EVENTS, _message(event | {"uuid": 7})) is None
    assert sound_broadcast(EVENTS, _message(event | {"type": "task-other"})) is None


def test_commands_pass_with_the_fields_that_we_know() -> None:
    """And without the sender's clock; nothing is passed on from another exchange."""
    ping: dict[str, Any] = {"method": "ping", "arguments": {}, "destination": None}
    answer = {"reply_to": {"exchange": REPLIES, "routing_key": "me"}, "ticket": "t"}
    for command in (ping, ping | {"destination": ["backup@host"]}, ping | answer, ping | {"arguments": {"n": [1]}}):
        assert _opened(sound_broadcast(COMMANDS, _message(command | {"pattern": None}, clock=9))) == (command, {})
        assert sound_broadcast("other", _message(command)) is None


def test_answers_pass_with_their_ticket() -> None:
    """A worker's answer is whatever it says, by its name."""
    assert _opened(sound_reply(_message({"a@b": [1]}, ticket="t", clock="x"))) == ({"a@b": [1]}, {"ticket": "t"})
    for body, headers in (
        ({"a@b": 1}, {}),
        ({"a@b": 1}, {"ticket": 7}),
        ([1], {"ticket": "t"}),
        ({"a b": 1}, {"ticket": "t"}),
    ):
        assert sound_reply(_message(body, **headers)) is None


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (b"backup", b"list"),
        (b"offsite\x06\x163", b"list"),
        (b"0.reply.celery.pidbox", b"list"),
        (b"kekkai-backup-rejected", b"list"),
        (b"unacked", b"hash"),
        (b"unacked_index", b"zset"),
        (b"unacked_mutex", b"string"),
        (b"_kombu.binding.backup", b"set"),
        (b"_kombu.binding_permanent.backup", b"set"),
        (b"_kombu.binding_deadlines", b"zset"),
        (b"celery-task-meta-one", b"string"),
        (b"kekkai-backup-task-one", b"string"),
        (b"celery", None),
        (b"\xff", None),
        (b"kekkai-backup-aside-backup", None),
    ],
)
def test_each_key_of_ours_has_a_type(key: bytes, kind: bytes | None) -> None:
    """Keys of others, and what was moved aside, are nobody's concern."""
    assert type_of(key) == kind
