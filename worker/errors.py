"""Errors between the requester of a task and its worker; a branch of the engine's tree of errors.

OpsError
├── UnattendedError             exit 6   no worker takes the task, or not in time       (retry)
│   ├── BrokerAwayError         exit 6   the broker does not answer                     (retry)
│   │   └── BrokerRefusesError  exit 6   it refuses this user or password               (retry)
│   └── StillAtWorkError        exit 6   it takes longer than the caller waits          (retry)
└── RefusedError                exit 2   a task requests what no task may request
    └── RejectedError           exit 2   a message is no task with a valid signature
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

from portal.ops.errors import ConfigurationError, OpsError

EXIT_CODE: Final = "_exit_code"
"""The key in a task's result, besides the engine's, with the exit code for a command."""


class UnattendedError(OpsError):
    """No worker takes the task."""

    exit_code = 6
    retryable = True


class BrokerAwayError(UnattendedError):
    """The broker does not answer."""


class BrokerRefusesError(BrokerAwayError):
    """The broker answers, but refuses this user or password."""


class StillAtWorkError(UnattendedError):
    """The task takes longer than the caller wants to wait."""


class RefusedError(ConfigurationError):
    """A task requests something that no task may request."""


class Rejection(StrEnum):
    """The reasons to reject a message, as logs and metrics count them."""

    MALFORMED = "malformed"
    UNSIGNED = "unsigned"
    UNKNOWN_KEY = "unknown_key"
    ALTERED = "altered"
    UNKNOWN_TASK = "unknown_task"
    EXPIRED = "expired"
    NOT_ALLOWED = "not_allowed"


class RejectedError(RefusedError):
    """A message is no valid task.

    Arguments:
        reason: one word for logs and metrics.
    """

    def __init__(self, reason: Rejection, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


def too_slow(name: str, end: str) -> OpsError:
    """The exception for a task that exceeds its time limit.

    Arguments:
        name: the task's name.
        end: what happened to it.
    """
    return OpsError(
        f"{name} took longer than a task may, and was {end}",
        hint="Find out what it waited for (the worker's log), or give it more time with BACKUP_TASK_TIMEOUT.",
    )


class OperationFailedError(Exception):
    """The exception of a failed task: carries the engine's result, and its text is the error.

    Celery stores an exception as class and arguments, so the result arrives unchanged.

    Arguments:
        result: the output of the engine's `to_dict`, with `EXIT_CODE`.
    """

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result)
        self.result = result

    def __str__(self) -> str:
        return str(self.result.get("error") or "it failed")

    __repr__ = __str__
