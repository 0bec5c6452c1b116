"""Tasks as the queue delivers them: once, twice, fifty times; with arguments that make sense, and with others."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo.redis import EmbeddedRedis
from portal.ops.model import BackupType
from portal.ops.repository.access_log import AccessEntry, AccessLog, Action, Outcome
from portal.ops.verify.verify import Verifier
from tests.support.kept import put_archive
from tests.support.portal import portal_with_broker
from tests.support.workers import (
    MOMENT,
    WorkerProcess,
    client_of,
    name_of_moment,
    result_of,
    run_task,
    submit,
    unacknowledged,
    wait_until,
)
from worker.authorization import Authorizations
from worker.operations import (
    BACKUP_DATABASE,
    BACKUP_FULL,
    BACKUP_MEDIA,
    DRILL_RESTORE,
    PING,
    PRUNE_REPOSITORY,
    RESTORE_ARCHIVE,
    RESTORE_ROLLBACK,
    VERIFY_ARCHIVE,
    Operation,
    Queue,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.postgres import EmbeddedPostgres
    from tests.support.portal import Portal


@pytest.fixture
def redis() -> Iterator[EmbeddedRedis]:
    """A broker of the test's own."""
    with EmbeddedRedis() as server:
        yield server


def test_a_backup_through_the_queue_is_the_engines(portal: Portal, redis: EmbeddedRedis) -> None:
    """A task's result has what the same backup's result has in this process, and the archive is whole."""
    with WorkerProcess(portal, redis, "backup"):
        done = run_task(redis, BACKUP_FULL, moment=MOMENT)
    assert (done.exit_code, done.result["success"]) == (0, True)
    assert done.result.keys() == portal.job().backup_full().to_dict().keys()
    assert done.result["backup_id"].startswith(name_of_moment("full"))
    assert Verifier().verify(Path(done.result["path"])).intact


def test_a_complete_full_backup_through_the_queue(portal: Portal, redis: EmbeddedRedis) -> None:
    """A worker whose full backups follow others makes one that stands by itself where that is asked for."""
    with WorkerProcess(portal, redis, "backup", BACKUP_FULL_UPLOADS="chain", BACKUP_SCHEDULE_COMPLETE="off"):
        tasks = [run_task(redis, BACKUP_FULL, moment=MOMENT, **given) for given in ({}, {}, {"complete": True})]
    first, second, third = (task.result for task in tasks)
    assert [one["parent"] for one in (first, second, third)] == [None, first["backup_id"], None]


def test_the_same_task_twice_is_one_archive(portal: Portal, redis: EmbeddedRedis) -> None:
    """A task that is sent again after it was done gives the first result, and makes nothing."""
    with WorkerProcess(portal, redis, "backup"):
        first = result_of(redis, submit(redis, BACKUP_DATABASE, "slot-1", moment=MOMENT))
        before = portal.left()
        submit(redis, BACKUP_DATABASE, "slot-1", moment=MOMENT)
        wait_until(lambda: unacknowledged(redis) == 0)
        again = result_of(redis, "slot-1")
    assert again == first
    assert {name for name in portal.left() if name.endswith((".gz", ".sha256"))} <= before


def test_a_task_whose_archive_was_removed_is_done_again(portal: Portal, redis: EmbeddedRedis) -> None:
    """A result is worth nothing without the archive that it names."""
    with WorkerProcess(portal, redis, "backup"):
        first = result_of(redis, submit(redis, BACKUP_DATABASE, "slot-4", moment=MOMENT))
        Path(first.result["path"]).unlink()
        submit(redis, BACKUP_DATABASE, "slot-4", moment=MOMENT)
        wait_until(lambda: Path(first.result["path"]).exists())


def test_fifty_deliveries_are_one_archive(portal: Portal, redis: EmbeddedRedis) -> None:
    """Fifty messages of one request, to four processes at once, make one archive, and nothing is left of the others."""
    for _ in range(50):
        submit(redis, BACKUP_FULL, "slot-2", moment=MOMENT)
    with WorkerProcess(portal, redis, "backup"), WorkerProcess(portal, redis, "backup") as second:
        done = result_of(redis, "slot-2")
        wait_until(lambda: _is_drained(redis, Queue.BACKUP))
        assert result_of(redis, "slot-2").result["backup_id"] == done.result["backup_id"]
        assert second.events("task_ended") == [] or all(event["success"] for event in second.events("task_ended"))
    archives = list(portal.archives.glob("*.tar.gz"))
    assert [path.name for path in archives] == [f"{done.result['backup_id']}.tar.gz"]
    assert Verifier().verify(archives[0]).intact
    assert not list((portal.archives / ".deliveries").iterdir())


