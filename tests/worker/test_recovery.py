"""What is recovered of dead processes' work: messages, remains, restores, and tasks that were killed."""

from __future__ import annotations

import fcntl
import io
import json
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import states
from celery.exceptions import TimeLimitExceeded
from celery.utils.dispatch import Signal
from redis import ConnectionError as AwayError
from redis import Redis

from portal.ops.errors import BusyError, RepositoryError
from portal.ops.repository.access_log import AccessEntry, AccessLog, Outcome
from portal.ops.repository.rejected import rejected_counts
from portal.ops.repository.repository import LOCK_NAME, Repository
from portal.ops.settings.load import load_settings
from tests.support.services import sent_tasks
from tests.support.workers import client_environ, wait_until
from worker import recovery as module
from worker.application import make_app
from worker.authorization import Authorizations
from worker.client import Client
from worker.errors import OperationFailedError
from worker.operations import BACKUP_FULL, PING, RESTORE_ARCHIVE, VERIFY_ARCHIVE, Queue
from worker.recovery import (
    _finish_restores,
    _run_apart,
    _see_to_killed,
    _task_of,
    _warn_of_strangers,
    begin_recovery,
    follow_kills,
    requeue,
    tidy,
    watch,
)
from worker.signing import sign_result

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from demo.redis import EmbeddedRedis


class Site:
    """A repository and a broker, as a worker that is gone has left them."""

    def __init__(self, redis: EmbeddedRedis, repository: Path, connection: Redis) -> None:
        self.redis = redis
        self.connection = connection
        self.repository = repository
        environ = {**client_environ(redis), "BACKUP_LOCAL_PATH": str(repository), "BACKUP_LOCK_TIMEOUT": "1"}
        self.settings = load_settings(environ, lambda _: "")
        self.app = make_app(self.settings)
        self.client = Client(self.settings)

    def take(self, task_id: str) -> None:
        """Have a message taken from the maintenance queue, and not acknowledged."""
        self.client.submit(VERIFY_ARCHIVE, {"archive": "latest"}, task_id)
        (text,) = self.connection.lrange("maintenance", 0, 0)
        self.connection.delete("maintenance")
        message = json.loads(text)
        self.connection.hset("unacked", task_id, json.dumps([message, "", "maintenance"]))

    def begin(self, task_id: str, starts: int = 1) -> Path:
        """Have it begun by a process that was killed."""
        file = self.repository / ".deliveries" / task_id
        file.parent.mkdir(exist_ok=True)
        file.write_text("." * starts)
        return file

    def requeue(self, *, at_start: bool, queue: Queue = Queue.MAINTENANCE) -> set[str]:
        """Look for messages that nobody works on; the tasks that are back on their queues then."""
        count = requeue(self.app, self.settings, queue, at_start=at_start)
        back = {task.task_id for task in sent_tasks(self.redis)}
        assert count == len(back)
        assert not any(self.connection.hexists("unacked", task_id) for task_id in back)
        return back

    def logged(self) -> list[AccessEntry]:
        """The access log."""
        return list(AccessLog(Repository(self.repository)).entries())


@pytest.fixture
def site(redis: EmbeddedRedis, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Site]:
    caplog.set_level("INFO")
    (tmp_path / "archives").mkdir()
    with Redis(unix_socket_path=str(redis.socket)) as connection:
        yield Site(redis, tmp_path / "archives", connection)


