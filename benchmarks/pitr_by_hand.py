"""A recovery by hand with PostgreSQL's own programs: unpack, replay, dump and restore."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from portal.ops.pitr.lsn import PARTIAL
from portal.ops.pitr.scratch import server_owner
from portal.ops.runtime.process import launch_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from portal.ops.pitr.wal_archive import WalArchive


def plain_wal(archive: WalArchive, directory: Path) -> None:
    """Write all WAL to a directory as pg_receivewal would have left it; not measured."""
    directory.mkdir()
    directory.chmod(0o755)
    for name in archive.files():
        stored = archive.stored(name)
        with gzip.open(stored) if stored.suffix == ".gz" else stored.open("rb") as source:
            (directory / name.removesuffix(PARTIAL)).write_bytes(source.read())
    for path in (*archive.completed(), *archive.partials()):
        shutil.copyfile(path, directory / path.name.removesuffix(PARTIAL))
    for path in directory.iterdir():
        path.chmod(0o644)


def recover_by_hand(bin_dir: Path, base: Path, wal: Path, *, into: Sequence[str], database: str) -> dict[str, float]:
    """Recover to the end of the WAL, and load a database into another server; return the seconds of each step.

    Arguments:
        base: a base backup by `pg_basebackup -Ft -z`.
        wal: its WAL, as plain files.
        into: the options of pg_restore for the new database.
    """
    seconds: dict[str, float] = {}
    owner = server_owner()
    with tempfile.TemporaryDirectory(prefix="by-hand-", dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        data = directory / "data"
        data.mkdir(mode=0o700)
        started = time.monotonic()
        subprocess.run(["/bin/tar", "-xzf", base, "-C", data], check=True)
        (data / "recovery.signal").touch()
        if owner:
            subprocess.run(["/bin/chown", "-R", f"{owner.uid}:{owner.gid}", directory], check=True)
        seconds["unpack"] = time.monotonic() - started
        started = time.monotonic()
        with _server(bin_dir, data, directory, wal) as connection:
            while connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
                time.sleep(0.02)
            seconds["replay"] = time.monotonic() - started
            started = time.monotonic()
            dump = directory / "portal.dump"
            where = [f"--host={directory}", "--username=postgres", "--no-password"]
            into_file = ["--format=custom", "--compress=0", f"--file={dump}"]
            subprocess.run([bin_dir / "pg_dump", *where, *into_file, database], check=True)
            seconds["dump"] = time.monotonic() - started
        started = time.monotonic()
        subprocess.run([bin_dir / "pg_restore", "--jobs=2", *into, dump], check=True, capture_output=True)
        seconds["restore"] = time.monotonic() - started
    return seconds


@contextmanager
def _server(bin_dir: Path, data: Path, directory: Path, wal: Path) -> Iterator[psycopg.Connection]:
    """A server that replays the WAL with the settings of a person in a hurry."""
    owner = server_owner()
    (directory / "hba.conf").write_text("local all all trust\n")
    (directory / "hba.conf").chmod(0o644)
    options = {
        "restore_command": f"cp {wal}/%f %p",
        "hba_file": str(directory / "hba.conf"),
        "listen_addresses": "",
        "unix_socket_directories": str(directory),
        "max_connections": "100",
        "max_wal_senders": "10",
        "fsync": "off",
        "full_page_writes": "off",
        "max_wal_size": "2GB",
        "shared_buffers": "128MB",
        "shared_preload_libraries": "",
    }
    command = [str(bin_dir / "postgres"), "-D", str(data), *(f"--{name}={value}" for name, value in options.items())]
    with (directory.parent / f"{directory.name}.log").open("wb") as output:
        process = subprocess.Popen(
            launch_command(command, owner=(owner.uid, owner.gid) if owner else None),
            stdout=output,
            stderr=output,
            env={"PATH": os.defpath, "LC_ALL": "C"},
        )
    try:
        with _connected(directory, process) as connection:
            yield connection
    finally:
        process.send_signal(signal.SIGINT)  # a fast shutdown: SIGTERM would wait for every session
        process.wait()
        Path(output.name).unlink()


def _connected(directory: Path, process: subprocess.Popen[bytes]) -> psycopg.Connection:
    while True:
        try:
            return psycopg.connect(host=str(directory), user="postgres", dbname="postgres", autocommit=True)
        except psycopg.OperationalError:
            if process.poll() is not None:
                raise
            time.sleep(0.02)
