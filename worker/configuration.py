"""Celery's configuration: every setting that differs from its default or must not change, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from worker.operations import OPERATIONS, SCHEDULED, Queue

if TYPE_CHECKING:
    from portal.ops.settings.load import ScheduleSettings, Settings, WorkerSettings

RESULT_SECONDS: Final = 7 * 24 * 3600
SOFT_SECONDS: Final = 30
"""Seconds for a task to undo its work after its time is up, before it is killed."""

_LATE_SECONDS: Final = 600
_ANSWER_SECONDS: Final = 5


def configuration(whole: Settings) -> dict[str, Any]:
    """The configuration of the Celery application, for workers and for senders."""
    settings = whole.worker
    broker = settings.broker_url.reveal() if settings.broker_url else ""
    results = settings.result_backend.reveal() if settings.result_backend else broker
    return {
        # Results are kept in the broker unless configured otherwise.
        "broker_url": broker,
        "result_backend": results,
        **_messages(),
        **_deliveries(settings, _keepalive(broker)),
        **_results(_keepalive(results)),
        **_queues(),
        **_worker(settings),
        **_schedules(whole.schedules),
    }


def _messages() -> dict[str, Any]:
    return {
        # A message is data, never code.
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
    }


def _keepalive(url: str) -> bool:
    """True if the connection needs keepalives; a Unix socket does not support them."""
    return not url.startswith(("redis+socket:", "socket:"))


def _deliveries(settings: WorkerSettings, keepalive: bool) -> dict[str, Any]:
    return {
        # A message is removed from the queue when its work is done, and returns if its process is gone.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        # No worker reserves a message that another one could process now.
        "worker_prefetch_multiplier": 1,
        # A task is first asked to undo its work, then killed.
        "task_time_limit": settings.task_timeout,
        "task_soft_time_limit": max(settings.task_timeout - SOFT_SECONDS, settings.task_timeout // 2),
        # A message unacknowledged for this long returns, which must not happen while the task runs. The other options
        # detect a lost broker even if no error is reported.
        "broker_transport_options": {
            "visibility_timeout": settings.task_timeout + _LATE_SECONDS,
            "socket_connect_timeout": _ANSWER_SECONDS,
            "socket_timeout": 30,
            "health_check_interval": 20,
            **({"socket_keepalive": True} if keepalive else {}),
        },
        # A broker that cannot be reached comes back some time.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # With broker and results in one Redis, True lost the task. Now it continues and is acknowledged later.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }


def _results(keepalive: bool) -> dict[str, Any]:
    return {
        # A week is enough to ask for a result, and Redis must not grow without limit.
        "result_expires": RESULT_SECONDS,
        # Name and arguments are kept with a result, so that a person can see what it belongs to.
        "result_extended": True,
        # A result that cannot be stored at once is stored when the backend is back.
        "result_backend_always_retry": True,
        "result_backend_max_retries": 120,
        # As for the broker: detect silently lost connections.
        "redis_socket_connect_timeout": _ANSWER_SECONDS,
        "redis_socket_timeout": 30,
        "redis_socket_keepalive": keepalive,
        "redis_backend_health_check_interval": 20,
        # Flower needs these.
        "worker_send_task_events": True,
        "task_send_sent_event": True,
    }


def _queues() -> dict[str, Any]:
    return {
        # The queues that `celery worker` serves without -Q.
        "task_queues": {queue.value: {"routing_key": queue.value} for queue in Queue},
        # Each task goes to its own queue, whoever sends it.
        "task_routes": {name: {"queue": operation.queue.value} for name, operation in OPERATIONS.items()},
        # Nobody serves Celery's default queue, `celery`.
        "task_default_queue": Queue.MAINTENANCE.value,
    }


def _worker(settings: WorkerSettings) -> dict[str, Any]:
    return {
        # Only workers load the modules with the tasks.
        "imports": ["worker.tasks"],
        # SIGTERM (as SIGQUIT: see `__main__`) gives a task this long, then it returns to the queue.
        "worker_soft_shutdown_timeout": settings.shutdown_grace,
        # Our own JSON logging.
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        # Limits the effect of small memory leaks.
        "worker_max_tasks_per_child": 1000,
    }


def _schedules(schedules: ScheduleSettings) -> dict[str, Any]:
    """The settings of `celery beat`: our scheduler, and an entry for each operation with a schedule."""
    return {
        "beat_scheduler": "beat.scheduler:RepositoryScheduler",
        "timezone": str(schedules.time_zone),
        "beat_schedule": {
            operation.description: {"task": operation.name, "schedule": expression}
            for operation in SCHEDULED
            if operation.schedule and (expression := getattr(schedules, operation.schedule.setting)) is not None
        },
    }
