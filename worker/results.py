"""Task results in Redis. What nobody of ours can have written counts as absent, and gives way to a true result.

Celery reads a task's present result before it stores another one, never replaces a success, and fails if it cannot
decode it: whoever can write to Redis could suppress a task or its result that way.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import states
from celery.backends.redis import RedisBackend
from celery.exceptions import TaskRevokedError

from portal.ops.errors import OpsError
from portal.ops.runtime.logs import engine_log
from portal.ops.units import printable
from worker.errors import OperationFailedError
from worker.key_types import MendingRedis
from worker.progress import STATE
from worker.signing import is_signed_result
from worker.untrusted import parse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = engine_log("worker.results")

_MOST_BYTES: Final = 32 << 20
_STATES: Final = frozenset({STATE, *states.ALL_STATES})
_EXCEPTIONS: Final[Mapping[str, type[Exception]]] = {
    one.__name__: one for one in (TaskRevokedError, TimeLimitExceeded, WorkerLostError)
}
"""Celery's own ends of a task. Anything else is shown by its name, and no class is looked up for it."""


class StoredError(Exception):
    """The exception of a failed task, of a class that is none of ours."""


class Results(RedisBackend):  # type: ignore[misc]  # Celery has no types
    """The result backend of every process."""

    def _get_client(self) -> type[MendingRedis]:
        return MendingRedis

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Do not subscribe to the task's result: our clients ask for it, and nothing would read the subscription."""

    def get(self, key: Any) -> bytes | None:
        """The value of a key, or None; one that is too long for a result is none."""
        found: bytes = self.client.getrange(key, 0, _MOST_BYTES)
        return found if 0 < len(found) <= _MOST_BYTES else None

    def texts(self, task_ids: Sequence[str], most_bytes: int) -> list[bytes | None]:
        """What is stored for some tasks, for `read`.

        Arguments:
            most_bytes: the longest of interest.

        Raises:
            RedisError: Redis does not answer.
        """
        pipe = self.client.pipeline(transaction=False)
        for task_id in task_ids:
            pipe.getrange(self.get_key_for_task(task_id), 0, most_bytes)
        return [text if 0 < len(text) <= most_bytes else None for text in pipe.execute()]

    def read(self, text: bytes | None) -> dict[str, Any] | None:
        """A stored result as Celery's dictionary, with its exception if it failed; None if it has no form.

        Arguments:
            text: the value in Redis.
        """
        try:
            meta = parse(text or b"", _MOST_BYTES)
            if not isinstance(meta, dict) or meta["status"] not in _STATES:
                return None
            failed = meta["status"] in states.EXCEPTION_STATES
            result = _exception(meta["result"]) if failed else meta["result"]
        except (ValueError, KeyError, TypeError):
            return None
        facts: dict[str, Any] = {"date_done": _moment(meta.get("date_done")), "result": result, "children": []}
        texts = {name: meta.get(name) for name in ("name", "traceback")}
        return {**meta, **{name: one if isinstance(one, str) else None for name, one in texts.items()}, **facts}

    def decode_result(self, payload: Any) -> dict[str, Any]:
        """A stored result; one without a form is that of a task that has not ended."""
        return self.read(payload) or _pending()

    def is_signed(self, task_id: str, meta: Mapping[str, Any]) -> bool:
        """True if a worker of the repository has signed a result.

        Raises:
            RepositoryError: the keys cannot be read.
        """
        said = meta["result"].result if isinstance(meta["result"], OperationFailedError) else meta["result"]
        success = meta["status"] == states.SUCCESS
        return is_signed_result(task_id, said, self.app.task_keys.named, success=success)

    def has_end(self, task_id: str) -> bool:
        """True if a task has a result that it did not get from just anyone."""
        meta = self.read(self.get(self.get_key_for_task(task_id)))
        try:
            return meta is not None and meta["status"] in states.READY_STATES and self.is_signed(task_id, meta)
        except OpsError:
            return False

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        if (text := self.get(self.get_key_for_task(task_id))) is None:
            return _pending()
        meta = self.read(text)
        try:
            if meta and (meta["status"] != states.SUCCESS or self.is_signed(task_id, meta)):
                return {**meta, "task_id": task_id}
        except OpsError:  # the reader may not be allowed to read the keys; a worker is
            return {**(meta or _pending()), "task_id": task_id}
        log.warning("result_rejected", status=meta["status"] if meta else "malformed", rejected_id=printable(task_id))
        return _pending()


def _pending() -> dict[str, Any]:
    return {"status": states.PENDING, "result": None, "traceback": None, "children": []}


def _moment(text: Any) -> str | None:
    try:
        datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return str(text)


def _exception(stored: Any) -> Exception | None:
    """The exception that a dictionary of Celery's describes.

    Raises:
        ValueError, KeyError, TypeError: it describes none.
    """
    if stored is None:
        return None
    module, name, given = stored["exc_module"], stored["exc_type"], stored.get("exc_message", "")
    arguments = given if isinstance(given, list) else [given]
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("it has no class")
    if name == OperationFailedError.__name__ and len(arguments) == 1 and isinstance(arguments[0], dict):
        return OperationFailedError(arguments[0])
    if (known := _EXCEPTIONS.get(name)) and len(arguments) == 1 and isinstance(arguments[0], (str, int, float)):
        return known(arguments[0])
    return StoredError(printable(", ".join(str(one) for one in arguments) or name, 1000))
