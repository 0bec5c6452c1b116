"""JSON logs for everything in a worker: events of the engine and the tasks, and Celery's own messages."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any

from billiard.util import get_logger as pool_logger
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning
from celery.signals import setup_logging, task_prerun

from portal.ops.runtime.event_log import structlog
from portal.ops.runtime.logs import configure_logging, foreign_handler

if TYPE_CHECKING:
    from celery import Task

    from portal.ops.model import LogFormat

_TALKATIVE = ("celery.worker.strategy", "celery.app.trace")
"""Loggers whose messages repeat our tasks' events with fewer facts."""


def log_to_standard_error(style: LogFormat) -> None:
    """Log everything to standard error, one line an event, and keep Celery from changing logging."""
    configure_logging(style, sys.stderr)
    root, handler = logging.getLogger(), foreign_handler(style, sys.stderr)
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    pool_logger().handlers[:] = [handler]  # it passes nothing to the root logger, and prints raw text without a handler
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    _ignore_warnings()
    logging.captureWarnings(True)
    setup_logging.connect(_leave_alone, weak=False)
    task_prerun.connect(_bind, weak=False)


def log_as_configured(style: LogFormat) -> None:
    """Set up our logging when a Celery command would set up its own; nothing is logged before that."""

    def set_up(**_: Any) -> None:
        log_to_standard_error(style)

    _ignore_warnings()
    setup_logging.connect(set_up, weak=False)


def _ignore_warnings() -> None:
    """Ignore two warnings of Celery: about root, a risk only if messages can contain code, and about a setting."""
    for category in (SecurityWarning, CPendingDeprecationWarning):
        warnings.filterwarnings("ignore", category=category)


def _leave_alone(**_: Any) -> None:
    """A receiver of Celery's signal, whose presence keeps Celery from setting up logging."""


def _bind(task_id: str, task: Task, **_: Any) -> None:
    """Start a task's log context without that of the previous task."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(task_id=task_id, task_name=task.name)
