"""The context of every operation on restores: the configuration, the repository with its records, and the actor."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import NotConfirmedError
from portal.ops.repository.access_log import Action, Outcome, Witness
from portal.ops.restore.components import DatabasePart, Part, PartMaker
from portal.ops.restore.config import RestoreResult
from portal.ops.restore.history import RestoreHistory
from portal.ops.restore.journal import RestoreRecords
from portal.ops.restore.live_change import live_change, note_portal_health
from portal.ops.restore.outcome import ResultBuilder
from portal.ops.restore.plan import RestorePlan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from portal.ops.pitr.plan import RecoveryPlan
    from portal.ops.repository.repository import Repository
    from portal.ops.restore.config import RestoreConfig, RestoreScope
    from portal.ops.restore.journal import RestoreRecord
    from portal.ops.restore.source import RestoreSource
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.runtime.progress import Clock, Progress

Confirm = Callable[[RestorePlan], bool]
"""Shows a plan, and says whether to go on."""

_SAY_YES: Final = "Start it again and answer yes, or use --force."


@dataclass(frozen=True, kw_only=True)
class RestoreContext:
    """The context of an operation on restores.

    Arguments:
        config: where to restore to, and how.
        repository: where archives are looked for, and restores recorded.
        witness: writes the access log, in the name of whoever asked.
        confirm: shown a plan before anything is touched, and says whether to go on; without it nobody is asked.
        runner: what starts pg_restore.
        clock: what time it is.
        progress: told how far it is.
    """

    config: RestoreConfig
    repository: Repository
    witness: Witness
    confirm: Confirm | None
    runner: ProcessRunner
    clock: Clock
    progress: Progress | None

    @property
    def records(self) -> RestoreRecords:
        """The records of restores."""
        return RestoreRecords(self.repository)

    @property
    def history(self) -> RestoreHistory:
        """The restores of the repository."""
        return RestoreHistory(self.records, parts_of=self.parts_of, clock=self.clock, days=self.config.rollback_days)

    def result(self, scope: RestoreScope, **facts: Any) -> ResultBuilder:
        """A result that is still being built: a failure, until something else is noted."""
        return ResultBuilder(
            result=RestoreResult(success=False, backup_id="", scope=scope, timestamp=self.clock(), **facts)
        )

    def ask(self, plan: RestorePlan) -> None:
        """Have a plan confirmed.

        Raises:
            NotConfirmedError: it was not.
        """
        if self.confirm and not self.confirm(plan):
            raise NotConfirmedError("Not confirmed; nothing was changed", hint=_SAY_YES)

    def parts_of(self, record: RestoreRecord) -> list[Part]:
        """The parts of a restore that was recorded."""
        return self.maker(record.restore_id).from_record(record.parts)

    def maker(self, restore_id: str, source: RestoreSource | None = None) -> PartMaker:
        """The maker of a restore's parts.

        Arguments:
            source: what is restored, where that is known.
        """
        return PartMaker(
            config=self.config,
            runner=self.runner,
            restore_id=restore_id,
            directory=self.records.directory_of(restore_id),
            repository=self.repository.path,
            database_part=self._recovered_part(source.recovery) if source and source.recovery else DatabasePart,
        )

    def _recovered_part(self, recovery: RecoveryPlan) -> Callable[..., DatabasePart]:
        from portal.ops.restore.recovered_database import RecoveredDatabasePart  # late: it brings the database driver

        return partial(
            RecoveredDatabasePart,
            recovery=recovery,
            source=self.config.db_name,
            repository=self.repository,
            runner=self.runner,
            bin_dir=Path(self.config.pg_bin_dir) if self.config.pg_bin_dir else None,
            lock_timeout=self.config.lock_timeout,
        )

    def live_change(
        self,
        operation: str,
        record: RestoreRecord,
        builder: ResultBuilder,
        *,
        give_up: Callable[[BaseException], None] | None = None,
    ) -> AbstractContextManager[None]:
        """Change live data between the operator's commands; see `live_change`."""
        facts = {
            "operation": operation,
            "restore_id": record.restore_id,
            "backup_id": record.backup_id,
            "components": tuple(record.parts),
            "actor": self.witness.name,
        }
        return live_change(self.config, self.runner, builder, facts=facts, give_up=give_up)

    def note_portal_health(self, builder: ResultBuilder) -> None:
        """Note in a result whether the portal answers on the data that is live now."""
        note_portal_health(self.config, builder, self.progress)

    @contextmanager
    def witnessed(self, action: Action, builder: ResultBuilder, subject: str) -> Iterator[None]:
        """Write down in the access log how an operation ends, whatever happens."""
        with self.witness.watching(action, subject) as seen:
            yield
            result = builder.result
            named = result.backup_id if action is Action.RESTORE else result.restore_id
            seen.subject = named or subject
            seen.note(
                Outcome.of(result.exit_code),
                scope=result.scope.value if action is Action.RESTORE else None,
                restore_id=result.restore_id if action is Action.RESTORE else None,
                error=result.error,
            )
