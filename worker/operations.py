"""The registry of operations: one entry for everything that a worker can do.

An entry has an operation's name, its queue, its arguments, who may request it, its schedule, and the function that
executes it. The Celery tasks, the commands' requests, beat's schedules and Flower's texts are made from these entries,
so adding an operation means adding one entry. This module imports neither Celery nor the engine's jobs, so that a
command which only names an operation starts quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from portal.ops.model import BackupType, FullUploads
from portal.ops.repository.access_entry import Action, Outcome
from worker.arguments import (
    Arguments,
    BackupArguments,
    DrillArguments,
    FullArguments,
    MediaArguments,
    OffsiteCopyArguments,
    OffsiteVerifyArguments,
    PruneArguments,
    RestoreArguments,
    RollbackArguments,
    VerifyArguments,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from portal.ops.settings.load import ScheduleSettings


class Queue(StrEnum):
    """A queue with its own worker processes, so that a restore never waits for a verification."""

    BACKUP = "backup"
    RESTORE = "restore"
    MAINTENANCE = "maintenance"
    OFFSITE = "offsite"

    @property
    def processes(self) -> int:
        """The default number of concurrent tasks: a full backup must not delay that of an upload."""
        return 2 if self in (Queue.BACKUP, Queue.MAINTENANCE) else 1


class Requester(StrEnum):
    """The requesters of tasks."""

    COMMAND = "command"
    BEAT = "beat"
    WATCHER = "watcher"
    WAL = "wal"
    WORKER = "worker"
    FLOWER = "flower"


@dataclass(frozen=True, kw_only=True)
class MadeArchive:
    """A slot is done if an archive of one of these types was made since the slot."""

    types: frozenset[BackupType]


@dataclass(frozen=True, kw_only=True)
class LoggedEnd:
    """A slot is done if the access log has an end of the operation since the slot, with one of these outcomes.

    It is due only if an archive is at least as old as the slot; otherwise there is nothing to do.

    Arguments:
        of_destination: whether only entries about whole destinations count.
    """

    outcomes: frozenset[Outcome]
    of_destination: bool = False


@dataclass(frozen=True, kw_only=True)
class EachArchive:
    """A slot has one task for each archive that is due (see `beat.verify_rotation`)."""


@dataclass(frozen=True, kw_only=True)
class NothingMissing:
    """A slot is done if every archive that should have an off-site copy has one, by the repository's record."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The schedule of an operation.

    Arguments:
        setting: the field of `ScheduleSettings` with the cron expression; also the first word of task ids.
        done_by: how to tell that a slot is done.
    """

    setting: str
    done_by: MadeArchive | LoggedEnd | EachArchive | NothingMissing

    def expressions(self, schedules: ScheduleSettings) -> tuple[str, ...]:
        """The cron expressions that start it; for full backups also that of complete ones, if others are chained."""
        wanted = [getattr(schedules, self.setting)]
        if self.setting == BackupType.FULL and schedules.full_uploads is FullUploads.CHAIN:
            wanted.append(schedules.complete)
        return tuple(one for one in wanted if one is not None)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of the workers.

    Arguments:
        name: the name of its tasks in Celery, Flower and logs.
        queue: the queue of its tasks.
        description: what it does, as an imperative without a full stop.
        arguments: the arguments of its tasks.
        requesters: who may request it.
        handler: the function that executes it, as ``module:name``; imported only to do the work.
        action: its name in the access log; None if it is not logged.
        backup_type: the type of archive that it makes; None if it makes none.
        schedule: when it starts by itself; None for never.
        id_words: first words of its task ids, in addition to that of the schedule.
        is_shown: whether logs and Flower show its tasks.
    """

    name: str
    queue: Queue
    description: str
    handler: str
    arguments: type[Arguments] = Arguments
    requesters: frozenset[Requester] = frozenset({Requester.COMMAND})
    action: Action | None = None
    backup_type: BackupType | None = None
    schedule: Schedule | None = None
    id_words: tuple[str, ...] = ()
    is_shown: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def family(self) -> str:
        """The first word of the name: tasks of one family have results of one form."""
        return self.name.partition(".")[0]


_EVERYBODY: Final = frozenset(Requester)
_SCHEDULED: Final = frozenset({Requester.COMMAND, Requester.BEAT, Requester.FLOWER})

