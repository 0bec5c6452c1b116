"""Fetches from off-site what a restore to a moment needs and the repository lacks.

look      check whether the repository is sufficient
wal       fetch all missing WAL, from every destination
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
from portal.ops.offsite.signing import Trust, trusted_signers
from portal.ops.pitr.moment import parse_moment
from portal.ops.pitr.plan import OutsideWindowError, clock_offset
from portal.ops.pitr.wal_archive import WalArchive
from portal.ops.pitr.wal_sources import fetch_from_all
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.repository import Repository
from portal.ops.restore.config import RestoreConfig, RestoreScope
from portal.ops.restore.moment import choose_moment
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import utc_now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from portal.ops.offsite.commit import Commit
    from portal.ops.repository.access_log import Observer
    from portal.ops.runtime.progress import Clock, Progress
    from portal.ops.settings.destination import Destination
    from portal.ops.settings.load import Settings

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
        BusyError: there is a base backup for the moment and not its WAL, which is not fetched while the service runs.
        IdentityError: the copies are encrypted, and no identity fits.
        NotIntactError: a copy is damaged.
        StorageError: no store could be reached.
    """
    config = RestoreConfig.from_settings(settings, **({"media_path": media_dir} if media_dir else {}))
    repository = Repository(settings.local_path, lock_timeout=settings.lock_timeout)
    destinations, now = settings.offsite.destinations(), clock()

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
    moment = _by_our_clock(text, now, clock_offset(WalArchive.current(repository)), config)
    parts = _parts(scope, config)
    faults: list[OpsError] = []
    lacks_database = RestoreScope.DATABASE in parts and not is_here(RestoreScope.DATABASE)
    wal = ["WAL"] if lacks_database and _brought_wal(repository, settings, faults) else []
    bringers = [_Bringer(settings=settings, fetcher=fetcher, destination=one) for one in destinations]
    brought = _brought(bringers, moment, parts, is_here, wal, faults)
    _raise_first([] if all(map(is_here, parts)) else faults, repository, moment)
    return brought


def _parts(scope: RestoreScope, config: RestoreConfig) -> tuple[RestoreScope, ...]:
    """What is restored, one by one; uploads only if there is a place for them."""
    both = (RestoreScope.DATABASE, *((RestoreScope.MEDIA,) if config.media_path is not None else ()))
    return both if scope is RestoreScope.FULL else (scope,)


def _by_our_clock(text: str, now: datetime, ahead: timedelta, config: RestoreConfig) -> datetime:
    """The moment that a person names by the server's clock, which is `ahead` of ours."""
    return (parse_moment(text, now + ahead, config.time_zone) or now.astimezone(UTC) + ahead) - ahead


def _brought_wal(repository: Repository, settings: Settings, faults: list[OpsError]) -> bool:
    """True if there is WAL that was not here; while the WAL service runs, its own WAL stays as it is.

    Arguments:
        faults: told of what could not be used.
    """
    try:
        found = fetch_from_all(repository, settings, trusted_signers(repository, settings.offsite.signers))
    except BusyError as error:
        fault = _ServiceRunsError(
            f"no WAL is fetched from off-site while the WAL service runs: {error.message}",
            hint="Stop the WAL service and start this again, or name a moment inside the recovery window.",
        )
        faults.append(fault)
        log.warning("wal_not_fetched", error=fault.message)
        return False
    faults += found.faults
    return found.count > 0


def _brought(
    bringers: Sequence[_Bringer],
    moment: datetime,
    parts: tuple[RestoreScope, ...],
    is_here: Callable[[RestoreScope], bool],
    fetched: list[str],
    faults: list[OpsError],
) -> tuple[str, ...]:
    """Try one destination after the other until a part is here; return what was fetched.

    Uploads, which may be large, are not fetched for a database that cannot be recovered.

    Arguments:
        fetched: what was fetched before; likewise the `faults`.
    """
    for part in parts:
        for bringer in bringers:
            if is_here(part):
                break
            try:
                fetched.extend(bringer.bring(moment, part, is_here, faults))
            except OpsError as error:
                faults.append(error)
                log.warning("moment_not_fetched", destination=bringer.destination.shown, error=error.message)
        if not is_here(part):
            break
    return tuple(fetched)


def _raise_first(faults: Sequence[OpsError], repository: Repository, moment: datetime) -> None:
    """Raise the first fault without which the moment could be reached: no WAL leads to one before every base backup."""
    entries = Catalogue(repository).entries()
    has_base = any(entry.type is BackupType.BASE and entry.read_at <= moment for entry in entries)
    for fault in faults:
        if has_base or not isinstance(fault, _ServiceRunsError):
            raise fault


class _ServiceRunsError(BusyError):
    """The WAL service runs, so no WAL is fetched."""


@dataclass(frozen=True, kw_only=True)
class _Bringer:
    """Fetches from one destination."""

    settings: Settings
    fetcher: FetchJob
    destination: Destination

    def bring(
        self,
        moment: datetime,
        part: RestoreScope,
        is_here: Callable[[RestoreScope], bool],
        faults: list[OpsError],
    ) -> Iterator[str]:
        """Fetch one piece after the other until nothing is missing; yield each piece.

        Arguments:
            part: what is missing.
            faults: receives errors of pieces that another piece may replace.
        """
        config = OffsiteConfig.from_settings(self.settings)
        backend = config.open(self.destination)
        try:
            listing = list_copies(backend, trust=Trust.of(config, self.destination))
        finally:
            backend.close()
        commits = sorted(listing.newest().values(), key=lambda commit: commit.moment, reverse=True)
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
