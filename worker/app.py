"""The Celery application: made for a client by `make_app`, and for ``celery -A worker.app`` as `app`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery import Celery

from portal.ops.errors import ConfigurationError
from portal.ops.runtime.environment import current_settings
from worker.configuration import configuration

if TYPE_CHECKING:
    from portal.ops.settings.load import WorkerSettings


def make_app(settings: WorkerSettings) -> Celery:
    """The application.

    Raises:
        ConfigurationError: there is no broker.
    """
    if settings.broker_url is None:
        raise ConfigurationError(
            "there is no broker for the workers",
            hint="Set CELERY_BROKER_URL to a Redis database of their own, such as redis://localhost:6379/5.",
        )
    app = Celery("kekkai-backup", set_as_current=False)
    app.conf.update(configuration(settings))
    return app


def __getattr__(name: str) -> Celery:
    """Make `app` for whoever asks for it by this module's name, as the ``celery`` command does."""
    if name != "app":
        raise AttributeError(name)
    return make_app(current_settings().worker)
