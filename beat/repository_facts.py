"""What the repository has, read as far as the slots in question need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from beat.due import Held, Kind, Standing
from portal.ops.model import BackupId
from portal.ops.repository.access_log import AccessLog, Action, Outcome
from portal.ops.repository.catalogue import Catalogue

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from datetime import datetime

    from portal.ops.repository.access_log import AccessEntry
    from portal.ops.repository.repository import Repository

_KINDS: Final = {Action.VERIFY: Kind.VERIFY, Action.PRUNE: Kind.PRUNE, Action.DRILL: Kind.DRILL}
_ENDING: Final = {
    Kind.PRUNE: frozenset({Outcome.DONE}),
    Kind.DRILL: frozenset({Outcome.DONE, Outcome.FAILED}),
}
"""The outcomes that end a slot: a drill that failed has told what it was to tell."""

_PART: Final = "archives"
"""A detail of the lines that a prune writes on its way; the one at its end has none."""


def read_standing(repository: Repository, kinds: Collection[Kind]) -> Standing:
    """What there is.

    Arguments:
        kinds: the kinds that are asked about; what only others need is not read.

    Raises:
        RepositoryError: the repository cannot be read.
    """
    ended = _last_ends(repository) if _ENDING.keys() & set(kinds) else {}
    if Kind.VERIFY not in kinds:
        found = repository.archives()
        types = [archive.backup_id.type if archive.backup_id else None for archive in found]
        held = (Held(name=one.name, type=kind, moment=one.moment) for one, kind in zip(found, types, strict=True))
        return Standing(archives=tuple(held), ended=ended)
    entries = Catalogue(repository).entries()
    return Standing(
        archives=tuple(Held(name=entry.name, type=entry.type, moment=entry.moment) for entry in entries),
        verified={entry.name: entry.finding for entry in entries if entry.finding},
        ended=ended,
    )


def _last_ends(repository: Repository) -> dict[Kind, datetime]:
    found = ((kind, entry) for kind, entry in logged(repository) if entry.outcome in _ENDING.get(kind, ()))
    return {kind: entry.moment for kind, entry in found}


def logged(repository: Repository) -> Iterator[tuple[Kind, AccessEntry]]:
    """What the access log says of work that has a schedule, the oldest first, whoever started it.

    Raises:
        RepositoryError: the log cannot be read.
    """
    for entry in AccessLog(repository).entries():
        if entry.action is Action.BACKUP:
            backup_id = BackupId.parse(entry.subject)
            if backup_id and backup_id.type.value in set(Kind):
                yield Kind(backup_id.type.value), entry
        elif entry.action in _KINDS and _PART not in entry.details:
            yield _KINDS[entry.action], entry
