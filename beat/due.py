"""Determines the due tasks from the schedules, the repository's contents and the time. This module is pure.

Of each kind only the newest slot counts; older missed ones are not made up for. A slot's task and archive are named by
kind and slot alone, so that two beats, a second delivery and a catch-up mean the same task.

The registry says how to tell that a slot is done (`Schedule.done_by`): an archive made since the slot, an end of the
operation in the access log, or each archive's own verification (see `verify_rotation`).
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
"""The requester in the access log."""

_PATIENCE: Final = 2
"""A database backup waits for a due full backup until that was sent this often."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """The time that an operation is scheduled for.

    Arguments:
        is_complete: whether it is for a complete full backup, if others are chained.
    """

    operation: Operation
    moment: datetime
    is_complete: bool = False

    @property
    def schedule(self) -> Schedule:
        """The schedule of the slot."""
        assert self.operation.schedule is not None
        return self.operation.schedule

    @property
    def task_id(self) -> str:
        """The id of its task, such as ``full-2026-11-22T02:00Z``."""
        return f"{self.schedule.setting}-{self.moment.astimezone(UTC):%Y-%m-%dT%H:%MZ}"

    @property
    def backup_id(self) -> str | None:
        """The id of its archive, or None."""
        if self.operation.backup_type is None:
            return None
        return str(BackupId.of(self.operation.backup_type, self.moment, self.task_id))


@dataclass(frozen=True, kw_only=True)
class Held:
    """An archive in the repository.

    Arguments:
        name: its id, or the file's name without suffix.
        type: its type; None if the name is no backup id.
        moment: the moment in its id.
    """

    name: str
    type: BackupType | None
    moment: datetime


@dataclass(frozen=True, kw_only=True)
class RepositoryFacts:
    """The repository's contents, as far as the slots need them.

    Arguments:
        archives: all archives.
        verified: the results of verifications, by archive.
        ended: when each operation last ended, for those whose slots are done by the access log.
        uncopied: whether an archive lacks an off-site copy that it should have.
    """

    archives: tuple[Held, ...] = ()
    verified: Mapping[str, Verified] = field(default_factory=dict)
    ended: Mapping[Operation, datetime] = field(default_factory=dict)
    uncopied: bool = False


@dataclass(frozen=True, kw_only=True)
class ScheduledTask:
    """A task to send.

    Arguments:
        slot: the slot that it is for.
    """

    slot: Slot
    task_id: str
    arguments: Mapping[str, Any]


def last_slots(schedules: ScheduleSettings, now: datetime) -> list[Slot]:
    """The newest slot of each scheduled kind."""
    found = []
    for entry, crons in _expressions(schedules):
        if moment := newest_slot(crons, schedules.time_zone, now):
            complete = _complete_expression(entry, schedules)
            is_complete = complete is not None and last_slot(complete, schedules.time_zone, now) == moment
            found.append(Slot(operation=entry, moment=moment, is_complete=is_complete))
    return found


def next_slots(schedules: ScheduleSettings, now: datetime) -> list[Slot]:
    """The next slot of each scheduled kind."""
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
    """The schedule of complete full backups; None if all are complete, and for other operations."""
    is_chained = operation is BACKUP_FULL and schedules.full_uploads is FullUploads.CHAIN
    return schedules.complete if is_chained else None


def expression_of(operation: Operation, schedules: ScheduleSettings) -> str | None:
    """The cron expression of an operation, or None."""
    found: str | None = getattr(schedules, operation.schedule.setting) if operation.schedule else None
    return found


def due(slots: Iterable[Slot], facts: RepositoryFacts, now: datetime, asked: Mapping[str, int]) -> list[ScheduledTask]:
    """The tasks of slots that are not done.

    Arguments:
        slots: the newest slot of each kind.
        asked: how often each task was sent, by id.
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
    """The full backup's slot if it is due and likely to be done soon."""
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
    """True if an archive makes the slot done; archives from the future, made with a wrong clock, do not."""
    own, done_by = slot.backup_id, slot.schedule.done_by
    types = done_by.types if isinstance(done_by, MadeArchive) else ()
    return any(
        held.name == own or (held.type in types and slot.moment <= held.moment <= now) for held in facts.archives
    )


def _has_ended(slot: Slot, facts: RepositoryFacts, now: datetime) -> bool:
    ended = facts.ended.get(slot.operation)
    return ended is not None and slot.moment <= ended <= now


def _short(name: str) -> str:
    """An archive's name as a part of a task id; a digest if it is no backup id."""
    from hashlib import sha256

    return name if BackupId.parse(name) else sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
