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


COUNTS = ([0, (1 << 53) - 1], [-1, 1 << 53, True, 1.5, "1", None])
NUMBERS = ([0, 0.5, (1 << 34) - 1], [-1, -0.5, 1 << 34, True, "1", None])
TEXTS = (["", "x" * 1000], [7, None, ["x"]])
WORDS = (["x", "x" * 300], ["", "x" * 301, 7, None])
YES_OR_NO = ([True, False], [0, 1, "true", None])
LOADS = ([[0, 0.5, 3]], [[1, 2], [1, 2, 3, 4], [1, 2, -1], [1, 2, True], "abc", None])
OFFSETS = ([24, -24, 0.5], [24.5, -25, "1", None])


@pytest.mark.parametrize(
    ("kind", "names", "values"),
    [
        ("worker-online", "freq", NUMBERS),
        ("worker-offline", "active processed", COUNTS),
        ("worker-heartbeat", "loadavg", LOADS),
        ("worker-heartbeat", "sw_ident sw_ver sw_sys", TEXTS),
        ("task-sent", "name root_id parent_id queue", WORDS),
        ("task-received", "args kwargs eta expires exchange routing_key", TEXTS),
        ("task-started", "result exception traceback signum", TEXTS),
        ("task-retried", "retries", COUNTS),
        ("task-failed", "runtime", NUMBERS),
        ("task-revoked", "terminated expired", YES_OR_NO),
        ("task-rejected", "requeue", YES_OR_NO),
    ],
)
def test_a_field_of_another_type_is_left_out(kind: str, names: str, values: tuple[list[Any], list[Any]]) -> None:
    """At its limits it passes; beyond them it does not."""
    event = {name: HEARTBEAT[name] for name in ("hostname", "timestamp", "utcoffset", "clock", "pid")} | {"type": kind}
    event |= {"uuid": "one"} if kind.startswith("task") else {}
    right = [event | {name: value} for name in names.split() for value in values[0]]
    assert [_opened(sound_broadcast(EVENTS, _message(one)))[0] for one in right] == [[one] for one in right]
    wrong = [event | {name: value} for name in names.split() for value in values[1]]
    assert [_opened(sound_broadcast(EVENTS, _message(one)))[0] for one in wrong] == [[event]] * len(wrong)


@pytest.mark.parametrize(
    ("name", "values"),
    [("hostname", WORDS), ("timestamp", NUMBERS), ("utcoffset", OFFSETS), ("clock", COUNTS), ("pid", COUNTS)],
)
def test_an_event_lacks_nothing_that_flower_needs(name: str, values: tuple[list[Any], list[Any]]) -> None:
    """One with such a field of another type is none."""
    right = [HEARTBEAT | {name: value} for value in values[0]]
    assert [_opened(sound_broadcast(EVENTS, _message(one)))[0] for one in right] == [[one] for one in right]
    wrong = [HEARTBEAT | {name: value} for value in values[1]]
    assert [sound_broadcast(EVENTS, _message(one)) for one in wrong] == [None] * len(wrong)


@pytest.mark.parametrize("body", [[], 7, None, [[]], *(HEARTBEAT | {"type": one} for one in ("", "worker-onliner", 7))])
def test_what_is_no_event_is_not_passed_on(body: Any) -> None:
    """Nor a message without any."""
    assert sound_broadcast(EVENTS, _message(body)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"content-type": "application/x-python-serialize"},
        {"content-type": None},
        {"body": "%"},
        {"body": "Ww=="},
        {"body": 7},
        {"properties": {"delivery_tag": "one", "body_encoding": "utf-8"}},
        {"properties": {"delivery_tag": "", "body_encoding": "base64"}},
        {"properties": {"delivery_tag": "a" * 101, "body_encoding": "base64"}},
        {"properties": {"delivery_tag": "a b", "body_encoding": "base64"}},
        {"properties": {"delivery_tag": 7, "body_encoding": "base64"}},
        {"properties": {"delivery_tag": "one"}},
        {"properties": 7},
    ],
)
def test_a_message_of_another_form_is_not_passed_on(change: dict[str, Any]) -> None:
    """Neither an event, nor a command, nor an answer; the longest tag has a hundred characters."""
    long = {"properties": {"delivery_tag": "a" * 100, "body_encoding": "base64"}}
    for body, way in (([HEARTBEAT], EVENTS), ({"method": "ping"}, COMMANDS)):
        message = json.loads(_message(body))
        assert sound_broadcast(way, json.dumps(message | long).encode())
        assert sound_broadcast(way, json.dumps(message | change).encode()) is None
        assert sound_broadcast(way, b"") is None
    answer = json.loads(_message({"a@b": 1}, ticket="t"))
    assert sound_reply(json.dumps(answer | long).encode())
    assert sound_reply(json.dumps(answer | change).encode()) is None


NO_NAMES = ("", "x" * 301, "a b", "a\nb", "a\x00", "a\x06\x16b", 7, None)


@pytest.mark.parametrize(
    "change",
    [
        *({"method": name} for name in NO_NAMES),
        *({"ticket": name} for name in NO_NAMES),
        *({"destination": [name]} for name in NO_NAMES),
        *({"reply_to": {"exchange": REPLIES, "routing_key": name}} for name in NO_NAMES),
        {"reply_to": {"exchange": "other", "routing_key": "me"}},
        {"reply_to": {"routing_key": "me"}},
        {"reply_to": "me"},
        {"arguments": [1]},
        {"arguments": "x"},
        {"destination": "x"},
        {"pattern": "x"},
    ],
)
def test_a_command_of_another_form_is_not_passed_on(change: dict[str, Any]) -> None:
    """Nor one whose answer would go elsewhere; one for nobody in particular is for all."""
    longest = "x" * 300
    command = {
        "method": longest,
        "arguments": None,
        "destination": [longest],
        "reply_to": {"exchange": REPLIES, "routing_key": longest},
        "ticket": longest,
    }
    assert _opened(sound_broadcast(COMMANDS, _message(command)))[0] == command | {"arguments": {}}
    assert sound_broadcast(COMMANDS, _message(command | change)) is None
    assert sound_broadcast(COMMANDS, _message([command])) is None


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
