"""The WAL service goes on after every fault, and no second of the window is wrong."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg
import pytest

from portal.ops.pitr.plan import plan_recovery
from portal.ops.pitr.recovery import recovered
from portal.ops.pitr.replication import SLOT
from portal.ops.postgres.connection import connect
from portal.ops.runtime.process import SystemRunner
from tests.support.waiting import wait_until
from tests.support.wal_servers import WalPortal, wal_portal

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
LONG: Final = os.environ.get("KEKKAI_LONG_TESTS") == "1"
ROUNDS: Final = 100 if LONG else 3
FAULTS: Final = 120 if LONG else 4


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[WalPortal]:
    """A server of the test's own, to be hurt."""
    with wal_portal(tmp_path) as made:
        with made.postgres.connect() as connection:
            connection.execute("CREATE TABLE stamped (number int)")
        yield made


@contextmanager
def service(portal: WalPortal) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The WAL service as a process; whoever kills it puts another one into the list."""
    started = [start_service(portal)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def start_service(portal: WalPortal) -> subprocess.Popen[bytes]:
    address = portal.postgres.superuser()
    environ = os.environ | {
        "BACKUP_LOCAL_PATH": str(portal.repository.path),
        "BACKUP_PG_BIN_DIR": str(portal.bin_dir),
        "BACKUP_WAL": "on",
        "DD_DATABASE_URL": f"postgres://{address.user}:{address.password}@{address.host}:{address.port}/postgres",
        "CELERY_BROKER_URL": "",
    }
    command = [sys.executable, "-I", "-m", "beat.wal"]
    return subprocess.Popen(command, env=environ, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@dataclass
class Writer:
    """Writes a row at a time, and knows between which moments of the server's clock each was committed."""

    portal: WalPortal
    rows: list[tuple[datetime, datetime, int]] = field(default_factory=list)
    doubtful: set[int] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write until the context is left."""
        thread = threading.Thread(target=self._write)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _write(self) -> None:
        number = 0
        while not self._stop.is_set():
            with suppress(psycopg.Error), self.portal.postgres.connect() as connection:
                while not self._stop.is_set():
                    number += 1
                    self.doubtful.add(number)  # until its commit was confirmed
                    before = datetime.now(UTC)
                    connection.execute("INSERT INTO stamped VALUES (%s)", [number])
                    self.rows.append((before, datetime.now(UTC), number))
                    self.doubtful.discard(number)
                    if number % 200 == 0:
                        connection.execute("SELECT pg_switch_wal()")
                    time.sleep(random.uniform(0.001, 0.01))
            time.sleep(0.05)

    def must_have(self, moment: datetime) -> set[int]:
        """What was committed by then, for certain."""
        return {number for _, after, number in self.rows if after < moment}

    def may_have(self, moment: datetime) -> set[int]:
        """What may have been committed by then."""
        return {number for before, _, number in self.rows if before <= moment} | self.doubtful


def numbers_at(portal: WalPortal, moment: datetime | None) -> set[int]:
    plan = plan_recovery(portal.repository, moment)
    recovering = recovered(
        portal.repository, plan, runner=SystemRunner(), bin_dir=portal.bin_dir, jobs=2, lock_timeout=5
    )
    with recovering as server, connect(server.target("postgres")) as connection:
        return {number for (number,) in connection.execute("SELECT number FROM stamped")}


def receivers() -> list[int]:
    """The processes of pg_receivewal that this test's services have started."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if b"pg_receivewal" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def hurt(portal: WalPortal, started: list[subprocess.Popen[bytes]], chance: random.Random) -> None:
    """One fault: the service, the receiver or the server is killed, or the server is restarted."""
    kind = chance.choice(["service", "receiver", "crash", "restart"])
    if kind == "service":
        started[-1].send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
        started[-1].wait()
        started.append(start_service(portal))
    elif kind == "receiver":
        for pid in receivers():
            if str(portal.repository.path).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
    else:
        portal.postgres.restart(crash=kind == "crash")


