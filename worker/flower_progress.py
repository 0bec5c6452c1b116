"""What Flower is not told by events: how far a task is, and how one ended while Flower did not run.

Both stand in the result backend. To read them there costs the workers nothing, and cannot hold up their work.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from celery import states
from redis import RedisError
from tornado.ioloop import PeriodicCallback

from portal.ops.units import human_bytes
from worker.operations import PING
from worker.progress import STATE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flower.app import Flower

_EVERY_MILLISECONDS: Final = 1000
_PING_SECONDS: Final = 30.0
_ENDS: Final = {states.SUCCESS: "succeeded", states.FAILURE: "failed", states.REVOKED: "revoked"}


def follow(flower: Flower) -> PeriodicCallback:
    """Look after the tasks that have not ended, as far as Flower knows, once a second."""
    # Celery's order of states gets ours where it stands: after a task's start, before any of its ends.
    states.PRECEDENCE_LOOKUP[STATE] = (states.precedence(states.REVOKED) + states.precedence(states.STARTED)) / 2

    async def look() -> None:
        _forget_pings(flower)
        open_tasks = {task.uuid: task for task in list(flower.events.state.tasks.values()) if not task.ready}
        if not open_tasks:
            return
        try:
            found = await flower.io_loop.run_in_executor(None, _read, flower.capp.backend, list(open_tasks))
        except (RedisError, OSError):  # Flower itself says that the broker is away
            return
        for task_id, meta in found.items():
            if not open_tasks[task_id].ready:  # it has been told of the end meanwhile
                _tell(flower, open_tasks[task_id], meta)

    callback = PeriodicCallback(look, _EVERY_MILLISECONDS)
    callback.start()
    return callback


def _forget_pings(flower: Flower) -> None:
    """Leave the pings of health checks out, which would soon be all that there is to see."""
    tasks = flower.events.state.tasks
    for task in [task for task in list(tasks.values()) if task.name == PING.name and _is_over(task)]:
        tasks.pop(task.uuid, None)


def _is_over(task: Any) -> bool:
    """Whether no event of it is still to come, which would bring it back without its name."""
    return task.ready or time.time() - (task.timestamp or 0) > _PING_SECONDS


def _read(backend: Any, task_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    found = backend.client.mget([backend.get_key_for_task(task_id) for task_id in task_ids])
    return {
        task_id: backend.meta_from_decoded(backend.decode(text))
        for task_id, text in zip(task_ids, found, strict=True)
        if text is not None
    }


def _tell(flower: Flower, task: Any, meta: Mapping[str, Any]) -> None:
    """Have Flower take note, as if it had been told so."""
    status, result = meta["status"], meta["result"]
    if status == STATE:
        task.event("progress", timestamp=time.time(), fields={"result": progress_sentence(result)})
    elif status in _ENDS:
        said = "exception" if status == states.FAILURE else "result"
        task.event(_ENDS[status], timestamp=_end(meta), fields={said: str(result)})
    else:
        return
    flower.events.state.search_engine.upsert(task)


def _end(meta: Mapping[str, Any]) -> float:
    done = meta.get("date_done")
    return datetime.fromisoformat(done).timestamp() if done else time.time()


def progress_sentence(state: Mapping[str, Any]) -> str:
    """How far a task is, for a person."""
    if not state["done"]:
        return str(state["phase"])
    total = f" of {human_bytes(state['total'])}" if state["total"] else ""
    return f"{state['phase']}: {human_bytes(state['done'])}{total}"