class TestMessages:
    """Messages that were taken and not acknowledged."""

    def test_at_the_start_everything_is_returned_that_nobody_works_on(
        self, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whether or not it was begun; what a process works on is not, nor what is another queue's."""
        for task_id in ("reserved", "killed", "working"):
            site.take(task_id)
        site.begin("killed")
        with site.begin("working").open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert site.requeue(at_start=True, queue=Queue.BACKUP) == set()
            assert site.requeue(at_start=True) == {"reserved", "killed"}
        assert site.connection.hkeys("unacked") == [b"working"]
        assert caplog.text.count("event='message_requeued'") == 2
        assert "task_id='killed'" in caplog.text

    @pytest.mark.parametrize(
        ("state", "is_returned"),
        [(None, False), ("PROGRESS", False), ("STARTED", False), ("SUCCESS", True), ("FAILURE", True)],
    )
    def test_later_what_was_killed_or_has_ended_is(self, site: Site, state: str | None, is_returned: bool) -> None:
        """A message that was only reserved is some process's, unless there is a signed result already."""
        for task_id in ("reserved", "killed", "working"):
            site.take(task_id)
            if state in ("PROGRESS", "STARTED"):
                site.app.backend.store_result(task_id, {}, state)
            elif state:
                success = state == "SUCCESS"
                result = sign_result(site.app.task_keys.current(), task_id, {"success": success}, success=success)
                site.app.backend.store_result(task_id, result if success else OperationFailedError(result), state)
        site.begin("killed")
        with site.begin("working").open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert site.requeue(at_start=False) == {"killed", *(["reserved"] if is_returned else [])}

    def test_a_message_that_makes_no_sense_is_dropped(self, site: Site) -> None:
        """Others are looked at all the same."""
        texts = ["", "7", "[]", "[1, 2]", '[{"headers": {}}, "", "maintenance"]', '[{}, "", "maintenance"]']
        texts += ["[null, 1, 2]", "[" * 100_000, '[{"headers": {"id": "x"}, "properties": {}}, "", "maintenance"]']
        for number, text in enumerate(texts):
            site.connection.hset("unacked", f"odd{number}", text)
            site.connection.zadd("unacked_index", {f"odd{number}": 0})
        site.take("reserved")
        assert site.requeue(at_start=True) == {"reserved"}
        assert site.connection.hlen("unacked") == 0
        assert site.connection.zcard("unacked_index") == 0
        assert rejected_counts(site.repository) == {"malformed": len(texts)}

    def test_what_is_of_another_queue_is_left_alone(self, site: Site) -> None:
        """Another application may use the same database."""
        site.take("stranger")
        message, *_ = json.loads(site.connection.hget("unacked", "stranger") or b"")
        del message["headers"]["id"]
        site.connection.hset("unacked", "stranger", json.dumps([message, "", "celery"]))
        assert site.requeue(at_start=True) == set()
        assert site.connection.hkeys("unacked") == [b"stranger"]

    def test_a_message_is_known_by_its_id_and_its_queue(self) -> None:
        """Both are text, whatever they were."""
        rest = '"properties": {"delivery_info": {}}}'
        assert (_task_of(f'[{{"headers": {{"id": 7}}, {rest}, "", "8"]') or ())[:2] == ("7", "8")
        text = f'[{{"headers": {{"id": "one"}}, {rest}, "exchange", "backup"]'.encode()
        assert (_task_of(text) or ())[:2] == ("one", "backup")
        assert _task_of("{}") is None


class Looks:
    """Stands for `requeue`: notes how it is called, and fails as a test wants it."""

    def __init__(self, *faults: Exception | None) -> None:
        self.at_start: list[bool] = []
        self.faults = list(faults)

    def __call__(self, app: Any, settings: Any, queue: Queue, *, at_start: bool) -> int:
        """Note it."""
        self.at_start.append(at_start)
        if self.faults and (fault := self.faults.pop(0)):
            raise fault
        return 0


class TestWatching:
    """The thread that looks again and again."""

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Look often."""
        monkeypatch.setattr(module, "_EVERY_SECONDS", 0.01)
        monkeypatch.setattr(module, "_AGAIN_SECONDS", 0.5)

    @pytest.mark.parametrize("fault", [AwayError("away"), OSError("away"), KeyError("odd")])
    def test_a_look_that_failed_is_the_first_still(
        self, site: Site, fault: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """That the broker is away is said by others; anything else is said here, and ends nothing."""
        looks = Looks(fault, None, fault)
        monkeypatch.setattr(module, "requeue", looks)
        end = watch(site.app, site.settings, Queue.BACKUP)
        wait_until(lambda: len(looks.at_start) >= 5)
        end()
        wait_until(lambda: not [one for one in threading.enumerate() if one.name == "recovery"])
        assert looks.at_start[:5] == [True, True, False, False, False]
        assert caplog.text.count("event='recovery_failed'") == (2 if isinstance(fault, KeyError) else 0)

    @pytest.mark.parametrize("queue", [Queue.RESTORE, Queue.BACKUP])
    def test_interrupted_restores_are_finished_between_looks(
        self, site: Site, queue: Queue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By the worker of restores, not before its first look, and after one that there was not again for a while."""
        looks, finished = Looks(AwayError("away")), list[tuple[int, float]]()
        monkeypatch.setattr(module, "requeue", looks)

        def finish(settings: Any) -> bool:
            assert settings is site.settings
            finished.append((len(looks.at_start), time.monotonic()))
            return len(finished) == 3

        monkeypatch.setattr(module, "_finish_restores", finish)
        end = watch(site.app, site.settings, queue)
        wait_until(lambda: len(finished) >= 4 if queue is Queue.RESTORE else len(looks.at_start) >= 5)
        end()
        if queue is Queue.RESTORE:
            assert finished[0][0] == 2
            assert finished[3][1] - finished[2][1] >= 0.5
            assert finished[2][0] - finished[1][0] == 1
        else:
            assert finished == []

    @pytest.mark.parametrize(
        ("settled", "locked", "expected"),
        [([], False, False), ([True], False, False), ([True, False], False, True), ([False], True, False)],
    )
    def test_a_restore_is_finished_if_nobody_works_on_it(
        self, site: Site, settled: list[bool], locked: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In a process of its own."""
        records = [SimpleNamespace(state=SimpleNamespace(is_settled=one)) for one in settled]
        ran: list[Queue] = []
        monkeypatch.setattr(
            module, "RestoreRecords", lambda repository: SimpleNamespace(all=lambda: records, are_locked=lambda: locked)
        )
        monkeypatch.setattr(module, "_run_apart", ran.append)
        assert _finish_restores(site.settings) is expected
        assert ran == ([Queue.RESTORE] if expected else [])

    @pytest.mark.parametrize("error", [RepositoryError("away", hint=""), OSError("away")])
    def test_records_that_cannot_be_read_are_the_next_restores_trouble(
        self, site: Site, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It reports them."""

        def fail() -> Any:
            raise error

        monkeypatch.setattr(module, "RestoreRecords", lambda repository: SimpleNamespace(all=fail))
        assert _finish_restores(site.settings) is False


class TestTidying:
    """What a worker does before it takes work."""

    @pytest.fixture
    def recovered(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Which jobs have recovered."""
        found: list[str] = []
        for name in ("RestoreJob", "DrillJob"):
            job = SimpleNamespace(recover=lambda name=name: found.append(name))
            monkeypatch.setattr(module, name, lambda config, job=job: job)
        return found

    def test_remains_of_backups_go_when_backups_are_to_be_made(
        self, site: Site, recovered: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Each is named; in a new repository there are none."""
        remains = site.repository / ".full_20261122_020000_abcdef.tar.gz.partial"
        remains.touch()
        for queue in (Queue.RESTORE, Queue.MAINTENANCE, Queue.OFFSITE):
            tidy(site.settings, queue)
        assert remains.exists()
        tidy(site.settings, Queue.BACKUP)
        assert not remains.exists()
        assert f"event='unfinished_work_removed' name='{remains.name}'" in caplog.text
        assert recovered == ["RestoreJob", "DrillJob", "DrillJob"]

    def test_files_of_old_deliveries_go_with_maintenance(
        self, site: Site, recovered: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a week, as their results do."""
        asked: list[Any] = []
        monkeypatch.setattr(module, "forget_old", lambda *given: asked.append(given))
        tidy(site.settings, Queue.BACKUP)
        tidy(site.settings, Queue.RESTORE)
        assert asked == []
        tidy(site.settings, Queue.MAINTENANCE)
        assert asked == [(site.repository, 7 * 24 * 3600)]

    def test_trouble_keeps_no_worker_from_starting(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        """A lock that is held, or a disk that is away, is said."""
        site.repository.chmod(0o700)
        with (site.repository / LOCK_NAME).open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            tidy(site.settings, Queue.BACKUP)
        assert "event='recovery_failed'" in caplog.text
        assert "is locked by" in caplog.text

    @pytest.mark.parametrize("error", [BusyError("locked", hint=""), OSError("no disk")])
    def test_errors_are_said(
        self, site: Site, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Of the operating system, too."""

        def fail() -> None:
            raise error

        monkeypatch.setattr(module, "RestoreJob", lambda config: SimpleNamespace(recover=fail))
        tidy(site.settings, Queue.RESTORE)
        assert f"event='recovery_failed' error='{error}'" in caplog.text


def test_a_worker_recovers_its_own_queues(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It tidies at once, looks for messages when it is ready, and ends that when it is asked to; each is said once."""
    said: list[Any] = []
    ready, leaving = Signal(), Signal()
    monkeypatch.setattr(module, "worker_ready", ready)
    monkeypatch.setattr(module, "worker_shutting_down", leaving)
    monkeypatch.setattr(module, "tidy", lambda settings, queue: said.append(("tidy", queue)))
    monkeypatch.setattr(module, "follow_kills", lambda queues: said.append(("kills", *queues)))
    monkeypatch.setattr(module, "_warn_of_strangers", lambda app: said.append("strangers"))

    def watching(app: Any, settings: Any, queue: Queue) -> Any:
        said.append(("watch", queue))
        return lambda: said.append(("end", queue))

    monkeypatch.setattr(module, "watch", watching)
    site.app.amqp.queues.select(["restore", "backup"])
    begin_recovery(site.app)
    both = (Queue.BACKUP, Queue.RESTORE)
    assert said == [("tidy", Queue.BACKUP), ("tidy", Queue.RESTORE), ("kills", *both)]
    said.clear()
    ready.send(sender=None)
    assert said == [("watch", Queue.BACKUP), ("watch", Queue.RESTORE), "strangers"]
    assert caplog.text.count("event='worker_ready'") == 2
    said.clear()
    for _ in range(2):
        leaving.send(sender=None)
    assert said == [("end", Queue.BACKUP), ("end", Queue.RESTORE)]
    assert caplog.text.count("event='worker_stopping'") == 1
    assert "queues=['backup', 'restore']" in caplog.text


def test_another_application_in_the_same_database_is_named(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Not what our own workers keep there."""
    own = [
        "backup",
        "restore",
        "maintenance",
        "offsite",
        "celeryev",
        "celery.pidbox",
        "reply.celery.pidbox",
        "x.pidbox",
    ]
    for name in own:
        site.connection.sadd(f"_kombu.binding.{name}", "x")
    _warn_of_strangers(site.app)
    assert "broker_shared" not in caplog.text
    site.connection.sadd("_kombu.binding.celery", "x")
    site.connection.sadd(b"_kombu.binding.a\x1b\xff", "x")
    _warn_of_strangers(site.app)
    assert "event='broker_shared'" in caplog.text
    assert "'celery']" in caplog.text and "\x1b" not in caplog.text


class Sender:
    """A task, as far as a signal tells of it."""

    def __init__(self, name: str) -> None:
        self.name = name


class TestKilledTasks:
    """Tasks that the hard time limit has killed."""

    def test_a_kill_is_followed_in_a_process_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If the task is of a queue of this worker, and was killed; a failure that it told of itself is none."""
        ran: list[Any] = []
        failed = Signal()
        monkeypatch.setattr(module, "task_failure", failed)
        monkeypatch.setattr(module, "_run_apart", lambda *given: ran.append(given))
        follow_kills([Queue.BACKUP, Queue.RESTORE])
        for name, error in (
            (BACKUP_FULL.name, TimeLimitExceeded(7)),
            (BACKUP_FULL.name, ValueError("odd")),
            (VERIFY_ARCHIVE.name, TimeLimitExceeded(7)),
        ):
            failed.send(sender=Sender(name), task_id="one", exception=error, kwargs={"a": 1})
        wait_until(lambda: ran)
        wait_until(lambda: not [one for one in threading.enumerate() if one.name == "killed"])
        assert ran == [(Queue.BACKUP, {"name": "backup.full", "task_id": "one", "given": {"a": 1}})]

    def test_that_process_is_given_the_task_and_outlives_a_long_wait(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is said when it takes too long, and it goes on."""
        began: list[Any] = []

        class Process:
            pid = 77

            def __init__(self, command: list[str], **options: Any) -> None:
                began.append((command, options))

            def communicate(self, text: bytes, timeout: float) -> None:
                began.append((text, timeout))
                if text != b"null\n":
                    raise subprocess.TimeoutExpired("python", timeout)

        monkeypatch.setattr("worker.recovery.subprocess.Popen", Process)
        _run_apart(Queue.RESTORE)
        assert "recovery_not_ended" not in caplog.text
        _run_apart(Queue.BACKUP, {"name": "backup.full"})
        for queue, given in ((began[0], began[1]), (began[2], began[3])):
            assert queue[0][:4] == [sys.executable, "-I", "-m", "worker.recovery"]
            assert queue[1] == {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
            assert given[1] == 3600
        assert [began[0][0][4], began[1][0], began[2][0][4]] == ["restore", b"null\n", "backup"]
        assert json.loads(began[3][0]) == {"name": "backup.full"} and began[3][0].endswith(b"\n")
        assert "event='recovery_not_ended' pid=77" in caplog.text

    def test_a_killed_task_is_told_and_cannot_be_done_by_its_permit(self, site: Site) -> None:
        """Whoever waits gets a signed failure; the access log has it once."""
        site.begin("one")
        Authorizations(site.repository).grant(RESTORE_ARCHIVE, "one", {})
        _see_to_killed(site.settings, RESTORE_ARCHIVE, "one", {"archive": "latest", "actor": "ann"})
        state = site.client.look("one")
        assert (state.is_ended, state.is_signed, state.exit_code) == (True, True, 1)
        assert state.result["error"].startswith("restore.archive took longer than a task may, and was killed")
        assert not list((site.repository / ".authorizations").iterdir())
        assert not list((site.repository / ".deliveries").iterdir())
        (line,) = site.logged()
        assert (line.subject, line.who, line.outcome) == ("latest", "ann", Outcome.FAILED)

    def test_a_task_that_ended_by_itself_is_left_alone(self, site: Site) -> None:
        """It has removed its file; its permit may be another task's by now."""
        Authorizations(site.repository).grant(RESTORE_ARCHIVE, "one", {})
        _see_to_killed(site.settings, RESTORE_ARCHIVE, "one", {"archive": "latest"})
        assert site.client.look("one").is_lost
        assert site.logged() == []
        assert Authorizations(site.repository).withdraw("one")

    def test_a_result_that_is_there_stays(self, site: Site) -> None:
        """Only what nobody signed is replaced: a report of progress, Celery's own end, and what others wrote."""
        site.begin("one")
        result = sign_result(site.app.task_keys.current(), "one", {"success": False, "error": "no"}, success=False)
        site.app.backend.store_result("one", OperationFailedError(result), states.FAILURE)
        _see_to_killed(site.settings, BACKUP_FULL, "one", {})
        assert site.client.look("one").result["error"] == "no"
        assert len(site.logged()) == 1
        site.begin("two")
        site.app.backend.store_result("two", {"phase": "media", "done": 1, "total": 2}, "PROGRESS")
        _see_to_killed(site.settings, BACKUP_FULL, "two", {})
        assert site.client.look("two").is_signed
        site.begin("three")
        site.app.backend.store_result("three", TimeLimitExceeded(7), states.FAILURE)
        _see_to_killed(site.settings, BACKUP_FULL, "three", {})
        assert site.client.look("three").is_signed

    @pytest.mark.parametrize("error", [None, BusyError("locked", hint=""), OSError("no disk"), AwayError("away")])
    def test_the_process_sees_to_the_task_and_tidies(
        self, site: Site, error: Exception | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whatever comes of the first; without a task it tidies alone."""
        seen: list[Any] = []

        def see(settings: Any, operation: Any, task_id: str, given: Any) -> None:
            seen.append((operation, task_id, given))
            if error:
                raise error

        monkeypatch.setattr(module, "current_settings", lambda: site.settings)
        monkeypatch.setattr(module, "configure_logging", lambda *_: None)
        monkeypatch.setattr(module, "_see_to_killed", see)
        monkeypatch.setattr(module, "tidy", lambda settings, queue: seen.append(queue))
        monkeypatch.setattr(sys, "argv", ["recovery", "restore"])
        killed = {"name": PING.name, "task_id": "one", "given": {"a": 1}}
        for text in (json.dumps(killed), "null"):
            monkeypatch.setattr(sys, "stdin", io.StringIO(text + "\n"))
            assert module.main() == 0
        assert seen == [(PING, "one", {"a": 1}), Queue.RESTORE, Queue.RESTORE]
        assert ("event='recovery_failed'" in caplog.text) is (error is not None)
