"""The WAL service as a process, a writer that stamps its rows, and what a recovered cluster has of them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg

from portal.ops.pitr.plan import plan_recovery
from portal.ops.pitr.recovery import recovered
from portal.ops.runtime.process import SystemRunner
from tests.support.sessions import session
from tests.support.waiting import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.wal_servers import WalPortal

ROOT: Final = Path(__file__).parents[2]


@contextmanager
def service(portal: WalPortal, broker_url: str = "", **settings: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The WAL service as a process; whoever kills it puts another one into the list."""
    started = [start_service(portal, broker_url, **settings)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def start_service(portal: WalPortal, broker_url: str = "", **settings: str) -> subprocess.Popen[bytes]:
    """Start it; without a broker it makes base backups itself."""
    address = portal.postgres.superuser()
    environ = os.environ | {
        "BACKUP_LOCAL_PATH": str(portal.repository.path),
        "BACKUP_PG_BIN_DIR": str(portal.bin_dir),
        "BACKUP_WAL": "on",
        "DD_DATABASE_URL": f"postgres://{address.user}:{address.password}@{address.host}:{address.port}/postgres",
        "CELERY_BROKER_URL": broker_url,
        **settings,
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
        with in_thread(self._write, self._stop):
            yield

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
    """The rows of the stamped table at a moment, by a scratch server."""
    plan = plan_recovery(portal.repository, moment)
    recovering = recovered(
        portal.repository, plan, runner=SystemRunner(), bin_dir=portal.bin_dir, jobs=2, lock_timeout=5
    )
    with recovering as server, session(server.target("postgres")) as connection:
        return {number for (number,) in connection.execute("SELECT number FROM stamped")}
