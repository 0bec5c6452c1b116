"""What the repository has, read as far as the slots in question need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from beat.due import Held, Kind, Standing
from portal.ops.access_log import AccessLog, Action, Outcome
from portal.ops.verifications import Verifications

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from portal.ops.repository import Repository

_ENDED: Final = {
    Action.PRUNE: (Kind.PRUNE, frozenset({Outcome.DONE})),
    Action.DRILL: (Kind.DRILL, frozenset({Outcome.DONE, Outcome.FAILED})),
}
"""What the access log calls it, and the outcomes that end it: a drill that failed has told what it was to tell."""


def read_standing(repository: Repository, kinds: Collection[Kind]) -> Standing:
    """What there is.

    Arguments:
        kinds: the kinds that are asked about; what only others need is not read.

    Raises:
        RepositoryError: the repository cannot be read.
    """
    archives = repository.archives()
    return Standing(
        archives=tuple(
            Held(name=archive.name, type=archive.backup_id.type if archive.backup_id else None, moment=archive.moment)
            for archive in archives
        ),
        verified=Verifications(repository).all() if Kind.VERIFY in kinds else {},
        ended=_ended(repository) if {Kind.PRUNE, Kind.DRILL} & set(kinds) else {},
    )


def _ended(repository: Repository) -> dict[Kind, datetime]:
    """When a prune and a drill ended last."""
    found: dict[Kind, datetime] = {}
    for entry in AccessLog(repository).entries():
        if entry.action in _ENDED:
            kind, outcomes = _ENDED[entry.action]
            if entry.outcome in outcomes:
                found[kind] = entry.moment
    return found
