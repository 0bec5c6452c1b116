"""What the health check makes of the workers' answers, without a worker."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

import pytest

from worker import health
from worker.client import QueueLoad, TaskState
from worker.errors import BrokerAwayError
from worker.health import QueueHealth, check_queues
from worker.operations import Queue

if TYPE_CHECKING:
    from worker.client import Client

ENDED = TaskState(is_begun=True, is_ended=True, result={"success": True})
EXPIRED = TaskState(is_ended=True, is_stopped=True, result={"success": True})
FAILED = TaskState(is_ended=True, result={"success": False, "error": "it is full\n  hint: Make room.\n  hint: Soon."})
NONE = TaskState()
WAIT = 0.03


class Workers:
    """Stands in for the client: what it sees of each ping, and of the load, one after the other.

    Arguments:
        states: what becomes of the ping through each queue; the last one stays.
        loads: the loads at each question; an error is raised.
    """

    def __init__(self, states: dict[Queue, list[TaskState]], *loads: list[QueueLoad] | Exception) -> None:
        self.states = states
        self.left = list(loads)
        self.sent: list[tuple[str, float]] = []
        self.cleared: list[tuple[Queue, str]] = []

    def send_ping(self, queue: Queue, seconds: float) -> str:
        """Note a ping."""
        self.sent.append((queue.value, seconds))
        return f"ping-{queue.value}"

    def look(self, task_id: str) -> TaskState:
        """What becomes of it."""
        found = self.states[Queue(task_id.removeprefix("ping-"))]
        return found.pop(0) if len(found) > 1 else found[0]

    def loads(self, queue: Queue) -> list[QueueLoad]:
        """The next load."""
        assert queue in self.states
        found = self.left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def clear_away(self, queue: Queue, task_id: str) -> None:
        """Note what is removed."""
        self.cleared.append((queue, task_id))

    def check(self, seconds: float = WAIT) -> list[QueueHealth]:
        """The health of all queues."""
        return check_queues(cast("Client", self), self.states, seconds)


def load(busy: int = 0, *, begun: int = 7, worker: str = "backup@a", processes: int = 2) -> QueueLoad:
    return QueueLoad(worker=worker, processes=processes, busy=busy, begun=begun)


def test_each_queue_that_answers_is_healthy() -> None:
    """In the order of the question, whoever is first; the pings are removed."""
    workers = Workers({Queue.RESTORE: [NONE, NONE, ENDED], Queue.BACKUP: [ENDED]})
    found = workers.check(60)
    assert [(one.queue, one.is_healthy, one.hint) for one in found] == [
        (Queue.RESTORE, True, ""),
        (Queue.BACKUP, True, ""),
    ]
    assert all(str(one).startswith(f"{one.queue}: answered after ") for one in found)
    assert workers.sent == [("restore", 60), ("backup", 60)]
    assert workers.cleared == [(Queue.RESTORE, "ping-restore"), (Queue.BACKUP, "ping-backup")]


def test_an_answer_can_be_a_fault() -> None:
    """With what to do about it."""
    (found,) = Workers({Queue.BACKUP: [FAILED]}).check(60)
    assert found == QueueHealth(
        queue=Queue.BACKUP, is_healthy=False, detail="it is full", hint="Make room.\n  hint: Soon."
    )
    assert str(found) == "backup: it is full\n  hint: Make room.\n  hint: Soon."


def test_a_queue_without_a_worker_is_not_healthy() -> None:
    """An expired ping is no answer."""
    (found,) = Workers({Queue.BACKUP: [EXPIRED]}, []).check()
    assert (found.is_healthy, found.detail) == (False, "no worker listens for backup tasks")
    assert "service.sh worker" in found.hint


@pytest.mark.parametrize(
    ("loads", "is_healthy", "detail"),
    [
        ([[load(2)]], True, "every process is at work on something"),
        ([[load(3), load(2, worker="backup@b")]], True, "every process is at work on something"),
        ([[load(1)], [load(1, begun=8)]], True, "it works through what was queued before"),
        (
            [[load(2), load(0, worker="backup@b")], [load(2), load(0, worker="backup@b")]],
            False,
            "backup@b has nothing to do, and did not answer within 0 s",
        ),
        (
            [[load(1), load(worker="backup@b")], [load(), load(worker="backup@b", begun=6)]],
            False,
            "backup@a, backup@b has nothing to do, and did not answer within 0 s",
        ),
    ],
)
def test_a_queue_that_does_not_answer_may_have_no_time(
    loads: list[list[QueueLoad] | Exception], is_healthy: bool, detail: str
) -> None:
    """Where nobody has anything to do, and nobody began anything meanwhile, it hangs."""
    (found,) = Workers({Queue.BACKUP: [NONE]}, *loads).check()
    assert (found.is_healthy, found.detail) == (is_healthy, detail)
    assert ("Restart it" in found.hint) is not is_healthy


@pytest.mark.parametrize(("last", "is_healthy"), [(ENDED, True), (FAILED, False)])
def test_an_answer_at_the_last_moment_counts(last: TaskState, is_healthy: bool) -> None:
    """It came while the load was asked for."""
    (found,) = Workers({Queue.BACKUP: [last]}, [load()]).check(0)
    assert (found.is_healthy, found.detail.startswith("answered after")) == (is_healthy, is_healthy)


def test_pings_are_removed_whatever_happens() -> None:
    """Also if the broker goes away."""
    workers = Workers({Queue.BACKUP: [NONE]}, BrokerAwayError("the broker does not answer", hint="none"))
    with pytest.raises(BrokerAwayError):
        workers.check()
    assert workers.cleared == [(Queue.BACKUP, "ping-backup")]


@pytest.mark.parametrize(
    ("arguments", "states", "code", "out", "err"),
    [
        ([], ENDED, 0, [queue.value for queue in Queue], []),
        (["restore"], ENDED, 0, ["restore"], []),
        (["restore", "backup"], FAILED, 1, [], ["restore", "backup"]),
    ],
)
def test_the_command_says_which_queues_are_healthy(
    arguments: list[str],
    states: TaskState,
    code: int,
    out: list[str],
    err: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All of them if none is named; the others on standard error."""
    workers = Workers({queue: [states] for queue in Queue})
    settings: Any = object()
    monkeypatch.setattr(health, "current_settings", lambda: settings)
    monkeypatch.setattr(health, "Client", lambda given: workers if given is settings else None)
    monkeypatch.setattr(sys, "argv", ["health", *arguments])
    assert health.main() == code
    said = capsys.readouterr()
    assert [[line.split(":")[0] for line in text.splitlines() if line[0] != " "] for text in said] == [out, err]


def test_the_command_names_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With the exit code for a queue that is not healthy."""

    def away() -> None:
        raise BrokerAwayError("the broker does not answer", hint="none")

    monkeypatch.setattr(health, "current_settings", away)
    monkeypatch.setattr(sys, "argv", ["health"])
    assert health.main() == 1
    assert capsys.readouterr() == ("", "error: the broker does not answer\n  hint: none\n")
