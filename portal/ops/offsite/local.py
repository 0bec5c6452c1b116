"""Fetches an archive named ``offsite:<id>`` into the repository, for a restore, verification or drill."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from portal.ops.errors import NotIntactError
from portal.ops.model import VerifyLevel
from portal.ops.offsite.config import OffsiteConfig
from portal.ops.offsite.fetch import FetchJob, is_offsite
from portal.ops.offsite.ledger import Ledger
from portal.ops.offsite.verify import OffsiteVerifyJob
from portal.ops.repository.repository import Repository
from portal.ops.runtime.progress import Clock, Progress, utc_now

if TYPE_CHECKING:
    from portal.ops.offsite.fetch import Fetched
    from portal.ops.repository.access_log import Observer
    from portal.ops.settings.load import Settings


def local_archive(
    settings: Settings,
    name: str,
    *,
    progress: Progress | None = None,
    actor: str | None = None,
    observer: Observer | None = None,
) -> str:
    """The path of an archive, fetched if its name requests that; other names are returned unchanged.

    Raises:
        OpsError: fetching failed; see `FetchJob`.
    """
    if not is_offsite(name):
        return name
    job = FetchJob(OffsiteConfig.from_settings(settings), progress=progress, actor=actor, observer=observer)
    return str(job.run(name).path)


def copy_for_drill(
    settings: Settings,
    name: str,
    *,
    progress: Progress | None = None,
    actor: str | None = None,
    observer: Observer | None = None,
) -> Fetched | None:
    """The copy for a drill, or None if the archive's name does not request one.

    An archive that is in the repository is not fetched. Its copy is still read, decrypted and compared with it:
    otherwise the drill would prove nothing about the copy.

    Raises:
        NotIntactError: the copy is damaged.
        OpsError: fetching failed; see `FetchJob`.
    """
    if not is_offsite(name):
        return None
    config = OffsiteConfig.from_settings(settings)
    found = FetchJob(config, progress=progress, actor=actor, observer=observer).run(name)
    if found.backup_id in found.fetched:
        return found
    one = replace(config, destinations=tuple(it for it in config.destinations if it.shown == found.destination))
    seen = OffsiteVerifyJob(one, progress=progress, actor=actor, observer=observer)
    verified = seen.run(found.backup_id, VerifyLevel.CONTENTS)
    if not verified.intact:
        raise NotIntactError(verified.message, hint="Drill another copy; the list of copies has them.")
    return found


def note_drill(settings: Settings, copy: Fetched, *, success: bool | None, clock: Clock = utc_now) -> None:
    """Record that a drill restored a copy with a real identity, the only proof that its recipients are right.

    Arguments:
        copy: what was fetched; it counts for the destination that it came from.
        success: whether the restored data equals the backup; None if the drill did not find out, so
            that nothing is known about the copy.
    """
    if success is None:
        return
    facts: dict[str, Any] = {
        "moment": clock().isoformat(),
        "success": success,
        "backup_id": copy.backup_id,
        "recipients": sorted(copy.recipients),
    }
    for destination in settings.offsite.destinations():
        if destination.shown == copy.destination:
            ledger = Ledger(Repository(settings.local_path), destination)
            with ledger.recording() as is_ours:
                if is_ours:
                    ledger.note_proof("drilled", facts)
