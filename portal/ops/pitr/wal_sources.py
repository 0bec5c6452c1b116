"""Fetches WAL from all destinations: each is asked for what those before it did not have.

If a destination cannot be reached, or has lost or damaged a segment, another one may still provide it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from portal.ops.errors import BusyError, DiskFullError, OpsError, RepositoryError
from portal.ops.pitr.wal_fetch import fetch_wal
from portal.ops.runtime.logs import engine_log
from portal.ops.storage.objects import identities_of, open_destination

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from portal.ops.pitr.wal_fetch import Damage
    from portal.ops.repository.repository import Repository
    from portal.ops.settings.load import Settings

log = engine_log("portal.ops.pitr.wal_sources")


@dataclass(frozen=True, kw_only=True)
class FetchedWal:
    """The WAL that was fetched.

    Arguments:
        count: the number of new files.
        faults: the errors of unusable destinations, and of objects of which no destination has an intact copy.
        unsigned: the objects that were taken without a signature, although only certain signers are trusted.
    """

    count: int
    faults: tuple[OpsError, ...] = ()
    unsigned: tuple[str, ...] = ()


def fetch_from_all(repository: Repository, settings: Settings, signers: AbstractSet[str] | None) -> FetchedWal:
    """Fetch the WAL of every cluster from every destination, in the order of the settings.

    Arguments:
        signers: the trusted signers; None to trust everyone.

    Raises:
        OpsError: no destination could be used; the error of the first one.
        BusyError: the WAL service of a cluster that is to be fetched is running.
        RepositoryError: the disk is full, or cannot be written.
    """
    identities = identities_of(settings.offsite)
    count = 0
    failed: list[OpsError] = []
    damages: list[Damage] = []
    unsigned: list[str] = []
    destinations = settings.offsite.destinations()
    for destination in destinations:
        try:
            backend = open_destination(destination, settings.offsite, settings.store_variables, is_writing=False)
            try:
                found = fetch_wal(repository, backend, identities, signers)
            finally:
                backend.close()
        except (BusyError, DiskFullError, RepositoryError):
            raise
        except OpsError as error:
            failed.append(error)
            log.warning("wal_not_fetched", destination=destination.shown, error=error.message)
            continue
        count += len(found.taken)
        unsigned += found.unsigned
        if found.unsigned:
            log.warning(
                "wal_unsigned",
                destination=destination.shown,
                objects=len(found.unsigned),
                first=found.unsigned[0],
                last=found.unsigned[-1],
            )
        damages = [one for one in damages if not one.is_mended(repository, found.taken)] + found.damages
    if failed and len(failed) == len(destinations):
        raise failed[0]
    faults = (*failed, *(one.error for one in damages))
    return FetchedWal(count=count, faults=faults, unsigned=tuple(unsigned))
