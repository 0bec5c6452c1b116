"""Makes an archive named ``offsite:<id>`` one of the repository, for whoever restores, verifies or drills it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from portal.ops.offsite.config import OffsiteConfig
from portal.ops.offsite.fetch import FetchJob, is_offsite
from portal.ops.offsite.ledger import Ledger
from portal.ops.repository.repository import Repository
from portal.ops.runtime.progress import Clock, Progress, utc_now

if TYPE_CHECKING:
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
    """The path of an archive in the repository, fetched if its name asks for that; any other name as it is.

    Raises:
        OpsError: it could not be fetched; see `FetchJob`.
    """
    if not is_offsite(name):
        return name
    job = FetchJob(OffsiteConfig.from_settings(settings), progress=progress, actor=actor, observer=observer)
    return str(job.run(name).path)


def note_drill(settings: Settings, name: str, *, success: bool, backup_id: str, clock: Clock = utc_now) -> None:
    """Remember that a drill has restored a copy with the real identity: only that proves the recipients.

    Arguments:
        name: of the archive, as it was asked for; nothing is noted of one that was not off-site.
    """
    if not is_offsite(name):
        return
    repository = Repository(settings.local_path)
    facts: dict[str, Any] = {
        "moment": clock().isoformat(),
        "success": success,
        "backup_id": backup_id,
        "recipients": sorted(settings.offsite.recipients),
    }
    for destination in settings.offsite.destinations():
        ledger = Ledger(repository, destination)
        if any(stem.backup_id == backup_id for stem in ledger.copies()):
            ledger.note_proof("drilled", facts)
