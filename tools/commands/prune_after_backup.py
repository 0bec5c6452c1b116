"""After a backup that no worker made: remove old archives as the retention policy says.

Beat prunes by its schedule. If cron or systemd start backups, nobody else would, and the disk would fill.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import OpsError
from portal.ops.model import SUFFIX
from tools.jobs import person, repository
from tools.terminal.run import StoppedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from portal.ops.restore.cleanup import CleanupJob
    from portal.ops.retention.plan import Decision
    from portal.ops.retention.prune import PruneJob
    from portal.ops.settings.load import Settings

_STOPPED: Final = "the prune after this backup was stopped; the next one goes on"
_MOST_NAMED: Final = 3


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What was removed after a backup.

    Arguments:
        names: the archives that are gone.
        freed_bytes: the room that was made.
        restores: what was removed of old restores, in words.
        warnings: why something was not removed, and what should be known. The backup is complete all the same.
    """

    names: tuple[str, ...] = ()
    freed_bytes: int = 0
    restores: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What was done, for people; nothing where there was nothing to do."""
        return [*self._removed(), *self.restores]

    def _removed(self) -> list[str]:
        from portal.ops.units import human_bytes

        if not self.names:
            return []
        more = len(self.names) - _MOST_NAMED
        shown = ", ".join(self.names[:_MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")
        count = "1 old archive" if len(self.names) == 1 else f"{len(self.names):,} old archives"
        return [f"pruned: {count}, {human_bytes(self.freed_bytes)}: {shown}"]


def prune_after_backup(settings: Settings) -> Pruned:
    """Prune as beat would; nothing where its prune is switched off. A failure is a warning, for the backup is made."""
    if settings.schedules.prune is None:
        return Pruned()
    pruned = Pruned()
    try:
        cleanup = _job(settings)
        pruned = _prune(cleanup.prune)
        if _STOPPED not in pruned.warnings:
            pruned = replace(pruned, restores=cleanup.discard_old())
    except OpsError as error:
        return _warned(pruned, _not_removed(error))
    except OSError as error:
        return _warned(pruned, _not_removed(f"{error.strerror} ({error.filename})"))
    except StoppedError:
        return _warned(pruned, _STOPPED)
    return pruned


def _warned(pruned: Pruned, warning: str) -> Pruned:
    return replace(pruned, warnings=(*pruned.warnings, warning))


def _prune(job: PruneJob) -> Pruned:
    """Look at names first, then at the plan, which takes no lock: mostly there is nothing to remove."""
    if not job.may_remove():
        return Pruned()
    decided = job.plan()
    if not decided.removals:
        return Pruned(warnings=decided.warnings)
    job.raise_if_busy()
    try:
        result = job.run()
    except StoppedError:
        there = job.repository.path
        gone = [one for one in decided.removals if not (there / f"{one.entry.name}{SUFFIX}").exists()]
        return _pruned(gone, (_STOPPED,))
    return _pruned(result.removed, (*result.warnings, *([_not_removed(result.error)] if result.error else [])))


def _pruned(removed: Sequence[Decision], warnings: tuple[str, ...]) -> Pruned:
    return Pruned(
        names=tuple(decision.entry.name for decision in removed),
        freed_bytes=sum(decision.entry.size for decision in removed),
        warnings=warnings,
    )


def _job(settings: Settings) -> CleanupJob:
    from portal.ops.backup.config import BackupConfig
    from portal.ops.monitoring.observer import Observers
    from portal.ops.restore.cleanup import CleanupJob
    from portal.ops.restore.config import RestoreConfig

    policy = BackupConfig.from_settings(settings).retention
    config = RestoreConfig.from_settings(settings)
    return CleanupJob(repository(settings), policy, config, actor=person(), observer=Observers(settings))


def _not_removed(why: Any) -> str:
    return f"old archives were not removed: {why}"
