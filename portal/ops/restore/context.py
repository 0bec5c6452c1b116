"""The context of every operation on restores: configuration, repository, records and requester."""

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
"""Shows a plan to a person and returns whether to continue."""

_SAY_YES: Final = "Start it again and answer yes, or use --force."


@dataclass(frozen=True, kw_only=True)
class RestoreContext:
    """The context of an operation on restores.

    Arguments:
        config: the target and the options.
        repository: holds the archives and the records of restores.
        witness: writes the access log in the name of the requester.
        confirm: receives the plan before anything is changed, and returns whether to continue; without it, nothing is
            asked.
        runner: starts pg_restore.
        clock: returns the current time.
        progress: receives progress reports.
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
        """The records of all restores."""
        return RestoreRecords(self.repository)

    @property
    def history(self) -> RestoreHistory:
        """The restores of the repository."""
        return RestoreHistory(self.records, parts_of=self.parts_of, clock=self.clock, days=self.config.rollback_days)

    def result(self, scope: RestoreScope, **facts: Any) -> ResultBuilder:
        """A result builder whose result is a failure until it is noted otherwise."""
        return ResultBuilder(
            result=RestoreResult(success=False, backup_id="", scope=scope, timestamp=self.clock(), **facts)
        )

    def ask(self, plan: RestorePlan) -> None:
        """Ask for confirmation of a plan.

        Raises:
            NotConfirmedError: the plan was not confirmed.
        """
        if self.confirm and not self.confirm(plan):
            raise NotConfirmedError("Not confirmed; nothing was changed", hint=_SAY_YES)

    def parts_of(self, record: RestoreRecord) -> list[Part]:
        """The parts of a recorded restore."""
        return self.maker(record.restore_id).from_record(record.parts)

    def maker(self, restore_id: str, source: RestoreSource | None = None) -> PartMaker:
        """Make a `PartMaker` for a restore.

        Arguments:
            source: what is restored, if known.
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
        from portal.ops.restore.recovered_database import RecoveredDatabasePart  # late: loads the database driver

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
        """Note in the result whether the portal answers on the live data."""
        note_portal_health(self.config, builder, self.progress)

    @contextmanager
    def witnessed(self, action: Action, builder: ResultBuilder, subject: str) -> Iterator[None]:
        """Record the end of an operation in the access log, also after an error."""
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
