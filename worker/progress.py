"""Reports a task's progress as its state, which commands draw and Flower shows.

A thread sends it, so that a broker that is away delays that thread and never the work. The thread ends before the task,
so that nothing arrives after the result.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final, Self

from redis import ConnectionPool, Redis, RedisError

from worker.configuration import RESULT_SECONDS

if TYPE_CHECKING:
    from types import TracebackType

    from celery import Task

    from portal.ops.runtime.progress import Step

STATE: Final = "PROGRESS"

_FIRST_SECONDS: Final = 0.1
_EVERY_SECONDS: Final = 0.5
_ANSWER_SECONDS: Final = 2


class Reporter:
    """Called with each step of a job; sends the latest one soon, then twice a second.

    Its first report also says that a task has begun (ADR 62).

    Arguments:
        task: the task whose state is set.
    """

    def __init__(self, task: Task) -> None:
        backend = task.app.backend
        short = {"socket_timeout": _ANSWER_SECONDS, "socket_connect_timeout": _ANSWER_SECONDS}
        self._redis = Redis(connection_pool=ConnectionPool(**{**backend.connparams, **short}))
        self._encode = backend.encode
        self._key = backend.get_key_for_task(task.request.id)
        self._meta = {"task_id": task.request.id, "name": task.name, "status": STATE, "children": [], "traceback": None}
        self._latest: Step | None = None
        self._waiting = ""
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._redis.close()

    def __call__(self, step: Step) -> None:
        """Take a step; cheap enough to be called for every block."""
        if self._latest and step.done < self._latest.done:  # another part of the job, with a rate of its own
            self._started = time.monotonic()
        self._latest = step
        self._waiting = ""

    def wait(self, reason: str) -> None:
        """Report that the task is waiting, and why."""
        self._waiting = reason

    def _run(self) -> None:
        told: dict[str, Any] = {}
        pause = _FIRST_SECONDS
        while not self._ended.wait(pause):
            pause = _EVERY_SECONDS
            state = self._state()
            if state != told:
                self._tell(state)
                told = state

    def _state(self) -> dict[str, Any]:
        step = self._latest
        if self._waiting or step is None:
            return {"phase": self._waiting or "starting", "done": 0, "total": None}
        seconds = max(time.monotonic() - self._started, 0.001)
        return {"phase": step.phase, "done": step.done, "total": step.expect(), "rate": int(step.done / seconds)}

    def _tell(self, state: dict[str, Any]) -> None:
        try:
            self._redis.set(self._key, self._encode({**self._meta, "result": state}), ex=RESULT_SECONDS)
        except RedisError:  # missing progress is no reason to stop
            self._ended.wait(_ANSWER_SECONDS)