def _is_drained(redis: EmbeddedRedis, queue: Queue) -> bool:
    from tests.support.workers import queued

    return queued(redis, queue) == 0 and unacknowledged(redis) == 0


def test_a_failure_is_a_failed_task_with_the_engines_result(portal: Portal, redis: EmbeddedRedis) -> None:
    """A backup that cannot be made ends as a failure that carries error, hint and exit code."""
    with WorkerProcess(portal, redis, "backup", DD_DATABASE_NAME="nowhere") as worker:
        failed = run_task(redis, BACKUP_DATABASE, moment=MOMENT)
        assert "Traceback" not in worker.text()
    assert (failed.exit_code, failed.result["success"]) == (1, False)
    assert "nowhere" in failed.result["error"]
    assert "\n  hint: " in failed.result["error"]
    assert [(line.action, line.outcome) for line in logged(portal)] == [(Action.BACKUP, Outcome.FAILED)]


def test_what_is_not_built_is_refused(portal: Portal, redis: EmbeddedRedis) -> None:
    """A worker whose environment asks for encryption makes no backup that somebody would take for encrypted."""
    with WorkerProcess(portal, redis, "backup", BACKUP_ENCRYPTION="true"):
        refused = run_task(redis, BACKUP_MEDIA, moment=MOMENT)
    assert (refused.exit_code, refused.result["success"]) == (2, False)
    assert "this release does not have encryption (BACKUP_ENCRYPTION)" in refused.result["error"]
    assert not list(portal.archives.glob("*.tar.gz"))


def test_a_failed_task_that_is_sent_again_is_tried_again(portal: Portal, redis: EmbeddedRedis) -> None:
    """What failed for a reason that is gone succeeds under the same id."""
    portal.uploads.rename(portal.uploads.with_name("away"))
    with WorkerProcess(portal, redis, "backup"):
        failed = result_of(redis, submit(redis, BACKUP_MEDIA, "slot-3", moment=MOMENT))
        portal.uploads.with_name("away").rename(portal.uploads)
        submit(redis, BACKUP_MEDIA, "slot-3", moment=MOMENT)
        wait_until(lambda: client_of(redis).look("slot-3").result.get("success"))
    assert not failed.result["success"]


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        (VERIFY_ARCHIVE, {}),
        (BACKUP_FULL, {"moment": "yesterday"}),
        (BACKUP_FULL, {"moment": MOMENT, "local_path": "/etc"}),
        (BACKUP_FULL, {"moment": 7}),
        (BACKUP_FULL, {"moment": "2131-01-01T00:00:00+00:00"}),
        (BACKUP_MEDIA, {"moment": MOMENT, "incremental": 1}),
        (BACKUP_MEDIA, {"moment": MOMENT, "incremental": True, "changed": "a"}),
        (BACKUP_MEDIA, {"moment": MOMENT, "incremental": True, "changed": ["a\0b"]}),
        (VERIFY_ARCHIVE, {"archive": "/etc/passwd"}),
        (VERIFY_ARCHIVE, {"archive": "../outside.tar.gz"}),
        (VERIFY_ARCHIVE, {"archive": "latest", "level": "glance"}),
        (VERIFY_ARCHIVE, {"archive": ["latest"]}),
        (RESTORE_ARCHIVE, {"archive": "latest", "moment": MOMENT}),
        (RESTORE_ARCHIVE, {"archive": "latest", "moment": MOMENT, "patterns": "a"}),
        (RESTORE_ARCHIVE, {"archive": "latest", "moment": MOMENT, "dry_run": True, "media_dir": "/etc"}),
        (RESTORE_ROLLBACK, {"restore_id": "restore_20240115_120000_abc123"}),
    ],
)
def test_what_no_task_may_be_told_is_refused(
    service: tuple[Portal, EmbeddedRedis, WorkerProcess], task: Operation, arguments: dict[str, Any]
) -> None:
    """Arguments that nobody of ours would send end the task with exit code 2 and a hint, before anything is done.

    The access log has one line more.
    """
    portal, redis, _ = service
    before, written = portal.left(), logged(portal)
    refused = run_task(redis, task, **arguments)
    assert (refused.exit_code, refused.result["success"]) == (2, False)
    (line,) = logged(portal)[len(written) :]
    assert (line.action, line.outcome) == (_ACTIONS[task], Outcome.REFUSED)
    assert line.details["error"] == refused.result["error"].partition("\n")[0]
    assert "\n  hint: " in refused.result["error"]
    assert {name for name in portal.left() if not name.startswith(".")} == {
        name for name in before if not name.startswith(".")
    }


