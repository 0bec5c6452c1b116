"""What the repository has, read as far as the slots in question need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from beat.due import Held, RepositoryFacts
from portal.ops.model import BackupId
from portal.ops.repository.access_log import AccessLog, Action
from portal.ops.repository.catalogue import Catalogue
from worker.operations import SCHEDULED, EachArchive, LoggedEnd

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from datetime import datetime

    from portal.ops.repository.access_log import AccessEntry
    from portal.ops.repository.repository import Repository
    from worker.operations import Operation

_BY_TYPE: Final = {entry.backup_type: entry for entry in SCHEDULED if entry.backup_type}
_BY_ACTION: Final = {entry.action: entry for entry in SCHEDULED if entry.action and not entry.backup_type}

_PART: Final = "archives"
"""A detail of the lines that a prune writes on its way; the one at its end has none."""


def read_facts(repository: Repository, operations: Collection[Operation]) -> RepositoryFacts:
    """What there is.

    Arguments:
        operations: those whose slots are in question; what only others need is not read.

    Raises:
        RepositoryError: the repository cannot be read.
    """
    needs = {type(entry.schedule.done_by) for entry in operations if entry.schedule}
    ended = _last_ends(repository) if LoggedEnd in needs else {}
    if EachArchive not in needs:
        found = repository.archives()
        types = [archive.backup_id.type if archive.backup_id else None for archive in found]
        held = (Held(name=one.name, type=kind, moment=one.moment) for one, kind in zip(found, types, strict=True))
        return RepositoryFacts(archives=tuple(held), ended=ended)
    entries = Catalogue(repository).entries()
    return RepositoryFacts(
        archives=tuple(Held(name=entry.name, type=entry.type, moment=entry.moment) for entry in entries),
        verified={entry.name: entry.finding for entry in entries if entry.finding},
        ended=ended,
    )


def _last_ends(repository: Repository) -> dict[Operation, datetime]:
    return {operation: entry.moment for operation, entry in logged(repository) if _is_end(operation, entry)}


def _is_end(operation: Operation, entry: AccessEntry) -> bool:
    done_by = operation.schedule.done_by if operation.schedule else None
    return isinstance(done_by, LoggedEnd) and entry.outcome in done_by.outcomes


def logged(repository: Repository) -> Iterator[tuple[Operation, AccessEntry]]:
    """What the access log says of operations that have a schedule, the oldest first, whoever started them.

    Raises:
        RepositoryError: the log cannot be read.
    """
    for entry in AccessLog(repository).entries():
        if entry.action is Action.BACKUP:
            backup_id = BackupId.parse(entry.subject)
            if backup_id and backup_id.type in _BY_TYPE:
                yield _BY_TYPE[backup_id.type], entry
        elif entry.action in _BY_ACTION and _PART not in entry.details:
            yield _BY_ACTION[entry.action], entry
