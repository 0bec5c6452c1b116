"""Everything is killed, at any instant: a task, a queue's worker, the whole service, the broker, the database server.

Afterwards there is exactly one archive, which is whole; whoever waits has its result; no process, lock or remains are
left.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

import pytest

from demo.redis import EmbeddedRedis
from portal.ops.repository.access_log import AccessLog, Action, Outcome
from portal.ops.settings.load import load_settings
from portal.ops.verify.verify import Verifier
from tests.support.crashes import SEED, lock_is_free, rounds
from tests.support.portal import BIG_TABLE, Portal, execute, portal_database_in, portal_in
from tests.support.servers import no_session_soon
from tests.support.sessions import session
from tests.support.workers import (
    MOMENT,
    WorkerProcess,
    client_environ,
    client_of,
    name_of_moment,
    queued,
    result_of,
    submit,
    unacknowledged,
    use_repository,
    wait_until,
)
from worker.application import make_app
from worker.authorization import Authorizations
from worker.operations import BACKUP_FULL, RESTORE_ARCHIVE, Queue
from worker.progress import STATE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from demo.postgres import EmbeddedPostgres
    from portal.ops.repository.access_entry import AccessEntry
    from portal.ops.settings.load import DatabaseTarget
    from worker.client import TaskState

ROUNDS: Final = rounds(2, in_long=25)
UNATTENDED: Final = 6
MOST_WAITS: Final = 20
USUAL_SECONDS: Final = 1.2
"""About how long a backup takes here from the moment when it is handed over to its end."""


@pytest.fixture
def portal(tmp_path: Path, portal_database: DatabaseTarget, postgres: EmbeddedPostgres) -> Portal:
    """A portal that takes a moment to back up."""
    return large_portal(tmp_path, portal_database, postgres)


def large_portal(directory: Path, database: DatabaseTarget, postgres: EmbeddedPostgres) -> Portal:
    found = portal_in(directory, database, postgres)
    execute(found.database, BIG_TABLE)
    noise = Random(SEED)
    for number in range(40):
        (found.uploads / f"noise-{number}").write_bytes(noise.randbytes(200_000))
    return found


Site = tuple["Portal", EmbeddedRedis, WorkerProcess]


@pytest.fixture(scope="module", params=[False, True], ids=["forgetful", "persistent"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres
) -> Iterator[Site]:
    """A worker for all kills, on a broker that loses everything when it is killed, and on one that does not.

    After all of them it ends in good order, and leaves no process.
    """
    with portal_database_in(postgres) as database, EmbeddedRedis(is_persistent=request.param) as broker:
        portal = large_portal(tmp_path_factory.mktemp("site"), database, postgres)
        with WorkerProcess(portal, broker, "backup", BACKUP_LOCK_TIMEOUT="20") as worker:
            yield portal, broker, worker
            assert worker.terminate() == 0
            assert worker.all_ended_soon()


class Command:
    """A person at `backup.sh full`, who waits for a worker, and again where none was there for some seconds."""

    def __init__(self, portal: Portal, redis: EmbeddedRedis) -> None:
        self._environ = portal.environ(CELERY_BROKER_URL=redis.url)
        self._process = self._start("full")

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-I", "-m", "tools.backup", *arguments],
            cwd="/",
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def backup_id(self) -> str:
        """The backup that it got in the end."""
        output, complaints = self._process.communicate(timeout=120)
        for _ in range(MOST_WAITS):
            if self._process.returncode != UNATTENDED:
                break
            (task_id,) = re.findall(r"--wait (\S+)'", complaints)
            self._process = self._start("--wait", task_id)
            output, complaints = self._process.communicate(timeout=120)
        assert self._process.returncode == 0, complaints
        result = json.loads(output)
        assert result["success"]
        return str(result["backup_id"])


def pool_process(worker: WorkerProcess, redis: EmbeddedRedis, portal: Portal) -> None:
    """Kill a process that does tasks, most likely the one that is at it."""
    busy = [pid for pid in worker.pool() if _has_children(pid)] or worker.pool()
    for pid in busy[:1]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def whole_worker(worker: WorkerProcess, redis: EmbeddedRedis, portal: Portal) -> None:
    """Kill the worker, and start it again."""
    worker.kill()
    assert worker.all_ended_soon()
    worker.start()


def outages(worker: WorkerProcess) -> int:
    """How often the worker has said that it has no broker."""
    return sum(worker.text().count(said) for said in ("Connection to broker lost", "Cannot connect to"))


def broker(worker: WorkerProcess, redis: EmbeddedRedis, portal: Portal) -> None:
    """Kill Redis, and start it again once the worker misses it; an outage that nobody notices is one too."""
    before = outages(worker)
    redis.stop(signal.SIGKILL)
    with suppress(AssertionError):
        wait_until(lambda: outages(worker) > before, 5)
    redis.start()


def database_server(worker: WorkerProcess, redis: EmbeddedRedis, portal: Portal) -> None:
    """Kill a process of PostgreSQL, which ends all sessions and recovers."""

    with suppress(Exception), session(portal.database) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchall()
        for (pid,) in rows[:1]:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("kill", [pool_process, whole_worker, broker, database_server])
def test_a_kill_costs_no_backup(
    site: Site, postgres: EmbeddedPostgres, kill: Callable[[WorkerProcess, EmbeddedRedis, Portal], None]
) -> None:
    """Whatever is killed, and whenever, whoever waits gets the one archive that there is."""
    portal, redis, worker = site
    instants = Random(f"{SEED} {kill.__name__}")
    for _ in range(ROUNDS):
        command = Command(portal, redis)
        wait_until(lambda: queued(redis, Queue.BACKUP) + unacknowledged(redis) > 0)
        time.sleep(instants.uniform(0.05, USUAL_SECONDS))
        kill(worker, redis, portal)
        backup_id = command.backup_id()
        wait_until(lambda: is_settled(portal) and is_idle(redis))
        archives = list(portal.archives.glob("*.tar.gz"))
        assert [path.name for path in archives] == [f"{backup_id}.tar.gz"]
        assert Verifier().verify(archives[0]).intact
        assert no_session_soon(postgres, portal.database)
        for path in archives:
            path.unlink()


def is_idle(redis: EmbeddedRedis) -> bool:
    """Whether no message is left, as one is that a worker could not acknowledge: it is delivered again and answered."""
    return unacknowledged(redis) + queued(redis, Queue.BACKUP) + unacknowledged(redis) == 0


def is_settled(portal: Portal) -> bool:
    """Whether nothing is at work, and nothing is left of work that was killed."""
    remains = [name for name in portal.left() if name.endswith(".partial")]
    deliveries = portal.archives / ".deliveries"
    return not remains and lock_is_free(portal) and not (deliveries.exists() and list(deliveries.iterdir()))


def _has_children(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text())
    except OSError:
        return False


def test_a_crash_loop_ends(portal: Portal) -> None:
    """A task whose process is killed each time is given up after so many times, with a result that says so."""
    with EmbeddedRedis() as redis, WorkerProcess(portal, redis, "backup", BACKUP_TASK_ATTEMPTS="2") as worker:
        task_id = submit(redis, BACKUP_FULL, "doomed", moment=MOMENT)
        killed: set[int] = set()
        while not client_of(redis).look(task_id).is_ended:
            for pid in worker.pool():
                if pid not in killed and _has_children(pid):
                    killed.add(pid)
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        given_up = result_of(redis, task_id)
    assert not given_up.result["success"]
    assert "was begun 2 times" in given_up.result["error"]
    entry = list(AccessLog(portal.job().repository).entries())[-1]
    assert (entry.action, entry.outcome) == (Action.BACKUP, Outcome.FAILED)
    assert entry.subject.startswith(name_of_moment("full"))
    assert not list(portal.archives.glob("*.tar.gz"))


def test_what_is_said_of_a_killed_process_is_json(portal: Portal) -> None:
    """Every line of a worker is JSON, also the one about the end of a process that does tasks."""
    with EmbeddedRedis() as redis, WorkerProcess(portal, redis, "maintenance") as worker:
        killed = worker.pool()[0]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: f"pid:{killed} exited with" in worker.text())
        (line,) = [event for event in worker.events() if f"pid:{killed}" in event["event"]]
    assert (line["level"], line["logger"]) == ("error", "multiprocessing")


def test_a_worker_that_is_asked_to_end_gives_the_task_back(portal: Portal) -> None:
    """SIGTERM ends a worker in its grace, its children too; the task is done by the next worker."""
    with EmbeddedRedis() as redis:
        with WorkerProcess(portal, redis, "backup", **slow(portal), BACKUP_SHUTDOWN_GRACE="1") as first:
            task_id = submit(redis, BACKUP_FULL, "patient", moment=MOMENT)
            wait_until(lambda: any(b"sleep" in line for line in first.processes().values()))
            assert first.terminate() == 0
            assert first.all_ended_soon()
            assert not [name for name in portal.left() if name.endswith(".partial")]
        assert not client_of(redis).look(task_id).is_ended
        with WorkerProcess(portal, redis, "backup"):
            assert result_of(redis, task_id).result["success"]


def test_a_task_that_takes_too_long_is_ended_with_its_children(portal: Portal) -> None:
    """A time limit ends the task with a result, and no process of it goes on."""
    with (
        EmbeddedRedis() as redis,
        WorkerProcess(portal, redis, "backup", **slow(portal), BACKUP_TASK_TIMEOUT="10") as worker,
    ):
        late = result_of(redis, submit(redis, BACKUP_FULL, "late", moment=MOMENT))
        assert "took longer than a task may" in late.result["error"]
        wait_until(lambda: not any(b"sleep" in line or b"pg_dump" in line for line in worker.processes().values()))
        wait_until(lambda: is_settled(portal))  # a hard limit would have another process do this


@dataclass(frozen=True, kw_only=True)
class Killed:
    """A backup and a restore that did not hear of the soft time limit, after the hard one has killed them.

    Arguments:
        backup: the process that did the backup.
        results: what whoever waits is told, by the id of the task.
    """

    portal: Portal
    worker: WorkerProcess
    backup: int
    results: dict[str, TaskState]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres) -> Iterator[Killed]:
    """Both at once, so that nobody waits for the limit twice: they are stopped long before the soft one."""
    given = {"archive": "latest", "moment": MOMENT, "scope": "media"}
    limits = {"BACKUP_LOCK_TIMEOUT": "60", "BACKUP_TASK_TIMEOUT": "12"}
    with portal_database_in(postgres) as database, EmbeddedRedis() as redis:
        portal = large_portal(tmp_path_factory.mktemp("killed"), database, postgres)
        archive = Path(portal.job().backup_full().destination_path or "")
        queues = ("backup", "restore", "--processes", "1")
        with WorkerProcess(portal, redis, *queues, **idle(portal), **limits) as worker, archive.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            Authorizations(portal.archives).grant(RESTORE_ARCHIVE, "deaf-restore", given)
            submit(redis, RESTORE_ARCHIVE, "deaf-restore", **given)
            submit(redis, BACKUP_FULL, "deaf-backup", moment=MOMENT, actor="ada")
            wait_until(lambda: any(b"sleep" in line for line in worker.processes().values()))
            wait_until(lambda: list((portal.archives / ".authorizations").glob("*.begun")))
            (backup,) = [pid for pid in worker.pool() if _has_children(pid)]
            for pid in worker.pool():
                os.kill(pid, signal.SIGSTOP)
            results = {task_id: result_of(redis, task_id) for task_id in ("deaf-backup", "deaf-restore")}
            wait_until(lambda: is_settled(portal))
            yield Killed(portal=portal, worker=worker, backup=backup, results=results)


def test_a_task_that_does_not_hear_is_killed_with_its_children(killed: Killed) -> None:
    """A process that ignores the soft time limit is killed by the hard one; its programs end too."""
    late = killed.results["deaf-backup"]
    assert (late.result["success"], late.exit_code) == (False, 1)
    assert "took longer than a task may" in late.result["error"]
    assert "BACKUP_TASK_TIMEOUT" in late.result["error"]
    wait_until(lambda: killed.backup not in killed.worker.processes())
    programs = (b"sleep", b"pg_dump")
    wait_until(lambda: not any(name in line for line in killed.worker.processes().values() for name in programs))
    assert lock_is_free(killed.portal)


def test_what_a_killed_backup_leaves_is_swept_and_told(killed: Killed) -> None:
    """A backup that the hard time limit has killed is in the access log, once; nothing of it stays."""
    (entry,) = entries_of(killed.portal, "deaf-backup")
    assert (entry.who, entry.action, entry.outcome) == ("ada", Action.BACKUP, Outcome.FAILED)
    assert entry.subject.startswith(name_of_moment("full"))
    assert "took longer than a task may" in entry.details["error"]
    assert len(list(killed.portal.archives.glob("*.tar.gz"))) == 1  # the one to restore


def test_a_killed_restore_is_told_and_its_permit_used_up(killed: Killed) -> None:
    """A restore that the hard time limit has killed is in the access log, once, and cannot be done by its permit."""
    assert not killed.results["deaf-restore"].result["success"]
    assert not list((killed.portal.archives / ".authorizations").iterdir())
    (entry,) = entries_of(killed.portal, "deaf-restore")
    assert (entry.action, entry.outcome) == (Action.RESTORE, Outcome.FAILED)


def entries_of(portal: Portal, task_id: str) -> list[AccessEntry]:
    """What the access log has of a task."""
    entries = AccessLog(portal.job().repository).entries()
    return [entry for entry in entries if entry.details.get("task_id") == task_id]


def test_a_late_word_of_progress_does_not_hide_the_end(portal: Portal) -> None:
    """A process that says how far it is once its end was told, right before its kill, leaves nobody waiting."""
    delivery = portal.archives / ".deliveries" / "deaf"
    delivery.parent.mkdir(parents=True)
    delivery.write_text(".")
    killed = {"name": "backup.full", "task_id": "deaf", "given": {"moment": MOMENT}}
    with EmbeddedRedis() as redis:
        use_repository(redis, portal.archives)
        backend = make_app(load_settings(client_environ(redis), lambda _: "")).backend
        backend.store_result("deaf", {"phase": "database", "done": 1, "total": None}, STATE)
        assert client_of(redis).look("deaf").progress
        subprocess.run(
            [sys.executable, "-I", "-m", "worker.recovery", "backup"],
            input=json.dumps(killed) + "\n",
            env=portal.environ(CELERY_BROKER_URL=redis.url),
            text=True,
            check=True,
        )
        late = client_of(redis).look("deaf")
    assert (late.is_ended, late.exit_code) == (True, 1)
    assert "backup.full took longer than a task may" in late.result["error"]
    assert not delivery.exists()


def test_a_queue_goes_on_looking_for_abandoned_messages(portal: Portal) -> None:
    """Invalid data in the broker is dropped and said, and does not end the looking."""
    from redis import Redis

    with (
        EmbeddedRedis() as redis,
        WorkerProcess(portal, redis, "maintenance") as worker,
        Redis(unix_socket_path=str(redis.socket)) as connection,
    ):
        connection.set("celery-task-meta-odd", "no result")
        for _ in range(2):
            connection.hset("unacked", "odd", json.dumps([{"headers": {"id": "odd"}}, "", "maintenance"]))
            wait_until(lambda: not connection.hexists("unacked", "odd"))
        assert len(worker.events("message_rejected")) >= 2


def test_a_worker_sweeps_what_an_earlier_one_left(portal: Portal) -> None:
    """What a killed backup left is gone, and told, before the next worker takes work; no task has to come for that."""
    from redis import Redis

    with EmbeddedRedis() as redis:
        with WorkerProcess(portal, redis, "backup", **slow(portal)) as first:
            submit(redis, BACKUP_FULL, "cut-off", moment=MOMENT)
            wait_until(lambda: any(b"sleep" in line for line in first.processes().values()))
        remains = {name for name in portal.left() if name.endswith(".partial")}
        assert remains
        with Redis(unix_socket_path=str(redis.socket)) as connection:
            connection.flushdb()
        with WorkerProcess(portal, redis, "backup") as second:
            assert not [name for name in portal.left() if name.endswith(".partial")]
            said = [event for event in second.events() if event["event"] in ("unfinished_work_removed", "worker_ready")]
    assert {event["name"] for event in said[:-1]} == remains
    assert said[-1]["event"] == "worker_ready"


def idle(portal: Portal) -> dict[str, str]:
    """Where a pg_dump is that does nothing, and does not end."""
    program = portal.directory / "bin" / "pg_dump"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec "{portal.bin_dir}/pg_dump" "$@"\nexec sleep 600\n')
    program.chmod(0o755)
    return {"BACKUP_PG_BIN_DIR": str(program.parent)}


def slow(portal: Portal) -> dict[str, str]:
    """Where a pg_dump is that writes everything and then does not end."""
    from tests.support.crashes import endless_dump

    return {"BACKUP_PG_BIN_DIR": str(endless_dump(portal))}
