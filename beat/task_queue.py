"""The way to the workers, as narrow as what starts work by itself needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from portal.ops.settings.load import Settings
    from worker.operations import Operation, Requester


class Workers(Protocol):
    """The workers."""

    def submit(self, operation: Operation, arguments: Mapping[str, Any], task_id: str) -> None:
        """Hand a task over; the same id is the same task.

        Raises:
            OpsError: it could not be handed over.
        """

    def is_at_work(self, task_id: str) -> bool:
        """True if the task was handed over and has not ended.

        Raises:
            OpsError: nobody can tell.
        """


class QueuedWorkers:
    """The workers behind the broker.

    Arguments:
        settings: where the broker is, and the repository.
        requester: who sends the tasks.

    Raises:
        ConfigurationError: there is none.
    """

    def __init__(self, settings: Settings, requester: Requester) -> None:
        from worker.client import Client

        self._client = Client(settings, requester)

    def submit(self, operation: Operation, arguments: Mapping[str, Any], task_id: str) -> None:
        """Put a task on the queue."""
        self._client.submit(operation, arguments, task_id)

    def is_at_work(self, task_id: str) -> bool:
        """True if the broker knows the task, and no result of it."""
        state = self._client.look(task_id)
        return not state.is_ended and not state.is_lost
