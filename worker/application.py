"""Creates the Celery application for processes that send, watch or execute tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from portal.ops.errors import ConfigurationError
from worker.celery_internals import Application
from worker.command_lines import show_commands
from worker.configuration import configuration
from worker.operations import Requester
from worker.redis_url import check_redis_url
from worker.transport_choice import use_transport

if TYPE_CHECKING:
    from portal.ops.settings.load import Settings


def make_app(settings: Settings, requester: Requester = Requester.COMMAND) -> Application:
    """The application for processes that send tasks and watch them.

    Arguments:
        settings: the settings of this process.
        requester: the kind of requester, on whose behalf it sends tasks.

    Raises:
        ConfigurationError: there is no broker, or its URL is invalid.
    """
    if settings.worker.broker_url is None:
        raise ConfigurationError(
            "there is no broker for the workers",
            hint="Set CELERY_BROKER_URL to a Redis database of their own, such as redis://localhost:6379/5.",
        )
    check_redis_url("CELERY_BROKER_URL", settings.worker.broker_url.reveal())
    if settings.worker.result_backend is not None:
        check_redis_url("CELERY_RESULT_BACKEND", settings.worker.result_backend.reveal())
    show_commands()
    use_transport("worker.transport:Transport", unless="worker.")  # a worker has one with the gate
    app = Application(settings, requester)
    app.conf.update(configuration(settings))
    return app
