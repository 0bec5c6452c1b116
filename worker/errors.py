"""Errors between the requester of a task and its worker; a branch of the engine's tree of errors.

OpsError
├── UnattendedError             exit 6   nobody takes the work on, or not in time       (retry)
│   ├── BrokerAwayError         exit 6   the broker does not answer                     (retry)
│   │   └── BrokerRefusesError  exit 6   it answers, but not this user or password      (retry)
│   └── StillAtWorkError        exit 6   it takes longer than somebody wants to wait    (retry)
└── RefusedError                exit 2   a task asks for what no task may ask for
    └── RejectedError           exit 2   a message is no task that someone with access to the repository has signed
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

from portal.ops.errors import ConfigurationError, OpsError

EXIT_CODE: Final = "_exit_code"
"""What a task's result has beside the engine's: the code that a command should end with."""


class UnattendedError(OpsError):
    """Nobody takes the work on."""

    exit_code = 6
    retryable = True


class BrokerAwayError(UnattendedError):
    """The broker does not answer."""


class BrokerRefusesError(BrokerAwayError):
    """The broker answers, and does nothing for this user or with this password."""


class StillAtWorkError(UnattendedError):
    """The work goes on for longer than somebody wants to wait."""


class RefusedError(ConfigurationError):
    """A task asks for what no task may ask for."""


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
        reason: in one word, for logs and metrics.
    """

    def __init__(self, reason: Rejection, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


def too_slow(name: str, end: str) -> OpsError:
    """The exception that ends a task after its time limit.

    Arguments:
        name: which task it was.
        end: what became of it.
    """
    return OpsError(
        f"{name} took longer than a task may, and was {end}",
        hint="Find out what it waited for (the worker's log), or give it more time with BACKUP_TASK_TIMEOUT.",
    )


class OperationFailedError(Exception):
    """The exception of a failed task: carries the engine's result, and shows itself as its error.

    Celery keeps an exception as its class and its arguments, so the result comes through as it is.

    Arguments:
        result: what the engine's `to_dict` gave, and `EXIT_CODE` beside it.
    """

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result)
        self.result = result

    def __str__(self) -> str:
        return str(self.result.get("error") or "it failed")

    __repr__ = __str__
