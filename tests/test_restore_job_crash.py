"""A restore is killed at random instants: afterwards database and files are wholly the old or wholly the new."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.test_backup_job import Portal, portal
from tests.test_restore_job import World, config_of, world

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["portal", "world"]

ROUNDS = 100 if os.environ.get("KEKKAI_LONG_TESTS") == "1" else 12
SHORTEST_SECONDS, LONGEST_SECONDS = 0.3, 1.4

_PROGRAM = """
import json, sys
from portal.ops.restore import RestoreConfig, RestoreJob
result = RestoreJob(RestoreConfig(**json.loads(sys.argv[1]))).restore_full(sys.argv[2])
assert result.success, result.error
"""


def kill_after(portal: Portal, archive: Path, seconds: float) -> int:
    """Start a restore in a process of its own and kill it; its exit code."""
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
    }
    command = [sys.executable, "-c", _PROGRAM, json.dumps(arguments), str(archive)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return process.wait()


@pytest.mark.parametrize("number", range(ROUNDS))
def test_wholly_the_old_or_wholly_the_new(world: World, number: int) -> None:
    """Whatever instant it was killed at, the next start leaves no bit of both, and taking back gives the old."""
    seconds = random.Random(number).uniform(SHORTEST_SECONDS, LONGEST_SECONDS)
    code = kill_after(world.portal, world.archive, seconds)
    assert code in (0, -signal.SIGKILL)
    job = world.job()
    assert job.restore_full("absent").exit_code == 2  # whatever is started first settles what was cut off
    states = [found["state"] for found in job.list_restores()]
    assert states in ([], ["applied"])
    assert world.state() == (world.before if states else world.after)
    if states:
        assert job.rollback().success
        assert world.state() == world.after
    assert job.restore_full(world.archive).success
    assert world.state() == world.before
    assert not [name for name in world.databases() if "_restoring_" in name or "_staged_" in name]