def test_every_second_is_exact_after_kills(portal: WalPortal) -> None:
    """Whatever is killed, any moment of the window has exactly the rows that were committed by then."""
    chance = random.Random(20261128)
    writer = Writer(portal)
    with service(portal) as started:
        wait_until(lambda: portal.look().window is not None, seconds=60)
        with writer.writing():
            for _ in range(FAULTS):
                time.sleep(chance.uniform(0.3, 1.5))
                hurt(portal, started, chance)
            time.sleep(1.0)
        ended = datetime.now(UTC)
        wait_until(lambda: (window := portal.look().window) is not None and window.end >= ended, seconds=90)
        window = portal.look().window
        assert window is not None
        assert window.gaps == ()
        span = (ended - window.start).total_seconds()
        for _ in range(ROUNDS):
            moment = window.start + timedelta(seconds=chance.uniform(0, span))
            found = numbers_at(portal, moment)
            assert writer.must_have(moment) <= found <= writer.may_have(moment)
        assert writer.must_have(ended) <= numbers_at(portal, None)


def test_slot_that_somebody_drops_is_made_again_with_a_base_backup(portal: WalPortal) -> None:
    """The service notices, says so, and the window goes on; what was lost in between would be a gap."""
    with service(portal):
        wait_until(lambda: portal.look().window is not None, seconds=60)
        bases = len(portal.look().bases)
        with portal.postgres.connect() as connection:
            connection.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
            wait_until(lambda: _dropped(connection))
            connection.execute("INSERT INTO stamped VALUES (1)")
        moment = datetime.now(UTC)
        wait_until(lambda: (window := portal.look().window) is not None and window.end >= moment, seconds=60)
        assert numbers_at(portal, moment) == {1}
        assert len(portal.look().bases) >= bases


def _dropped(connection: psycopg.Connection) -> bool:
    """Whether the slot could be dropped: it cannot while somebody reads it."""
    try:
        connection.execute("SELECT pg_drop_replication_slot(%s)", [SLOT])
    except psycopg.Error as error:
        connection.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
        return isinstance(error, psycopg.errors.UndefinedObject)
    return True


def test_lost_wal_is_a_gap_until_the_next_base_backup(tmp_path: Path) -> None:
    """While nobody receives, the server lets WAL go as it was told to; that is shown, and a base backup mends it."""
    with wal_portal(tmp_path, max_slot_wal_keep_size="32MB", max_wal_size="64MB", min_wal_size="32MB") as portal:
        with portal.postgres.connect() as connection:
            connection.execute("CREATE TABLE stamped (number int)")
        with portal.receiving():
            assert portal.job().backup_base().success
            portal.wait_until_covered()
        with portal.postgres.connect() as connection:
            for _ in range(12):
                connection.execute("INSERT INTO stamped SELECT generate_series(1, 1000)")
                connection.execute("SELECT pg_switch_wal()")
            connection.execute("CHECKPOINT")
        lost_at = datetime.now(UTC)
        with portal.receiving():
            wait_until(lambda: bool(portal.gaps), seconds=60)
            wait_until(lambda: not portal.look().state.get("problem"), seconds=60)
            assert portal.job().backup_base().success
            portal.wait_until_covered()
        window = portal.look().window
        assert window is not None
        assert len(window.gaps) == 1
        start, end = window.gaps[0]
        assert start <= lost_at <= end


def test_full_disk_stops_receiving_and_is_told(portal: WalPortal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service stops before the disk is full, says so, and goes on once there is room."""
    from portal.ops.pitr import receiver

    with portal.receiving():
        assert portal.job().backup_base().success
        portal.wait_until_covered()
        monkeypatch.setattr(receiver, "_RESERVE_BYTES", 1 << 60)
        wait_until(lambda: "MiB free" in (portal.look().state.get("problem") or ""), seconds=20)
        wait_until(lambda: not _is_active(portal), seconds=20)
        monkeypatch.setattr(receiver, "_RESERVE_BYTES", 0)
        wait_until(lambda: not portal.look().state.get("problem"), seconds=40)
        portal.wait_until_covered()
        assert portal.look().window is not None


def _is_active(portal: WalPortal) -> bool:
    with portal.postgres.connect() as connection:
        row = connection.execute("SELECT active FROM pg_replication_slots WHERE slot_name = %s", [SLOT]).fetchone()
    return row == (True,)


def test_second_service_is_refused(portal: WalPortal) -> None:
    """One repository has one service: the second one ends as busy."""
    with service(portal):
        wait_until(lambda: _is_active(portal), seconds=60)
        second = start_service(portal)
        try:
            assert second.wait(30) == 5
        finally:
            second.kill()
