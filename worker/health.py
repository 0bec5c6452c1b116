"""`python -m worker.health [queue …]`: checks that tasks are executed. Exit code 0 or 1, and a line for each queue.

A ping goes through each queue to a process of the worker's pool and back, which tests everything on the way. If all
processes of a worker are busy, it cannot answer; it counts as healthy if its main process confirms that.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from portal.ops.errors import OpsError
from portal.ops.runtime.environment import current_settings
from portal.ops.units import duration, exact_duration
from worker.client import Client, QueueLoad, TaskState
from worker.queue_option import add_queues, chosen_queues

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from worker.operations import Queue

WAIT_SECONDS: Final = 5.0
"""How long an idle queue may take to answer, in seconds."""

_POLL_SECONDS: Final = 0.01


@dataclass(frozen=True, kw_only=True)
class QueueHealth:
    """The health of a queue.

    Arguments:
        queue: the queue.
        is_healthy: whether a task sent now is executed, possibly later.
        detail: how that is known, or what is wrong.
        hint: what to do.
    """

    queue: Queue
    is_healthy: bool
    detail: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.queue}: {self.detail}" + (f"\n  hint: {self.hint}" if self.hint else "")


def check_queues(client: Client, queues: Iterable[Queue], seconds: float = WAIT_SECONDS) -> list[QueueHealth]:
    """Send a ping through all queues at once, and report the answers.

    Arguments:
        client: the access to the workers.
        queues: the queues.
        seconds: how long to wait for answers.

    Raises:
        BrokerAwayError: the broker does not answer.
    """
    started = time.monotonic()
    pings = {queue: client.send_ping(queue, seconds) for queue in queues}
    try:
        found = _collect(client, pings, started, seconds)
        return [found.get(queue) or _silent(client, queue, pings[queue], seconds) for queue in pings]
    finally:
        for queue, task_id in pings.items():
            client.clear_away(queue, task_id)


def _collect(client: Client, pings: Mapping[Queue, str], started: float, seconds: float) -> dict[Queue, QueueHealth]:
    """Wait for answers; return those that came."""
    found: dict[Queue, QueueHealth] = {}
    while len(found) < len(pings) and time.monotonic() - started < seconds:
        for queue in pings.keys() - found.keys():
            if (state := client.look(pings[queue])).is_ended and not state.is_stopped:
                found[queue] = _answered(queue, state, time.monotonic() - started)
        time.sleep(_POLL_SECONDS)
    return found


def _answered(queue: Queue, state: TaskState, seconds: float) -> QueueHealth:
    if state.result.get("success"):
        return QueueHealth(queue=queue, is_healthy=True, detail=f"answered after {exact_duration(seconds)}")
    detail, _, hint = str(state.result.get("error")).partition("\n  hint: ")
    return QueueHealth(queue=queue, is_healthy=False, detail=detail, hint=hint)


def _silent(client: Client, queue: Queue, task_id: str, seconds: float) -> QueueHealth:
    """Judge a queue that did not answer: no worker, or only busy ones? Any idle one has answered by now."""
    loads = client.loads(queue)
    if (state := client.look(task_id)).is_ended and not state.is_stopped:
        return _answered(queue, state, seconds)
    if not loads:
        return QueueHealth(
            queue=queue,
            is_healthy=False,
            detail=f"no worker listens for {queue} tasks",
            hint="Start one ('tools/service.sh worker', or docker compose up -d worker); its log says why it ended.",
        )
    idle = [load.worker for load in loads if load.busy < load.processes]
    if not idle:
        return QueueHealth(queue=queue, is_healthy=True, detail="every process is at work on something")
    if _begun(client.loads(queue)) > _begun(loads):  # it was queried between two short tasks
        return QueueHealth(queue=queue, is_healthy=True, detail="it works through what was queued before")
    return QueueHealth(
        queue=queue,
        is_healthy=False,
        detail=f"{', '.join(idle)} has nothing to do, and did not answer within {duration(seconds)}",
        hint="Restart it: its tasks go back to the queue. Its log shows its last work.",
    )


def _begun(loads: list[QueueLoad]) -> int:
    return sum(load.begun for load in loads)


def main() -> int:
    """Check the queues; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="tools/service.sh health",
        description="Check that a worker answers on each queue: exit code 0, or 1 if not.",
    )
    add_queues(parser)
    queues = chosen_queues(parser.parse_args())
    try:
        found = check_queues(Client(current_settings()), queues)
    except OpsError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for one in found:
        (sys.stdout if one.is_healthy else sys.stderr).write(f"{one}\n")
    return 0 if all(one.is_healthy for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