_ACTIONS = {
    BACKUP_FULL: Action.BACKUP,
    BACKUP_MEDIA: Action.BACKUP,
    VERIFY_ARCHIVE: Action.VERIFY,
    RESTORE_ARCHIVE: Action.RESTORE,
    RESTORE_ROLLBACK: Action.ROLLBACK,
}


def logged(portal: Portal) -> list[AccessEntry]:
    """The access log."""
    return list(AccessLog(portal.job().repository).entries())


def test_a_refused_task_is_written_down_as_it_came(service: tuple[Portal, EmbeddedRedis, WorkerProcess]) -> None:
    """Who, to what and which task are in the line, without what would make it look like two."""
    portal, redis, _ = service
    given = {"archive": "/etc/passwd\n\x1b[2J" + "x" * 2000, "actor": "mallory"}
    task_id = submit(redis, VERIFY_ARCHIVE, **given)
    assert result_of(redis, task_id).exit_code == 2
    line = logged(portal)[-1]
    assert (line.who, line.details["task_id"]) == ("mallory", task_id)
    assert line.subject.startswith("/etc/passwd\\n\\x1b[2Jxxx")
    assert len(line.subject) < 1000
    assert (line.subject + line.details["error"]).isprintable()


def test_a_task_with_an_id_of_another_form_is_rejected(
    service: tuple[Portal, EmbeddedRedis, WorkerProcess],
) -> None:
    """It leads to no file of another task: the authorization of that one is not used up, and the log says it."""
    portal, redis, worker = service
    given = {"archive": "latest", "moment": MOMENT}
    Authorizations(portal.archives).grant(RESTORE_ARCHIVE, "wanted", given)
    submit(redis, RESTORE_ARCHIVE, "../wanted", **given)
    wait_until(lambda: [one for one in worker.events("message_rejected") if one["rejected_id"] == "../wanted"])
    assert Authorizations(portal.archives).withdraw("wanted")


def test_a_ping_is_not_written_down(service: tuple[Portal, EmbeddedRedis, WorkerProcess]) -> None:
    """Neither one that is answered nor one that is refused."""
    portal, redis, _ = service
    written = logged(portal)
    assert run_task(redis, PING).result["success"]
    assert run_task(redis, PING, archive="latest").exit_code == 2
    assert logged(portal) == written


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, postgres: Any
) -> Iterator[tuple[Portal, EmbeddedRedis, WorkerProcess]]:
    """A worker for many tests, with one archive."""
    with portal_with_broker(tmp_path_factory.mktemp("service"), postgres) as (found, broker):
        assert found.job().backup_full().success
        with WorkerProcess(found, broker) as worker:
            yield found, broker, worker


FAILING_WORKER = """
import os, signal, sys, threading
if "worker.queue_worker" in sys.orig_argv and "maintenance" in sys.orig_argv:
    # after the three seconds in which it counts as one that cannot start
    timer = threading.Timer(4, {ending})
    timer.daemon = True
    timer.start()
"""


