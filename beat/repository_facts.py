"""Reads the repository's contents, as far as the slots need them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from beat.due import Held, RepositoryFacts
from portal.ops.backup.config import BackupConfig
from portal.ops.model import BackupId
from portal.ops.offsite.config import OffsiteConfig
from portal.ops.offsite.missing import is_copy_missing
from portal.ops.offsite.prune import offsite_policy
from portal.ops.repository.access_log import AccessLog, Action
from portal.ops.repository.catalogue import Catalogue
from portal.ops.runtime.progress import utc_now
from worker.operations import SCHEDULED, EachArchive, LoggedEnd, NothingMissing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from datetime import datetime

    from portal.ops.repository.access_log import AccessEntry
    from portal.ops.repository.entry import Entry
    from portal.ops.repository.repository import Repository
    from portal.ops.settings.load import Settings
    from worker.operations import Operation

_BY_TYPE: Final = {entry.backup_type: entry for entry in SCHEDULED if entry.backup_type}
_BY_ACTION: Final = {entry.action: entry for entry in SCHEDULED if entry.action and not entry.backup_type}

_PART: Final = "archives"
"""A detail that only a prune's entries for single archives have; its final entry does not."""


_CLOCK_DOUBT: Final = timedelta(days=1)


def read_facts(
    repository: Repository,
    operations: Collection[Operation],
    settings: Settings | None = None,
    *,
    since: datetime | None = None,
) -> RepositoryFacts:
    """Read the facts about the repository.

    Arguments:
        settings: destinations and rules of off-site copies; without them no copy is missing.
        operations: the operations whose slots are checked; facts for others are not read.
        since: the oldest of these slots; of operations that ended before it, the end need not be found.

    Raises:
        RepositoryError: the repository cannot be read.
    """
    needs = {type(entry.schedule.done_by) for entry in operations if entry.schedule}
    ended = _last_ends(repository, since) if LoggedEnd in needs else {}
    is_offsite = settings is not None and NothingMissing in needs and bool(settings.offsite.destinations())
    if EachArchive not in needs and not is_offsite:
        found = repository.archives()
        types = [archive.backup_id.type if archive.backup_id else None for archive in found]
        held = (Held(name=one.name, type=kind, moment=one.moment) for one, kind in zip(found, types, strict=True))
        return RepositoryFacts(archives=tuple(held), ended=ended)
    entries = Catalogue(repository).entries()
    return RepositoryFacts(
        archives=tuple(Held(name=entry.name, type=entry.type, moment=entry.moment) for entry in entries),
        verified={entry.name: entry.finding for entry in entries if entry.finding},
        ended=ended,
        uncopied=settings is not None and is_offsite and _is_uncopied(settings, repository, entries),
    )


def _is_uncopied(settings: Settings, repository: Repository, entries: Sequence[Entry]) -> bool:
    config = OffsiteConfig.from_settings(settings)
    policy = offsite_policy(BackupConfig.from_settings(settings).retention, settings.offsite.rules)
    return is_copy_missing(config, policy, repository, entries, utc_now())


def _last_ends(repository: Repository, since: datetime | None) -> dict[Operation, datetime]:
    """When each operation last ended. The log of years is not read for that, but its end, back to the oldest slot."""
    wanted = {operation for operation in _BY_ACTION.values() if _is_by_log(operation)}
    found: dict[Operation, datetime] = {}
    for entry in AccessLog(repository).newest_first():
        if len(found) == len(wanted) or (since is not None and entry.moment < since - _CLOCK_DOUBT):
            break
        operation = _operation_of(entry)
        if operation is not None and operation not in found and _is_end(operation, entry):
            found[operation] = entry.moment
    return found


def _is_by_log(operation: Operation) -> bool:
    return operation.schedule is not None and isinstance(operation.schedule.done_by, LoggedEnd)


def _is_end(operation: Operation, entry: AccessEntry) -> bool:
    done_by = operation.schedule.done_by if operation.schedule else None
    if not isinstance(done_by, LoggedEnd) or entry.outcome not in done_by.outcomes:
        return False
    return not done_by.of_destination or entry.subject == entry.details.get("destination")


def logged(repository: Repository) -> Iterator[tuple[Operation, AccessEntry]]:
    """The access log's entries of scheduled operations, oldest first, whoever requested them.

    Raises:
        RepositoryError: the log cannot be read.
    """
    for entry in AccessLog(repository).entries():
        if operation := _operation_of(entry):
            yield operation, entry


def _operation_of(entry: AccessEntry) -> Operation | None:
    """The scheduled operation that an entry is the end of, or None."""
    if entry.action is Action.BACKUP:
        backup_id = BackupId.parse(entry.subject)
        return _BY_TYPE.get(backup_id.type) if backup_id else None
    return _BY_ACTION.get(entry.action) if _PART not in entry.details else None
