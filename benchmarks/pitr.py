"""Measures point-in-time recovery: how soon a commit is durable, base backups, and recovery to a second.

    tools/benchmark.sh pitr [--rows N] [--seconds N] [--directory DIR]

It makes a PostgreSQL server and a database, receives its WAL by the service, and measures: a commit until it is durable
in the repository, alone and beside a load, and until it is off-site; a base backup against pg_basebackup; a restore to
a moment against PostgreSQL's programs by hand; the throughput of pgbench with the service and without; the memory of
the service with all that it starts. It prints a line for each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, Final

from benchmarks.pitr_by_hand import plain_wal, recover_by_hand
from demo.postgres import EmbeddedPostgres
from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.pitr.lsn import parse_lsn, parse_segment
from portal.ops.pitr.replication import SLOT
from portal.ops.pitr.wal_archive import WalArchive
from portal.ops.repository.repository import Repository
from portal.ops.restore.config import RestoreConfig, RestoreScope
from portal.ops.restore.job import RestoreJob
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
_OFFSITE_COMMITS: Final = 8
_ROUNDS: Final = 3
_REPLAYED_BYTES: Final = 200_000_000
_CONFIRMED: Final = "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = %s"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="tools/benchmark.sh pitr", description="Measure recoveries to any second.")
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
    def receiving(self) -> Iterator[subprocess.Popen[bytes]]:
        """The running WAL service, with a directory as its off-site destination."""
        address = self.server.superuser("portal")
        self.store.mkdir(exist_ok=True)
        environ = {
            "PATH": os.environ["PATH"],
            "BACKUP_LOCAL_PATH": str(self.repository.path),
            "BACKUP_PG_BIN_DIR": str(self.server.reachable_bin_dir),
            "BACKUP_WAL": "on",
            "BACKUP_OFFSITE_URLS": f"file://{self.store}",
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

    def offsite_lsn(self) -> int:
        """The position up to which the store has WAL, by the names of objects."""
        segment_bytes, reached = 16 << 20, 0
        for path in (self.store / "wal").rglob("*.gz*"):
            name, _, span = path.name.split(".")[0].partition("+")
            if segment := parse_segment(name, segment_bytes):
                end = int(span.partition("-")[2]) if span else segment_bytes
                reached = max(reached, segment.number * segment_bytes + end)
        return reached

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
    with bench.receiving() as service:
        _wait_until_level(bench)
        _tell(f"a commit until it is durable in the repository: {_latencies(bench)}")
        with _memory(service.pid) as peak, _load(bench, seconds) as rate:
            shown = _latencies(bench)
        _tell(f"the same beside a load of {rate():.0f} MB/s of WAL: {shown}")
        _tell(f"memory of the service and all that it starts, at the most, beside that load: {peak():.0f} MB")
        _tell(f"a commit until it is off-site: {_offsite(bench)}")
        _base_backups(bench)
        _recovery(bench)
    _throughput(bench, seconds)


def _latencies(bench: _Bench) -> str:
    """The time from the return of a commit until the slot confirms it: synced on our disk."""
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


def _offsite(bench: _Bench) -> str:
    """The time from a commit until the store has a part of a segment with it."""
    found = []
    with bench.server.connect("portal") as connection:
        for _ in range(_OFFSITE_COMMITS):
            connection.execute("INSERT INTO load VALUES ('off-site')")
            started = time.monotonic()
            (lsn,) = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone() or ("0/0",)
            while bench.offsite_lsn() < parse_lsn(lsn):
                if time.monotonic() - started > 30:
                    raise TimeoutError("a commit was not off-site in 30 s")
                time.sleep(0.02)
            found.append(time.monotonic() - started)
            time.sleep(0.7)
    return f"median {median(found):.1f} s, at the most {max(found):.1f} s, of {_OFFSITE_COMMITS}"


def _base_backups(bench: _Bench) -> None:
    """Our base backup and pg_basebackup with its fastest compression, in turns."""
    ours, theirs, size = [], [], 0
    for number in range(_ROUNDS):
        started = time.monotonic()
        result = bench.backup_job().backup_base()
        ours.append(time.monotonic() - started)
        size = result.size_bytes
        place = bench.directory / f"pg_basebackup-{number}"
        options = ("--format=tar", "--gzip", "--compress=1", "--wal-method=none", "--checkpoint=fast")
        theirs.append(bench.program("pg_basebackup", f"--pgdata={place}", *options))
    their_size = (place / "base.tar.gz").stat().st_size
    _tell(
        f"a base backup, speed {median(theirs) / median(ours):.2f} and size {size / their_size:.2f} of "
        f"pg_basebackup -Ft -z -Z1: {median(ours):.1f} s, {size / 1e6:.0f} MB against {median(theirs):.1f} s, "
        f"{their_size / 1e6:.0f} MB"
    )


def _recovery(bench: _Bench) -> None:
    """A restore to the latest moment, and the same by hand."""
    with bench.server.connect("portal") as connection:
        (first,) = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone() or ("0/0",)
        written = 0
        while written < _REPLAYED_BYTES:
            connection.execute("UPDATE finding SET title = title || '!' WHERE mod(n, 10) = mod(%s, 10)", [written])
            (last,) = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone() or ("0/0",)
            written = parse_lsn(last) - parse_lsn(first)
    _wait_until_level(bench)
    time.sleep(3)
    started = time.monotonic()
    result = bench.restore_job().restore_at("latest", scope=RestoreScope.DATABASE)
    seconds = time.monotonic() - started
    if not result.success:
        raise RuntimeError(result.error)
    away = result.facts["database"]["downtime_seconds"]
    archive = WalArchive.current(bench.repository)
    assert archive
    with tempfile.TemporaryDirectory(prefix="wal-", dir="/tmp") as place:
        Path(place).chmod(0o755)
        plain_wal(archive, Path(place) / "wal")
        bench.server.create_database("by_hand")
        address = bench.server.superuser("by_hand")
        os.environ["PGPASSWORD"] = address.password
        steps = recover_by_hand(
            bench.server.reachable_bin_dir,
            bench.directory / f"pg_basebackup-{_ROUNDS - 1}" / "base.tar.gz",
            Path(place) / "wal",
            into=[f"--host={address.host}", f"--port={address.port}", "--username=postgres", "--dbname=by_hand"],
            database="portal",
        )
    by_hand = sum(steps.values())
    parts = ", ".join(f"{name} {value:.1f}" for name, value in steps.items())
    _tell(
        f"a restore to a moment, {written / 1e6:.0f} MB of WAL: {seconds / by_hand:.2f} times as long as by hand, "
        f"{seconds:.1f} s against {by_hand:.1f} s ({parts}); the database is away for {away:.2f} s"
    )


def _throughput(bench: _Bench, seconds: float) -> None:
    """Transactions a second of pgbench, with and without the service, in turns."""
    bench.program("pgbench", "--initialize", "--quiet", "--scale=10", "portal")
    rates: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(2 * _ROUNDS):
        is_received = turn % 2 == 0
        with bench.receiving() if is_received else nullcontext():
            if is_received:
                _wait_until_level(bench)
            said = bench.said("pgbench", "--client=4", "--jobs=2", f"--time={seconds:.0f}", "--no-vacuum", "portal")
        rates[is_received].append(float(said.partition("tps = ")[2].split()[0]))
    ours, theirs = median(rates[True]), median(rates[False])
    _tell(f"pgbench beside the service: {ours / theirs:.2f} of without, {ours:.0f} against {theirs:.0f} transactions/s")


@contextmanager
def _memory(pid: int) -> Iterator[Callable[[], float]]:
    """The peak memory of a process and its children in MB; shared pages count once."""
    stop, peak = threading.Event(), [0.0]

    def watch() -> None:
        while not stop.wait(0.2):
            peak[0] = max(peak[0], sum(_proportional_bytes(one) for one in _family(pid)) / 1e6)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: peak[0]
    finally:
        stop.set()
        thread.join()


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    found, todo = [], [pid]
    while todo:
        found.append(one := todo.pop())
        for task in Path(f"/proc/{one}/task").glob("*"):
            with suppress(OSError):
                todo += map(int, (task / "children").read_text().split())
    return found


def _proportional_bytes(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
