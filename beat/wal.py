"""`python -m beat.wal`: receives WAL, and requests a base backup if there is none for it.

The main thread receives, since pg_receivewal ends with the thread that started it. Another thread writes heartbeats,
and requests a base backup if arriving WAL has none: at the first start, and after a gap.
"""

from __future__ import annotations

import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from beat.base_keeper import BaseKeeper
from beat.heartbeat import WAL_NAME, Heartbeat
from beat.service import run_service
from portal.ops.errors import ConfigurationError, OpsError
from portal.ops.monitoring.observer import Observers
from portal.ops.pitr.wal_archive import WalArchive
from portal.ops.repository.repository import Repository
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.process import SystemRunner
from portal.ops.runtime.progress import utc_now

if TYPE_CHECKING:
    from portal.ops.offsite.ledger import Ledger
    from portal.ops.settings.load import Settings

log = engine_log("beat.wal")

_LOOK_SECONDS: Final = 5.0


def serve(settings: Settings) -> NoReturn:
    """Run until the process ends."""
    from portal.ops.pitr.receiver import WalReceiver  # imported late: loads the database driver

    if not settings.pitr.wal:
        raise ConfigurationError(
            "BACKUP_WAL is off, so there is no WAL to receive", hint="Set BACKUP_WAL=on; the doctor checks the rest."
        )
    repository = Repository(settings.local_path, lock_timeout=settings.lock_timeout)
    repository.prepare()
    observer = Observers(settings)
    receiver = WalReceiver(
        repository,
        settings.replication,
        runner=SystemRunner(),
        bin_dir=settings.pg_bin_dir,
        on_gap=lambda _: observer.refresh(),
    )
    attend = _Attendant(settings, repository)
    threading.Thread(target=attend.run, name="attendant", daemon=True).start()
    _copy_offsite(settings, repository)
    receiver.run(threading.Event())
    sys.exit(0)


def _copy_offsite(settings: Settings, repository: Repository) -> None:
    """Copy WAL to each destination, each in a thread."""
    from portal.ops.offsite.ledger import Ledger
    from portal.ops.offsite.signing import find_key
    from portal.ops.pitr.offsite_wal import WalCopier
    from portal.ops.storage.objects import ObjectWriter

    for destination in settings.offsite.destinations():
        copier = WalCopier(
            repository,
            partial(ObjectWriter.of, settings, destination),
            shown=destination.shown,
            tell=partial(_note_copying, Ledger(repository, destination)),
            find_key=partial(find_key, repository),
        )
        threading.Thread(target=copier.run, args=(threading.Event(),), name="wal-copy", daemon=True).start()


def _note_copying(ledger: Ledger, problem: str) -> None:
    ledger.note_wal(utc_now(), problem)


class _Attendant:
    """Writes heartbeats, and keeps base backups being made."""

    def __init__(self, settings: Settings, repository: Repository) -> None:
        self._settings = settings
        self._repository = repository
        self._keeper = BaseKeeper(repository, self._ask_for_base)
        self._heartbeat = Heartbeat(settings.local_path / WAL_NAME)
        self._observer = Observers(settings)

    def run(self) -> NoReturn:
        """Run until the process ends."""
        while True:
            try:
                archive = WalArchive.current(self._repository)
                state = archive.state() if archive else {}
                problem = str(state.get("problem") or "")
                self._heartbeat.beat(utc_now(), ready=not problem, waits_for=problem)
                if archive:
                    self._keeper.check(archive, state)
                self._observer.refresh()  # at most once a minute, to check the targets of WAL and its copies
            except (OpsError, OSError) as error:
                log.error("base_check_failed", error=str(error))
            time.sleep(_LOOK_SECONDS)

    def _ask_for_base(self) -> None:
        """Let a worker do it if there is a broker; otherwise do it here, while WAL is still being received."""
        if self._settings.worker.broker_url is None:
            threading.Thread(target=self._make_base, name="base-backup", daemon=True).start()
            return
        from beat.task_queue import QueuedWorkers
        from worker.operations import BACKUP_BASE, Requester

        moment = utc_now().replace(microsecond=0)
        task_id = f"wal-{moment:%Y-%m-%dT%H:%M:%SZ}"
        QueuedWorkers(self._settings, Requester.WAL).submit(
            BACKUP_BASE, {"actor": "wal", "moment": moment.isoformat()}, task_id
        )

    def _make_base(self) -> None:
        """Make a base backup, and copy it off-site: without a worker whoever makes an archive does both."""
        from portal.ops.backup.aftercare import copy_after_backup
        from portal.ops.backup.config import BackupConfig
        from portal.ops.backup.job import BackupJob

        job = BackupJob(BackupConfig.from_settings(self._settings), actor="wal", observer=self._observer)
        if job.backup_base().success:
            copy_after_backup(self._settings, actor="wal", observer=self._observer)


if __name__ == "__main__":
    sys.exit(run_service("wal", "Receive the database server's WAL, for recovery to any second.", WAL_NAME, serve))
