"""Restores that are killed at any instant: the live database is wholly the old or wholly the new, and can be used."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo.portal import fill
from demo.postgres import EmbeddedPostgres
from portal.ops.errors import OpsError
from portal.ops.postgres.connection import connect
from portal.ops.restore.database.restore import DatabaseState, RestoreMode
from portal.ops.settings.database_url import DatabaseTarget, Secret
from tests.support.restoring import ask, bench, execute, new_restore_id
from tests.support.sessions import session
from tests.support.waiting import LONG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.runtime.process import RunningProcess, SystemRunner
    from tests.support.restoring import Bench

ROOT = Path(__file__).parents[3]
OLD, NEW = ("live before", 400), ("from the backup", 400)
MARK = "SELECT value FROM mark"


@pytest.fixture
def portal(portal_database: DatabaseTarget, postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Bench]:
    """A database whose mark tells whether it is the old or the new one, and a dump of the new one."""
    execute(portal_database, "CREATE TABLE mark AS SELECT 'from the backup' AS value")
    with bench(portal_database, postgres.bin_dir, tmp_path) as made:
        execute(portal_database, "UPDATE mark SET value = 'live before'")
        yield made


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    """A server of the test's own, to be hurt."""
    with EmbeddedPostgres(unsafe_speed=True) as own:
        yield own


@pytest.mark.parametrize("attempt", range(4))
def test_killed_while_it_stages(portal: Bench, attempt: int) -> None:
    """Killed at any instant of the stage, the live database is the old one, and the stage can be undone."""
    restore_id = new_restore_id()
    killed(portal, "stage", restore_id, after=random.uniform(0, 0.7))
    assert live(portal.target) == OLD
    portal.restore(restore_id=restore_id).undo()
    assert portal.databases() == {portal.target.name}
    assert live(portal.target) == OLD


@pytest.mark.parametrize("finishes", [True, False])
@pytest.mark.parametrize("attempt", range(5))
def test_killed_while_it_swaps(portal: Bench, attempt: int, finishes: bool) -> None:
    """Killed at any instant of the swap, the live database can be used at once, and the rest is done or undone."""
    restore = portal.restore()
    restore.stage(portal.source(), portal.rows)
    killed(portal, "apply", restore.restore_id, after=random.uniform(0, 0.12))
    assert live(portal.target) in (OLD, NEW)
    again = portal.restore(restore_id=restore.restore_id)
    if finishes:
        again.finish()
        assert live(portal.target) == NEW
    else:
        again.undo()
        assert live(portal.target) == OLD
        assert again.state() in (DatabaseState.NOTHING, DatabaseState.ROLLED_BACK)


@pytest.mark.parametrize("attempt", range(3))
def test_killed_while_it_rolls_back(portal: Bench, attempt: int) -> None:
    """Killed at any instant of a rollback, the live database can be used, and the rollback can be repeated."""
    restore = portal.restored()
    killed(portal, "rollback", restore.restore_id, after=random.uniform(0, 0.12))
    assert live(portal.target) in (OLD, NEW)
    portal.restore(restore_id=restore.restore_id).rollback()
    assert live(portal.target) == OLD


@pytest.mark.parametrize("attempt", range(4))
def test_killed_while_it_rolls_back_in_place(portal: Bench, attempt: int) -> None:
    """Killed at any instant of a rollback in place, all of it has happened or nothing, and it can be repeated."""
    execute(portal.target, "DROP TABLE finding_endpoint")
    restore = portal.restored(mode=RestoreMode.IN_PLACE)
    killed(portal, "rollback", restore.restore_id, after=random.uniform(0, 0.9), mode=RestoreMode.IN_PLACE)
    brought = ask(portal.target, "SELECT to_regclass('finding_endpoint') IS NOT NULL")
    assert live(portal.target) == (NEW if brought else OLD)
    again = portal.restore(restore_id=restore.restore_id, mode=RestoreMode.IN_PLACE)
    if again.state() is DatabaseState.APPLIED:
        again.rollback()
    assert live(portal.target) == OLD
    assert not ask(portal.target, "SELECT to_regclass('finding_endpoint') IS NOT NULL")


@pytest.mark.parametrize("attempt", range(4))
def test_killed_while_it_restores_in_place(portal: Bench, attempt: int) -> None:
    """Killed at any instant of a restore in place, it has happened wholly or not at all, and can be undone."""
    restore_id = new_restore_id()
    killed(portal, "apply", restore_id, after=random.uniform(0, 0.9), mode=RestoreMode.IN_PLACE)
    assert live(portal.target) in (OLD, NEW)
    portal.restore(restore_id=restore_id, mode=RestoreMode.IN_PLACE).undo()
    assert live(portal.target) == OLD


