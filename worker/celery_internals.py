"""Celery with our signatures, our shutdown and our recovery. Written against Celery 5.7; depends on these internals:

Celery.send_task, Celery.Worker          how a task leaves the application, and which class a worker is
apps.worker.Worker.install_platform_tweaks   installs signal handlers; SIGQUIT is the cold shutdown
worker.state.active_requests             what the worker's processes are working on
consumer.hub, consumer.event_dispatcher  the event loop, and what sends events; another one after each reconnect
consumer.task_consumer                   takes messages
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from celery import Celery
from celery.apps.worker import Worker as CeleryWorker
from celery.bootsteps import StartStopStep
from celery.worker import state

from portal.ops.errors import ConfigurationError
from portal.ops.model import Loss, timestamp
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import utc_now
from worker.arguments import RequestArguments
from worker.gate import show_arguments
from worker.keys import TaskKeys
from worker.operations import OPERATIONS, Queue, Requester
from worker.signing import HEADER, sign_task
from worker.task_ids import new_task_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from portal.ops.settings.load import Settings

log = engine_log("worker")

_EVENT_DELAY_SECONDS: Final = 0.1
_DRAIN_LOOK_SECONDS: Final = 0.1
_COLD_SECONDS: Final = 5.0
"""What a cold shutdown may take, and then again what is left of the worker has before it is ended by force."""


class Application(Celery):  # type: ignore[misc]  # Celery has no types
    """A Celery application that signs what it sends, and whose workers are ours.

    Arguments:
        settings: of this process.
        requester: on whose behalf it sends tasks.
    """

    control_cls = "worker.remote_control:SignedControl"
    recover: Callable[[Application], None] | None = None
    """What a worker of the application does before it starts."""

    def __init__(self, settings: Settings, requester: Requester) -> None:
        super().__init__("kekkai-backup", set_as_current=False)
        self.settings = settings
        self.requester = requester
        self.task_keys = TaskKeys(settings.local_path)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.settings, self.requester)

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Sign a task and put it on its queue.

        Raises:
            RefusedError: there is no such operation, or the requester may not start it.
            RepositoryError: the key cannot be read, nor created, or the repository that was used is not there.
        """
        operation = OPERATIONS.get(name)
        if operation is None or args:
            raise ConfigurationError(
                f"{name} with positional arguments is no task" if args else f"there is no task {name!r}",
                hint=f"Tasks take keyword arguments. There are: {', '.join(OPERATIONS)}.",
            )
        task_id = options.pop("task_id", None) or new_task_id(operation)
        arguments = dict(kwargs or {})
        if issubclass(operation.arguments, RequestArguments):  # a person who calls it by Celery's command means now
            arguments.setdefault("moment", timestamp(utc_now()))
        # What is asked for when the repository is gone for good: a restore from elsewhere, and a new beginning.
        confirmed = arguments.get("confirm_loss")
        is_confirmed = confirmed is True or (isinstance(confirmed, list | tuple) and Loss.REPOSITORY in confirmed)
        is_for_worst_day = operation.queue is Queue.RESTORE or is_confirmed
        key = self.task_keys.current(may_be_new=is_for_worst_day)
        signature = sign_task(key, operation, task_id, arguments, self.requester, utc_now())
        options["headers"] = {**(options.get("headers") or {}), HEADER: signature}
        options["kwargsrepr"], options["argsrepr"] = show_arguments(arguments), ""
        options["time_limit"] = options["soft_time_limit"] = None  # the worker's own settings have them
        shown = self.conf.task_send_sent_event
        self.conf.task_send_sent_event = shown and operation.is_shown  # Flower would show what it never hears of again
        try:
            return super().send_task(name, None, arguments, task_id=task_id, **options)
        finally:
            self.conf.task_send_sent_event = shown

    @property
    def Worker(self) -> Any:  # noqa: N802  # as Celery calls it
        """The class of the application's workers."""
        return self.subclass_with_self(Worker)


