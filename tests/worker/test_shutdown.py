"""A worker that is asked to end: at once where it has nothing to do, with its task, and in time whatever happens."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from demo.redis import EmbeddedRedis
from tests.support.crashes import lock_is_free
from tests.support.waiting import LONG_SECONDS
from tests.support.workers import MOMENT, WorkerProcess, client_of, result_of, submit, unacknowledged, wait_until
from worker import __main__ as supervisor
from worker.operations import BACKUP_FULL, Queue

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.portal import Portal

GRACE = 1
LONG_GRACE = "300"


@pytest.fixture
def released(portal: Portal) -> Path:
    """A file that the portal's pg_dump waits for before it ends."""
    program = portal.directory / "bin" / "pg_dump"
    program.parent.mkdir()
    file = portal.directory / "released"
    program.write_text(
        f'#!/bin/sh\n"{portal.bin_dir}/pg_dump" "$@"\n'
        f'[ "$1" = --version ] || until [ -e "{file}" ]; do sleep 0.05; done\n'
    )
    program.chmod(0o755)
    return file


def working(portal: Portal, redis: EmbeddedRedis, grace: str) -> WorkerProcess:
    """A worker of one queue, with the slow pg_dump."""
    bin_dir = str(portal.directory / "bin")
    return WorkerProcess(portal, redis, "backup", BACKUP_PG_BIN_DIR=bin_dir, BACKUP_SHUTDOWN_GRACE=grace)


def begin(worker: WorkerProcess, redis: EmbeddedRedis) -> str:
    """Have a backup begun that waits; the task's id."""
    task_id = submit(redis, BACKUP_FULL, "running", moment=MOMENT)
    wait_until(lambda: any(b"pg_dump" in line for line in worker.processes().values()))
    return task_id


def test_it_ends_when_its_task_has_finished(portal: Portal, released: Path) -> None:
    """Long before its grace is over; the task has its result, and its message is gone."""
    with EmbeddedRedis() as redis, working(portal, redis, LONG_GRACE) as worker:
        task_id = begin(worker, redis)
        asked = worker.ask_to_end()
        wait_until(lambda: worker.events("worker_finishing"))
        assert worker.events("worker_finishing")[0]["tasks"] == [task_id]
        assert not client_of(redis).look(task_id).is_ended
        released.touch()
        assert asked.wait(float(LONG_GRACE) / 4) == 0
        assert worker.all_ended_soon()
        assert result_of(redis, task_id).result["success"]
        assert unacknowledged(redis) == 0
    assert len(list(portal.archives.glob("*.tar.gz"))) == 1


@pytest.mark.parametrize("broker", ["gone", "gone after the signal"])
def test_it_is_gone_in_time_with_a_task_that_goes_on(portal: Portal, released: Path, broker: str) -> None:
    """Within its grace and ten seconds, although the broker is away; nothing of the task is left, and no process."""
    with EmbeddedRedis() as redis, working(portal, redis, str(GRACE)) as worker:
        begin(worker, redis)
        if broker == "gone":
            redis.stop(signal.SIGKILL)
            wait_until(lambda: "Connection to broker lost" in worker.text())
        asked = worker.ask_to_end()
        if broker == "gone after the signal":
            wait_until(lambda: worker.events("worker_finishing"))
            redis.stop(signal.SIGKILL)
        assert asked.wait(LONG_SECONDS) == 0  # one that had to be killed has another exit code
        assert worker.all_ended_soon()
    assert lock_is_free(portal)


def test_a_worker_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose main process does not even take signals keeps nobody waiting; the others end by themselves."""
    monkeypatch.setattr(supervisor, "_END_SECONDS", 0.5)
    hanging, ended = (subprocess.Popen(["sleep", seconds]) for seconds in ("600", "0"))
    hanging.send_signal(signal.SIGSTOP)
    wait_until(lambda: ended.poll() is not None)
    assert supervisor._end({Queue.BACKUP: hanging, Queue.RESTORE: ended}, 0) == [-signal.SIGKILL, 0]
