"""Measures point-in-time recovery: how soon a commit is durable, base backups, and recovery to a second.

    tools/benchmark.sh pitr [--rows N] [--seconds N] [--directory DIR] [--only own|peers]

It makes a PostgreSQL server and a database, receives its WAL by the service, and measures: a commit until it is durable
in the repository, alone and beside a load, and until it is off-site; a base backup against pg_basebackup; a restore to
a moment against PostgreSQL's programs by hand; the throughput of pgbench with the service and without; the memory of
the service with all that it starts. Then it does the same work with Barman and pgBackRest, where they are installed.
It prints a line for each.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Final

from benchmarks.pitr_bench import (
    SETTINGS,
    Bench,
    confirmed,
    fill,
    load,
    tell,
    throughput,
    update_rows,
    wait_until_level,
)
from benchmarks.pitr_by_hand import plain_wal, recover_by_hand
from benchmarks.pitr_peers import compare_with_peers
from demo.postgres import EmbeddedPostgres
from portal.ops.pitr.lsn import parse_lsn
from portal.ops.pitr.wal_archive import WalArchive
from portal.ops.restore.config import RestoreScope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

_COMMITS: Final = 200
_OFFSITE_COMMITS: Final = 8
_ROUNDS: Final = 3
_THROUGHPUT_ROUNDS: Final = 5
_REPLAYED_BYTES: Final = 200_000_000


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="tools/benchmark.sh pitr", description="Measure recoveries to any second.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the database (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="how long the load lasts (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="where to work (default: a temporary directory)")
    parser.add_argument("--only", choices=["own", "peers"], help="a part of it (default: everything)")
    arguments = parser.parse_args()
    if arguments.only != "peers":
        with (
            EmbeddedPostgres(settings=SETTINGS) as server,
            tempfile.TemporaryDirectory(prefix="pitr-", dir=arguments.directory) as directory,
        ):
            _measure(Bench(server, Path(directory)), arguments.rows, arguments.seconds)
    if arguments.only != "own":
        compare_with_peers(arguments.rows, arguments.seconds, arguments.directory)
    return 0


def _measure(bench: Bench, rows: int, seconds: float) -> None:
    fill(bench, rows)
    with bench.receiving() as service:
        wait_until_level(bench)
        tell(f"a commit until it is durable in the repository: {_latencies(bench)}")
        with _memory(service.pid) as peak, load(bench, seconds) as rate:
            shown = _latencies(bench)
        tell(f"the same beside a load of {rate():.0f} MB/s of WAL: {shown}")
        tell(f"memory of the service and all that it starts, at the most, beside that load: {peak():.0f} MB")
        tell(f"a commit until it is off-site: {_offsite(bench)}")
        _base_backups(bench)
        _recovery(bench)
    _throughput(bench, seconds)


def _latencies(bench: Bench) -> str:
    """The time from the return of a commit until the slot confirms it: synced on our disk."""
    found = []
    with bench.server.connect("portal") as writer, bench.server.connect() as looker:
        for number in range(_COMMITS):
            writer.execute("INSERT INTO load VALUES ('x')")
            started = time.monotonic()
            (lsn,) = writer.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone() or ("0/0",)
            while confirmed(looker) < parse_lsn(lsn):
                if time.monotonic() - started > 30:
                    raise TimeoutError(f"commit {number} was not confirmed in 30 s")
            found.append((time.monotonic() - started) * 1000)
            time.sleep(0.005)
    cuts = quantiles(found, n=100)
    return f"median {median(found):.1f} ms, p99 {cuts[98]:.1f} ms, of {_COMMITS}"


def _offsite(bench: Bench) -> str:
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


def _base_backups(bench: Bench) -> None:
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
    tell(
        f"a base backup, speed {median(theirs) / median(ours):.2f} and size {size / their_size:.2f} of "
        f"pg_basebackup -Ft -z -Z1: {median(ours):.1f} s, {size / 1e6:.0f} MB against {median(theirs):.1f} s, "
        f"{their_size / 1e6:.0f} MB"
    )


def _recovery(bench: Bench) -> None:
    """A restore to the latest moment, and the same by hand."""
    written = update_rows(bench, _REPLAYED_BYTES)
    wait_until_level(bench)
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
    tell(
        f"a restore to a moment, {written / 1e6:.0f} MB of WAL: {seconds / by_hand:.2f} times as long as by hand, "
        f"{seconds:.1f} s against {by_hand:.1f} s ({parts}); the database is away for {away:.2f} s"
    )


def _throughput(bench: Bench, seconds: float) -> None:
    """Transactions a second of pgbench: alone, beside the service, and beside a bare synchronous pg_receivewal."""
    bench.program("pgbench", "--initialize", "--quiet", "--scale=10", "portal")
    beside: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "nothing": nullcontext,
        "the service": bench.receiving,
        "pg_receivewal --synchronous": bench.receiving_bare,
    }
    rates: dict[str, list[float]] = {name: [] for name in beside}
    for _ in range(_THROUGHPUT_ROUNDS):
        for name, start in beside.items():
            with start():
                if name == "the service":
                    wait_until_level(bench)
                rates[name].append(throughput(bench, seconds))
    alone, *others = [(name, median(found)) for name, found in rates.items()]
    for name, rate in others:
        tell(f"pgbench beside {name}: {rate / alone[1]:.2f} of alone, {rate:.0f} against {alone[1]:.0f} transactions/s")


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


if __name__ == "__main__":
    sys.exit(main())
