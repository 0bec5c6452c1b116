"""The gate: checks every message from a queue before Celery sees it.

A message is accepted if it has the form of a task and a valid signature, and requests nothing beyond the task: no
callbacks, no other time limit, no delay. Fields that the signature does not cover are set to our own values.
"""

from __future__ import annotations

import base64
import json
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

from portal.ops.errors import OpsError
from portal.ops.runtime.progress import utc_now
from worker.broker_messages import sound_reply
from worker.delivery import TASK_ID
from worker.errors import RejectedError, Rejection
from worker.keys import TaskKeys
from worker.operations import PING, Queue
from worker.rejections import Rejections
from worker.signing import HEADER, SignedTask, verify_task
from worker.untrusted import parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from redis import Redis

_TAG: Final = re.compile(r"[A-Za-z0-9-]{1,100}")
_MOST_BYTES: Final = 64 << 20
_FORM: Final = "Only backup.sh, restore.sh, beat and the watcher put messages on these queues."
_MALFORMED: Final = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
_EMBEDDED: Final = ("callbacks", "errbacks", "chain", "chord")
_NOT_OURS: Final = ("eta", "group", "shadow", "ignore_result", "stamps", "stamped_headers", "retries")
"""Headers that change how a worker processes a message, and that none of our tasks has."""


class Gate:
    """Checks messages for a repository's workers.

    Arguments:
        repository: the repository's directory.
        tell: receives a refused message that has the form of a task: its sender may be waiting for it.
    """

    def __init__(self, repository: Path, *, tell: Callable[[str, str, RejectedError], None] | None = None) -> None:
        self._keys = TaskKeys(repository)
        self._rejections = Rejections(repository)
        self._tell = tell

    def admit(self, raw: bytes, queue: str, client: Redis | None) -> bytes | None:
        """The message for Celery, or None if it is rejected, which is logged and counted.

        Arguments:
            raw: the message in the broker's form.
            queue: the queue that it came from.
            client: the connection on which to keep rejected messages.
        """
        name, task_id, refused = "", "", None
        try:
            if queue not in set(Queue):  # an answer of the remote control
                return sound_reply(raw) or _refuse("it is no answer")
            message = _parse(raw)
            name, task_id = str(message["headers"].get("task")), str(message["headers"].get("id"))
            return self.checked(message, queue)
        except RejectedError as error:
            reason, refused = error.reason, error
        except OpsError:  # the keys cannot be read, so no task can be checked
            reason = Rejection.UNKNOWN_KEY
        except _MALFORMED:
            reason = Rejection.MALFORMED
        few = self._rejections.note(reason, raw, queue=queue, task=name, task_id=task_id, client=client)
        if few and self._tell and refused and reason is not Rejection.MALFORMED and TASK_ID.fullmatch(task_id):
            self._tell(name, task_id, refused)
        return None

    def note(self, raw: bytes, queue: str) -> None:
        """Log and count a message that the transport cannot parse."""
        self._rejections.note(Rejection.MALFORMED, raw, queue=queue, task="", task_id="", client=None)

    def accepts(self, message: dict[str, Any], queue: str) -> bool:
        """True if a message is a valid task, or that cannot be told; nothing is counted.

        Arguments:
            message: the message, whose headers and properties are dictionaries.
            queue: the queue that it came from.
        """
        try:
            return bool(self.checked(message, queue))
        except (RejectedError, *_MALFORMED):
            return False
        except OpsError:  # the keys cannot be read
            return True

    def checked(self, message: dict[str, Any], queue: str) -> bytes:
        """The message for Celery.

        Arguments:
            message: the message, whose headers and properties are dictionaries.
            queue: the queue that it came from.

        Raises:
            RejectedError: it is no valid task.
            OpsError: the keys cannot be read.
            ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError: it has another form.
        """
        headers = message["headers"]
        name, task_id = str(headers.get("task")), str(headers.get("id"))
        arguments, embedded = _body(message)
        if not TASK_ID.fullmatch(task_id) or not _TAG.fullmatch(message["properties"]["delivery_tag"]):
            _refuse("its id has another form")
        task = verify_task(name, task_id, arguments, headers.get(HEADER), self._keys.named, utc_now())
        if task.operation is not PING and task.operation.queue.value != queue:
            _refuse("it is on the queue of other tasks")
        if any(embedded.values()) or any(headers.get(one) for one in _NOT_OURS) or any(headers.get("timelimit") or ()):
            _refuse("it asks for more than the task")
        return _made_again(message, task, queue)


def _made_again(message: dict[str, Any], task: SignedTask, queue: str) -> bytes:
    """The message with nothing but what we know: an unknown header could change what kombu and Celery do."""
    headers, properties = message["headers"], message["properties"]
    delivery = properties.get("delivery_info")
    is_again = isinstance(delivery, dict) and delivery.get("redelivered") is True
    signature = {field: headers[HEADER][field] for field in ("key", "requester", "at", "mac")}
    said = {
        "lang": "py",
        "task": task.operation.name,
        "id": task.task_id,
        "root_id": task.task_id,
        "parent_id": _id_of(headers.get("parent_id")),
        "timelimit": [None, None],
        "retries": 0,
        "expires": _moment(headers.get("expires")) if task.operation is PING else None,
        HEADER: signature,
        "argsrepr": "",
        "kwargsrepr": arguments_text(task),
    }
    return json.dumps(
        {
            "body": base64.b64encode(
                json.dumps([[], dict(task.arguments), dict.fromkeys(_EMBEDDED)]).encode()
            ).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": said,
            "properties": {
                "correlation_id": task.task_id,
                "reply_to": "",
                "delivery_tag": properties["delivery_tag"],
                "delivery_info": {"exchange": "", "routing_key": queue, "redelivered": is_again},
                "body_encoding": "base64",
                "priority": 0,
            },
        }
    ).encode()


def _id_of(given: object) -> str | None:
    return given if isinstance(given, str) and TASK_ID.fullmatch(given) else None


def _moment(given: object) -> str | None:
    return datetime.fromisoformat(given).isoformat() if isinstance(given, str) else None


def arguments_text(task: SignedTask) -> str:
    """The arguments of a task as Flower shows them."""
    return show_arguments(task.arguments)


def show_arguments(arguments: Any) -> str:
    """Arguments for a person: ``archive=latest, level=contents``; long lists are only counted."""
    from portal.ops.units import printable

    said = []
    for name, value in dict(arguments).items():
        text = f"{len(value):,} paths" if isinstance(value, (list, tuple)) and len(value) > 3 else str(value)
        said.append(f"{name}={text}")
    return printable(", ".join(said))


def _parse(raw: bytes) -> dict[str, Any]:
    message = parse(raw, _MOST_BYTES)
    if not all(isinstance(part, dict) for part in (message, message["headers"], message["properties"])):
        _refuse("it has another form")
    return dict(message)


def _body(message: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments, and the options around the task."""
    if message["content-type"] != "application/json" or message["properties"]["body_encoding"] != "base64":
        _refuse("it is not JSON")
    positional, arguments, embedded = json.loads(base64.b64decode(message["body"], validate=True))
    if positional or not isinstance(arguments, dict) or not isinstance(embedded, dict):
        _refuse("its arguments have another form")
    return arguments, embedded


def _refuse(why: str) -> NoReturn:
    raise RejectedError(Rejection.MALFORMED, f"the message is no task of ours: {why}", hint=_FORM)
