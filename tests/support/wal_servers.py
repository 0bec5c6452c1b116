"""A PostgreSQL server whose WAL can be received, and a WAL service beside it."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from demo.postgres import EmbeddedPostgres
from portal.ops.backup.config import BackupConfig
from portal.ops.backup.job import BackupJob
from portal.ops.pitr.look import PitrLook, look
from portal.ops.pitr.receiver import WalReceiver
from portal.ops.repository.repository import Repository
from portal.ops.restore.config import RestoreConfig
from portal.ops.runtime.process import SystemRunner
from portal.ops.settings.load import DatabaseTarget, Secret
from tests.support.majors import bin_dir_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS: Final = {
    "wal_level": "replica",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "max_slot_wal_keep_size": "256MB",
    "synchronous_commit": "on",  # what is committed is in the WAL by the next look, however soon that is
}


WATCH_SECONDS: Final = 0.1
"""So often the WAL service in a thread looks at the server: what it covers is known so much earlier."""


class _Template(NamedTuple):
    """A cluster that no server has run on.

    Arguments:
        keeper: removes it with this process.
    """

    data: Path
    password: str
    keeper: tempfile.TemporaryDirectory[str]


class CopiedPostgres(EmbeddedPostgres):
    """A server on a copy of a cluster that initdb has made once for this process: all have one system identifier."""

    _templates: Final[dict[tuple[Path, int | None], _Template]] = {}

    def _initialise(self, initdb: Path) -> None:
        key = (self.bin_dir, self._segment_mb)
        if key not in self._templates:
            super()._initialise(initdb)
            keeper = tempfile.TemporaryDirectory(prefix="kekkai-template-")
            kept = Path(keeper.name) / "data"
            _copy(self._data, kept)
            self._templates[key] = _Template(kept, self._password, keeper)
            return
        template = self._templates[key]
        self._password = template.password
        _copy(template.data, self._data)


def _copy(source: Path, destination: Path) -> None:
    """Copy a tree with its owners."""
    shutil.copytree(source, destination)
    if os.geteuid() == 0:
        owner = source.stat()
        for path in (destination, *destination.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)


@dataclass(kw_only=True)
class WalPortal:
    """A server, a repository, and what was told of the WAL service.

    Arguments:
        bin_dir: programs of the server's version, which the user of a scratch server may run.
    """

    postgres: EmbeddedPostgres
    repository: Repository
    bin_dir: Path
    gaps: list[str] = field(default_factory=list)

    @property
    def target(self) -> DatabaseTarget:
        """The database, as the superuser."""
        address = self.postgres.superuser()
        return DatabaseTarget(
            host=address.host,
            port=address.port,
            name=address.database,
            user=address.user,
            password=Secret(address.password),
        )

    def job(self) -> BackupJob:
        """What makes backups."""
        target = self.target
        config = BackupConfig(
            local_path=self.repository.path,
            db_host=target.host,
            db_port=target.port,
            db_name=target.name,
            db_user=target.user,
            db_password=target.password,
            pg_bin_dir=self.bin_dir,
            wal=True,
        )
        return BackupJob(config)

    def restore_config(self, database: str = "postgres", **others: Any) -> RestoreConfig:
        """What restores to a database of the server."""
        target = self.target
        return RestoreConfig(
            local_path=self.repository.path,
            db_host=target.host,
            db_port=target.port,
            db_name=database,
            db_user=target.user,
            db_password=target.password,
            pg_bin_dir=self.bin_dir,
            **others,
        )

    def write(self, *statements: str, database: str = "postgres") -> datetime:
        """Run statements, one transaction each; a moment after them."""
        with self.postgres.connect(database) as connection:
            for statement in statements:
                connection.execute(statement)
        return a_moment()

    @contextmanager
    def receiving(self) -> Iterator[WalReceiver]:
        """A WAL service in a thread."""
        stop = threading.Event()
        receiver = WalReceiver(
            self.repository,
            self.target,
            runner=SystemRunner(),
            bin_dir=self.bin_dir,
            on_gap=self.gaps.append,
            watch_seconds=WATCH_SECONDS,
        )
        thread = threading.Thread(target=receiver.run, args=(stop,))
        thread.start()
        try:
            yield receiver
        finally:
            stop.set()
            thread.join()

    def look(self) -> PitrLook:
        """What there is to recover to."""
        return look(self.repository)

    def wait_until_covered(self, moment: datetime | None = None) -> datetime:
        """Wait until the window reaches a moment, by default this one; the moment."""
        wanted = moment or datetime.now(UTC)

        def is_covered() -> bool:
            window = self.look().window
            return window is not None and window.end >= wanted

        wait_until(is_covered)
        return wanted


@contextmanager
def wal_portal(directory: Path, *, major: int = 17, segment_mb: int | None = 1, **settings: str) -> Iterator[WalPortal]:
    """A server whose WAL can be received, and a repository.

    Arguments:
        segment_mb: small segments are quickly completed; nothing means PostgreSQL's own 16 MB.
    """
    with CopiedPostgres(
        unsafe_speed=True, settings=SETTINGS | settings, bin_dir=bin_dir_of(major), segment_mb=segment_mb
    ) as postgres:
        yield WalPortal(
            postgres=postgres, repository=Repository(directory / "repository"), bin_dir=postgres.reachable_bin_dir
        )


def a_moment() -> datetime:
    """This moment, with some milliseconds on both sides in which nothing is committed."""
    time.sleep(0.05)
    moment = datetime.now(UTC)
    time.sleep(0.05)
    return moment
