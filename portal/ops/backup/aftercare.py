"""The work after a backup made without a worker: copying off-site, then removing old archives and rollback data.

With workers, beat sends these tasks by their schedules. If cron, systemd or a program starts backups, they run here. A
failure is only a warning: the backup is complete.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from portal.ops.backup.config import BackupConfig
from portal.ops.errors import OpsError
from portal.ops.model import SUFFIX
from portal.ops.offsite.config import OffsiteConfig
from portal.ops.repository.faults import explain_any
from portal.ops.repository.repository import Repository
from portal.ops.restore.cleanup import CleanupJob
from portal.ops.restore.config import RestoreConfig
from portal.ops.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from portal.ops.offsite.copy import CopyJob, CopyResult
    from portal.ops.repository.access_log import Observer
    from portal.ops.retention.plan import Decision
    from portal.ops.runtime.progress import Step
    from portal.ops.settings.load import Settings

_PRUNE_STOPPED: Final = "the prune after this backup was stopped; the next one continues it"
_COPY_STOPPED: Final = "the off-site copy after this backup was stopped; the next one continues it"
_HINT: Final = "The backup is complete."
_MOST_NAMED: Final = 3


@dataclass(frozen=True, kw_only=True)
class CleanedUp:
    """The result of a cleanup after a backup.

    Arguments:
        names: the removed archives.
        freed_bytes: the size of the removed archives.
        discarded: one sentence for each piece of removed rollback data.
        warnings: why something was not removed, and other warnings.
    """

    names: tuple[str, ...] = ()
    freed_bytes: int = 0
    discarded: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """One line for each removal; empty if nothing was removed."""
        return [*self._removed(), *self.discarded]

    def _removed(self) -> list[str]:
        if not self.names:
            return []
        more = len(self.names) - _MOST_NAMED
        shown = ", ".join(self.names[:_MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")
        count = "1 old archive" if len(self.names) == 1 else f"{len(self.names):,} old archives"
        return [f"pruned: {count}, {human_bytes(self.freed_bytes)}: {shown}"]


@dataclass(frozen=True, kw_only=True)
class CopiedOffsite:
    """The result of the off-site copies after a backup.

    Arguments:
        result: the result of the copy job; None if there is no destination, or it failed before.
        warnings: why something was not copied, and other warnings.
    """

    result: CopyResult | None = None
    warnings: tuple[str, ...] = ()


def cleanup_job(settings: Settings, *, actor: str | None = None, observer: Observer | None = None) -> CleanupJob:
    """The cleanup job for these settings.

    Arguments:
        actor: the requester, for the access log; by default the user of this process.
        observer: receives the result.

    Raises:
        ConfigurationError: the retention policy or a restore setting is invalid.
    """
    return CleanupJob(
        Repository(settings.local_path, lock_timeout=settings.lock_timeout),
        BackupConfig.from_settings(settings).retention,
        RestoreConfig.from_settings(settings),
        actor=actor,
        observer=observer,
    )


def copy_job(
    settings: Settings,
    *,
    progress: Callable[[Step], None] | None = None,
    actor: str | None = None,
    observer: Observer | None = None,
) -> CopyJob:
    """The job for off-site copies with these settings; arguments as for `cleanup_job`.

    Raises:
        ConfigurationError: the retention policy or an off-site setting is invalid.
    """
    from portal.ops.offsite.copy import CopyJob  # imported late: most installations prune, and few copy

    policy = BackupConfig.from_settings(settings).retention
    return CopyJob(OffsiteConfig.from_settings(settings), policy, progress=progress, actor=actor, observer=observer)


def copy_after_backup(
    settings: Settings,
    *,
    progress: Callable[[Step], None] | None = None,
    actor: str | None = None,
    observer: Observer | None = None,
    interrupt: type[BaseException] = KeyboardInterrupt,
) -> CopiedOffsite:
    """Copy everything missing off-site, if there is a destination.

    Arguments:
        interrupt: the exception with which the caller stops this; it becomes a warning.
    """
    if not settings.offsite.destinations():
        return CopiedOffsite()
    try:
        done = copy_job(settings, progress=progress, actor=actor, observer=observer).run()
    except (OpsError, OSError) as error:
        return CopiedOffsite(warnings=(_not_copied(error),))
    except interrupt:
        return CopiedOffsite(warnings=(_COPY_STOPPED,))
    faults = (_not_copied(fault) for fault in done.faults)
    return CopiedOffsite(result=done, warnings=(*done.warnings, *dict.fromkeys(faults)))


def clean_up_after_backup(
    settings: Settings,
    *,
    actor: str | None = None,
    observer: Observer | None = None,
    interrupt: type[BaseException] = KeyboardInterrupt,
) -> CleanedUp:
    """Prune, and discard old rollback data, unless `BACKUP_SCHEDULE_PRUNE` is off; arguments as for the copy."""
    if settings.schedules.prune is None:
        return CleanedUp()
    done = CleanedUp()
    try:
        job = cleanup_job(settings, actor=actor, observer=observer)
        done = _prune(job, interrupt)
        if _PRUNE_STOPPED not in done.warnings:
            done = replace(done, discarded=job.discard_old())
    except OpsError as error:
        return _warned(done, _not_removed(error))
    except OSError as error:
        return _warned(done, _not_removed(explain_any(error, _HINT)))
    except interrupt:
        return _warned(done, _PRUNE_STOPPED)
    return done


def _prune(cleanup: CleanupJob, interrupt: type[BaseException]) -> CleanedUp:
    """Check names first, then the plan, which takes no lock: usually there is nothing to remove."""
    job = cleanup.prune
    if not job.may_remove():
        return CleanedUp()
    decided = job.plan()
    if not decided.removals:
        return CleanedUp(warnings=decided.warnings)
    job.raise_if_busy()
    try:
        result = job.run()
    except interrupt:
        there = job.repository.path
        gone = [one for one in decided.removals if not (there / f"{one.entry.name}{SUFFIX}").exists()]
        return _cleaned(gone, (_PRUNE_STOPPED,))
    return _cleaned(result.removed, (*result.warnings, *([_not_removed(result.fault)] if result.fault else ())))


def _cleaned(removed: Sequence[Decision], warnings: tuple[str, ...]) -> CleanedUp:
    return CleanedUp(
        names=tuple(decision.entry.name for decision in removed),
        freed_bytes=sum(decision.entry.size for decision in removed),
        warnings=warnings,
    )


def _warned(done: CleanedUp, warning: str) -> CleanedUp:
    return replace(done, warnings=(*done.warnings, warning))


def _not_removed(error: OpsError) -> str:
    return f"old archives were not removed: {error}"


def _not_copied(error: Exception) -> str:
    return f"off-site copies were not made: {error}"
