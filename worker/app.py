"""The Celery application of workers and of Celery's own commands: ``celery -A worker.app`` finds it as `app`."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING

from portal.ops.errors import OpsError
from portal.ops.runtime.environment import current_settings
from worker.application import make_app

if TYPE_CHECKING:
    from portal.ops.settings.load import Settings
    from worker.celery_internals import Application
    from worker.errors import RejectedError


def make_worker_app(settings: Settings) -> Application:
    """The application of a worker, and of Celery's own commands.

    Raises:
        ConfigurationError: there is no broker.
    """
    from worker.celery_internals import EventBatches
    from worker.gate import Gate
    from worker.kombu_internals import guard_transport
    from worker.logs import log_as_configured
    from worker.remote_control import check_commands

    app = make_app(settings)
    app.steps["consumer"].add(EventBatches)
    app.recover = _recover
    guard_transport(Gate(settings.local_path, tell=partial(_tell_refusal, app)))
    check_commands(app.task_keys)
    log_as_configured(settings.log_format)
    return app


def _recover(app: Application) -> None:
    from worker.recovery import begin_recovery

    begin_recovery(app)


def _tell_refusal(app: Application, name: str, task_id: str, error: RejectedError) -> None:
    """Store a failure as the result of a refused task, unless it has a result; unsigned, since the task is invalid."""
    from celery import states
    from celery.app.task import Context
    from redis import RedisError

    from worker.errors import OperationFailedError
    from worker.execution import Outcome

    with suppress(RedisError):
        backend = app.backend
        if backend.get_task_meta(task_id, cache=False)["status"] not in states.READY_STATES:
            result = Outcome.of_error(error).result
            backend.store_result(task_id, OperationFailedError(result), states.FAILURE, request=Context(task=name))


@cache
def _own_app() -> Application:
    settings = current_settings()
    app = make_worker_app(settings)
    if "flower" in sys.argv:
        from worker.flower import serve_by_celery

        serve_by_celery(app, settings)
    return app


def __getattr__(name: str) -> Application:
    """Create `app` when it is first accessed by this name, as the ``celery`` command does."""
    if name != "app":
        raise AttributeError(name)
    try:
        return _own_app()
    except OpsError as error:
        if os.path.basename(sys.argv[0]) != "celery":
            raise
        sys.stderr.write(f"error: {error}\n")  # Celery's command would print a traceback
        raise SystemExit(error.exit_code) from error