@pytest.mark.parametrize("mode", [RestoreMode.SWAP, RestoreMode.IN_PLACE])
@pytest.mark.parametrize("attempt", range(2))
def test_pg_restore_is_killed(portal: Bench, attempt: int, mode: RestoreMode) -> None:
    """A restore that loses its pg_restore fails and leaves nothing behind, unless the server was done with it."""
    runner = Killer(portal.runner, after=random.uniform(0, 0.15))
    try:
        portal.restored(runner=runner, mode=mode)
    except OpsError as error:
        assert "ended by SIGKILL" in error.message
        assert live(portal.target) == OLD
        assert portal.databases() == {portal.target.name}
    else:
        assert live(portal.target) == NEW


def test_the_server_crashes_while_it_stages(server: EmbeddedPostgres, tmp_path: Path) -> None:
    """When the server restarts half way, the stage fails, and everything can be done again."""
    server.create_database("portal")
    with server.connect("portal") as connection:
        fill(connection, findings=400)
        connection.execute("CREATE TABLE big AS SELECT n, repeat('x', 500) AS t FROM generate_series(1, 100000) AS n")
        connection.execute("CREATE TABLE mark AS SELECT 'live before' AS value")
    address = server.superuser("portal")
    password = Secret(address.password)
    target = DatabaseTarget(host=address.host, port=address.port, name="portal", user=address.user, password=password)
    with bench(target, server.bin_dir, tmp_path) as made:
        restore = made.restore()
        crash = threading.Thread(target=crash_backend_of, args=(target, "portal_restoring%"))
        crash.start()
        with pytest.raises(OpsError):
            restore.stage(made.source(), made.rows)
        crash.join()
        until_ready(target)
        made.restore(restore_id=restore.restore_id).undo()
        assert made.databases() == {"portal"}
        assert live(target) == OLD
        restore.stage(made.source(), made.rows)
        restore.apply()


def live(target: DatabaseTarget) -> tuple[str, int]:
    """The mark of the live database, and the number of its findings."""
    return ask(target, MARK), ask(target, "SELECT count(*) FROM finding")


def killed(made: Bench, step: str, restore_id: str, *, after: float, mode: RestoreMode = RestoreMode.SWAP) -> None:
    """Take a restore through a step in a process of its own, and kill that after so many seconds."""
    target = {name: getattr(made.target, name) for name in ("host", "port", "name", "user")}
    described = {"target": target, "dump": str(made.dump), "bin_dir": str(made.bin_dir), "rows": made.rows}
    described |= {"restore_id": restore_id, "mode": mode.value}
    assert made.target.password is not None
    environment = os.environ | {"TEST_PASSWORD": made.target.password.reveal()}
    command = [sys.executable, "-m", "tests.support.restoring", step, json.dumps(described)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(after)
        process.kill()


def crash_backend_of(target: DatabaseTarget, database: str) -> None:
    """Kill a process of the server that works on a database, and so have the server restart."""
    query = "SELECT pid FROM pg_stat_activity WHERE datname LIKE %s AND query LIKE 'COPY%%'"
    with session(replace(target, name="template1")) as connection:
        deadline = time.monotonic() + LONG_SECONDS
        while not (row := connection.execute(query.encode(), [database]).fetchone()):
            if time.monotonic() > deadline:
                return
            time.sleep(0.005)
    os.kill(row[0], signal.SIGKILL)


def until_ready(target: DatabaseTarget) -> None:
    deadline = time.monotonic() + LONG_SECONDS
    while True:
        try:
            connect(target).close()
        except OpsError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


class Killer:
    """A runner whose pg_restore is killed some time after its start, unless it only tells about itself."""

    def __init__(self, runner: Any, *, after: float) -> None:
        self._runner: SystemRunner = runner
        self._after = after

    def start(self, argv: Any, **options: Any) -> RunningProcess:
        """Start a program, and kill it if it is one that restores."""
        process: RunningProcess = self._runner.start(argv, **options)
        if any(str(word).startswith("--dbname") for word in argv) and Path(argv[0]).name == "pg_restore":
            time.sleep(self._after)
            os.killpg(process.pid, signal.SIGKILL)
        return process
