"""What is due: from the schedules, what the repository has, and the time, to the tasks that are to be sent.

Of each kind only the newest slot that has come counts; what was missed before it is not made up for. A slot's task and
archive are named by kind and slot alone, so that two beats, a second delivery and a catch-up mean the same task.

    full       done by its own archive, or any full one that was made since the slot
    database   the same; a full one does as well
    verify     done archive by archive, by what verifications have found; see `rolling`
    prune      done by a prune since the slot; there is something to do only where an archive is as old as the slot
    drill      the same
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from beat.schedule import last_slot, next_slot
from beat.verify_rotation import to_verify
from portal.ops.model import BackupId, BackupType, VerifyLevel, timestamp
from worker.names import TaskName

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from beat.verify_rotation import Verified
    from portal.ops.settings.load import ScheduleSettings

ACTOR: Final = "beat"
"""Who started it, as the access log says."""

_PATIENCE: Final = 2
"""So often a full backup is asked for before the database's own no longer waits for it."""


class Kind(StrEnum):
    """What has a schedule."""

    FULL = "full"
    DATABASE = "database"
    VERIFY = "verify"
    PRUNE = "prune"
    DRILL = "drill"

    @property
    def task(self) -> TaskName:
        """The task that is sent."""
        return _TASKS[self]


_TASKS: Final = {
    Kind.FULL: TaskName.BACKUP_FULL,
    Kind.DATABASE: TaskName.BACKUP_DATABASE,
    Kind.VERIFY: TaskName.VERIFY_ARCHIVE,
    Kind.PRUNE: TaskName.PRUNE_REPOSITORY,
    Kind.DRILL: TaskName.DRILL_RESTORE,
}
_SATISFYING: Final = {
    Kind.FULL: frozenset({BackupType.FULL}),
    Kind.DATABASE: frozenset({BackupType.FULL, BackupType.DATABASE}),
}


@dataclass(frozen=True, kw_only=True)
class Slot:
    """The time that something is scheduled for."""

    kind: Kind
    moment: datetime

    @property
    def task_id(self) -> str:
        """The name of its task, such as ``full-2026-11-22T02:00Z``."""
        return f"{self.kind.value}-{self.moment.astimezone(UTC):%Y-%m-%dT%H:%MZ}"

    @property
    def backup_id(self) -> str | None:
        """The name of its archive; nothing where it has none."""
        if self.kind not in _SATISFYING:
            return None
        return str(BackupId.of(BackupType(self.kind.value), self.moment, self.task_id))


@dataclass(frozen=True, kw_only=True)
class Held:
    """An archive that the repository has.

    Arguments:
        name: its id, or the file's name without its suffix.
        type: what it was asked to hold; nothing where the name is not one of ours.
        moment: when it was made, by its id.
    """

    name: str
    type: BackupType | None
    moment: datetime


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What there is, as far as it matters to the slots in question.

    Arguments:
        archives: everything that the repository has.
        verified: what verifications have found, by the archives' names.
        ended: when a prune and a drill ended last.
    """

    archives: tuple[Held, ...] = ()
    verified: Mapping[str, Verified] = field(default_factory=dict)
    ended: Mapping[Kind, datetime] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Errand:
    """A task to be sent.

    Arguments:
        slot: what it is for.
    """

    slot: Slot
    task_id: str
    arguments: Mapping[str, Any]


def last_slots(schedules: ScheduleSettings, now: datetime) -> list[Slot]:
    """The newest slot of each kind that is switched on."""
    found = ((kind, last_slot(cron, schedules.time_zone, now)) for kind, cron in _expressions(schedules))
    return [Slot(kind=kind, moment=moment) for kind, moment in found if moment]


def next_slots(schedules: ScheduleSettings, now: datetime) -> list[Slot]:
    """The next slot of each kind that is switched on."""
    found = ((kind, next_slot(cron, schedules.time_zone, now)) for kind, cron in _expressions(schedules))
    return [Slot(kind=kind, moment=moment) for kind, moment in found if moment]


def _expressions(schedules: ScheduleSettings) -> Iterator[tuple[Kind, str]]:
    for kind in Kind:
        if (expression := getattr(schedules, kind.value)) is not None:
            yield kind, expression


def due(slots: Iterable[Slot], standing: Standing, now: datetime, asked: Mapping[str, int]) -> list[Errand]:
    """The tasks of the slots that are not done.

    Arguments:
        slots: the newest of each kind.
        asked: how often a task was sent already, by its id.
    """
    slots = tuple(slots)
    wait = _awaited_full(slots, standing, now, asked)
    found: list[Errand] = []
    for slot in slots:
        if slot.kind is Kind.DATABASE and wait and (wait.moment == slot.moment or not standing.archives):
            continue
        found += _errands(slot, standing, now)
    return found


def _awaited_full(slots: Iterable[Slot], standing: Standing, now: datetime, asked: Mapping[str, int]) -> Slot | None:
    """The full backup's slot, where it is due and may still be expected to be done soon."""
    full = next((slot for slot in slots if slot.kind is Kind.FULL), None)
    if full is None or _is_backed_up(full, standing, now) or asked.get(full.task_id, 0) >= _PATIENCE:
        return None
    return full


def _errands(slot: Slot, standing: Standing, now: datetime) -> Iterator[Errand]:
    common = {"actor": ACTOR}
    if slot.kind in _SATISFYING:
        if not _is_backed_up(slot, standing, now):
            yield Errand(slot=slot, task_id=slot.task_id, arguments={**common, "moment": timestamp(slot.moment)})
    elif slot.kind is Kind.VERIFY:
        for archive in to_verify(slot.moment, standing.archives, standing.verified, now):
            arguments = {**common, "archive": archive.name, "level": VerifyLevel.CONTENTS.value}
            yield Errand(slot=slot, task_id=f"{slot.task_id}-{_short(archive.name)}", arguments=arguments)
    elif not _has_ended(slot, standing, now) and any(held.moment <= slot.moment for held in standing.archives):
        yield Errand(slot=slot, task_id=slot.task_id, arguments=common)


def _is_backed_up(slot: Slot, standing: Standing, now: datetime) -> bool:
    """Whether an archive does; one from a time to come, made by a clock that was wrong, is no other's substitute."""
    own = slot.backup_id
    return any(
        held.name == own or (held.type in _SATISFYING[slot.kind] and slot.moment <= held.moment <= now)
        for held in standing.archives
    )


def _has_ended(slot: Slot, standing: Standing, now: datetime) -> bool:
    ended = standing.ended.get(slot.kind)
    return ended is not None and slot.moment <= ended <= now


def _short(name: str) -> str:
    """An archive's name as a part of a task's id; its digest where it is not one of ours."""
    from hashlib import sha256

    return name if BackupId.parse(name) else sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
