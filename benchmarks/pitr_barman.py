"""Barman, streaming: pg_receivewal with a slot, and base backups by pg_basebackup."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import textwrap
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from benchmarks.pitr_bench import confirmed
from benchmarks.pitr_tools import SEGMENT_BYTES, Place, Tool
from portal.ops.pitr.lsn import parse_segment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import psycopg

_SLOT: Final = "barman"
_SERVER: Final = "main"
_APPLICATION: Final = "barman_receive_wal"
_START_SECONDS: Final = 30.0
_STREAMING: Final = "SELECT sync_state FROM pg_stat_replication WHERE application_name = %s"

_CONFIGURATION: Final = """\
    [barman]
    barman_user = {user}
    barman_home = {home}
    log_file = {home}/barman.log
    configuration_files_directory = {included}
    path_prefix = {programs}
    [main]
    description = the benchmark's server
    conninfo = {where} dbname=postgres
    streaming_conninfo = {where}
    backup_method = postgres
    backup_compression = gzip
    backup_compression_level = 1
    immediate_checkpoint = true
    streaming_archiver = on
    slot_name = barman
    compression = gzip
    recovery_staging_path = {staging}
    """


class Barman(Tool):
    """Barman as its manual sets streaming up."""

    about = (
        "streamed WAL is synced when its segment of 16 MB is full; no digests of WAL; a base backup has the server's "
        "manifest, which a command of its own checks"
    )

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._home = place.path / "barman"
        self._reached = 0
        self.name = f"Barman {place.run('barman', '--version').split()[0]}"

    def prepare(self) -> None:
        """Write its configuration, and create its slot."""
        text = textwrap.dedent(_CONFIGURATION).format(
            user=pwd.getpwuid(self.place.owner[0] if self.place.owner else os.getuid()).pw_name,
            home=self.place.directory("barman"),
            included=self.place.directory("barman.d"),
            staging=self.place.directory("staging"),
            programs=self.server.reachable_bin_dir,
            where=f"host=127.0.0.1 port={self.server.port} user=postgres",
        )
        self.place.write("barman.conf", text)
        self._run("receive-wal", "--create-slot", _SERVER)

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """`barman receive-wal`, which starts pg_receivewal."""
        command = self.place.command("barman", "-c", self.place.path / "barman.conf", "receive-wal", _SERVER)
        with (self.place.path / "receive-wal.log").open("ab") as output:
            process = subprocess.Popen(
                command,
                env=self.place.environ,
                cwd=self.place.path,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            self._wait_until_streaming("async")
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            process.wait()

    def received(self, connection: psycopg.Connection) -> int:  # noqa: ARG002  (the server is told every 10 s)
        """The end of the last segment that pg_receivewal has synced, which it then gives its final name."""
        for name in os.listdir(self._home / _SERVER / "streaming"):
            if segment := parse_segment(name, SEGMENT_BYTES):
                self._reached = max(self._reached, (segment.number + 1) * SEGMENT_BYTES)
        return self._reached

    def base(self) -> int:
        """`barman backup`; its wait for the WAL is not measured."""
        self._run("backup", _SERVER)
        newest = max(path for path in (self._home / _SERVER / "base").iterdir() if path.is_dir())
        return sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())

    def wait_until_level(self) -> None:
        """And its daily work: what was streamed goes into the archive, which a backup asks for.

        It leaves the last segment alone until the next one has begun.
        """
        super().wait_until_level()
        with self.server.connect() as connection:
            connection.execute("SELECT pg_logical_emit_message(true, 'barman', 'begin the next segment')")
        deadline = time.monotonic() + _START_SECONDS
        while not list((self._home / _SERVER / "streaming").glob("*.partial")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} does not begin the next segment")
            time.sleep(0.05)
        self._run("archive-wal", _SERVER)

    def before_recovery(self) -> None:
        """Its daily work: look whether a backup has its WAL."""
        self._run("check-backup", _SERVER, "latest")

    def recover(self, moment: str, data: Path) -> None:
        """`barman recover`."""
        self._run("recover", "--target-time", moment, "--target-action", "promote", _SERVER, "latest", data)

    def _run(self, *arguments: str | Path) -> str:
        return self.place.run("barman", "-c", self.place.path / "barman.conf", *arguments)

    def _wait_until_streaming(self, state: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        with self.server.connect() as connection:
            while connection.execute(_STREAMING, [_APPLICATION]).fetchone() != (state,):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.name} does not receive WAL; see {self.place.path}/receive-wal.log")
                time.sleep(0.05)


class SynchronousBarman(Barman):
    """The same Barman as a synchronous standby: a commit returns when it is on Barman's disk."""

    about = "the same, but the server has each commit wait until Barman has synced it"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.name += ", synchronous"

    def received(self, connection: psycopg.Connection) -> int:
        """What its slot confirms, at once."""
        return confirmed(connection, _SLOT)

    def prepare(self) -> None:
        """It is prepared."""

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Have the server wait for it; barman asks the server whether to be synchronous when it starts."""
        self.set("synchronous_standby_names", _APPLICATION)
        try:
            with super().receiving():
                yield
        finally:
            self.set("synchronous_standby_names", "")

    def _wait_until_streaming(self, state: str) -> None:  # noqa: ARG002  (the state is another one)
        super()._wait_until_streaming("sync")
