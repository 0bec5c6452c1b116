"""Restores and rollbacks are killed at random instants: database and files are wholly the old or wholly the new."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support.crashes import rounds
from tests.support.restoring import execute
from tests.support.world import World, config_of

if TYPE_CHECKING:
    from tests.support.portal import Portal
    from tests.support.world import State

ROUNDS = rounds(12, in_long=100)
ROUNDS_IN_PLACE = rounds(6, in_long=100)
ROUNDS_BACK = rounds(4, in_long=50)
SHORTEST_SECONDS, LONGEST_SECONDS = 0.3, 1.4
LONGEST_BACK_SECONDS = 0.9

_PROGRAM = """
import json, sys
from portal.ops.restore import RestoreConfig, RestoreJob
job = RestoreJob(RestoreConfig(**json.loads(sys.argv[1])))
result = getattr(job, sys.argv[2])(*sys.argv[3:])
assert result.success, result.error
"""


def kill_after(portal: Portal, seconds: float, *step: str, mode: str = "swap") -> int:
    """Start a restore or a rollback in a process of its own and kill it; its exit code."""
    config = config_of(portal)
    arguments = {
        "local_path": str(config.local_path),
        "db_host": config.db_host,
        "db_port": config.db_port,
        "db_name": config.db_name,
        "db_user": config.db_user,
        "db_password": portal.password,
        "media_path": str(config.media_path),
        "audit_log_path": str(config.audit_log_path),
        "pg_bin_dir": str(config.pg_bin_dir),
        "exact": True,
        "jobs": 2,
        "mode": mode,
    }
    command = [sys.executable, "-c", _PROGRAM, json.dumps(arguments), *step]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return process.wait()


@pytest.mark.parametrize("number", range(ROUNDS))
def test_wholly_the_old_or_wholly_the_new(world: World, number: int) -> None:
    """Whatever instant it was killed at, the next start leaves no bit of both, and taking back gives the old."""
    seconds = random.Random(number).uniform(SHORTEST_SECONDS, LONGEST_SECONDS)
    code = kill_after(world.portal, seconds, "restore_full", str(world.archive))
    assert code in (0, -signal.SIGKILL)
    job = world.job()
    assert job.restore_full("absent").exit_code == 2  # whatever is started first settles what was interrupted
    states = [found["state"] for found in job.list_restores()]
    assert states in ([], ["applied"])
    assert world.state() == (world.before if states else world.after)
    if states:
        assert job.rollback().success
        assert world.state() == world.after
    assert job.restore_full(world.archive).success
    assert world.state() == world.before
    assert not [name for name in world.databases() if "_restoring_" in name or "_staged_" in name]


@pytest.mark.parametrize("number", range(ROUNDS_IN_PLACE))
def test_in_place_is_wholly_the_old_or_wholly_the_new(world: World, number: int) -> None:
    """In place too, no instant leaves a bit of both, and taking back gives the old, without what the backup brought."""
    world = without_a_table(world)
    seconds = instant(number, ROUNDS_IN_PLACE, LONGEST_SECONDS)
    code = kill_after(world.portal, seconds, "restore_full", str(world.archive), mode="in-place")
    assert code in (0, -signal.SIGKILL)
    job = world.job(mode="in-place")
    assert job.restore_full("absent").exit_code == 2
    states = [found["state"] for found in job.list_restores()]
    assert states in ([], ["applied"])
    assert world.state() == (restored(world, "in-place") if states else world.after)
    if states:
        assert job.rollback().success
        assert world.state() == world.after
    assert job.restore_full(world.archive).success
    assert world.state() == restored(world, "in-place")


@pytest.mark.parametrize("mode", ["swap", "in-place"])
@pytest.mark.parametrize("number", range(ROUNDS_BACK))
def test_a_rollback_is_done_wholly_or_not_at_all(world: World, number: int, mode: str) -> None:
    """A rollback that is killed has happened or not, in database and files alike, and can be asked for again."""
    world = without_a_table(world)
    job = world.job(mode=mode)
    assert job.restore_full(world.archive).success
    seconds = instant(number, ROUNDS_BACK, LONGEST_BACK_SECONDS)
    code = kill_after(world.portal, seconds, "rollback", mode=mode)
    assert code in (0, -signal.SIGKILL)
    assert job.restore_full("absent").exit_code == 2
    states = [found["state"] for found in job.list_restores()]
    assert states in (["applied"], ["rolled_back"])
    assert world.state() == (restored(world, mode) if states == ["applied"] else world.after)
    if states == ["applied"]:
        assert job.rollback().success
    assert world.state() == world.after


def instant(number: int, rounds: int, longest: float) -> float:
    """A random instant in one of as many equal parts of the time as there are rounds."""
    return SHORTEST_SECONDS + (longest - SHORTEST_SECONDS) * (number + random.Random(number).random()) / rounds


def without_a_table(world: World) -> World:
    """The same portal, which has lost a table since the backup."""
    execute(world.portal.database, "DROP TABLE finding_endpoint")
    return replace(world, after=world.state())


def restored(world: World, mode: str) -> State:
    """Database and uploads after a restore: in place, a newer table stays."""
    tables, files = world.before
    newer = {"public.newer": world.after[0]["public.newer"]} if mode == "in-place" else {}
    return tables | newer, files
