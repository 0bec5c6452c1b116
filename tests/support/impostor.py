"""Answers the remote control's questions in place of workers, as anyone can who reads and writes the broker."""

from __future__ import annotations

import base64
import json
import threading
from typing import TYPE_CHECKING, Any, Self

from redis import Redis

if TYPE_CHECKING:
    from demo.redis import EmbeddedRedis

ANSWERS: tuple[Any, ...] = (
    7,
    [],
    [7],
    ["backup@impostor"],
    {"backup@impostor": None},
    {"backup@impostor": 7},
    {"backup@impostor": "ok"},
    {"backup@impostor": [7, None, {"name": ["backup"]}]},
    {"backup@impostor": [{"name": "backup"}]},
    {"backup@impostor": {"pool": 7, "total": 7}},
    {"backup@impostor": {"pool": {"max-concurrency": "x"}, "total": {"x": "y"}, "consumer": 7}},
    {"backup@impostor": {"pool": {"max-concurrency": -1}, "total": [], "broker": 7}},
    {"\x1b[2J": {"ok": "pong"}},
)
"""What it answers, each with the right ticket."""

RAW: tuple[bytes, ...] = (b"\xff", b"", b"7", b"[" * 100_000, b'{"a": {"__type__": "decimal", "__value__": "x"}}')
"""What it answers in place of a message."""


class Impostor:
    """A thread that answers every question with everything; a context manager."""

    def __init__(self, redis: EmbeddedRedis) -> None:
        self._connection = Redis(unix_socket_path=str(redis.socket))
        self._listener: Any = self._connection.pubsub()  # type: ignore[no-untyped-call]
        self._listener.psubscribe("/0.celery.pidbox")
        self._listener.get_message(timeout=10)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.answered = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._listener.close()
        self._connection.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            if found := self._listener.get_message(ignore_subscribe_messages=True, timeout=0.1):
                self._answer(json.loads(base64.b64decode(json.loads(found["data"])["body"])))

    def _answer(self, question: dict[str, Any]) -> None:
        if reply_to := question.get("reply_to"):
            queue = f"{reply_to['routing_key']}.{reply_to['exchange']}"
            for text in (*RAW, *(_message(one, question["ticket"]) for one in ANSWERS)):
                self._connection.lpush(queue, text)
            self.answered += 1


def _message(answer: Any, ticket: str) -> bytes:
    return json.dumps(
        {
            "body": base64.b64encode(json.dumps(answer).encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"ticket": ticket, "clock": "x"},
            "properties": {"delivery_tag": "one", "delivery_info": {}, "body_encoding": "base64", "priority": 0},
        }
    ).encode()
