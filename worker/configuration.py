"""The configuration of Celery: every setting that differs from its default, or must stay, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from worker.operations import OPERATIONS, SCHEDULED, Queue

if TYPE_CHECKING:
    from portal.ops.settings.load import ScheduleSettings, Settings, WorkerSettings

RESULT_SECONDS: Final = 7 * 24 * 3600
SOFT_SECONDS: Final = 30
"""What a task has to take back its work after its time is up, before it is killed."""

_LATE_SECONDS: Final = 600
_ANSWER_SECONDS: Final = 5


def configuration(whole: Settings) -> dict[str, Any]:
    """The configuration of the Celery application, for workers and for those who give them work."""
    settings = whole.worker
    broker = settings.broker_url.reveal() if settings.broker_url else ""
    results = settings.result_backend.reveal() if settings.result_backend else broker
    return {
        # Results stand where the messages are, unless somebody wants them elsewhere.
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
    """True if a connection has to be asked whether it is still there; one by a Unix socket does not know how."""
    return not url.startswith(("redis+socket:", "socket:"))


def _deliveries(settings: WorkerSettings, keepalive: bool) -> dict[str, Any]:
    return {
        # A message is taken off the queue when its work is done, and put back when the process that did it is gone.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        # Nobody takes a message that somebody else could work on now.
        "worker_prefetch_multiplier": 1,
        # A task is asked to take back its work, and killed where it does not.
        "task_time_limit": settings.task_timeout,
        "task_soft_time_limit": max(settings.task_timeout - SOFT_SECONDS, settings.task_timeout // 2),
        # What is not acknowledged by then comes back; it must not while the work is still going on. The rest finds out
        # that the broker is gone, also where nothing says so.
        "broker_transport_options": {
            "visibility_timeout": settings.task_timeout + _LATE_SECONDS,
            "socket_connect_timeout": _ANSWER_SECONDS,
            "socket_timeout": 30,
            "health_check_interval": 20,
            **({"socket_keepalive": True} if keepalive else {}),
        },
        # A broker that is away comes back some time.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # With broker and results on one Redis, True lost the task: it goes on, and is acknowledged after the reconnect.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }


def _results(keepalive: bool) -> dict[str, Any]:
    return {
        # A week is enough to ask what became of something, and Redis does not grow for ever.
        "result_expires": RESULT_SECONDS,
        # Names and arguments are kept with a result, so that a person can tell what it is the result of.
        "result_extended": True,
        # A result that cannot be stored at once is stored as soon as there is somebody to store it.
        "result_backend_always_retry": True,
        "result_backend_max_retries": 120,
        # As for the broker: who has gone without a word is found out.
        "redis_socket_connect_timeout": _ANSWER_SECONDS,
        "redis_socket_timeout": 30,
        "redis_socket_keepalive": keepalive,
        "redis_backend_health_check_interval": 20,
        # Flower lives on these.
        "worker_send_task_events": True,
        "task_send_sent_event": True,
    }


def _queues() -> dict[str, Any]:
    return {
        # What `celery worker` without -Q serves.
        "task_queues": {queue.value: {"routing_key": queue.value} for queue in Queue},
        # Each task goes to its queue, whoever sends it.
        "task_routes": {name: {"queue": operation.queue.value} for name, operation in OPERATIONS.items()},
        # To Celery's own default, a queue named `celery`, nobody would listen.
        "task_default_queue": Queue.MAINTENANCE.value,
    }


def _worker(settings: WorkerSettings) -> dict[str, Any]:
    return {
        # A worker knows the tasks; who only sends them does not load what does them.
        "imports": ["worker.tasks"],
        # SIGTERM (as SIGQUIT: see `__main__`) gives a task this long, then it goes back to the queue.
        "worker_soft_shutdown_timeout": settings.shutdown_grace,
        # Our own logging, JSON throughout.
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        # What leaks a little is gone after a while.
        "worker_max_tasks_per_child": 1000,
    }


def _schedules(schedules: ScheduleSettings) -> dict[str, Any]:
    """The scheduler of `celery beat`, with an entry for each operation that has a schedule."""
    return {
        "beat_scheduler": "beat.scheduler:RepositoryScheduler",
        "timezone": str(schedules.time_zone),
        "beat_schedule": {
            operation.description: {"task": operation.name, "schedule": expression}
            for operation in SCHEDULED
            if operation.schedule and (expression := getattr(schedules, operation.schedule.setting)) is not None
        },
    }