@pytest.mark.parametrize(
    ("style", "ending", "said"),
    [
        ("console", "os._exit, [1]", "queue worker restarted"),
        ("json", "os.kill, [os.getpid(), signal.SIGKILL]", '"exit_code": -9, "event": "queue_worker_restarted"'),
    ],
)
def test_a_queue_worker_that_fails_or_is_killed_is_restarted(
    portal: Portal, redis: EmbeddedRedis, tmp_path: Path, style: str, ending: str, said: str
) -> None:
    """It alone: the tasks of another queue go on. The line about it has the form of BACKUP_LOG_FORMAT."""
    (tmp_path / "sitecustomize.py").write_text(FAILING_WORKER.format(ending=ending))
    own = {"CELERY_BROKER_URL": redis.url, "BACKUP_LOG_FORMAT": style, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-I", "-m", "worker", "maintenance", "offsite"]
    with subprocess.Popen(command, cwd="/", env=portal.environ(**own), stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr is not None
        line = next(line for line in worker.stderr if "restarted" in line)
        worker.terminate()
        rest = worker.stderr.read()
    assert said in line
    assert "offsite" not in line + "".join(more for more in rest.splitlines() if "restarted" in more)
    assert worker.returncode == 0


def test_a_prune_by_a_worker_removes_what_is_too_old(portal: Portal, redis: EmbeddedRedis) -> None:
    """The task does what the command does: the older of two goes, and is named in result and access log."""
    portal.archives.mkdir(mode=0o700)
    moments = (datetime(2020, 1, day, 2, tzinfo=UTC) for day in (1, 2))
    old, new = (put_archive(portal.archives, BackupType.DATABASE, moment) for moment in moments)
    with WorkerProcess(portal, redis, BACKUP_RETENTION_DAYS="1", BACKUP_RETENTION_COUNT="1") as worker:
        assert run_task(redis, PRUNE_REPOSITORY, dry_run=True).result["removed"] == [old]
        assert len(list(portal.archives.glob("*.tar.gz"))) == 2
        done = run_task(redis, PRUNE_REPOSITORY, actor="ada")
        assert (done.exit_code, done.result["success"], done.result["removed"]) == (0, True, [old])
        assert worker.events("prune_finished")[0]["removed"] == 1
    assert [path.name for path in portal.archives.glob("*.tar.gz")] == [f"{new}.tar.gz"]
    line = logged(portal)[-1]
    assert (line.action, line.who, line.outcome) == (Action.PRUNE, "ada", Outcome.DONE)


def test_a_drill_by_a_worker_restores_for_a_try(
    service: tuple[Portal, EmbeddedRedis, WorkerProcess], postgres: EmbeddedPostgres
) -> None:
    """The task restores into a database and a directory of its own, compares, leaves neither, and is written down."""
    portal, redis, worker = service
    done = run_task(redis, DRILL_RESTORE, actor="ada")
    assert (done.exit_code, done.result["success"]) == (0, True)
    assert done.result["seconds"] > 0
    assert worker.events("drill_finished")[0]["backup_id"] == done.result["backup_id"]
    (line,) = [line for line in logged(portal) if line.action is Action.DRILL]
    assert (line.subject, line.who, line.outcome) == (done.result["backup_id"], "ada", Outcome.DONE)
    with postgres.connect("postgres") as connection:
        assert not connection.execute("SELECT datname FROM pg_database WHERE datname LIKE '%_drill_%'").fetchall()
    assert [path.suffix for path in (portal.archives / ".drills").iterdir() if not path.name.startswith(".")] == [
        ".json"
    ]


def test_a_restore_does_not_wait_behind_verifications(portal: Portal, redis: EmbeddedRedis) -> None:
    """With more verifications than the maintenance queue can work on, and none that ends, a restore is done at once."""
    assert portal.job().backup_full().success
    upload = damage(portal)
    endless = portal.directory / "bin" / "pg_restore"
    endless.parent.mkdir()
    endless.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec "{portal.bin_dir}/pg_restore" "$@"\nexec sleep 600\n')
    endless.chmod(0o755)
    with WorkerProcess(portal, redis, BACKUP_PG_BIN_DIR=str(endless.parent)) as worker:
        verifications = [submit(redis, VERIFY_ARCHIVE, archive="latest", level="dump") for _ in range(3)]
        wait_until(lambda: sum(b"sleep" in line for line in worker.processes().values()) == 2)
        assert result_of(redis, restore(portal, redis, "restore-soon")).result["success"]
        assert not any(client_of(redis).look(task_id).is_ended for task_id in verifications)
    assert upload.read_text() != "changed"


@pytest.mark.parametrize("wrong", ["restores", "--processes=0"])
def test_a_worker_that_is_started_wrongly_says_how_to_start_it(portal: Portal, wrong: str) -> None:
    """A queue that there is not, and a number of processes that cannot be, end with exit code 2 and what there is."""
    ended = subprocess.run(
        [sys.executable, "-m", "worker", wrong],
        env=portal.environ(CELERY_BROKER_URL="redis://127.0.0.1:1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "there are backup, restore, maintenance, offsite" in ended.stderr or "at least 1" in ended.stderr
    assert "<" not in ended.stderr


def restore(portal: Portal, redis: EmbeddedRedis, task_id: str, **arguments: Any) -> str:
    """Ask for a restore as the command does."""
    given = {"archive": "latest", "moment": MOMENT, "scope": "media", **arguments}
    Authorizations(portal.archives).grant(RESTORE_ARCHIVE, task_id, given)
    return submit(redis, RESTORE_ARCHIVE, task_id, **given)


def damage(portal: Portal) -> Path:
    """Change an upload, so that a restore has something to do."""
    upload = next(path for path in sorted(portal.uploads.rglob("*.sarif")) if ".kekkai-restore" not in path.parts)
    upload.write_text("changed")
    return upload


class TestRestores:
    """What changes live data is done for the person who asked, and once."""

    def test_a_permit_is_for_one_restore(self, service: tuple[Portal, EmbeddedRedis, WorkerProcess]) -> None:
        """A restore with its permit is done; the permit is used up, and another task has none."""
        portal, redis, _ = service
        upload = damage(portal)
        done = result_of(redis, restore(portal, redis, "restore-1"))
        assert done.result["success"]
        assert upload.read_text() != "changed"
        damage(portal)
        given = {"archive": "latest", "moment": MOMENT, "scope": "media"}
        refused = result_of(redis, submit(redis, RESTORE_ARCHIVE, "restore-2", **given))
        assert "nobody who may read the backups has asked" in refused.result["error"]
        assert upload.read_text() == "changed"
        assert not list((portal.archives / ".authorizations").iterdir())

    def test_a_permit_is_for_the_arguments_that_were_asked_for(
        self, service: tuple[Portal, EmbeddedRedis, WorkerProcess]
    ) -> None:
        """A task that says something else than its permit is refused."""
        portal, redis, _ = service
        asked = {"archive": "latest", "moment": MOMENT, "scope": "media"}
        Authorizations(portal.archives).grant(RESTORE_ARCHIVE, "restore-3", asked)
        refused = result_of(redis, submit(redis, RESTORE_ARCHIVE, "restore-3", **{**asked, "scope": "full"}))
        assert "for other arguments" in refused.result["error"]

    def test_a_restore_that_was_done_is_not_done_again(
        self, service: tuple[Portal, EmbeddedRedis, WorkerProcess]
    ) -> None:
        """A second delivery after the result is lost finds the restore in the repository, and changes nothing."""
        from redis import Redis

        portal, redis, _ = service
        damage(portal)
        first = result_of(redis, restore(portal, redis, "restore-4"))
        upload = damage(portal)
        with Redis(unix_socket_path=str(redis.socket)) as connection:
            connection.flushdb()
        given = {"archive": "latest", "moment": MOMENT, "scope": "media"}
        again = result_of(redis, submit(redis, RESTORE_ARCHIVE, "restore-4", **given))
        assert again.result["restore_id"] == first.result["restore_id"]
        assert again.result["success"]
        assert upload.read_text() == "changed"

    def test_a_rollback_needs_a_permit_too(self, service: tuple[Portal, EmbeddedRedis, WorkerProcess]) -> None:
        """Taking back is a change of live data as well; with its permit it is done."""
        portal, redis, _ = service
        upload = damage(portal)
        restored = result_of(redis, restore(portal, redis, "restore-5", moment="2026-11-22T03:00:00+00:00"))
        given = {"restore_id": restored.result["restore_id"]}
        assert "nobody" in result_of(redis, submit(redis, RESTORE_ROLLBACK, "back-1", **given)).result["error"]
        Authorizations(portal.archives).grant(RESTORE_ROLLBACK, "back-2", given)
        assert result_of(redis, submit(redis, RESTORE_ROLLBACK, "back-2", **given)).result["success"]
        assert upload.read_text() == "changed"

    def test_a_rollback_that_was_done_is_not_refused_later(
        self, service: tuple[Portal, EmbeddedRedis, WorkerProcess]
    ) -> None:
        """A second delivery after the result is lost finds that it was rolled back, and says so."""
        from redis import Redis

        portal, redis, _ = service
        damage(portal)
        restored = result_of(redis, restore(portal, redis, "restore-6", moment="2026-11-22T04:00:00+00:00"))
        given = {"restore_id": restored.result["restore_id"]}
        Authorizations(portal.archives).grant(RESTORE_ROLLBACK, "back-3", given)
        assert result_of(redis, submit(redis, RESTORE_ROLLBACK, "back-3", **given)).result["success"]
        with Redis(unix_socket_path=str(redis.socket)) as connection:
            connection.flushdb()
        again = result_of(redis, submit(redis, RESTORE_ROLLBACK, "back-3", **given))
        assert again.result["components_restored"] == ["media"]

    def test_a_dry_run_needs_none(self, service: tuple[Portal, EmbeddedRedis, WorkerProcess]) -> None:
        """What changes nothing may be asked for by anybody; the plan comes back."""
        _, redis, _ = service
        planned = run_task(redis, RESTORE_ARCHIVE, archive="latest", moment=MOMENT, dry_run=True)
        assert planned.result["success"]
        assert any("Database" in line for line in planned.result["plan"])
