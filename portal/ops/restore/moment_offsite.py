"""Fetches from off-site what a restore to a moment needs and the repository lacks.

look      check whether the repository is sufficient
wal       fetch all missing WAL
base      fetch the newest base backup that is old enough, with its parents
uploads   fetch the newest archive of uploads that is old enough, and the next one
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Final

from portal.ops.errors import BusyError, NotIntactError, OpsError, RepositoryAbsentError
from portal.ops.model import BackupType
from portal.ops.offsite.config import OffsiteConfig
from portal.ops.offsite.fetch import FetchJob
from portal.ops.offsite.listing import list_copies
from portal.ops.offsite.signing import Trust
from portal.ops.pitr.moment import parse_moment
from portal.ops.pitr.plan import OutsideWindowError, clock_offset
from portal.ops.pitr.wal_archive import WalArchive
from portal.ops.pitr.wal_fetch import fetch_wal
from portal.ops.repository.repository import Repository
from portal.ops.restore.config import RestoreConfig, RestoreScope
from portal.ops.restore.moment import choose_moment
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import utc_now
from portal.ops.storage.objects import identities_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from portal.ops.offsite.commit import Commit
    from portal.ops.repository.access_log import Observer
    from portal.ops.runtime.progress import Clock, Progress
    from portal.ops.settings.destination import Destination
    from portal.ops.settings.load import Settings
    from portal.ops.storage.backend import Backend

log = engine_log("portal.ops.restore.moment_offsite")

_TRIED: Final = 3
"""How many base backups to try: the newest may have been completed only after the moment."""

_HOLDING_UPLOADS: Final = (BackupType.FULL, BackupType.MEDIA)


def moment_at_hand(
    settings: Settings,
    text: str,
    scope: RestoreScope,
    *,
    media_dir: str | None = None,
    progress: Progress | None = None,
    actor: str | None = None,
    observer: Observer | None = None,
    clock: Clock = utc_now,
) -> tuple[str, ...]:
    """Fetch what the repository lacks for a moment, as far as there are copies; return what was fetched.

    If the copies are not sufficient either, nothing is raised: planning the restore then reports what is missing.

    Arguments:
        text: the moment as given by a person.
        media_dir: the target of the uploads, if it is not that of the settings.

    Raises:
        ConfigurationError: the text is no moment.
        IdentityError: the copies are encrypted, and no identity fits.
        NotIntactError: a copy is damaged.
        StorageError: no store could be reached.
    """
    config = RestoreConfig.from_settings(settings, **({"media_path": media_dir} if media_dir else {}))
    repository = Repository(settings.local_path, lock_timeout=settings.lock_timeout)
    destinations = settings.offsite.destinations()
    now = clock()

    def is_here(part: RestoreScope) -> bool:
        try:
            choose_moment(repository, config, part, text, now)
        except (OutsideWindowError, RepositoryAbsentError):
            return False
        return True

    if is_here(scope) or not destinations:
        return ()
    repository.prepare_for_restore()
    fetcher = FetchJob(OffsiteConfig.from_settings(settings), progress=progress, actor=actor, observer=observer)
    ahead = clock_offset(WalArchive.current(repository))
    moment = (parse_moment(text, now + ahead, config.time_zone) or now.astimezone(UTC) + ahead) - ahead
    parts = (RestoreScope.DATABASE, RestoreScope.MEDIA) if scope is RestoreScope.FULL else (scope,)
    if scope is RestoreScope.FULL and config.media_path is None:
        parts = (RestoreScope.DATABASE,)
    bringers = [
        _Bringer(settings=settings, repository=repository, fetcher=fetcher, destination=one) for one in destinations
    ]
    return _brought(bringers, moment, parts, is_here)


def _brought(
    bringers: list[_Bringer],
    moment: datetime,
    parts: tuple[RestoreScope, ...],
    is_here: Callable[[RestoreScope], bool],
) -> tuple[str, ...]:
    """Try one destination after the other until nothing is missing; return what was fetched.

    Raises:
        OpsError: something is still missing; this is the first error that occurred.
    """
    fetched: list[str] = []
    faults: list[OpsError] = []
    for bringer in bringers:
        try:
            lacking = [part for part in parts if not is_here(part)]
            fetched.extend(bringer.bring(moment, lacking, is_here, faults))
        except OpsError as error:
            faults.append(error)
            log.warning("moment_not_fetched", destination=bringer.destination.shown, error=error.message)
            continue
        if all(map(is_here, parts)):
            return tuple(fetched)
    if faults:
        raise faults[0]
    return tuple(fetched)


@dataclass(frozen=True, kw_only=True)
class _Bringer:
    """Fetches from one destination."""

    settings: Settings
    repository: Repository
    fetcher: FetchJob
    destination: Destination

    def bring(
        self,
        moment: datetime,
        parts: Sequence[RestoreScope],
        is_here: Callable[[RestoreScope], bool],
        faults: list[OpsError],
    ) -> Iterator[str]:
        """Fetch one piece after the other until nothing is missing; yield each piece.

        Arguments:
            parts: what is missing.
            faults: receives errors of pieces that another piece may replace.
        """
        config = OffsiteConfig.from_settings(self.settings)
        backend = config.open(self.destination)
        try:
            listing = list_copies(backend, trust=Trust.of(config, self.destination))
            if RestoreScope.DATABASE in parts and self._brought_wal(backend, faults):
                yield "WAL"
        finally:
            backend.close()
        commits = sorted(listing.newest().values(), key=lambda commit: commit.moment, reverse=True)
        for part in parts:
            choose = _bases if part is RestoreScope.DATABASE else _uploads
            for names in choose(commits, moment):
                if is_here(part):
                    break
                for name in names:
                    try:
                        yield from self.fetcher.run(name).fetched
                    except NotIntactError as error:  # an older one may be intact
                        faults.append(error)
                        log.warning("moment_not_fetched", archive=name, error=error.message)

    def _brought_wal(self, backend: Backend, faults: list[OpsError]) -> bool:
        """Fetch missing WAL; return whether there was any. While the WAL service runs, its own WAL is not replaced."""
        try:
            return fetch_wal(self.repository, backend, identities_of(self.settings.offsite)) > 0
        except BusyError as error:
            fault = BusyError(
                f"no WAL is fetched from {backend.shown} while the WAL service runs: {error.message}",
                hint="Stop the WAL service and start this again, or name a moment inside the recovery window.",
            )
            faults.append(fault)
            log.warning("wal_not_fetched", error=fault.message)
            return False
        except NotIntactError as error:  # unneeded pieces may be damaged
            faults.append(error)
            return True


def _bases(commits: Sequence[Commit], moment: datetime) -> list[list[str]]:
    """Base backups to try, newest first."""
    bases = [one.backup_id for one in commits if one.type == BackupType.BASE.value and one.moment <= moment]
    return [[name] for name in bases[:_TRIED]]


def _uploads(commits: Sequence[Commit], moment: datetime) -> list[list[str]]:
    """Archives of uploads to try: the newest that is old enough with the next one begun after it, then older ones."""
    held = [one for one in commits if one.type in _HOLDING_UPLOADS]
    before = [one for one in held if one.moment <= moment]
    after = [one for one in held if moment < one.moment <= moment + timedelta(days=1)]
    return [
        [*(one.backup_id for one in before[:1]), *(one.backup_id for one in after[-1:])],
        *([one.backup_id] for one in before[1:_TRIED]),
    ]
