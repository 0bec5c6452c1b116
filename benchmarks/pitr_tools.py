"""What receives WAL, makes base backups and recovers: one interface, and ours behind it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from benchmarks.pitr_bench import confirmed
from portal.ops.pitr.data_dir import deliver, plan_delivery
from portal.ops.pitr.look import look
from portal.ops.pitr.lsn import parse_lsn
from portal.ops.runtime.process import SystemRunner, launch_command
from portal.ops.runtime.progress import available_cores

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    import psycopg

    from benchmarks.pitr_bench import Bench

SEGMENT_BYTES: Final = 16 << 20
_LEVEL_SECONDS: Final = 120.0
_FLUSHED: Final = "SELECT pg_current_wal_flush_lsn()::text"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where peers work: a directory of the server's user, since they run as that user.

    Arguments:
        bench: the server that they look after.
        owner: user and group number; nothing where this process is that user's.
    """

    path: Path
    bench: Bench
    owner: tuple[int, int] | None

    def directory(self, name: str) -> Path:
        """A new directory."""
        made = self.path / name
        made.mkdir(mode=0o700)
        if self.owner:
            os.chown(made, *self.owner)
        return made

    def command(self, *argv: str | Path) -> list[str]:
        """A command line that the server's user runs."""
        program = shutil.which(argv[0])
        assert program  # looked for before
        return launch_command([program, *argv[1:]], owner=self.owner)

    @property
    def environ(self) -> dict[str, str]:
        """The variables of its processes; the password is in none of their files."""
        path = f"{self.bench.server.reachable_bin_dir}:{os.environ['PATH']}"
        return {
            "PATH": path,
            "HOME": str(self.path),
            "LC_ALL": "C",
            "PGPASSWORD": self.bench.server.superuser().password,
        }

    def run(self, *argv: str | Path) -> str:
        """Run a command to its end; what it says.

        Raises:
            RuntimeError: it failed.
        """
        done = subprocess.run(
            self.command(*argv), env=self.environ, cwd=self.path, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, argv))} failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")
        return done.stdout

    def write(self, name: str, text: str) -> Path:
        """A new file that everybody may read."""
        path = self.path / name
        path.write_text(text)
        path.chmod(0o644)
        return path


class Tool(ABC):
    """One that receives the WAL of the server.

    Arguments:
        name: with its version.
        about: what it does about durability and digests.
    """

    name: str
    about: str

    def __init__(self, place: Place) -> None:
        self.place = place
        self.server = place.bench.server

    @abstractmethod
    def prepare(self) -> None:
        """Do once what comes before everything else."""

    @abstractmethod
    def receiving(self) -> AbstractContextManager[None]:
        """Receive the WAL for as long as the context lasts."""

    @abstractmethod
    def received(self, connection: psycopg.Connection) -> int:
        """Up to where the WAL is on its disk, synced."""

    @abstractmethod
    def base(self) -> int:
        """Make a full base backup; its bytes."""

    def before_recovery(self) -> None:  # noqa: B027  (most have none)
        """Do what it does at intervals, where a recovery needs that; by default there is no such work."""

    @abstractmethod
    def recover(self, moment: str, data: Path) -> None:
        """Make a data directory of a moment; its server may have to replay the WAL at its start."""

    def wait_until_level(self) -> None:
        """Wait until it has everything that the server has, after the segment at hand was ended.

        Raises:
            TimeoutError: it does not come to that.
        """
        with self.server.connect() as connection:
            connection.execute("SELECT pg_logical_emit_message(true, 'benchmark', 'so that there is a segment to end')")
            (lsn,) = connection.execute(_FLUSHED).fetchone() or ("0/0",)
            connection.execute("SELECT pg_switch_wal()")
            deadline = time.monotonic() + _LEVEL_SECONDS
            while self.received(connection) < parse_lsn(lsn):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.name} does not catch up")
                time.sleep(0.05)

    def set(self, name: str, value: str) -> None:
        """Change a setting of the running server."""
        with self.server.connect() as connection:
            connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")
            connection.execute("SELECT pg_reload_conf()")


class Ours(Tool):
    """The WAL service and the engine."""

    name = "ours"
    about = "each write is synced and confirmed; SHA-256 of each segment and archive; the server's manifest is checked"

    def prepare(self) -> None:
        """The service makes what it needs."""

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Its first start makes a base backup by itself; that is waited for."""
        bench = self.place.bench
        with bench.receiving(is_copied=False):
            deadline = time.monotonic() + _LEVEL_SECONDS
            while look(bench.repository).window is None:
                if time.monotonic() > deadline:
                    raise TimeoutError("the WAL service makes no recovery window")
                time.sleep(0.1)
            yield

    def received(self, connection: psycopg.Connection) -> int:
        """What its slot confirms."""
        return confirmed(connection)

    def base(self) -> int:
        """A base backup as the schedule makes it."""
        return self.place.bench.backup_job().backup_base().size_bytes

    def recover(self, moment: str, data: Path) -> None:
        """What `restore.sh --at … --data-dir …` does."""
        plan = plan_delivery(self.place.bench.repository, datetime.fromisoformat(moment), data)
        deliver(
            self.place.bench.repository,
            plan,
            data,
            runner=SystemRunner(),
            bin_dir=self.server.reachable_bin_dir,
            jobs=available_cores(),
            lock_timeout=60,
        )
