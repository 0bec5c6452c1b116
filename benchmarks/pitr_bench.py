"""What the measurements of point-in-time recovery have in common: a server with its repository, and a load on it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.pitr.lsn import parse_lsn, parse_segment
from portal.ops.pitr.replication import SLOT
from portal.ops.repository.repository import Repository
from portal.ops.restore.config import RestoreConfig
from portal.ops.restore.job import RestoreJob
from portal.ops.settings.load import DatabaseTarget, Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import psycopg

    from demo.postgres import EmbeddedPostgres

SETTINGS: Final = {
    "wal_level": "replica",
    "max_wal_senders": "10",
    "max_slot_wal_keep_size": "4GB",
    "max_wal_size": "8GB",
    "synchronous_commit": "on",
}
_CONFIRMED: Final = "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = %s"


class Bench:
    """A server, a repository, and the jobs on them."""

    def __init__(self, server: EmbeddedPostgres, directory: Path) -> None:
        self.server = server
        self.directory = directory
        address = server.superuser("portal")
        self.target = DatabaseTarget(
            host=address.host,
            port=address.port,
            name="portal",
            user=address.user,
            password=Secret(address.password),
        )
        self.repository = Repository(directory / "repository")
        self.store = directory / "store"
        self._place: dict[str, Any] = {
            "local_path": self.repository.path,
            "db_host": address.host,
            "db_port": address.port,
            "db_name": "portal",
            "db_user": address.user,
            "db_password": address.password,
            "pg_bin_dir": server.reachable_bin_dir,
        }

    def backup_job(self) -> BackupJob:
        """The job for base backups."""
        return BackupJob(BackupConfig(**self._place, wal=True))

    def restore_job(self) -> RestoreJob:
        """The job for restores to a moment."""
        return RestoreJob(RestoreConfig(**self._place, verify_before_restore=False))

    @contextmanager
    def receiving(self, *, is_copied: bool = True) -> Iterator[subprocess.Popen[bytes]]:
        """The running WAL service.

        Arguments:
            is_copied: with a directory as its off-site destination.
        """
        address = self.server.superuser("portal")
        self.store.mkdir(exist_ok=True)
        environ = {
            "PATH": os.environ["PATH"],
            "BACKUP_LOCAL_PATH": str(self.repository.path),
            "BACKUP_PG_BIN_DIR": str(self.server.reachable_bin_dir),
            "BACKUP_WAL": "on",
            "BACKUP_OFFSITE_URLS": f"file://{self.store}" if is_copied else "",
            "BACKUP_OFFSITE_ENCRYPTION": "off",
            "DD_DATABASE_URL": f"postgres://{address.user}:{address.password}@{address.host}:{address.port}/portal",
        }
        command = [sys.executable, "-I", "-m", "beat.wal"]
        with (self.directory / "service.log").open("ab") as output:
            process = subprocess.Popen(command, env=environ, cwd="/", stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()

    @contextmanager
    def receiving_bare(self) -> Iterator[subprocess.Popen[bytes]]:
        """A running pg_receivewal without a slot: it flushes as soon as the service's does, and does nothing else."""
        with tempfile.TemporaryDirectory(dir=self.directory) as wal:
            process = self.started("pg_receivewal", "--synchronous", f"--directory={wal}")
            try:
                while not os.listdir(wal):
                    if process.poll() is not None:
                        raise RuntimeError(f"pg_receivewal ended with exit code {process.returncode}")
                    time.sleep(0.05)
                yield process
            finally:
                process.terminate()
                process.wait()

    def offsite_lsn(self) -> int:
        """The position up to which the store has WAL, by the names of objects."""
        segment_bytes, reached = 16 << 20, 0
        for path in (self.store / "wal").rglob("*.gz*"):
            name, _, span = path.name.split(".")[0].partition("+")
            if segment := parse_segment(name, segment_bytes):
                end = int(span.partition("-")[2]) if span else segment_bytes
                reached = max(reached, segment.number * segment_bytes + end)
        return reached

    def started(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """One of PostgreSQL's programs, running on the server's behalf; what it says is thrown away."""
        environ = {**os.environ, "PGPASSWORD": self.server.superuser().password}
        where = ["--host=127.0.0.1", f"--port={self.server.port}", "--username=postgres"]
        command = [str(self.server.reachable_bin_dir / name), *where, *arguments]
        return subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def said(self, name: str, *arguments: str | Path) -> str:
        """The output of one of PostgreSQL's programs."""
        environ = {**os.environ, "PGPASSWORD": self.server.superuser().password}
        where = ["--host=127.0.0.1", f"--port={self.server.port}", "--username=postgres"]
        command = [self.server.reachable_bin_dir / name, *where, *arguments]
        return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout

    def program(self, name: str, *arguments: str | Path) -> float:
        """Run one of PostgreSQL's programs on the server; return the seconds."""
        environ = {**os.environ, "PGPASSWORD": self.server.superuser().password}
        where = ["--host=127.0.0.1", f"--port={self.server.port}", "--username=postgres"]
        started = time.monotonic()
        command = [self.server.reachable_bin_dir / name, *where, *arguments]
        subprocess.run(command, env=environ, check=True, capture_output=True)
        return time.monotonic() - started


def fill(bench: Bench, rows: int) -> None:
    """Make the database, with as many rows."""
    bench.server.create_database("portal")
    with bench.server.connect("portal") as connection:
        connection.execute("CREATE TABLE finding (n int PRIMARY KEY, title text)")
        connection.execute(
            "INSERT INTO finding SELECT g, md5(g::text) || repeat(md5(mod(g, 97)::text), 6)"
            " FROM generate_series(1, %s) g",
            [rows],
        )
        connection.execute("CREATE TABLE load (t text)")
        connection.execute("CHECKPOINT")


def update_rows(bench: Bench, most: int) -> int:
    """Write WAL until there are so many bytes of it; how many there are."""
    with bench.server.connect("portal") as connection:
        (first,) = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone() or ("0/0",)
        written = 0
        while written < most:
            connection.execute("UPDATE finding SET title = title || '!' WHERE mod(n, 10) = mod(%s, 10)", [written])
            (last,) = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone() or ("0/0",)
            written = parse_lsn(last) - parse_lsn(first)
    return written


def throughput(bench: Bench, seconds: float) -> float:
    """Transactions a second of pgbench, whose tables are there."""
    said = bench.said("pgbench", "--client=4", "--jobs=2", f"--time={seconds:.0f}", "--no-vacuum", "portal")
    return float(said.partition("tps = ")[2].split()[0])


def confirmed(connection: psycopg.Connection, slot: str = SLOT) -> int:
    """Up to where a slot says that everything is on the receiver's disk."""
    (lsn,) = connection.execute(_CONFIRMED, [slot]).fetchone() or (None,)
    return parse_lsn(lsn) if lsn else 0


def wait_until_level(bench: Bench) -> None:
    """Wait until the WAL service has everything that the server has.

    Raises:
        TimeoutError: it does not come to that.
    """
    with bench.server.connect() as connection:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            row = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
            if row and confirmed(connection) >= parse_lsn(row[0]):
                return
            time.sleep(0.1)
    raise TimeoutError("the WAL service does not catch up")


@contextmanager
def load(bench: Bench, seconds: float) -> Iterator[Callable[[], float]]:
    """Write about 20 MB of WAL a second; the returned function tells the actual rate."""
    stop = threading.Event()
    written = [0.0]

    def write() -> None:
        with bench.server.connect("portal") as connection:
            (first,) = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone() or ("0/0",)
            started = time.monotonic()
            while not stop.is_set() and time.monotonic() - started < seconds * 6:
                connection.execute("INSERT INTO load SELECT repeat(md5(g::text), 30) FROM generate_series(1, 2000) g")
                time.sleep(0.08)
            (last,) = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone() or ("0/0",)
            written[0] = (parse_lsn(last) - parse_lsn(first)) / 1e6 / (time.monotonic() - started)

    thread = threading.Thread(target=write)
    thread.start()
    time.sleep(1)
    try:
        yield lambda: written[0]
    finally:
        stop.set()
        thread.join()


def tell(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
