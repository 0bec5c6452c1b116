"""What the repository has, read as far as the slots in question need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from beat.due import Held, Kind, Standing
from portal.ops.access_log import AccessLog, Action, Outcome
from portal.ops.catalogue import Catalogue

if TYPE_CHECKING:
    from collections.abc import Collection

    from portal.ops.access_log import AccessEntry
    from portal.ops.repository import Repository

_ENDED: Final = {
    Action.PRUNE: (Kind.PRUNE, frozenset({Outcome.DONE})),
    Action.DRILL: (Kind.DRILL, frozenset({Outcome.DONE, Outcome.FAILED})),
}
"""What the access log calls it, and the outcomes that end it: a drill that failed has told what it was to tell."""

_PART: Final = "archives"
"""A detail of the lines that a prune writes on its way; the one at its end has none."""


def read_standing(repository: Repository, kinds: Collection[Kind]) -> Standing:
    """What there is.

    Arguments:
        kinds: the kinds that are asked about; what only others need is not read.

    Raises:
        RepositoryError: the repository cannot be read.
    """
    ended = {kind: entry.moment for kind, entry in last_ends(repository).items()} if _LOGGED & set(kinds) else {}
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


_LOGGED: Final = frozenset(kind for kind, _ in _ENDED.values())


def last_ends(repository: Repository) -> dict[Kind, AccessEntry]:
    """The last prune that was done, and the last drill that came to an end, by the access log.

    Raises:
        RepositoryError: the log cannot be read.
    """
    found: dict[Kind, AccessEntry] = {}
    for entry in AccessLog(repository).entries():
        if entry.action in _ENDED and _PART not in entry.details:
            kind, outcomes = _ENDED[entry.action]
            if entry.outcome in outcomes:
                found[kind] = entry
    return found
