"""Whatever is killed and whenever: any second of the recovery window has exactly the rows committed by then.

The long form (KEKKAI_LONG_TESTS=1) has a worker besides, kills for minutes, and recovers to a hundred random moments.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from demo.redis import EmbeddedRedis
from tests.support.crashes import LONG, rounds
from tests.support.portal import Portal
from tests.support.waiting import wait_until
from tests.support.wal_servers import WalPortal, wal_portal
from tests.support.wal_services import Writer, numbers_at, service, start_service
from tests.support.workers import WorkerProcess, submit
from worker.operations import BACKUP_BASE

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

ROUNDS: Final = rounds(2, in_long=100)
FAULTS: Final = rounds(4, in_long=150)
SEED: Final = int(os.environ.get("KEKKAI_TEST_SEED", "20261128"))


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[WalPortal]:
    """A server of the test's own, to be hurt; a crash of its processes takes no commit that it has confirmed."""
    with wal_portal(tmp_path, synchronous_commit="on", summarize_wal="on") as made:
        with made.postgres.connect() as connection:
            connection.execute("CREATE TABLE stamped (number int)")
        yield made


def receivers() -> list[int]:
    """The processes of pg_receivewal that this test's services have started."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if b"pg_receivewal" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


@dataclass(kw_only=True)
class Victims:
    """What is killed: the service, its receiver, the server, and in the long form the worker at a base backup."""

    portal: WalPortal
    services: list[subprocess.Popen[bytes]]
    chance: random.Random
    redis: EmbeddedRedis | None = None
    worker: WorkerProcess | None = None

    def hurt(self) -> str:
        """One fault, chosen by chance; its name."""
        kinds = [self.service, self.receiver, self.crash, self.restart, *([self.kill_worker] if self.worker else [])]
        kind = self.chance.choice(kinds)
        kind()
        return kind.__name__

    def service(self) -> None:
        """Kill the WAL service, or ask it to end; and start another one."""
        self.services[-1].send_signal(self.chance.choice([signal.SIGKILL, signal.SIGTERM]))
        self.services[-1].wait()
        self.services.append(start_service(self.portal, self.redis.url if self.redis else ""))

    def receiver(self) -> None:
        """Kill pg_receivewal alone."""
        for pid in receivers():
            with suppress(OSError):
                if str(self.portal.repository.path).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    def crash(self) -> None:
        """Have the server crash, and come up again."""
        self.portal.postgres.restart(crash=True)

    def restart(self) -> None:
        """Restart the server in order."""
        self.portal.postgres.restart()

    def kill_worker(self) -> None:
        """Kill every process of the worker while it makes a base backup."""
        assert self.worker
        assert self.redis
        submit(self.redis, BACKUP_BASE)
        time.sleep(self.chance.uniform(0, 1.5))
        self.worker.kill_all()
        self.worker.start()


def test_every_second_is_exact_after_kills(portal: WalPortal, tmp_path: Path) -> None:
    """Whatever is killed, any moment of the window has exactly the rows that were committed by then."""
    chance = random.Random(SEED)
    writer = Writer(portal)
    hurt: list[str] = []
    with ExitStack() as running:
        redis = running.enter_context(EmbeddedRedis()) if LONG else None
        worker = running.enter_context(worker_of(portal, redis, tmp_path)) if redis else None
        services = running.enter_context(service(portal, redis.url if redis else ""))
        victims = Victims(portal=portal, services=services, chance=chance, redis=redis, worker=worker)
        wait_until(lambda: portal.look().window is not None, seconds=60)
        with writer.writing():
            for _ in range(FAULTS):
                time.sleep(chance.uniform(0.1, 0.8))
                hurt.append(victims.hurt())
            time.sleep(0.5)
        ended = datetime.now(UTC)
        with portal.postgres.connect() as connection:
            live = {number for (number,) in connection.execute("SELECT number FROM stamped")}
        assert writer.must_have(ended) <= live
        wait_until(lambda: (window := portal.look().window) is not None and window.end >= ended, seconds=90)
        window = portal.look().window
        assert window is not None
        assert window.gaps == ()
        span = (ended - window.start).total_seconds()
        for done in range(ROUNDS):
            moment = window.start + timedelta(seconds=chance.uniform(0, span))
            found = numbers_at(portal, moment)
            assert writer.must_have(moment) <= found <= writer.may_have(moment), f"round {done}, {moment}"
        assert numbers_at(portal, None) == live
    if LONG:
        kinds = ", ".join(f"{kind} {hurt.count(kind)}" for kind in sorted(set(hurt)))
        bases = len(portal.look().bases)
        sys.stderr.write(
            f"\n{ROUNDS} rounds exact after {len(hurt)} faults ({kinds}); {len(writer.rows)} rows in {span:.0f} s, "
            f"{bases} base backups, seed {SEED}\n"
        )


class WalReceivingPortal(Portal):
    """A portal whose repository is the one that the WAL goes into."""

    @property
    def archives(self) -> Path:
        """The repository."""
        return self.directory / "repository"


def worker_of(portal: WalPortal, redis: EmbeddedRedis, directory: Path) -> WorkerProcess:
    """A worker of the portal's repository that may make base backups."""
    described = WalReceivingPortal(directory=directory, database=portal.target, bin_dir=portal.bin_dir)
    return WorkerProcess(described, redis, BACKUP_WAL="on")
