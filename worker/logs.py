"""JSON lines from everything that runs in a worker: the engine's events, the tasks', and what Celery itself says."""

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
"""They repeat what the tasks' own events say, with less to go by."""


def log_to_standard_error(style: LogFormat) -> None:
    """Send everything to standard error, one line an event, and keep Celery from setting up anything else."""
    configure_logging(style, sys.stderr)
    root, handler = logging.getLogger(), foreign_handler(style, sys.stderr)
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    pool_logger().handlers[:] = [handler]  # it hands nothing on to the root, and says it bare where it has no handler
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    _ignore_warnings()
    logging.captureWarnings(True)
    setup_logging.connect(_leave_alone, weak=False)
    task_prerun.connect(_bind, weak=False)


def log_as_configured(style: LogFormat) -> None:
    """Have Celery, when one of its own commands sets up logging, set up ours; nothing is logged before."""

    def set_up(**_: Any) -> None:
        log_to_standard_error(style)

    _ignore_warnings()
    setup_logging.connect(set_up, weak=False)


def _ignore_warnings() -> None:
    """Root matters to Celery where messages can hold code, and ours are JSON; the other is about a setting."""
    for category in (SecurityWarning, CPendingDeprecationWarning):
        warnings.filterwarnings("ignore", category=category)


def _leave_alone(**_: Any) -> None:
    """Be there: Celery sets up no logging of its own then."""


def _bind(task_id: str, task: Task, **_: Any) -> None:
    """Begin a task with nothing of the one before it: what is bound goes into every event from here on."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(task_id=task_id, task_name=task.name)
