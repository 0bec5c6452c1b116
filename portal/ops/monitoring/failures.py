"""Finds unresolved failures in the access log: a later success of the same kind resolves a failure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from portal.ops.model import BackupId, BackupType
from portal.ops.monitoring.model import Failure, LastOutcome
from portal.ops.repository.access_log import Action, Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from portal.ops.repository.access_log import AccessEntry

_UNCOUNTED: Final = frozenset({Action.PIN, Action.UNPIN, Action.DISCARD, Action.FORGET, Action.OFFSITE_READ})
_STARTED_BY_ITSELF: Final = frozenset({Action.BACKUP, Action.PRUNE, Action.DRILL, Action.OFFSITE_COPY})
"""Actions without a person to read a refusal, so that a refusal counts as a failure."""


_BACKUPS: Final = {
    BackupType.FULL.value: "full backup",
    BackupType.DATABASE.value: "backup of the database",
    BackupType.MEDIA.value: "backup of the uploads",
    BackupType.AUDIT_LOGS.value: "backup of the audit log",
    BackupType.BASE.value: "base backup",
}

_OF_A_DESTINATION: Final = frozenset({Action.OFFSITE_COPY, Action.OFFSITE_VERIFY, Action.OFFSITE_PRUNE})


def kind_of(entry: AccessEntry) -> str:
    """The kind of a failure and of the success that resolves it; empty for entries that do not count."""
    if entry.action in _UNCOUNTED or entry.details.get("dry_run"):
        return ""
    if entry.action is Action.BACKUP:
        backup_id = BackupId.parse(entry.subject)
        return f"backup {backup_id.type.value if backup_id else entry.subject}"
    if entry.action in _OF_A_DESTINATION:
        of = f" {entry.subject}" if entry.action is Action.OFFSITE_VERIFY else ""
        return f"{entry.action} {entry.details.get('destination', entry.subject)}{of}"
    return f"verify {entry.subject}" if entry.action is Action.VERIFY else entry.action.value


def name_of(kind: str) -> str:
    """The name of a kind for people: ``full backup``, ``backup of the uploads``."""
    action, _, what = kind.partition(" ")
    return _BACKUPS.get(what, kind) if action == Action.BACKUP else kind


def is_failure(entry: AccessEntry) -> bool:
    """True if somebody must be told."""
    if not kind_of(entry):
        return False
    refused = entry.outcome is Outcome.REFUSED and entry.action in _STARTED_BY_ITSELF
    return refused or entry.outcome is Outcome.FAILED


def answered(entry: AccessEntry, kinds: Collection[str]) -> set[str]:
    """The kinds that a success resolves: its own, and a full backup those of every type."""
    kind = kind_of(entry)
    if entry.outcome is not Outcome.DONE or not kind:
        return set()
    if kind == f"backup {BackupType.FULL.value}":
        return {one for one in kinds if one.startswith("backup ")}
    return {kind} if kind in kinds else set()


def failure_of(entry: AccessEntry) -> Failure:
    """The failure that an entry describes."""
    return Failure(
        kind=kind_of(entry),
        action=entry.action.value,
        subject=entry.subject,
        moment=entry.moment,
        error=str(entry.details.get("error", "")),
        hint=str(entry.details.get("hint", "")),
    )


def unanswered(entries: Iterable[AccessEntry]) -> tuple[Failure, ...]:
    """The unresolved failures, newest first.

    Arguments:
        entries: the entries, oldest first.
    """
    open_ones: dict[str, Failure] = {}
    for entry in entries:
        if is_failure(entry):
            open_ones[kind_of(entry)] = failure_of(entry)
        elif open_ones:
            for kind in answered(entry, open_ones):
                del open_ones[kind]
    return tuple(sorted(open_ones.values(), key=lambda failure: failure.moment, reverse=True))


def last_outcomes(entries: Iterable[AccessEntry]) -> dict[str, LastOutcome]:
    """The last outcome of each action."""
    found = {}
    for entry in entries:
        if kind_of(entry) and (entry.outcome is Outcome.DONE or is_failure(entry)):
            seconds = entry.details.get("seconds")
            found[entry.action.value] = LastOutcome(
                moment=entry.moment,
                done=entry.outcome is Outcome.DONE,
                seconds=float(seconds) if isinstance(seconds, int | float) else None,
            )
    return found
