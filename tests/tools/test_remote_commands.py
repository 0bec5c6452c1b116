"""The commands of an operator where there is a broker: the same results, and all that keeps work from being done."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path
from random import Random
from typing import IO, TYPE_CHECKING, Any, Final

import pytest
from redis import Redis

from demo.compare import tree_contents
from demo.redis import EmbeddedRedis
from portal.ops.verify.verify import Verifier
from tests.support.commands import ROOT, done
from tests.support.crashes import endless_dump
from tests.support.portal import Portal, portal_with_broker
from tests.support.workers import WorkerProcess, client_of, queued, result_of, unacknowledged, wait_until
from worker.operations import Queue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.postgres import EmbeddedPostgres
    from worker.client import Client

TOOLS: Final = ROOT / "tools"
TIMEOUT: Final = 120


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres
) -> Iterator[tuple[Portal, EmbeddedRedis, WorkerProcess]]:
    """A portal with all queues of a worker."""
    place = tmp_path_factory.mktemp("service")
    with portal_with_broker(place, postgres) as (found, broker), WorkerProcess(found, broker) as worker:
        yield found, broker, worker


@pytest.fixture
def redis() -> Iterator[EmbeddedRedis]:
    """A broker that nobody listens to."""
    with EmbeddedRedis() as server:
        yield server


def run(
    portal: Portal, broker: str, command: str, *arguments: str, code: int = 0, **environ: str
) -> tuple[dict[str, Any], str]:
    """Run a command without a terminal; its result, and what it told people."""
    variables = portal.environ(CELERY_BROKER_URL=broker, **environ)
    return done(*arguments, environ=variables, script=TOOLS / command, code=code)


def an_upload(portal: Portal) -> Path:
    """One of the portal's files."""
    return min(path for path in portal.uploads.rglob("*.sarif") if ".kekkai-restore" not in path.parts)


