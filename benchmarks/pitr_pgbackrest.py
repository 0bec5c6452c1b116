"""pgBackRest: the server hands it whole segments, and it copies the data directory."""

from __future__ import annotations

import shutil
import textwrap
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from benchmarks.pitr_tools import SEGMENT_BYTES, Place, Tool
from portal.ops.pitr.lsn import parse_segment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import psycopg

_ARCHIVED: Final = "SELECT last_archived_wal FROM pg_stat_archiver"

_CONFIGURATION: Final = """\
    [global]
    repo1-path={repository}
    repo1-retention-full=9
    log-path={log}
    lock-path={lock}
    spool-path={spool}
    log-level-console=warn
    log-level-file=off
    archive-async=y
    compress-type=zst
    compress-level=1
    process-max=2
    start-fast=y
    [main]
    pg1-path={data}
    pg1-port={port}
    pg1-socket-path={socket}
    pg1-user=postgres
    """


class PgBackRest(Tool):
    """pgBackRest, asynchronous, with its quickest compression and a process for each core."""

    about = (
        "WAL is copied and synced when its segment of 16 MB is full; SHA-1 of each segment and file, checked by a "
        "restore; page checksums are checked by a backup, where the cluster has them"
    )

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._reached = 0
        self.name = place.run("pgbackrest", "version").strip()

    def prepare(self) -> None:
        """Write its configuration, and create its repository."""
        text = textwrap.dedent(_CONFIGURATION).format(
            repository=self.place.directory("pgbackrest"),
            log=self.place.directory("log"),
            lock=self.place.directory("lock"),
            spool=self.place.directory("spool"),
            data=self.server.directory / "data",
            port=self.server.port,
            socket=self.server.directory,
        )
        self.place.write("pgbackrest.conf", text)
        self._run("stanza-create")

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Have the server hand its segments over. Only meanwhile does it archive: others' base backups would wait."""
        command = f"{shutil.which('pgbackrest')} --config={self.place.path}/pgbackrest.conf --stanza=main"
        self.set("archive_command", f"{command} archive-push %p")
        self.set("archive_mode", "on")
        self.server.restart()
        try:
            yield
        finally:
            self.set("archive_mode", "off")
            self.server.restart()

    def received(self, connection: psycopg.Connection) -> int:
        """The end of the last segment that it has taken: the server is told so when that is synced."""
        (name,) = connection.execute(_ARCHIVED).fetchone() or (None,)
        if name and (segment := parse_segment(name, SEGMENT_BYTES)):
            self._reached = (segment.number + 1) * SEGMENT_BYTES
        return self._reached

    def base(self) -> int:
        """A full backup, which ends when its WAL was archived."""
        self._run("--type=full", "backup")
        newest = max((self.place.path / "pgbackrest/backup/main").glob("*F"))
        return sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())

    def recover(self, moment: str, data: Path) -> None:
        """`pgbackrest restore`."""
        self._run(f"--pg1-path={data}", "--type=time", f"--target={moment}", "--target-action=promote", "restore")

    def _run(self, *arguments: str) -> str:
        return self.place.run("pgbackrest", f"--config={self.place.path}/pgbackrest.conf", "--stanza=main", *arguments)
