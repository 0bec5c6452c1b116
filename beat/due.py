"""The tasks that are due, by the schedules, the contents of the repository, and the time.

Of each kind only the newest slot that has come counts; what was missed before it is not made up for. A slot's task and
archive are named by kind and slot alone, so that two beats, a second delivery and a catch-up mean the same task.

What shows that a slot is done is in the registry (`Schedule.done_by`): an archive that was made since the slot, the end
of the operation in the access log, or each archive's own verification (see `verify_rotation`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from beat.verify_rotation import to_verify
from portal.ops.model import BackupId, BackupType, FullUploads, VerifyLevel, timestamp
from portal.ops.settings.slots import last_slot, newest_slot, next_slot
from worker.operations import (
    BACKUP_DATABASE,
    BACKUP_FULL,
    SCHEDULED,
    EachArchive,
    MadeArchive,
    NothingMissing,
    Schedule,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from beat.verify_rotation import Verified
    from portal.ops.settings.load import ScheduleSettings
    from worker.operations import Operation

ACTOR: Final = "beat"
"""Who started it, as the access log says."""

_PATIENCE: Final = 2
"""So often a full backup is asked for before the database's own no longer waits for it."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """The time that an operation is scheduled for.

    Arguments:
        is_complete: whether it is that of a complete full backup, where others have only what has changed.
    """

    operation: Operation
    moment: datetime
    is_complete: bool = False

    @property
    def schedule(self) -> Schedule:
        """The schedule that the slot belongs to."""
        assert self.operation.schedule is not None
        return self.operation.schedule

    @property
    def task_id(self) -> str:
        """The name of its task, such as ``full-2026-11-22T02:00Z``."""
        return f"{self.schedule.setting}-{self.moment.astimezone(UTC):%Y-%m-%dT%H:%MZ}"

    @property
    def backup_id(self) -> str | None:
        """The name of its archive; nothing where it has none."""
        if self.operation.backup_type is None:
            return None
        return str(BackupId.of(self.operation.backup_type, self.moment, self.task_id))


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
class RepositoryFacts:
    """The contents of the repository that matter to the slots in question.

    Arguments:
        archives: everything that the repository has.
        verified: what verifications have found, by the archives' names.
        ended: when the operations ended last whose slots are done by an entry of the access log.
        uncopied: whether an archive that should have an off-site copy has none.
    """

    archives: tuple[Held, ...] = ()
    verified: Mapping[str, Verified] = field(default_factory=dict)
    ended: Mapping[Operation, datetime] = field(default_factory=dict)
    uncopied: bool = False


@dataclass(frozen=True, kw_only=True)
class ScheduledTask:
    """A task to be sent.

    Arguments:
        slot: what it is for.
    """

    slot: Slot
    task_id: str
    arguments: Mapping[str, Any]


def last_slots(schedules: ScheduleSettings, now: datetime) -> list[Slot]:
    """The newest slot of each kind that is switched on."""
    found = []
    for entry, crons in _expressions(schedules):
        if moment := newest_slot(crons, schedules.time_zone, now):
            complete = _complete_expression(entry, schedules)
            is_complete = complete is not None and last_slot(complete, schedules.time_zone, now) == moment
            found.append(Slot(operation=entry, moment=moment, is_complete=is_complete))
    return found


def next_slots(schedules: ScheduleSettings, now: datetime) -> list[Slot]:
    """The next slot of each kind that is switched on."""
    found = []
    for entry, crons in _expressions(schedules):
        moments = [moment for cron in crons if (moment := next_slot(cron, schedules.time_zone, now))]
        found += [Slot(operation=entry, moment=min(moments))] if moments else []
    return found


def _expressions(schedules: ScheduleSettings) -> Iterator[tuple[Operation, tuple[str, ...]]]:
    for operation in SCHEDULED:
        if operation.schedule and (expressions := operation.schedule.expressions(schedules)):
            yield operation, expressions


def _complete_expression(operation: Operation, schedules: ScheduleSettings) -> str | None:
    """The schedule of complete full backups; nothing if all are complete, and for other operations."""
    is_chained = operation is BACKUP_FULL and schedules.full_uploads is FullUploads.CHAIN
    return schedules.complete if is_chained else None


def expression_of(operation: Operation, schedules: ScheduleSettings) -> str | None:
    """The cron expression of an operation; nothing where it is switched off, or has no schedule."""
    found: str | None = getattr(schedules, operation.schedule.setting) if operation.schedule else None
    return found


def due(slots: Iterable[Slot], facts: RepositoryFacts, now: datetime, asked: Mapping[str, int]) -> list[ScheduledTask]:
    """The tasks of the slots that are not done.

    Arguments:
        slots: the newest of each kind.
        asked: how often a task was sent already, by its id.
    """
    slots = tuple(slots)
    wait = _awaited_full(slots, facts, now, asked)
    found: list[ScheduledTask] = []
    for slot in slots:
        if slot.operation is BACKUP_DATABASE and wait and (wait.moment == slot.moment or not facts.archives):
            continue
        found += _tasks_of(slot, facts, now)
    return found


def _awaited_full(
    slots: Iterable[Slot], facts: RepositoryFacts, now: datetime, asked: Mapping[str, int]
) -> Slot | None:
    """The full backup's slot, where it is due and may still be expected to be done soon."""
    full = next((slot for slot in slots if slot.operation is BACKUP_FULL), None)
    if full is None or _is_backed_up(full, facts, now) or asked.get(full.task_id, 0) >= _PATIENCE:
        return None
    return full


def _tasks_of(slot: Slot, facts: RepositoryFacts, now: datetime) -> Iterator[ScheduledTask]:
    common = {"actor": ACTOR}
    done_by = slot.schedule.done_by
    if isinstance(done_by, MadeArchive):
        if not _is_backed_up(slot, facts, now):
            told = {"moment": timestamp(slot.moment), **({"complete": True} if slot.is_complete else {})}
            yield ScheduledTask(slot=slot, task_id=slot.task_id, arguments={**common, **told})
    elif isinstance(done_by, EachArchive):
        for archive in to_verify(slot.moment, facts.archives, facts.verified, now):
            arguments = {**common, "archive": archive.name, "level": VerifyLevel.CONTENTS.value}
            yield ScheduledTask(slot=slot, task_id=f"{slot.task_id}-{_short(archive.name)}", arguments=arguments)
    elif isinstance(done_by, NothingMissing):
        if facts.uncopied:
            yield ScheduledTask(slot=slot, task_id=slot.task_id, arguments=common)
    elif not _has_ended(slot, facts, now) and any(held.moment <= slot.moment for held in facts.archives):
        yield ScheduledTask(slot=slot, task_id=slot.task_id, arguments=common)


def _is_backed_up(slot: Slot, facts: RepositoryFacts, now: datetime) -> bool:
    """True if an archive does; one from a time to come, made by a clock that was wrong, is no other's substitute."""
    own, done_by = slot.backup_id, slot.schedule.done_by
    types = done_by.types if isinstance(done_by, MadeArchive) else ()
    return any(
        held.name == own or (held.type in types and slot.moment <= held.moment <= now) for held in facts.archives
    )


def _has_ended(slot: Slot, facts: RepositoryFacts, now: datetime) -> bool:
    ended = facts.ended.get(slot.operation)
    return ended is not None and slot.moment <= ended <= now


def _short(name: str) -> str:
    """An archive's name as a part of a task's id; its digest where it is not one of ours."""
    from hashlib import sha256

    return name if BackupId.parse(name) else sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
