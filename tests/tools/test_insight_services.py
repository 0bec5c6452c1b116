"""Doctor, notifications and metrics where workers and beat do the work: real processes on a real Redis."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self
from urllib.error import URLError
from urllib.request import urlopen

from demo.ports import ReservedPort
from tests.support.commands import answer, run
from tests.support.waiting import LONG_SECONDS
from tests.support.workers import MOMENT, WorkerProcess, client_of, result_of, submit, wait_until
from worker.operations import BACKUP_FULL

if TYPE_CHECKING:
    from demo.redis import EmbeddedRedis
    from tests.support.http_server import Server
    from tests.support.portal import Portal


def doctored(portal: Portal, url: str) -> dict[str, str]:
    """What the doctor says of each thing: its state."""
    ended = run("doctor", environ=portal.environ(CELERY_BROKER_URL=url))
    return {finding["name"]: finding["state"] for finding in answer(ended)["findings"]}


class TestDoctor:
    """What runs all the time."""

    def test_a_broker_that_is_away_is_a_fault(self, portal: Portal) -> None:
        """Whoever sets a broker wants the work handed over; beat and watcher that do not run are warnings."""
        found = doctored(portal, "redis://127.0.0.1:1/0")
        assert (found["workers"], found["beat"], found["watcher"]) == ("fault", "warning", "warning")

    def test_a_queue_without_a_worker_is_a_fault(self, portal: Portal, redis: EmbeddedRedis) -> None:
        """Work that is handed over would wait for ever."""
        assert doctored(portal, redis.url)["workers"] == "fault"

    def test_workers_that_answer_are_well(self, portal: Portal, redis: EmbeddedRedis) -> None:
        """Each queue has answered a ping."""
        with WorkerProcess(portal, redis):
            assert doctored(portal, redis.url)["workers"] == "ok"

    def test_without_a_broker_nothing_is_missed(self, portal: Portal) -> None:
        """Cron and commands need no worker, so neither beat nor watcher is looked for."""
        ended = run("doctor", environ=portal.environ())
        found = {finding["name"]: finding["state"] for finding in answer(ended)["findings"]}
        assert found["workers"] == "ok"
        assert not {"beat", "watcher"} & found.keys()


def test_what_fails_in_a_worker_reaches_people_and_the_dead_mans_url(
    portal: Portal, redis: EmbeddedRedis, web_server: Server
) -> None:
    """The failure of a task is told like that of a command."""
    told = {
        "BACKUP_NOTIFY_URLS": f"json://{web_server.place}/note",
        "BACKUP_PING_URL": f"http://{web_server.place}/ping",
        "PORTAL_UPLOAD_DIR": str(portal.directory / "gone"),
    }
    with WorkerProcess(portal, redis, "backup", **told):
        task_id = submit(redis, BACKUP_FULL, moment=MOMENT)
        wait_until(lambda: client_of(redis).look(task_id).is_ended)
    assert "/ping/fail" in [path for path, _ in web_server.asked]
    notes = [json.loads(body) for path, body in web_server.asked if path.startswith("/note")]
    assert any("full backup failed" in note["title"] for note in notes)


class Detour:
    """A way to the database's server that can be opened late; until then nobody answers there."""

    def __init__(self, port: int) -> None:
        self._behind = port
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def open(self) -> None:
        """Let everybody through."""
        self._socket.listen()
        threading.Thread(target=self._let_through, daemon=True).start()

    def _let_through(self) -> None:
        with suppress(OSError):
            while True:
                front, _ = self._socket.accept()
                behind = socket.create_connection(("127.0.0.1", self._behind))
                for one, other in ((front, behind), (behind, front)):
                    threading.Thread(target=_pass_on, args=(one, other), daemon=True).start()


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(1 << 16):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)


def test_a_failure_that_passes_by_itself_is_not_told(portal: Portal, redis: EmbeddedRedis, web_server: Server) -> None:
    """A server that is back at the next try has disturbed nobody: what is told is that the backup was made."""
    variables = {
        "BACKUP_NOTIFY_URLS": f"json://{web_server.place}/note",
        "BACKUP_PING_URL": f"http://{web_server.place}/ping",
    }
    with Detour(portal.database.port) as detour:
        variables["DD_DATABASE_PORT"] = str(detour.port)
        with WorkerProcess(portal, redis, "backup", **variables) as worker:
            task_id = submit(redis, BACKUP_FULL, moment=MOMENT)
            wait_until(lambda: worker.events("task_postponed"))
            detour.open()
            assert result_of(redis, task_id).result["success"]
    assert [path for path, _ in web_server.asked if path.startswith("/ping")] == ["/ping"]
    assert not any("failed" in json.loads(body)["title"] for path, body in web_server.asked if path == "/note/")


def test_beat_serves_metrics_and_tells_of_missed_targets(
    portal: Portal, redis: EmbeddedRedis, web_server: Server
) -> None:
    """Nothing has run at all, and somebody notices."""
    reserved = ReservedPort()
    port = reserved.number
    environ = portal.environ(
        CELERY_BROKER_URL=redis.url,
        BACKUP_METRICS_PORT=str(port),
        BACKUP_NOTIFY_URLS=f"json://{web_server.place}/note",
    )
    beat = subprocess.Popen([sys.executable, "-I", "-m", "beat"], env=environ, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: "kekkai_backup_targets_missed 3.0" in _scraped(port))
        wait_until(lambda: any("TARGET MISSED" in body for _, body in web_server.asked))
    finally:
        beat.terminate()
        assert beat.wait(LONG_SECONDS) == 0
        reserved.release()


def _scraped(port: int) -> str:
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=LONG_SECONDS) as answered:
            text: str = answered.read().decode()
            return text
    except (URLError, OSError):
        return ""