class TestTheSameAsWithoutAWorker:
    """Who does the work makes no difference to the result."""

    def test_a_backup(self, service: tuple[Portal, EmbeddedRedis, WorkerProcess]) -> None:
        """A backup by a worker prints what one by the command itself prints."""
        portal, redis, worker = service
        remote, said = run(portal, redis.url, "backup.sh", "full")
        local, _ = run(portal, redis.url, "backup.sh", "full", "--local")
        assert remote.keys() == local.keys()
        assert f"backup {remote['backup_id']} is complete" in said
        done = {event["backup_id"] for event in worker.events("archive_published")}
        assert remote["backup_id"] in done
        assert local["backup_id"] not in done

    def test_a_verification(self, service: tuple[Portal, EmbeddedRedis, WorkerProcess]) -> None:
        """Damage is found, named, and the exit code, by a worker too."""
        portal, redis, _ = service
        whole, _ = run(portal, redis.url, "backup.sh", "media")
        assert run(portal, redis.url, "backup.sh", "verify", "latest")[0]["success"]
        path = Path(whole["path"])
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        remote, said = run(portal, redis.url, "backup.sh", "verify", whole["backup_id"], code=4)
        local, _ = run(portal, redis.url, "backup.sh", "verify", whole["backup_id"], "--local", code=4)
        assert remote["damages"] == local["damages"] != []
        assert "is not intact" in said
        path.unlink()

    def test_a_restore_and_its_rollback(self, service: tuple[Portal, EmbeddedRedis, WorkerProcess]) -> None:
        """A restore by a worker is planned, done and rolled back as any other."""
        portal, redis, _ = service
        run(portal, redis.url, "backup.sh", "full")
        before = tree_contents(portal.uploads)
        upload = an_upload(portal)
        upload.write_text("changed")
        planned, said = run(portal, redis.url, "restore.sh", "latest", "--media-only", "--dry-run")
        assert planned["dry_run"]
        assert "Dry run: nothing was changed." in said
        assert upload.read_text() == "changed"
        restored, said = run(portal, redis.url, "restore.sh", "latest", "--media-only", "--force")
        assert restored["rollback"] == f"./tools/restore.sh --rollback {restored['restore_id']}"
        assert "restored: uploads from full_" in said
        assert {path: one for path, one in tree_contents(portal.uploads).items() if "kekkai" not in path} == before
        back, said = run(portal, redis.url, "restore.sh", "--rollback", "--force")
        assert back["success"]
        assert upload.read_text() == "changed"

    def test_a_restore_that_leaves_a_doubt(self, service: tuple[Portal, EmbeddedRedis, WorkerProcess]) -> None:
        """What is to be said of the audit log's hash chain, and what a rollback has kept, is told here too."""
        portal, redis, _ = service
        run(portal, redis.url, "backup.sh", "full")
        log = portal.audit / "audit.jsonl"
        log.write_text("{}\n" + log.read_text())
        restored, said = run(portal, redis.url, "restore.sh", "latest", "--audit-only", "--force")
        assert "audit.jsonl: its hash chain is unbroken over 20 entries; the live log does not continue it." in said
        assert any("does not continue it" in warning for warning in restored["warnings"])
        _, said = run(portal, redis.url, "restore.sh", "--rollback", "--force")
        assert ".restored-restore_" in said
        assert ": as before; 1 entry was moved back." in said

    @pytest.mark.parametrize(("answer", "code"), [("yes", 0), ("no", 3)])
    def test_the_answer_decides(
        self, service: tuple[Portal, EmbeddedRedis, WorkerProcess], answer: str, code: int
    ) -> None:
        """On a terminal the worker's plan is shown, and only the word yes goes on."""
        portal, redis, _ = service
        run(portal, redis.url, "backup.sh", "media")
        upload = an_upload(portal)
        upload.write_text("not what was backed up")
        parent, child = pty.openpty()
        process = subprocess.Popen(
            [TOOLS / "restore.sh", "latest", "--media-only"],
            env=portal.environ(CELERY_BROKER_URL=redis.url, TERM="xterm"),
            stdin=child,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.write(parent, f"{answer}\n".encode())
        _, said = process.communicate(timeout=TIMEOUT)
        os.close(parent)
        os.close(child)
        assert process.returncode == code, said.decode()
        assert b"Restore uploads from media_" in said
        assert (upload.read_text() == "not what was backed up") == (answer == "no")

    def test_what_the_worker_may_not_read(self, service: tuple[Portal, EmbeddedRedis, WorkerProcess]) -> None:
        """An archive elsewhere is refused by the worker, with the ways out; so is a place to restore files to."""
        portal, redis, _ = service
        archive = run(portal, redis.url, "backup.sh", "media")[0]["path"]
        elsewhere = portal.directory / "elsewhere.tar.gz"
        elsewhere.write_bytes(Path(archive).read_bytes())
        refused, _ = run(portal, redis.url, "backup.sh", "verify", str(elsewhere), code=2)
        assert "BACKUP_ALLOWED_PATHS" in refused["error"]
        assert run(portal, redis.url, "backup.sh", "verify", str(elsewhere), "--local")[0]["success"]
        given = ("latest", "--media-only", "--force", "--media-dir", str(portal.directory / "elsewhere"))
        refused, _ = run(portal, redis.url, "restore.sh", *given, code=2)
        assert "BACKUP_ALLOWED_PATHS" in refused["error"]
        assert "Copy" not in refused["error"]
        assert not (portal.directory / "elsewhere").exists()


class TestHandingOver:
    """Nobody has to wait."""

    def test_a_task_is_waited_for_later(self, service: tuple[Portal, EmbeddedRedis, WorkerProcess]) -> None:
        """--no-wait gives the task's id, --wait its result."""
        portal, redis, _ = service
        handed, said = run(portal, redis.url, "backup.sh", "media", "--no-wait")
        assert f"./tools/backup.sh --wait {handed['task_id']}" in said
        assert run(portal, redis.url, "backup.sh", "--wait", handed["task_id"])[0]["type"] == "media"

    def test_a_restore_is_waited_for_later(self, service: tuple[Portal, EmbeddedRedis, WorkerProcess]) -> None:
        """A restore that was handed over is done, and reported when somebody asks."""
        portal, redis, _ = service
        run(portal, redis.url, "backup.sh", "media")
        handed, _ = run(portal, redis.url, "restore.sh", "latest", "--media-only", "--force", "--no-wait")
        result, said = run(portal, redis.url, "restore.sh", "--wait", handed["task_id"])
        assert result["components_restored"] == ["media"]
        assert "restored: uploads" in said

    def test_a_task_that_nobody_knows(self, service: tuple[Portal, EmbeddedRedis, WorkerProcess]) -> None:
        """To wait for what was never handed over is a mistake, not a wait for ever."""
        portal, redis, _ = service
        unknown, _ = run(portal, redis.url, "backup.sh", "--wait", "backup.full-1", code=2)
        assert "the broker knows no task backup.full-1" in unknown["error"]

    def test_each_command_waits_for_its_own_tasks(self, service: tuple[Portal, EmbeddedRedis, WorkerProcess]) -> None:
        """A backup's task is told of by backup.sh, and refused by restore.sh, which would not know what to say."""
        portal, redis, _ = service
        handed, _ = run(portal, redis.url, "backup.sh", "media", "--no-wait")
        run(portal, redis.url, "backup.sh", "--wait", handed["task_id"])
        refused, _ = run(portal, redis.url, "restore.sh", "--wait", handed["task_id"], code=2)
        assert "is not a restore" in refused["error"]

    def test_without_a_broker_there_is_nothing_to_wait_for(self, portal: Portal) -> None:
        """Options about a worker are refused where none is asked, and no backup is made instead."""
        for option in (["--no-wait"], ["--wait", "backup.full-1"], ["--timeout", "5"]):
            assert "--local" in run(portal, "", "backup.sh", "full", *option, code=2)[0]["error"]
        assert portal.left() == set()


class TestNobodyDoesIt:
    """A broker without workers, workers without a broker, and work without an end."""

    def test_no_worker_listens(self, portal: Portal, redis: EmbeddedRedis) -> None:
        """It is said after a few seconds, with exit code 6; the task stays, and is done once there is a worker."""
        started = time.monotonic()
        unattended, _ = run(portal, redis.url, "backup.sh", "database", code=6)
        assert time.monotonic() - started < 60
        assert "no worker listens for backup tasks" in unattended["error"]
        assert "--local" in unattended["error"]
        task_id = unattended["error"].partition("--wait ")[2].partition("'")[0]
        with WorkerProcess(portal, redis, "backup"):
            assert result_of(redis, task_id).result["success"]

    def test_a_restore_that_nobody_does_is_not_done_later(self, portal: Portal, redis: EmbeddedRedis) -> None:
        """A restore is withdrawn when whoever asked for it has gone: it must not happen when nobody expects it."""
        assert portal.job().backup_media().success
        upload = an_upload(portal)
        upload.write_text("changed")
        unattended, _ = run(portal, redis.url, "restore.sh", "latest", "--media-only", "--force", code=6)
        assert "It was withdrawn." in unattended["error"]
        with WorkerProcess(portal, redis, "restore") as worker:
            wait_until(lambda: worker.events("task_ended"))
            wait_until(lambda: queued(redis, Queue.RESTORE) + unacknowledged(redis) == 0)
        assert upload.read_text() == "changed"

    def test_a_restore_whose_terminal_is_closed_is_not_done_later(self, portal: Portal, redis: EmbeddedRedis) -> None:
        """Whoever asked has gone before a worker had begun: it is withdrawn."""
        assert portal.job().backup_media().success
        process = subprocess.Popen(
            [TOOLS / "restore.sh", "latest", "--media-only", "--force"],
            env=portal.environ(CELERY_BROKER_URL=redis.url),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: queued(redis, Queue.RESTORE) == 1)
        with Redis(unix_socket_path=str(redis.socket)) as broker:  # it asks for the result again and again, so it waits
            wait_until(lambda: any(client["cmd"] in ("getrange", "exists") for client in broker.client_list()))
        process.send_signal(signal.SIGHUP)
        output, _ = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 128 + signal.SIGHUP
        assert "was withdrawn" in json.loads(output)["error"]
        assert not list((portal.archives / ".authorizations").iterdir())

    def test_the_broker_is_away(self, portal: Portal) -> None:
        """It is said at once, with exit code 6 and the way on."""
        refused, _ = run(portal, _nowhere(portal), "backup.sh", "database", code=6)
        assert "the broker does not answer" in refused["error"]
        assert "--local" in refused["error"]

    def test_a_command_that_does_it_itself_needs_no_broker(self, portal: Portal) -> None:
        """With --local a backup, a verification and a restore are done while the broker is away."""
        upload = an_upload(portal)
        before = upload.read_text()
        assert run(portal, _nowhere(portal), "backup.sh", "media", "--local")[0]["success"]
        upload.write_text("changed")
        assert run(portal, _nowhere(portal), "backup.sh", "verify", "latest", "--local")[0]["success"]
        restored, _ = run(portal, _nowhere(portal), "restore.sh", "latest", "--media-only", "--force", "--local")
        assert restored["success"]
        assert upload.read_text() == before

    @pytest.mark.parametrize("wrong", ["", ":guessed@"], ids=["without", "another"])
    @pytest.mark.parametrize("has_results_elsewhere", [False, True], ids=["one-redis", "two-redis"])
    def test_the_password_is_wrong(
        self, portal: Portal, redis: EmbeddedRedis, wrong: str, has_results_elsewhere: bool
    ) -> None:
        """It is said that the broker lets nobody in, and where to look, with exit code 6; no password shows."""
        with EmbeddedRedis(password="a secret: of @ll") as closed:
            assert client_of(closed).look("nothing").is_lost
            address = f"redis+socket://{wrong}{closed.socket}?virtual_host=0"
            own = {"CELERY_RESULT_BACKEND": redis.url} if has_results_elsewhere else {}
            refused, said = run(portal, address, "backup.sh", "database", code=6, **own)
        assert "the broker refuses the user or the password" in refused["error"]
        assert "CELERY_BROKER_URL" in refused["error"]
        assert "guessed" not in said + str(refused)

    def test_the_user_may_not_do_it(self, portal: Portal, redis: EmbeddedRedis) -> None:
        """A user whom Redis does not let write is told so, and not that the broker is away."""
        with Redis(unix_socket_path=str(redis.socket)) as connection:
            connection.acl_setuser("default", enabled=True, nopass=True, categories=["+@all"], commands=["-set"])
        refused, _ = run(portal, redis.url, "backup.sh", "database", code=6)
        assert "the broker refuses the user or the password (" in refused["error"]
        assert "set" in refused["error"]

    def test_it_takes_too_long_for_somebody(self, portal: Portal, redis: EmbeddedRedis) -> None:
        """--timeout ends the waiting, not the work."""
        with WorkerProcess(portal, redis, "backup", BACKUP_PG_BIN_DIR=str(endless_dump(portal))) as worker:
            handed, _ = run(portal, redis.url, "backup.sh", "full", "--no-wait")
            wait_until(lambda: any(b"sleep" in line for line in worker.processes().values()))
            late, _ = run(portal, redis.url, "backup.sh", "--wait", handed["task_id"], "--timeout", "1", code=6)
            assert "it continues" in late["error"]
            assert any(b"sleep" in line for line in worker.processes().values())


def _nowhere(portal: Portal) -> str:
    """A broker that is away."""
    return f"redis+socket://{portal.directory}/nowhere.sock?virtual_host=0"


def read_until(stream: IO[str], text: str) -> str:
    """What a process says up to a text; an error where it does not say it in time."""
    found = b""
    deadline = time.monotonic() + TIMEOUT
    while text.encode() not in found:
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, found
        block = os.read(stream.fileno(), 4096)
        assert block, found
        found += block
    return found.decode()


class TestImpatience:
    """Ctrl-C at a command that waits."""

    @pytest.mark.parametrize(("answer", "goes_on"), [("", True), ("no", False)])
    def test_somebody_is_asked(self, portal: Portal, redis: EmbeddedRedis, answer: str, goes_on: bool) -> None:
        """On a terminal Ctrl-C asks whether to leave the task running; otherwise it is stopped, and nothing is left."""
        with WorkerProcess(portal, redis, "backup", BACKUP_PG_BIN_DIR=str(endless_dump(portal))) as worker:
            parent, child = pty.openpty()
            process = subprocess.Popen(
                [TOOLS / "backup.sh", "full"],
                env=portal.environ(CELERY_BROKER_URL=redis.url, TERM="xterm"),
                stdin=child,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            wait_until(lambda: any(b"sleep" in line for line in worker.processes().values()))
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            asked = read_until(process.stderr, "to leave it: ")
            os.write(parent, f"{answer}\n".encode())
            output, said = process.communicate(timeout=TIMEOUT)
            said = asked + said
            os.close(parent)
            os.close(child)
            assert process.returncode == 128 + signal.SIGINT
            assert "Leave the task running?" in said
            assert ("--wait backup.full-" in output) == goes_on
            if goes_on:
                assert any(b"sleep" in line for line in worker.processes().values())
            else:
                wait_until(lambda: not any(b"sleep" in line for line in worker.processes().values()))
                wait_until(lambda: not [name for name in portal.left() if name.endswith(".partial")])


def progress_of(client: Client, task_id: str) -> list[dict[str, Any]]:
    """What is seen of a task's progress until it has ended."""
    seen: list[dict[str, Any]] = []

    def is_ended() -> bool:
        state = client.look(task_id)
        seen.extend([dict(state.progress)] if state.progress else [])
        return state.is_ended

    wait_until(is_ended)
    return seen


MORE_FOR_A_FAST_MACHINE = 4
"""So often there is more to do, until it takes long enough to be seen on the way."""


def larger(portal: Portal, number: int) -> None:
    """Add an upload that takes a while."""
    (portal.uploads / f"large-{number}").write_bytes(Random(number).randbytes(1 << 20) * 400)


def is_counted(seen: list[dict[str, Any]]) -> bool:
    """Whether bytes of the uploads were told."""
    return any(state["phase"] == "media" and 0 < state["done"] <= state["total"] for state in seen)


def test_progress_is_shown(portal: Portal, redis: EmbeddedRedis) -> None:
    """While a worker is at it, phase and bytes are the state of the task."""
    client = client_of(redis)
    with WorkerProcess(portal, redis, "backup"):
        for number in range(MORE_FOR_A_FAST_MACHINE):
            larger(portal, number)
            handed, _ = run(portal, redis.url, "backup.sh", "media", "--no-wait")
            seen = progress_of(client, handed["task_id"])
            if is_counted(seen):
                break
    assert is_counted(seen), seen


def test_progress_of_a_restore_is_shown(portal: Portal, redis: EmbeddedRedis) -> None:
    """While a worker restores, what is staged and what is expected are the state of the task."""
    client = client_of(redis)
    with WorkerProcess(portal, redis, "restore"):
        for number in range(MORE_FOR_A_FAST_MACHINE):
            larger(portal, number)
            run(portal, redis.url, "backup.sh", "media", "--local")
            handed, _ = run(portal, redis.url, "restore.sh", "latest", "--media-only", "--force", "--no-wait")
            seen = progress_of(client, handed["task_id"])
            if is_counted(seen):
                break
    assert is_counted(seen), seen


def test_no_secret_is_anywhere(portal: Portal) -> None:
    """Neither logs, nor the queue, nor results, nor what Redis keeps, nor any command line has a password in it."""
    from redis import Redis

    with EmbeddedRedis(is_persistent=True) as redis, WorkerProcess(portal, redis) as worker:
        said = [run(portal, redis.url, "backup.sh", "full")[1]]
        said.append(run(portal, redis.url, "backup.sh", "verify", "latest")[1])
        said.append(run(portal, redis.url, "restore.sh", "latest", "--force")[1])
        assert portal.password not in worker.text()
        assert portal.password not in "".join(said)
        assert not any(portal.password.encode() in line for line in worker.processes().values())
        with Redis(unix_socket_path=str(redis.socket)) as connection:
            connection.save()
        for path in redis.directory.rglob("*"):
            if path.is_file():
                assert portal.password.encode() not in path.read_bytes()
        assert Verifier().verify(next(portal.archives.glob("full_*.tar.gz"))).intact


def test_every_line_of_a_worker_is_json_that_says_whose(
    service: tuple[Portal, EmbeddedRedis, WorkerProcess],
) -> None:
    """Each line has time, level, event and host; those of a task its id, name and attempt, and nothing of another."""
    portal, redis, worker = service
    result, _ = run(portal, redis.url, "backup.sh", "full")
    wait_until(lambda: len(worker.events("task_ended")) >= 1)
    for event in worker.events():
        assert {"timestamp", "level", "event", "host"} <= event.keys()
    published = [one for one in worker.events("archive_published") if one["backup_id"] == result["backup_id"]]
    assert [one["attempt"] for one in published] == [1]
    assert published[0]["task_name"] == "backup.full"
    assert all("backup_id" not in one for one in worker.events("task_begun"))
