"""The interface to the workers for services that request tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from portal.ops.settings.load import Settings
    from worker.operations import Operation, Requester


class Workers(Protocol):
    """The workers."""

    def submit(self, operation: Operation, arguments: Mapping[str, Any], task_id: str) -> None:
        """Send a task; the same id is the same task.

        Raises:
            OpsError: the task could not be sent.
        """

    def is_at_work(self, task_id: str) -> bool:
        """True if the task was sent and has not ended.

        Raises:
            OpsError: that is unknown.
        """


class QueuedWorkers:
    """The workers, accessed through the broker.

    Arguments:
        settings: the broker and the repository.
        requester: the kind of requester.

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
        """True if the broker knows the task and has no result."""
        state = self._client.look(task_id)
        return not state.is_ended and not state.is_lost
