"""Sends tasks to workers and watches them.

The sender chooses a task's id, and the same id is the same task, so sending it twice is harmless. If the broker has
lost its data, the waiting command sends the task again; a mark next to the task shows that.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from celery import states
from celery.exceptions import TimeLimitExceeded
from kombu.exceptions import OperationalError
from redis import RedisError
from redis.exceptions import AuthenticationError, NoPermissionError

from portal.ops.errors import OpsError
from portal.ops.units import printable
from worker.application import make_app
from worker.configuration import RESULT_SECONDS
from worker.errors import EXIT_CODE, BrokerAwayError, BrokerRefusesError, OperationFailedError, too_slow
from worker.operations import PING, Requester
from worker.progress import STATE
from worker.signing import RESULT_FIELD
from worker.task_ids import new_task_id
from worker.transport import Channel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from portal.ops.settings.load import Settings
    from worker.operations import Operation, Queue

_MARK: Final = "kekkai-backup-task-"
_SEND: Final = {"max_retries": 2, "interval_start": 0.2, "interval_step": 0.4, "interval_max": 1.0}
_LOOK_SECONDS: Final = 5
_MOST_SEARCHED: Final = 1000
_PATIENCE: Final = (1, 2, 4)
"""How many times as long to wait for the answers to each question."""


@dataclass(frozen=True, kw_only=True)
class TaskState:
    """The progress of a task.

    Arguments:
        is_begun: a worker has taken it.
        is_ended: there is a result.
        is_lost: the broker has lost the task.
        is_stopped: it was revoked, or it expired before it was begun.
        is_signed: a worker has signed the result; anyone who can write to the broker can write an unsigned one.
        is_checked: the signature could be checked, which needs the repository.
        name: the task's name, if the broker knows it.
        progress: phase, bytes done and bytes in total, as last reported by the worker.
        result: the output of the engine's `to_dict`, once it has ended.
        exit_code: the exit code for a command, then.
    """

    is_begun: bool = False
    is_ended: bool = False
    is_lost: bool = False
    is_stopped: bool = False
    is_signed: bool = False
    is_checked: bool = True
    name: str = ""
    progress: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class QueueLoad:
    """The load of one of a queue's workers.

    Arguments:
        worker: its name.
        processes: the number of tasks that it can run at once.
        busy: the number of running tasks, without pings.
        begun: the number of tasks begun since it was started.
    """

    worker: str
    processes: int
    busy: int
    begun: int


class Client:
    """Access to the workers.

    Arguments:
        settings: the broker, and the repository with the signing key.
        requester: the kind of requester, on whose behalf tasks are sent.

    Raises:
        ConfigurationError: there is no broker.
    """

    def __init__(self, settings: Settings, requester: Requester = Requester.COMMAND) -> None:
        self._app = make_app(settings, requester)
        short = {"socket_timeout": _LOOK_SECONDS, "socket_connect_timeout": _LOOK_SECONDS}
        self._app.conf.broker_transport_options = {**self._app.conf.broker_transport_options, **short}
        self._app.conf.update(redis_socket_timeout=_LOOK_SECONDS, redis_socket_connect_timeout=_LOOK_SECONDS)

    def submit(self, operation: Operation, arguments: Mapping[str, Any], task_id: str) -> None:
        """Send a task to its queue.

        Raises:
            BrokerAwayError: the broker does not accept it.
            RepositoryError: the signing key can neither be read nor created.
            RefusedError: the requester may not request that operation.
        """
        with _broker():
            self._forget_failure(task_id)
            self._app.backend.client.set(f"{_MARK}{task_id}", time.time(), ex=RESULT_SECONDS)
            self._app.send_task(operation.name, kwargs=dict(arguments), task_id=task_id, retry=True, retry_policy=_SEND)

    def _forget_failure(self, task_id: str) -> None:
        """Remove an earlier failure, so that a task that is sent again does not look finished."""
        backend = self._app.backend
        key = backend.get_key_for_task(task_id)
        if (text := backend.get(key)) is None:
            return
        if not (found := backend.read(text)) or found["status"] in (states.FAILURE, states.REVOKED):
            backend.delete(key)

    def look(self, task_id: str) -> TaskState:
        """Query the progress of a task.

        Raises:
            BrokerAwayError: the broker does not answer.
        """
        backend = self._app.backend
        with _broker():
            if (text := backend.get(backend.get_key_for_task(task_id))) is None:
                return TaskState(is_lost=not backend.client.exists(f"{_MARK}{task_id}"))
        if (meta := backend.read(text)) is None:
            return _forged("", task_id)
        status, result, name = meta["status"], meta["result"], meta["name"] or ""
        if status == STATE:
            return TaskState(is_begun=True, progress=_progress(result), name=name)
        if status not in states.READY_STATES:
            return TaskState(is_begun=status == states.STARTED, name=name)
        try:
            is_signed = backend.is_signed(task_id, meta)
        except OpsError:
            return replace(_ended(status, result, name), is_checked=False)
        if status == states.SUCCESS and not is_signed:
            return _forged(name, task_id)
        return replace(_ended(status, result, name), is_signed=is_signed)

    def is_attended(self, queue: Queue, seconds: float = 2.0) -> bool:
        """True if a worker serves a queue.

        Arguments:
            seconds: how long to wait for answers; longer, if workers that were asked do not answer.

        Raises:
            BrokerAwayError: the broker does not answer.
        """
        return bool(self._serving(queue, seconds))

    def _serving(self, queue: Queue, seconds: float) -> list[str]:
        """The workers that serve a queue; they are asked again while some that were asked have not answered.

        The main process of a worker on a busy machine may take seconds for an answer, and must not be taken for none.
        """
        found: list[str] = []
        for times in _PATIENCE:
            answers = self._broadcast("active_queues", times * seconds)
            found = _serving(queue, answers)
            if found or len(answers or ()) >= Channel.heard:
                break
        return found

    def send_ping(self, queue: Queue, seconds: float) -> str:
        """Send a ping through a queue; return the task's id. It expires after so many seconds.

        Raises:
            BrokerAwayError: the broker does not accept it.
        """
        task_id = new_task_id(PING)
        with _broker():
            self._app.backend.client.ping()  # reports at once that nobody is there; sending a task would retry for long
            self._app.send_task(
                PING.name,
                kwargs={},
                task_id=task_id,
                queue=queue.value,
                expires=seconds,
                retry=True,
                retry_policy=_SEND,
            )
        return task_id

    def clear_away(self, queue: Queue, task_id: str) -> None:
        """Remove a ping's message, if no worker took it, and its result.

        Raises:
            BrokerAwayError: the broker does not answer.
        """
        backend = self._app.backend
        with _broker(), self._app.connection_for_write() as connection:
            redis = connection.default_channel.client
            for message in redis.lrange(queue.value, 0, _MOST_SEARCHED - 1):  # it is among the newest
                if task_id.encode() in message:
                    redis.lrem(queue.value, 1, message)
            backend.client.delete(backend.get_key_for_task(task_id))

    def loads(self, queue: Queue, seconds: float = 1.0) -> list[QueueLoad]:
        """The load of a queue's workers, as their main processes report it; silent ones are left out.

        Raises:
            BrokerAwayError: the broker does not answer.
        """
        serving = self._serving(queue, seconds)
        if not serving:
            return []
        stats = self._ask("stats", serving, _PATIENCE[-1] * seconds)
        tasks = self._ask("active", serving, _PATIENCE[-1] * seconds)
        found = (_load(name, one, tasks.get(name, ())) for name, one in sorted(stats.items()))
        return [load for load in found if load]

    def _ask(self, question: str, workers: list[str], seconds: float) -> dict[str, Any]:
        answers = self._broadcast(question, seconds, destination=workers, limit=len(workers))
        return {
            name: answer
            for one in answers or ()
            for name, answer in one.items()
            if isinstance(answer, (dict, list)) and "error" not in answer
        }

    def _broadcast(self, question: str, seconds: float, **options: Any) -> Any:
        """Ask workers, over a connection of its own.

        On one that has asked before, Redis may still be waiting for an answer to the earlier question, and gives that
        wait the answer to the next one.
        """
        with _broker(), self._app.connection_for_write() as connection:
            return self._app.control.broadcast(question, reply=True, timeout=seconds, connection=connection, **options)

    def stop(self, task_id: str) -> None:
        """Stop a task, or prevent it from starting.

        Raises:
            BrokerAwayError: the broker does not answer.
        """
        with _broker():
            # If SIGTERM of a worker means SIGQUIT (see `__main__`), its processes react to that alone.
            self._app.control.revoke(task_id, terminate=True, signal="SIGQUIT")


def _forged(name: str, task_id: str) -> TaskState:
    said = {
        "success": False,
        "error": f"the broker has a result of {printable(task_id)} that no worker of this repository has signed\n"
        "  hint: Somebody else writes to the broker, or a worker of an older release has done the task. "
        "Look at the archives themselves: 'backup.sh list'.",
    }
    return TaskState(is_begun=True, is_ended=True, name=name, exit_code=1, result=said)


def _progress(result: Any) -> dict[str, Any]:
    """The progress that a worker reported; empty if it is invalid."""
    if not isinstance(result, dict) or not isinstance(result.get("phase"), str):
        return {}
    done, total = result.get("done"), result.get("total")
    is_sound = isinstance(done, int) and (total is None or isinstance(total, int))
    return {"phase": printable(result["phase"], 80), "done": done, "total": total} if is_sound else {}


def _ended(status: str, result: Any, name: str) -> TaskState:
    said: dict[str, Any]
    if status == states.SUCCESS:
        said = dict(result) if isinstance(result, dict) else {"success": False, "error": "the result has no form"}
    elif isinstance(result, OperationFailedError):
        said = dict(result.result)
    elif status == states.REVOKED:
        said = {"success": False, "error": "the task was stopped; what it had begun was undone", EXIT_CODE: 1}
    elif isinstance(result, TimeLimitExceeded):
        said = {"success": False, "error": str(too_slow(name or "the task", "killed")), EXIT_CODE: 1}
    else:
        hint = "The worker's log says more; start it again."
        said = {
            "success": False,
            "error": f"the worker could not do it: {printable(str(result))}\n  hint: {hint}",
            EXIT_CODE: 1,
        }
    said.pop(RESULT_FIELD, None)
    exit_code = said.pop(EXIT_CODE, 0 if said.get("success") is True else 1)
    return TaskState(
        is_begun=True,
        is_ended=True,
        is_stopped=status == states.REVOKED,
        name=name,
        exit_code=exit_code,
        result=said,
    )


def _load(name: str, stats: Any, tasks: Any) -> QueueLoad | None:
    """A worker's load by its answers; None if they have another form, since anyone can answer."""
    try:
        return QueueLoad(
            worker=printable(name),
            processes=int(stats["pool"]["max-concurrency"]),
            busy=sum(task["name"] != PING.name for task in tasks),
            begun=sum(int(count) for task, count in stats["total"].items() if task != PING.name),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _serving(queue: Queue, answers: Any) -> list[str]:
    """The workers that take tasks from a queue, by their answers."""
    return [
        name
        for answer in answers or ()
        for name, queues in answer.items()
        if isinstance(queues, list) and any(isinstance(one, dict) and one.get("name") == queue.value for one in queues)
    ]


@contextmanager
def _broker() -> Iterator[None]:
    try:
        yield
    except (RedisError, OperationalError, OSError) as error:
        raise _explained(error) from error


def _explained(error: BaseException) -> BrokerAwayError:
    """The broker's fault, from a library's error or its cause."""
    reason: BaseException | None = error
    while reason is not None and not isinstance(reason, (AuthenticationError, NoPermissionError)):
        reason = reason.__cause__
    if reason is None:
        return BrokerAwayError(
            "the broker does not answer",
            hint="Look at CELERY_BROKER_URL and at Redis; --local needs neither broker nor worker.",
        )
    return BrokerRefusesError(
        f"the broker refuses the user or the password ({str(reason).rstrip('.')})",
        hint="Look at user and password in CELERY_BROKER_URL, or in the file of CELERY_BROKER_URL_FILE, and at what "
        "Redis lets that user do; --local needs neither broker nor worker.",
    )
