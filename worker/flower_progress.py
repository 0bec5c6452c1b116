"""Adds to Flower what events do not tell: progress, and results of tasks that ended while Flower was not running.

Both are read from the result backend, which costs the workers nothing and cannot delay their work.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from celery import states
from redis import RedisError
from tornado.ioloop import PeriodicCallback

from portal.ops.model import Component, spoken_names
from portal.ops.units import human_bytes, printable
from worker.errors import OperationFailedError
from worker.operations import PING
from worker.progress import STATE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flower.app import Flower

_EVERY_MILLISECONDS: Final = 1000
_MOST_AT_ONCE: Final = 500
_READ_AT_ONCE: Final = 50
_MOST_BYTES: Final = 1 << 18
_MOST_CHARACTERS: Final = 10_000
_MOST_LABELS: Final = 2000
_SHOWN_LISTS: Final = ("components", "components_restored", "removed")
_IDS: Final = ("backup_id", "restore_id", "drill_id")
_ENDS: Final = {states.SUCCESS: "succeeded", states.FAILURE: "failed", states.REVOKED: "revoked"}


def follow(flower: Flower) -> PeriodicCallback:
    """Query the tasks that Flower knows and that have not ended, once a second."""
    # Insert our state into Celery's order: after a task's start, before any end.
    states.PRECEDENCE_LOOKUP[STATE] = (states.precedence(states.REVOKED) + states.precedence(states.STARTED)) / 2

    async def look() -> None:
        _forget_pings(flower)
        _show_failures(flower)
        wanted = {task.uuid: task for task in list(flower.events.state.tasks.values()) if _is_wanted(task)}
        if not wanted:
            return
        try:
            found = await flower.io_loop.run_in_executor(
                None, _read, flower.capp.backend, list(wanted)[-_MOST_AT_ONCE:]
            )
        except (RedisError, OSError):  # Flower itself says that the broker is away
            return
        for task_id, meta in found.items():
            task = wanted[task_id]
            if not task.ready:
                _tell(flower, task, meta)
            if task.ready:
                _describe(flower, task, meta)

    escape_events(flower)
    callback = PeriodicCallback(look, _EVERY_MILLISECONDS)
    callback.start()
    return callback


def _forget_pings(flower: Flower) -> None:
    """Remove pings of health checks reported by earlier releases; ours send no events."""
    tasks = flower.events.state.tasks
    for task in [task for task in list(tasks.values()) if task.name == PING.name]:
        tasks.pop(task.uuid, None)


def _show_failures(flower: Flower) -> None:
    """Show error and hint in the list's column of results, where Flower shows nothing, or the last progress."""
    for task in list(flower.events.state.tasks.values()):
        if task.state == states.FAILURE and task.exception and task.result != task.exception:
            task.exception = task.result = _error_sentence(str(task.exception))
            flower.events.state.search_engine.upsert(task)


def _error_sentence(error: str) -> str:
    """An error in one line; line ends in an event are escaped, and the last hint is the engine's."""
    message, mark, hint = error.replace("\n  hint: ", r"\n  hint: ").rpartition(r"\n  hint: ")
    return printable(f"{message}. Hint: {hint}" if mark else error, 1000)


def _is_wanted(task: Any) -> bool:
    """True if the backend may know more about a task than Flower: progress, or its result."""
    return not task.ready or any(str(said).startswith("{") for said in (task.result, task.exception) if said)


def _read(backend: Any, task_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    metas: dict[str, dict[str, Any]] = {}
    for first in range(0, len(task_ids), _READ_AT_ONCE):
        some = task_ids[first : first + _READ_AT_ONCE]
        found = zip(some, map(backend.read, backend.texts(some, _MOST_BYTES)), strict=True)
        metas |= {task_id: meta for task_id, meta in found if meta}
    return metas


def _tell(flower: Flower, task: Any, meta: Mapping[str, Any]) -> None:
    """Pass facts to Flower as if by an event."""
    status, result = meta["status"], meta["result"]
    if status == STATE:
        task.event("progress", timestamp=time.time(), fields={"result": progress_sentence(result)})
    elif status in _ENDS:
        said = "exception" if status == states.FAILURE else "result"
        task.event(_ENDS[status], timestamp=_end(meta), fields={said: printable(str(result))})
    else:
        return
    flower.events.state.search_engine.upsert(task)


def _describe(flower: Flower, task: Any, meta: Mapping[str, Any]) -> None:
    """Replace a result, which Flower would show as Python's text, by a sentence."""
    said = meta["result"].result if isinstance(meta["result"], OperationFailedError) else meta["result"]
    text = result_sentence(said) if isinstance(said, dict) else printable(str(said))
    if meta["status"] == states.FAILURE:
        task.exception = text
    else:
        task.result = text
    flower.events.state.search_engine.upsert(task)


def result_sentence(result: Mapping[str, Any]) -> str:
    """A result for a person: what was made or found, how much, and after a failure what to do."""
    if result.get("error"):
        return _error_sentence(str(result["error"]))
    said = [str(result["message"])] if result.get("message") else []
    said += [str(result[name]) for name in _IDS if result.get(name) and str(result[name]) not in "".join(said)]
    if result.get("unchanged"):
        said.append("nothing has changed")
    if isinstance(result.get("size_bytes"), int):
        said.append(human_bytes(result["size_bytes"]))
    lists = {name: result[name] for name in _SHOWN_LISTS if isinstance(result.get(name), list)}
    said += [f"{name.replace('_', ' ')}: {_shown_list(name, one)}" for name, one in lists.items()]
    said += [f"{len(result['warnings'])} warnings"] if result.get("warnings") else []
    return printable(", ".join(said) or "done", 1000)


def _shown_list(name: str, items: Sequence[Any]) -> str:
    shown = [str(item) for item in items[:5]]
    if name.startswith("components") and set(shown) <= set(Component):
        return spoken_names(shown) or "none"
    return ", ".join(shown) or "none"


def _end(meta: Mapping[str, Any]) -> float:
    done = meta.get("date_done")
    return datetime.fromisoformat(done).timestamp() if done else time.time()


def progress_sentence(state: Mapping[str, Any]) -> str:
    """The progress of a task, for a person."""
    if not isinstance(state, dict) or not {"phase", "done", "total"} <= state.keys():
        return ""
    phase, done, total = printable(str(state["phase"]), 80), state["done"], state["total"]
    if not isinstance(done, int) or not done:
        return phase
    return f"{phase}: {human_bytes(done)}" + (f" of {human_bytes(total)}" if isinstance(total, int) and total else "")


def escape_events(flower: Flower) -> None:
    """Make Flower show events with control characters escaped, and of a limited number of workers and tasks.

    Anyone who can write to the broker can send them.
    """
    take = flower.events.on_event
    seen: set[tuple[Any, Any]] = set()

    def on_event(event: Mapping[str, Any]) -> None:
        safe = _escaped(event)
        label = safe.get("hostname"), safe.get("name")
        if label in seen or len(seen) < _MOST_LABELS:  # Flower keeps a metric of each for ever
            seen.add(label)
            take(safe)

    flower.events.on_event = on_event


def _escaped(event: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: printable(value, _MOST_CHARACTERS) if isinstance(value, str) else value for name, value in event.items()
    }
