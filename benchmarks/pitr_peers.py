"""The same work by Barman and by pgBackRest, on one server and in one run.

Each tool receives the WAL, makes base backups, and recovers the cluster to the same moment, until the recovered server
takes writes; what it recovered is counted. Everything is on one machine, and the peers run as the server's user.

Barman compresses by gzip at level 1, as ours does; its daily work, `barman archive-wal`, does not run beside pgbench.
pgBackRest compresses by zstd at level 1, in two processes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import psycopg

from benchmarks.pitr_barman import Barman, SynchronousBarman
from benchmarks.pitr_bench import SETTINGS, Bench, fill, load, tell, throughput, update_rows
from benchmarks.pitr_pgbackrest import PgBackRest
from benchmarks.pitr_tools import Ours, Place, Tool
from demo.postgres import EmbeddedPostgres
from demo.server_process import end
from portal.ops.pitr.lsn import parse_lsn
from portal.ops.runtime.process import launch_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MAJOR: Final = 15
"""The newest version that the packages of Debian 12 know."""

_PROGRAMS: Final = Path(f"/usr/lib/postgresql/{_MAJOR}/bin")
_ROUNDS: Final = 2
_REPLAYED_BYTES: Final = 200_000_000
_COMMITS: Final = 200
_LOADED_SECONDS: Final = 8.0
_PATIENCE_SECONDS: Final = 10.0
_RECOVERY_SECONDS: Final = 300.0
_COUNTED: Final = "SELECT count(*), sum(length(title)) FROM finding"


def compare_with_peers(rows: int, seconds: float, directory: Path | None) -> None:
    """Measure, and print a line for each kind of work and each tool.

    Arguments:
        rows: of the database.
        seconds: how long pgbench runs each time.
        directory: where to work, which every user can reach; nothing means a temporary directory.
    """
    needed = {"barman": "barman", "pgbackrest": "pgbackrest", f"postgresql-{_MAJOR}": str(_PROGRAMS / "pgbench")}
    if lacking := [package for package, program in needed.items() if not shutil.which(program)]:
        tell(f"not compared with Barman and pgBackRest: apt-get install {' '.join(lacking)}, as Debian 12 has them")
        return
    with (
        EmbeddedPostgres(settings=SETTINGS, bin_dir=_PROGRAMS) as server,
        tempfile.TemporaryDirectory(prefix="peers-", dir=directory) as name,
    ):
        path = Path(name)
        path.chmod(0o755)
        (path / "own").mkdir(mode=0o755)
        data = (server.directory / "data").stat()
        owner = (data.st_uid, data.st_gid) if os.geteuid() == 0 else None
        place = Place(path=path, bench=Bench(server, path / "own"), owner=owner)
        fill(place.bench, rows)
        _compare(place, [Ours(place), Barman(place), PgBackRest(place)], SynchronousBarman(place), seconds)


def _compare(place: Place, tools: Sequence[Tool], synchronous: Tool, seconds: float) -> None:
    bench = place.bench
    tell(f"beside peers, PostgreSQL {_MAJOR}:")
    for tool in tools:
        tell(f"  {tool.name}: {tool.about}")
        tool.prepare()
    tell(f"  {synchronous.name}: {synchronous.about}")
    _base_backups(tools)
    with ExitStack() as received:
        for tool in reversed(tools):
            received.enter_context(tool.receiving())
        for tool in tools:
            tool.wait_until_level()
            tool.base()
        _recoveries(place, tools)
    for tool in (*tools, synchronous):
        with tool.receiving():
            tool.wait_until_level()
            tell(f"  a commit until {tool.name} has it on its disk: {_lags(bench, tool)}")
    _throughputs(bench, [None, *tools, synchronous], seconds)


def _base_backups(tools: Sequence[Tool]) -> None:
    """Full base backups, in turns."""
    seconds: dict[str, list[float]] = {tool.name: [] for tool in tools}
    sizes = {}
    for _ in range(_ROUNDS):
        for tool in tools:
            with tool.receiving():
                tool.wait_until_level()
                started = time.monotonic()
                sizes[tool.name] = tool.base()
                seconds[tool.name].append(time.monotonic() - started)
    own = tools[0].name
    for name, found in seconds.items():
        tell(
            f"  a base backup by {name}: {median(found):.1f} s ({median(found) / median(seconds[own]):.2f} of ours), "
            f"{sizes[name] / 1e6:.0f} MB ({sizes[name] / sizes[own]:.2f})"
        )


def _recoveries(place: Place, tools: Sequence[Tool]) -> None:
    """Recover to one moment by each tool, until the server takes writes; what is there then must be right."""
    written = update_rows(place.bench, _REPLAYED_BYTES)
    with place.bench.server.connect("portal") as connection:
        expected = connection.execute(_COUNTED).fetchone()
        (moment,) = connection.execute("SELECT clock_timestamp()::text").fetchone() or ("",)
        time.sleep(1)
        connection.execute("DELETE FROM finding WHERE mod(n, 2) = 0")  # the accident
    for tool in tools:
        tool.wait_until_level()
        tool.before_recovery()
    own = 0.0
    parent = place.directory("recovered")
    parent.chmod(0o755)
    for number, tool in enumerate(tools):
        data = parent / str(number)
        started = time.monotonic()
        tool.recover(moment, data)
        restored = time.monotonic() - started
        with _started(place, data) as connection:
            taken = time.monotonic() - started
            found = connection.execute(_COUNTED).fetchone()
        if found != expected:
            raise RuntimeError(f"{tool.name} recovered {found}, not {expected}")
        own = own or taken
        tell(
            f"  a recovery to a moment by {tool.name}, {written / 1e6:.0f} MB of WAL: {taken:.1f} s "
            f"({taken / own:.2f} of ours), {restored:.1f} of them before the server's start"
        )


@contextmanager
def _started(place: Place, data: Path) -> Iterator[psycopg.Connection]:
    """A server on a recovered data directory, once it takes writes."""
    status = data.stat()
    owner = (status.st_uid, status.st_gid) if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="recovered-", dir="/tmp") as name:
        directory = Path(name)
        rules = directory / "hba.conf"
        rules.write_text("local all all trust\n")
        rules.chmod(0o644)
        if owner:
            os.chown(directory, *owner)
        settings = {
            "hba_file": str(rules),
            "listen_addresses": "",
            "unix_socket_directories": name,
            "archive_mode": "off",
            "max_connections": "100",
            "max_wal_senders": "10",
            "shared_buffers": "128MB",
            "max_wal_size": "8GB",
        }
        command: list[str | Path] = [_PROGRAMS / "postgres", "-D", data]
        command += [f"--{key}={value}" for key, value in settings.items()]
        log = data.with_name(f"{data.name}.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                launch_command(command, owner=owner, death_signal=signal.SIGQUIT),
                env=place.environ,
                stdout=output,
                stderr=output,
            )
        try:
            with closing(_taking_writes(process, name, log)) as connection:
                yield connection
        finally:
            end(process, signal.SIGQUIT)


def _taking_writes(process: subprocess.Popen[bytes], host: str, log: Path) -> psycopg.Connection:
    """A connection to a server that has left recovery.

    Raises:
        RuntimeError: it ended, or did not come to that in time.
    """
    deadline = time.monotonic() + _RECOVERY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(psycopg.OperationalError):
            connection = psycopg.connect(host=host, user="postgres", dbname="portal", autocommit=True)
            if connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,):
                return connection
            connection.close()
        time.sleep(0.02)
    raise RuntimeError(f"the recovered server takes no writes: {log.read_text(errors='replace')[-2000:]}")


def _lags(bench: Bench, tool: Tool) -> str:
    """From the return of a commit until it is on the tool's disk, alone and beside a load of WAL."""
    alone = _lag(bench, tool, _PATIENCE_SECONDS)
    with load(bench, _LOADED_SECONDS) as rate:
        loaded = _lag(bench, tool, _PATIENCE_SECONDS)
    return f"alone {alone}; beside {rate():.0f} MB/s of WAL {loaded}"


