"""An interrupted restore is settled by the first process that looks: a worker at its start, or an engine call."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from demo.redis import EmbeddedRedis
from tests.support.workers import WorkerProcess, wait_until
from tests.support.world import World, config_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROGRAM = """
import json, os, signal, sys
import structlog
from portal.ops.restore import RestoreConfig, RestoreJob

def die(logger, method, event):
    if event["event"] == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
    raise structlog.DropEvent

structlog.configure(processors=[die])
RestoreJob(RestoreConfig(**json.loads(sys.argv[1]))).restore_full(sys.argv[2])
"""
STAGED, APPLIED = "component_staged", "component_applied"


@pytest.fixture
def redis() -> Iterator[EmbeddedRedis]:
    """A broker of the test's own."""
    with EmbeddedRedis() as server:
        yield server


def cut_off(world: World, event: str) -> None:
    """Start a restore of everything, and kill it at the first event of that name: the database's."""
    config = config_of(world.portal, exact=True)
    arguments: dict[str, Any] = {
        name: str(getattr(config, name)) for name in ("local_path", "media_path", "audit_log_path", "pg_bin_dir")
    }
    arguments |= {name: getattr(config, name) for name in ("db_host", "db_port", "db_name", "db_user", "jobs")}
    arguments |= {"db_password": world.portal.password, "exact": True}
    command = [sys.executable, "-c", _PROGRAM, json.dumps(arguments), str(world.archive), event]
    ended = subprocess.run(command, check=False, timeout=120, env={**os.environ})
    assert ended.returncode == -signal.SIGKILL
    (record,) = records(world)
    assert record["state"] == {STAGED: "staging", APPLIED: "applying"}[event]


def records(world: World) -> list[dict[str, Any]]:
    """What is written down of restores."""
    return [json.loads(path.read_text()) for path in (world.portal.archives / ".restores").glob("*.json")]


def assert_settled(world: World, event: str) -> None:
    """What had changed nothing is gone without a trace, what had begun is finished."""
    name = world.portal.database.name
    if event == STAGED:
        assert (records(world), world.stages(), world.databases()) == ([], [], {name})
        assert world.state() == world.after
    else:
        assert [record["state"] for record in records(world)] == ["applied"]
        tables, files = world.state()
        assert (tables, {path: one for path, one in files.items() if "kekkai" not in path}) == world.before


@pytest.mark.parametrize(("event", "said"), [(STAGED, "before it changed anything"), (APPLIED, "half way")])
class TestRecovery:
    """Killed when the database was staged, or when it had taken its place and the uploads had not."""

    def test_a_worker_that_starts(self, world: World, redis: EmbeddedRedis, event: str, said: str) -> None:
        """The lane of restores settles it before it takes work, without anybody having asked, and says so."""
        cut_off(world, event)
        with WorkerProcess(world.portal, redis, "restore") as worker:
            (found,) = worker.events("unfinished_work_found")
            assert said in found["detail"]
            assert_settled(world, event)

    def test_a_worker_that_runs(self, world: World, redis: EmbeddedRedis, event: str, said: str) -> None:
        """The lane of restores settles it soon, without anybody having asked, and says so."""
        with WorkerProcess(world.portal, redis, "restore") as worker:
            cut_off(world, event)
            wait_until(lambda: worker.events("unfinished_work_found"))
            (found,) = worker.events("unfinished_work_found")
            assert said in found["detail"]
            assert_settled(world, event)

    def test_the_engine(self, world: World, event: str, said: str) -> None:
        """`recover` says in words what it has done, and the second time that there is nothing."""
        cut_off(world, event)
        (sentence,) = world.job().recover()
        assert said in sentence
        assert_settled(world, event)
        assert world.job().recover() == ()


def test_a_worker_of_another_lane(world: World, redis: EmbeddedRedis) -> None:
    """The other lanes leave it to the one whose work it is."""
    cut_off(world, APPLIED)
    before = records(world)
    with WorkerProcess(world.portal, redis, "backup") as worker:
        assert worker.events("unfinished_work_found") == []
    assert records(world) == before
    world.job().recover()
    assert_settled(world, APPLIED)