BACKUP_FULL: Final = Operation(
    name="backup.full",
    queue=Queue.BACKUP,
    description="Back up database, uploads and audit log",
    arguments=FullArguments,
    requesters=_SCHEDULED,
    handler="worker.handlers.backup:back_up",
    action=Action.BACKUP,
    backup_type=BackupType.FULL,
    schedule=Schedule(setting="full", done_by=MadeArchive(types=frozenset({BackupType.FULL}))),
)
BACKUP_DATABASE: Final = Operation(
    name="backup.database",
    queue=Queue.BACKUP,
    description="Back up the database only",
    arguments=BackupArguments,
    requesters=_SCHEDULED,
    handler="worker.handlers.backup:back_up",
    action=Action.BACKUP,
    backup_type=BackupType.DATABASE,
    schedule=Schedule(setting="database", done_by=MadeArchive(types=frozenset({BackupType.FULL, BackupType.DATABASE}))),
)
BACKUP_MEDIA: Final = Operation(
    name="backup.media",
    queue=Queue.BACKUP,
    description="Back up the uploads, or only those that changed",
    arguments=MediaArguments,
    requesters=_EVERYBODY,
    handler="worker.handlers.backup:back_up",
    action=Action.BACKUP,
    backup_type=BackupType.MEDIA,
    id_words=("media", "scan"),
)
BACKUP_BASE: Final = Operation(
    name="backup.base",
    queue=Queue.BACKUP,
    description="Back up the database cluster, for recoveries to any later moment",
    arguments=BackupArguments,
    requesters=_SCHEDULED | {Requester.WAL},
    handler="worker.handlers.backup:back_up",
    action=Action.BACKUP,
    backup_type=BackupType.BASE,
    schedule=Schedule(setting="base", done_by=MadeArchive(types=frozenset({BackupType.BASE}))),
    id_words=("wal",),
)
VERIFY_ARCHIVE: Final = Operation(
    name="verify.archive",
    queue=Queue.MAINTENANCE,
    description="Check that an archive is intact",
    arguments=VerifyArguments,
    requesters=_SCHEDULED,
    handler="worker.handlers.verify:verify",
    action=Action.VERIFY,
    schedule=Schedule(setting="verify", done_by=EachArchive()),
)
RESTORE_ARCHIVE: Final = Operation(
    name="restore.archive",
    queue=Queue.RESTORE,
    description="Restore an archive or a part of it, or show the plan",
    arguments=RestoreArguments,
    handler="worker.handlers.restore:restore",
    action=Action.RESTORE,
)
RESTORE_ROLLBACK: Final = Operation(
    name="restore.rollback",
    queue=Queue.RESTORE,
    description="Roll a restore back",
    arguments=RollbackArguments,
    handler="worker.handlers.restore:roll_back",
    action=Action.ROLLBACK,
)
PRUNE_REPOSITORY: Final = Operation(
    name="prune.repository",
    queue=Queue.MAINTENANCE,
    description="Remove the archives that the retention policy does not keep",
    arguments=PruneArguments,
    requesters=frozenset({Requester.COMMAND, Requester.BEAT}),
    handler="worker.handlers.prune:prune",
    action=Action.PRUNE,
    schedule=Schedule(setting="prune", done_by=LoggedEnd(outcomes=frozenset({Outcome.DONE}))),
)
DRILL_RESTORE: Final = Operation(
    name="drill.restore",
    queue=Queue.MAINTENANCE,
    description="Test a restore: restore, compare everything, remove it",
    arguments=DrillArguments,
    requesters=_SCHEDULED,
    handler="worker.handlers.drill:drill",
    action=Action.DRILL,
    # A failed drill has been reported, so its slot is done.
    schedule=Schedule(setting="drill", done_by=LoggedEnd(outcomes=frozenset({Outcome.DONE, Outcome.FAILED}))),
)
OFFSITE_COPY: Final = Operation(
    name="offsite.copy",
    queue=Queue.OFFSITE,
    description="Copy off-site whatever is missing, or one archive with all that it needs",
    arguments=OffsiteCopyArguments,
    requesters=_SCHEDULED | {Requester.WORKER},
    handler="worker.handlers.offsite:copy",
    action=Action.OFFSITE_COPY,
    schedule=Schedule(setting="offsite", done_by=NothingMissing()),
)
OFFSITE_VERIFY: Final = Operation(
    name="offsite.verify",
    queue=Queue.OFFSITE,
    description="Verify off-site copies",
    arguments=OffsiteVerifyArguments,
    requesters=_SCHEDULED,
    handler="worker.handlers.offsite:verify",
    action=Action.OFFSITE_VERIFY,
    schedule=Schedule(
        setting="offsite_verify",
        done_by=LoggedEnd(outcomes=frozenset({Outcome.DONE}), of_destination=True),
    ),
)
OFFSITE_PRUNE: Final = Operation(
    name="offsite.prune",
    queue=Queue.OFFSITE,
    description="Remove the off-site copies that BACKUP_OFFSITE_RETENTION_RULES do not keep",
    arguments=PruneArguments,
    requesters=frozenset({Requester.COMMAND, Requester.BEAT}),
    handler="worker.handlers.offsite:prune",
    action=Action.OFFSITE_PRUNE,
    schedule=Schedule(
        setting="offsite_prune",
        done_by=LoggedEnd(outcomes=frozenset({Outcome.DONE}), of_destination=True),
    ),
)
PING: Final = Operation(
    name="health.ping",
    queue=Queue.MAINTENANCE,
    description="Answer a health check",
    handler="worker.handlers.health:ping",
    is_shown=False,
)

OPERATIONS: Final[Mapping[str, Operation]] = {
    entry.name: entry for entry in tuple(globals().values()) if isinstance(entry, Operation)
}
"""All operations by name, in the order of this file."""

SCHEDULED: Final = tuple(entry for entry in OPERATIONS.values() if entry.schedule)
"""The operations that have a schedule."""


def of_task_id(task_id: str) -> Operation | None:
    """The operation for which a command, beat or the watcher has made a task id; None for other ids."""
    word = task_id.partition("-")[0]
    if word in OPERATIONS:
        return OPERATIONS[word]
    return next((entry for entry in OPERATIONS.values() if word in _id_words(entry)), None)


def _id_words(entry: Operation) -> tuple[str, ...]:
    return (*entry.id_words, *((entry.schedule.setting,) if entry.schedule else ()))