def _lag(bench: Bench, tool: Tool, patience: float) -> str:
    waits: list[float] = []
    commits: list[float] = []
    began = time.monotonic()
    with bench.server.connect("portal") as writer, bench.server.connect() as looker:
        while len(waits) < _COMMITS and time.monotonic() - began < _LOADED_SECONDS:
            started = time.monotonic()
            writer.execute("INSERT INTO load VALUES ('x')")
            committed = time.monotonic()
            (lsn,) = writer.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone() or ("0/0",)
            while tool.received(looker) < parse_lsn(lsn):
                if time.monotonic() - committed > patience:
                    return f"not within {patience:.0f} s"
                time.sleep(0.0005)
            waits.append((time.monotonic() - committed) * 1000)
            commits.append((committed - started) * 1000)
            time.sleep(0.005)
    return (
        f"median {median(waits):.1f} ms, at the most {max(waits):.0f} ms, of {len(waits)} "
        f"(the commit itself {median(commits):.1f} ms)"
    )


def _throughputs(bench: Bench, tools: Sequence[Tool | None], seconds: float) -> None:
    """Transactions a second of pgbench beside each tool and beside none, in turns."""
    bench.program("pgbench", "--initialize", "--quiet", "--scale=10", "portal")
    rates: dict[str, list[float]] = {tool.name if tool else "none": [] for tool in tools}
    for _ in range(_ROUNDS):
        for tool in tools:
            bench.server.restart()  # one of them needs that, so that all start with empty buffers
            with tool.receiving() if tool else nullcontext():
                if tool:
                    tool.wait_until_level()
                rates[tool.name if tool else "none"].append(throughput(bench, seconds))
    without = median(rates.pop("none"))
    for name, found in rates.items():
        tell(
            f"  pgbench beside {name}: {median(found) / without:.2f} of without, {median(found):.0f} against "
            f"{without:.0f} transactions/s"
        )
