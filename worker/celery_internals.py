"""Adds our signatures, shutdown and recovery to Celery. Written against Celery 5.7; depends on these internals:

Celery.send_task, Celery.Worker          sending a task, and the class of a worker
Celery._get_backend                      makes the result backend
apps.worker.Worker.install_platform_tweaks   installs signal handlers; SIGQUIT is the cold shutdown
worker.state.active_requests             the tasks that the worker's processes are running
consumer.hub, consumer.event_dispatcher  the event loop, and the sender of events, replaced after each reconnect
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
"""Seconds for a cold shutdown; then the same time again before the process is killed."""


class Application(Celery):  # type: ignore[misc]  # Celery has no types
    """A Celery application that signs the tasks it sends, and uses our worker class.

    Arguments:
        settings: the settings of this process.
        requester: the kind of requester, on whose behalf it sends tasks.
    """

    control_cls = "worker.remote_control:SignedControl"
    recover: Callable[[Application], None] | None = None
    """Called by a worker of the application before it starts."""

    def __init__(self, settings: Settings, requester: Requester) -> None:
        super().__init__("kekkai-backup", set_as_current=False)
        self.settings = settings
        self.requester = requester
        self.task_keys = TaskKeys(settings.local_path)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.settings, self.requester)

    def _get_backend(self) -> Any:
        from celery.app.backends import by_url

        from worker.results import Results

        _, url = by_url(self.conf.result_backend, self.loader)
        return Results(app=self, url=url)

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Sign a task and put it on its queue.

        Raises:
            RefusedError: there is no such operation, or the requester may not request it.
            RepositoryError: the key can neither be read nor created, or the repository used here before is absent.
        """
        operation = OPERATIONS.get(name)
        if operation is None or args:
            raise ConfigurationError(
                f"{name} with positional arguments is no task" if args else f"there is no task {name!r}",
                hint=f"Tasks take keyword arguments. There are: {', '.join(OPERATIONS)}.",
            )
        task_id = options.pop("task_id", None) or new_task_id(operation)
        arguments = dict(kwargs or {})
        if issubclass(operation.arguments, RequestArguments):  # a person who calls it with Celery's command means now
            arguments.setdefault("moment", timestamp(utc_now()))
        # These are requested when the repository is lost: a restore from elsewhere, and a first backup.
        confirmed = arguments.get("confirm_loss")
        is_confirmed = confirmed is True or (isinstance(confirmed, list | tuple) and Loss.REPOSITORY in confirmed)
        is_for_worst_day = operation.queue is Queue.RESTORE or is_confirmed
        key = self.task_keys.current(may_be_new=is_for_worst_day)
        signature = sign_task(key, operation, task_id, arguments, self.requester, utc_now())
        options["headers"] = {**(options.get("headers") or {}), HEADER: signature}
        options["kwargsrepr"], options["argsrepr"] = show_arguments(arguments), ""
        options["time_limit"] = options["soft_time_limit"] = None  # the worker's own settings apply
        shown = self.conf.task_send_sent_event
        self.conf.task_send_sent_event = shown and operation.is_shown  # Flower would show it and never hear of it again
        try:
            return super().send_task(name, None, arguments, task_id=task_id, **options)
        finally:
            self.conf.task_send_sent_event = shown

    @property
    def Worker(self) -> Any:  # noqa: N802  # as Celery calls it
        """The class of this application's workers."""
        return self.subclass_with_self(Worker)


class Worker(CeleryWorker):  # type: ignore[misc]
    """A worker that recovers interrupted work, and stops in time when asked.

    On SIGTERM or SIGINT it takes no more tasks. It stops when its tasks have ended, or after their grace period: then
    they undo what they have begun and return to the queue. In any case it is gone ten seconds later.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        _remap_sigterm()
        # Other workers' messages about revoked tasks are not signed, and no worker needs them.
        super().__init__(*args, **{**options, "without_mingle": True, "without_gossip": True})

    def on_start(self) -> None:
        """Recover what an earlier worker has left, then start."""
        super().on_start()
        if self.app.recover:
            self.app.recover(self.app)

    def install_platform_tweaks(self, worker: Any) -> None:
        """Install our signal handlers in place of Celery's."""
        super().install_platform_tweaks(worker)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)

    def _end(self, number: int, _frame: object) -> None:
        """Start to stop: the first signal waits for tasks, a second SIGINT does not."""
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
        """Do not wait in a signal handler, where no task can end; the waiting has been done before."""


def _drain(worker: Any, deadline: float) -> None:
    """Take no more messages, and start the cold shutdown when no task is running. Runs in the event loop."""
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
    """End a process that does not end by itself, for instance because its broker is gone and no event loop runs.

    Runs in a thread. It first acts like a second signal, and finally kills the process; the next start recovers its
    tasks and messages.
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
    """Make the pool's processes treat SIGTERM as SIGQUIT, however the worker was started.

    A service manager sends SIGTERM to all processes of a service, and tasks must get their grace period. billiard reads
    the variable when it is imported, which the ``celery`` command has done already, so the command is executed again.
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
    """Sends the events of a moment together.

    Celery's main process sends each event separately, between the result of one task and the start of the next: with
    many small tasks, that is most of their waiting time.
    """

    requires = ("celery.worker.consumer.events:Events",)

    def start(self, consumer: Any) -> None:
        """Take over from the dispatcher, which is replaced after each reconnect."""
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
        """Send the remaining events while there is a connection."""
        if consumer.event_dispatcher:
            consumer.event_dispatcher.flush()
