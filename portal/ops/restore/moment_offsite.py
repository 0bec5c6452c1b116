"""Brings what leads to a moment back from off-site, where the repository does not have it.

look      whether the repository leads to the moment by itself
wal       all WAL that is not here
base      the newest base backup that is old enough, with all that it follows
uploads   the newest archive of uploads that is old enough, and the one after it
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Final

from portal.ops.errors import OpsError, RepositoryAbsentError
from portal.ops.model import BackupType
from portal.ops.offsite.config import OffsiteConfig
from portal.ops.offsite.fetch import FetchJob
from portal.ops.offsite.listing import list_copies
from portal.ops.pitr.moment import parse_moment
from portal.ops.pitr.offsite_wal import fetch_wal
from portal.ops.pitr.plan import OutsideWindowError
from portal.ops.repository.repository import Repository
from portal.ops.restore.config import RestoreConfig, RestoreScope
from portal.ops.restore.moment import choose_moment
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import utc_now
from portal.ops.storage.objects import identities_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from portal.ops.offsite.commit import Commit
    from portal.ops.repository.access_log import Observer
    from portal.ops.runtime.progress import Clock, Progress
    from portal.ops.settings.destination import Destination
    from portal.ops.settings.load import Settings

log = engine_log("portal.ops.restore.moment_offsite")

_TRIED: Final = 3
"""So many base backups are tried: the newest may have been complete only after the moment."""

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
    """Make sure that the repository has what leads to a moment, as far as there are copies; what was fetched.

    Where the copies do not lead there either, nothing is raised: whoever plans the restore says what is missing.

    Arguments:
        text: the moment as a person wrote it.
        media_dir: where the uploads will go, if not where the settings say.

    Raises:
        ConfigurationError: it is no moment.
        IdentityError: the copies are encrypted, and no identity fits.
        NotIntactError: a copy is damaged.
        StorageError: no store could be asked.
    """
    config = RestoreConfig.from_settings(settings, **({"media_path": media_dir} if media_dir else {}))
    repository = Repository(settings.local_path, lock_timeout=settings.lock_timeout)
    destinations = settings.offsite.destinations()
    now = clock()

    def is_here() -> bool:
        try:
            choose_moment(repository, config, scope, text, now)
        except (OutsideWindowError, RepositoryAbsentError):
            return False
        return True

    if is_here() or not destinations:
        return ()
    repository.prepare_for_restore()
    fetcher = FetchJob(OffsiteConfig.from_settings(settings), progress=progress, actor=actor, observer=observer)
    moment = parse_moment(text, now, config.time_zone) or now.astimezone(UTC)
    bringers = [
        _Bringer(settings=settings, repository=repository, fetcher=fetcher, destination=one) for one in destinations
    ]
    return _brought(bringers, moment, scope, is_here)


def _brought(
    bringers: list[_Bringer], moment: datetime, scope: RestoreScope, is_here: Callable[[], bool]
) -> tuple[str, ...]:
    """Ask one destination after the other until the moment is here; what was fetched."""
    fetched: list[str] = []
    faults: list[OpsError] = []
    for bringer in bringers:
        try:
            fetched += bringer.bring(moment, scope, is_here)
        except OpsError as error:
            faults.append(error)
            log.warning("moment_not_fetched", destination=bringer.destination.shown, error=error.message)
            continue
        if is_here():
            return tuple(fetched)
    if faults and not fetched:
        raise faults[0]
    return tuple(fetched)


@dataclass(frozen=True, kw_only=True)
class _Bringer:
    """Fetches from one destination."""

    settings: Settings
    repository: Repository
    fetcher: FetchJob
    destination: Destination

    def bring(self, moment: datetime, scope: RestoreScope, is_here: Callable[[], bool]) -> list[str]:
        """Fetch piece by piece, until everything is here."""
        offsite = self.settings.offsite
        fetched: list[str] = []
        config = OffsiteConfig.from_settings(self.settings)
        backend = config.open(self.destination)
        try:
            commits = list(list_copies(backend).newest().values())
            if scope is not RestoreScope.MEDIA and fetch_wal(self.repository, backend, identities_of(offsite)):
                fetched.append("WAL")
        finally:
            backend.close()
        commits.sort(key=lambda commit: commit.moment, reverse=True)
        for names in (
            *self._bases(commits, moment, scope),
            *self._uploads(commits, moment, scope),
        ):
            if is_here():
                break
            for name in names:
                fetched += self.fetcher.run(name).fetched
        return fetched

    def _bases(self, commits: Sequence[Commit], moment: datetime, scope: RestoreScope) -> list[list[str]]:
        """Base backups to try, the newest first."""
        if scope is RestoreScope.MEDIA:
            return []
        bases = [one.backup_id for one in commits if one.type == BackupType.BASE.value and one.moment <= moment]
        return [[name] for name in bases[:_TRIED]]

    def _uploads(self, commits: Sequence[Commit], moment: datetime, scope: RestoreScope) -> list[list[str]]:
        """Archives of uploads: the newest that is old enough, with the one that was begun after it; then older ones."""
        if scope is RestoreScope.DATABASE:
            return []
        held = [one for one in commits if one.type in _HOLDING_UPLOADS]
        before = [one for one in held if one.moment <= moment]
        after = [one for one in held if moment < one.moment <= moment + timedelta(days=1)]
        return [
            [*(one.backup_id for one in before[:1]), *(one.backup_id for one in after[-1:])],
            *([one.backup_id] for one in before[1:_TRIED]),
        ]