class Worker(CeleryWorker):  # type: ignore[misc]
    """A worker that recovers what others left, and that ends in time when it is asked to.

    SIGTERM and SIGINT have it take no more tasks. It ends when its tasks have ended, or when their grace is over: then
    they take back what they have begun, and go back to the queue. Whatever happens, it is gone ten seconds later.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        _remap_sigterm()
        # What other workers say of revoked tasks is not signed, and no worker needs to know of others.
        super().__init__(*args, **{**options, "without_mingle": True, "without_gossip": True})

    def on_start(self) -> None:
        """Recover what a worker before this one has left, then start."""
        super().on_start()
        if self.app.recover:
            self.app.recover(self.app)

    def install_platform_tweaks(self, worker: Any) -> None:
        """Take over from Celery what it does at a signal."""
        super().install_platform_tweaks(worker)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)

    def _end(self, number: int, _frame: object) -> None:
        """Begin the end: the first signal waits for the tasks, a second SIGINT does not."""
        if getattr(self, "is_ending", False):
            if number == signal.SIGINT:
                os.kill(os.getpid(), signal.SIGQUIT)
            return
        self.is_ending = True
        grace = self.app.settings.worker.shutdown_grace
        threading.Thread(target=_force_end, args=(os.getpid(), grace), name="end", daemon=True).start()
        hub = getattr(self.consumer, "hub", None)
        if hub is None:
            os.kill(os.getpid(), signal.SIGQUIT)
            return
        hub.call_soon(_drain, self, time.monotonic() + grace)

    def wait_for_soft_shutdown(self) -> None:
        """Do not wait in the handler of a signal, where no task can end: it was waited for before."""


def _drain(worker: Any, deadline: float) -> None:
    """Take no more messages, and begin the cold shutdown once nothing is being worked on. Runs in the event loop."""
    consumer = worker.consumer
    if consumer.task_consumer is not None and not getattr(worker, "is_drained", False):
        worker.is_drained = True
        log.info(
            "worker_finishing",
            tasks=[request.id for request in state.active_requests],
            longest_seconds=round(max(0.0, deadline - time.monotonic())),
        )
        consumer.task_consumer.cancel()
    if not state.active_requests or time.monotonic() >= deadline:
        os.kill(os.getpid(), signal.SIGQUIT)
    else:
        consumer.hub.call_later(_DRAIN_LOOK_SECONDS, _drain, worker, deadline)


def _force_end(pid: int, grace: float) -> None:
    """End a process that does not end by itself, as where its broker has gone and nothing runs its event loop.

    Runs in a thread of its own. First as an operator would ask for it a second time, at last by force: what its tasks
    had begun is swept, and their messages are put back, by the next start.
    """
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and state.active_requests:
        time.sleep(_DRAIN_LOOK_SECONDS)
    time.sleep(min(_COLD_SECONDS, 2 * _DRAIN_LOOK_SECONDS) if time.monotonic() < deadline else 0)
    os.kill(pid, signal.SIGQUIT)
    time.sleep(_COLD_SECONDS)
    log.error("worker_ended_by_force", pid=pid)
    for child in _children(pid):
        os.kill(child, signal.SIGKILL)
    os._exit(1)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _remap_sigterm() -> None:
    """Have the processes of the pool take SIGQUIT for what SIGTERM is to others, whoever starts the worker.

    Whoever stops a service sends SIGTERM to all of its processes, and a task is to have its grace. billiard reads the
    variable when it is imported; the ``celery`` command has done so by now, and starts again in its place.
    """
    if os.environ.get("REMAP_SIGTERM") == "SIGQUIT":
        return
    import sys

    import click

    os.environ["REMAP_SIGTERM"] = "SIGQUIT"
    if click.get_current_context(silent=True) is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(  # noqa: S606  # this very command
            sys.executable, [sys.executable, *sys.orig_argv[1:]]
        )


class EventBatches(StartStopStep):  # type: ignore[misc]
    """Has the events of a moment sent together.

    Celery's main process sends each by itself, between the result of one task and the start of the next: with many
    small tasks that is most of what they wait for.
    """

    requires = ("celery.worker.consumer.events:Events",)

    def start(self, consumer: Any) -> None:
        """Take over from the dispatcher when it sends; it is another one after each reconnect."""
        dispatcher, hub = consumer.event_dispatcher, consumer.hub
        waiting = False

        def flush() -> None:
            nonlocal waiting
            waiting = False
            dispatcher.flush()

        def soon() -> None:
            nonlocal waiting
            if not waiting:
                waiting = True
                hub.call_later(_EVENT_DELAY_SECONDS, flush)

        if hub:
            dispatcher.on_send_buffered = soon

    def stop(self, consumer: Any) -> None:
        """Send what is left, while there is a connection."""
        if consumer.event_dispatcher:
            consumer.event_dispatcher.flush()
