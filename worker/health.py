"""`python -m worker.health [lane …]`: does work that is handed over now get done? Exit code 0 or 1, and a line a lane.

A ping goes through the queue of each lane, to a process of its pool and back, so everything on the way is there. A lane
whose processes are all at work on something cannot answer it, and is healthy where its main process says that they are.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from portal.ops.errors import OpsError
from portal.ops.runtime.environment import current_settings
from worker.client import Client, LaneLoad, TaskState
from worker.names import Lane

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

WAIT_SECONDS: Final = 5.0
"""How long a lane that has nothing to do may take to answer."""

_POLL_SECONDS: Final = 0.01


@dataclass(frozen=True, kw_only=True)
class LaneHealth:
    """What was found of a lane.

    Arguments:
        lane: which one.
        is_healthy: work that is handed over now gets done, if not at once.
        detail: how that is known, or what is wrong.
        hint: what to do about it.
    """

    lane: Lane
    is_healthy: bool
    detail: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.lane}: {self.detail}" + (f"\n  hint: {self.hint}" if self.hint else "")


def check_lanes(client: Client, lanes: Iterable[Lane], seconds: float = WAIT_SECONDS) -> list[LaneHealth]:
    """Send a ping through each lane, all at once, and say what came back.

    Arguments:
        client: the way to the workers.
        lanes: which ones.
        seconds: how long to wait for those that do not answer.

    Raises:
        BrokerAwayError: the broker does not answer.
    """
    started = time.monotonic()
    pings = {lane: client.send_ping(lane, seconds) for lane in lanes}
    try:
        found = _collect(client, pings, started, seconds)
        return [found.get(lane) or _silent(client, lane, pings[lane], seconds) for lane in pings]
    finally:
        for lane, task_id in pings.items():
            client.clear_away(lane, task_id)


def _collect(client: Client, pings: Mapping[Lane, str], started: float, seconds: float) -> dict[Lane, LaneHealth]:
    """Wait for the answers; those that came."""
    found: dict[Lane, LaneHealth] = {}
    while len(found) < len(pings) and time.monotonic() - started < seconds:
        for lane in pings.keys() - found.keys():
            if (state := client.look(pings[lane])).is_ended and not state.is_stopped:
                found[lane] = _answered(lane, state, time.monotonic() - started)
        time.sleep(_POLL_SECONDS)
    return found


def _answered(lane: Lane, state: TaskState, seconds: float) -> LaneHealth:
    if state.result.get("success"):
        return LaneHealth(lane=lane, is_healthy=True, detail=f"answered after {seconds:.2f} s")
    detail, _, hint = str(state.result.get("error")).partition("\n  hint: ")
    return LaneHealth(lane=lane, is_healthy=False, detail=detail, hint=hint)


def _silent(client: Client, lane: Lane, task_id: str, seconds: float) -> LaneHealth:
    """A lane that did not answer: is nobody there, or has nobody time? Who had time meanwhile has answered by now."""
    loads = client.loads(lane)
    if (state := client.look(task_id)).is_ended and not state.is_stopped:
        return _answered(lane, state, seconds)
    if not loads:
        return LaneHealth(
            lane=lane,
            is_healthy=False,
            detail=f"no worker listens for {lane} tasks",
            hint="Start one ('tools/service.sh worker', or docker compose up -d worker); its log says why it ended.",
        )
    idle = [load.worker for load in loads if load.busy < load.processes]
    if not idle:
        return LaneHealth(lane=lane, is_healthy=True, detail="every process is at work on something")
    if _begun(client.loads(lane)) > _begun(loads):  # it was looked at between one short task and the next
        return LaneHealth(lane=lane, is_healthy=True, detail="it works through what was queued before")
    return LaneHealth(
        lane=lane,
        is_healthy=False,
        detail=f"{', '.join(idle)} has nothing to do, and did not answer within {seconds:.0f} s",
        hint="Restart it: what it had taken goes back to the queue. Its log says what it did last.",
    )


def _begun(loads: list[LaneLoad]) -> int:
    return sum(load.begun for load in loads)


def main() -> int:
    """Check the lanes; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m worker.health", description="Do the workers do what they are given?"
    )
    parser.add_argument(
        "lanes",
        nargs="*",
        metavar="LANE",
        choices=[*map(str, Lane), []],
        help=f"which: {', '.join(Lane)} (all)",
    )
    lanes = [Lane(name) for name in parser.parse_args().lanes] or list(Lane)
    try:
        found = check_lanes(Client(current_settings().worker), lanes)
    except OpsError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for one in found:
        (sys.stdout if one.is_healthy else sys.stderr).write(f"{one}\n")
    return 0 if all(one.is_healthy for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
