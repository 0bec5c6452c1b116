"""Makes an archive named ``offsite:<id>`` one of the repository, for whoever restores, verifies or drills it."""

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
    """The path of an archive in the repository, fetched if its name asks for that; any other name as it is.

    Raises:
        OpsError: it could not be fetched; see `FetchJob`.
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
    """The archive that a drill restores, as its copy has it; nothing where its name does not ask for a copy.

    An archive that is in the repository already is not fetched. Its copy is read and decrypted all the same, and has to
    be that archive: otherwise the drill would say nothing of the copy.

    Raises:
        NotIntactError: the copy is damaged.
        OpsError: it could not be fetched; see `FetchJob`.
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


def note_drill(settings: Settings, copy: Fetched, *, success: bool, clock: Clock = utc_now) -> None:
    """Remember that a drill has restored a copy with the real identity: only that proves its recipients.

    Arguments:
        copy: what was fetched for it; it counts for the destination that it came from.
    """
    facts: dict[str, Any] = {
        "moment": clock().isoformat(),
        "success": success,
        "backup_id": copy.backup_id,
        "recipients": sorted(copy.recipients),
    }
    for destination in settings.offsite.destinations():
        if destination.shown == copy.destination:
            Ledger(Repository(settings.local_path), destination).note_proof("drilled", facts)
