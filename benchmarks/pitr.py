"""Point-in-time recovery, measured: how soon a commit is durable, base backups, and a recovery to a second.

    tools/benchmark.sh pitr [--rows N] [--seconds N] [--directory DIR]

It makes a PostgreSQL server and a database, receives its WAL, and measures: a commit until it is durable in the
repository, alone and beside a load; a base backup against pg_basebackup; a restore to a moment against PostgreSQL's
programs by hand. It prints one line for each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, Final

from demo.postgres import EmbeddedPostgres
from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.pitr.lsn import parse_lsn
from portal.ops.pitr.receiver import WalReceiver
from portal.ops.pitr.replication import SLOT
from portal.ops.repository.repository import Repository
from portal.ops.restore.config import RestoreConfig, RestoreScope
from portal.ops.restore.job import RestoreJob
from portal.ops.runtime.process import SystemRunner
from portal.ops.settings.load import DatabaseTarget, Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

_SETTINGS: Final = {
    "wal_level": "replica",
    "max_wal_senders": "10",
    "max_slot_wal_keep_size": "4GB",
    "max_wal_size": "8GB",
    "synchronous_commit": "on",
}
_COMMITS: Final = 200
_CONFIRMED: Final = "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = %s"


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="tools/benchmark.sh pitr", description="Measure recoveries to a second.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the database (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="how long the load lasts (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="where to work (default: a temporary directory)")
    arguments = parser.parse_args()
    with (
        EmbeddedPostgres(settings=_SETTINGS) as server,
        tempfile.TemporaryDirectory(prefix="pitr-", dir=arguments.directory) as directory,
    ):
        _measure(_Bench(server, Path(directory)), arguments.rows, arguments.seconds)
    return 0


class _Bench:
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
        """What makes base backups."""
        return BackupJob(BackupConfig(**self._place, wal=True))

    def restore_job(self) -> RestoreJob:
        """What restores to a moment."""
        return RestoreJob(RestoreConfig(**self._place, verify_before_restore=False))

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """The WAL service, in a thread."""
        stop = threading.Event()
        receiver = WalReceiver(
            self.repository, self.target, runner=SystemRunner(), bin_dir=self.server.reachable_bin_dir
        )
        thread = threading.Thread(target=receiver.run, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def program(self, name: str, *arguments: str | Path) -> float:
        """Run one of PostgreSQL's programs against the server; the seconds that it took."""
        environ = {**os.environ, "PGPASSWORD": self.server.superuser().password}
        where = ["--host=127.0.0.1", f"--port={self.server.port}", "--username=postgres", "--no-password"]
        started = time.monotonic()
        command = [self.server.reachable_bin_dir / name, *where, *arguments]
        subprocess.run(command, env=environ, check=True, capture_output=True)
        return time.monotonic() - started


def _measure(bench: _Bench, rows: int, seconds: float) -> None:
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
    with bench.receiving():
        _wait_until_level(bench)
        _tell(f"a commit until it is durable in the repository: {_latencies(bench)}")
        with _load(bench, seconds) as rate:
            shown = _latencies(bench)
        _tell(f"the same beside a load of {rate():.0f} MB/s of WAL: {shown}")
        _base_backups(bench)
        _recovery(bench)


def _latencies(bench: _Bench) -> str:
    """How long it takes from the return of a commit until the slot confirms it: on our disk, synced."""
    found = []
    with bench.server.connect("portal") as writer, bench.server.connect() as looker:
        for number in range(_COMMITS):
            writer.execute("INSERT INTO load VALUES ('x')")
            started = time.monotonic()
            (lsn,) = writer.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone() or ("0/0",)
            while _confirmed(looker) < parse_lsn(lsn):
                if time.monotonic() - started > 30:
                    raise TimeoutError(f"commit {number} was not confirmed in 30 s")
            found.append((time.monotonic() - started) * 1000)
            time.sleep(0.005)
    cuts = quantiles(found, n=100)
    return f"median {median(found):.1f} ms, p99 {cuts[98]:.1f} ms, of {_COMMITS}"


def _confirmed(connection: psycopg.Connection) -> int:
    (lsn,) = connection.execute(_CONFIRMED, [SLOT]).fetchone() or (None,)
    return parse_lsn(lsn) if lsn else 0


def _wait_until_level(bench: _Bench) -> None:
    with bench.server.connect() as connection:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            row = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
            if row and _confirmed(connection) >= parse_lsn(row[0]):
                return
            time.sleep(0.1)
    raise TimeoutError("the WAL service does not catch up")


@contextmanager
def _load(bench: _Bench, seconds: float) -> Iterator[Callable[[], float]]:
    """Write about 20 MB of WAL a second; a function that tells the rate afterwards."""
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


def _base_backups(bench: _Bench) -> None:
    """Ours against pg_basebackup with its fastest compression, one after the other."""
    ours, theirs, size = [], [], 0
    for number in range(3):
        started = time.monotonic()
        result = bench.backup_job().backup_base()
        ours.append(time.monotonic() - started)
        size = result.size_bytes
        place = bench.directory / f"pg_basebackup-{number}"
        options = ("--format=tar", "--gzip", "--compress=1", "--wal-method=none", "--checkpoint=fast")
        theirs.append(bench.program("pg_basebackup", f"--pgdata={place}", *options))
    their_size = (place / "base.tar.gz").stat().st_size
    _tell(
        f"a base backup: {median(ours):.1f} s, {size / 1e6:.0f} MB; "
        f"pg_basebackup -Ft -Z1: {median(theirs):.1f} s, {their_size / 1e6:.0f} MB"
    )


def _recovery(bench: _Bench) -> None:
    """A restore to the latest moment, and the parts of it that PostgreSQL's programs need by hand."""
    with bench.server.connect("portal") as connection:
        connection.execute("UPDATE finding SET title = title || '!' WHERE mod(n, 3) = 0")
    _wait_until_level(bench)
    time.sleep(3)
    started = time.monotonic()
    result = bench.restore_job().restore_at("latest", scope=RestoreScope.DATABASE)
    seconds = time.monotonic() - started
    if not result.success:
        raise RuntimeError(result.error)
    place = bench.directory / "portal.dump"
    dump = bench.program("pg_dump", "--format=custom", "--compress=0", f"--file={place}", "portal")
    bench.server.create_database("by_hand")
    restore = bench.program("pg_restore", "--jobs=2", "--dbname=by_hand", place)
    away = result.facts["database"]["downtime_seconds"]
    _tell(
        f"a restore to a moment: {seconds:.1f} s, the database away for {away:.2f} s of it; "
        f"pg_dump and pg_restore -j2 alone, without unpacking and replay: {dump + restore:.1f} s"
    )


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
