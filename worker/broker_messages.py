"""The form of messages that are not tasks: events, commands of the remote control, and answers to them.

Anyone who can write to the broker can send them, and they are not signed. What passes is made again from known fields
of the right types, since a field of another type ends the process that reads it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any, Final

from worker.untrusted import parse

EVENTS: Final = "celeryev"
COMMANDS: Final = "celery.pidbox"
REPLIES: Final = "reply.celery.pidbox"

MOST_BYTES: Final = 8 << 20

_TAG: Final = re.compile(r"[A-Za-z0-9-]{1,100}")
_NAME: Final = re.compile(r"[^\x00-\x20\x06\x16]{1,300}")
_EVENT: Final = re.compile(
    r"worker-(?:online|heartbeat|offline)|task-(?:sent|received|started|succeeded|failed|rejected|revoked|retried)"
)
_MOST_CHARACTERS: Final = 300
_LATEST: Final = 1 << 34
_MOST_CLOCK: Final = 1 << 53

_Test = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MOST_CHARACTERS


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_CLOCK


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _LATEST


def _is_offset(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= 24


def _is_load(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_number(one) for one in value)


_NEEDED: Final[dict[str, _Test]] = {
    "hostname": _is_word,
    "timestamp": _is_number,
    "utcoffset": _is_offset,
    "clock": _is_count,
    "pid": _is_count,
}
_OF_WORKERS: Final[dict[str, _Test]] = {
    "freq": _is_number,
    "active": _is_count,
    "processed": _is_count,
    "loadavg": _is_load,
    "sw_ident": _is_text,
    "sw_ver": _is_text,
    "sw_sys": _is_text,
}
_OF_TASKS: Final[dict[str, _Test]] = {
    "uuid": _is_word,
    "name": _is_word,
    "args": _is_text,
    "kwargs": _is_text,
    "root_id": _is_word,
    "parent_id": _is_word,
    "retries": _is_count,
    "eta": _is_text,
    "expires": _is_text,
    "queue": _is_word,
    "exchange": _is_text,
    "routing_key": _is_text,
    "result": _is_text,
    "runtime": _is_number,
    "exception": _is_text,
    "traceback": _is_text,
    "terminated": lambda value: isinstance(value, bool),
    "signum": _is_text,
    "expired": lambda value: isinstance(value, bool),
    "requeue": lambda value: isinstance(value, bool),
}


def sound_broadcast(exchange: str, text: bytes) -> bytes | None:
    """An event or command for kombu, made again; None if it has another form.

    Arguments:
        exchange: the exchange that it was published on.
        text: the message.
    """
    check = {EVENTS: _events, COMMANDS: _command}.get(exchange)
    try:
        message, body = _opened(text)
        return _closed(message, check(body), {}) if check else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def sound_reply(text: bytes) -> bytes | None:
    """An answer of the remote control for kombu, made again; None if it has another form."""
    try:
        message, body = _opened(text)
        ticket = message["headers"]["ticket"]
        if not _is_name(ticket) or not isinstance(body, dict) or not all(_is_name(worker) for worker in body):
            return None
        return _closed(message, body, {"ticket": ticket})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _opened(text: bytes) -> tuple[dict[str, Any], Any]:
    message = parse(text, MOST_BYTES)
    if message["content-type"] != "application/json" or message["properties"]["body_encoding"] != "base64":
        raise ValueError("it is not JSON")
    return message, parse(base64.b64decode(message["body"], validate=True), MOST_BYTES)


def _closed(message: dict[str, Any], body: Any, headers: dict[str, Any]) -> bytes:
    properties = message["properties"]
    if not _TAG.fullmatch(properties["delivery_tag"]):
        raise ValueError("its tag has another form")
    delivery = {"exchange": "", "routing_key": ""}
    said = {"delivery_tag": properties["delivery_tag"], "delivery_info": delivery, "body_encoding": "base64"}
    return json.dumps(
        {
            "body": base64.b64encode(json.dumps(body).encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": headers,
            "properties": {**said, "priority": 0},
        }
    ).encode()


def _events(body: Any) -> list[dict[str, Any]]:
    found = [event for one in (body if isinstance(body, list) else [body]) if (event := _event(one))]
    if not found:
        raise ValueError("it has no event")
    return found


def _event(given: Any) -> dict[str, Any] | None:
    if not isinstance(given, dict) or not _is_text(given.get("type")) or not _EVENT.fullmatch(given["type"]):
        return None
    is_task = given["type"].startswith("task-")
    if not all(is_right(given.get(name)) for name, is_right in _NEEDED.items()):
        return None
    if is_task and not _is_word(given.get("uuid")):
        return None
    known = {**_NEEDED, **(_OF_TASKS if is_task else _OF_WORKERS)}
    return {
        "type": given["type"],
        **{name: given[name] for name, is_right in known.items() if name in given and is_right(given[name])},
    }


def _command(body: dict[str, Any]) -> dict[str, Any]:
    arguments, destination = body.get("arguments") or {}, body.get("destination")
    if not _is_name(body["method"]) or not isinstance(arguments, dict) or body.get("pattern") is not None:
        raise ValueError("it is no command")
    if destination is not None and not (isinstance(destination, list) and all(_is_name(one) for one in destination)):
        raise ValueError("it is for nobody")
    said: dict[str, Any] = {"method": body["method"], "arguments": arguments, "destination": destination}
    if (reply_to := body.get("reply_to")) is not None:
        if reply_to["exchange"] != REPLIES or not _is_name(reply_to["routing_key"]) or not _is_name(body["ticket"]):
            raise ValueError("its answer would go elsewhere")
        answer = {"exchange": REPLIES, "routing_key": reply_to["routing_key"]}
        said |= {"reply_to": answer, "ticket": body["ticket"]}
    return said
