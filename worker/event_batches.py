"""Sends the events that Flower lives on a few at a time.

Celery's main process sends each by itself, between the result of one task and the start of the next: with many small
tasks that is most of what they wait for. Extends the worker by a step of its consumer, as Celery's manual describes
(Extensions and Bootsteps).
"""

from __future__ import annotations

from typing import Any, Final

from celery.bootsteps import StartStopStep

_DELAY_SECONDS: Final = 0.1


class EventBatches(StartStopStep):  # type: ignore[misc]  # Celery has no types
    """Has the events of a moment sent together."""

    requires = ("celery.worker.consumer.events:Events",)

    def start(self, consumer: Any) -> None:
        """Take over from the dispatcher when it sends; it is another one after each reconnect."""
        dispatcher, hub = consumer.event_dispatcher, consumer.hub
        waiting = False

        def flush() -> None:
            nonlocal waiting
            waiting = False
            dispatcher.flush()

        def soon() -> None:
            nonlocal waiting
            if not waiting:
                waiting = True
                hub.call_later(_DELAY_SECONDS, flush)

        if hub:
            dispatcher.on_send_buffered = soon

    def stop(self, consumer: Any) -> None:
        """Send what is left, while there is a connection."""
        if consumer.event_dispatcher:
            consumer.event_dispatcher.flush()
