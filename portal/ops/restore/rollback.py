"""Rolls restores back, and discards rollback data.

recover   undo or finish an interrupted restore
find      choose the restore, which no newer one may cover
check     make sure that everything the rollback needs exists
confirm   ask a person
go back   exchange the live data and the rollback data
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from portal.ops.model import Component
from portal.ops.repository.access_log import Action, Outcome
from portal.ops.restore.config import RestoreScope
from portal.ops.restore.journal import RestoreState, named
from portal.ops.restore.outcome import reported, warnings_of
from portal.ops.restore.plan import RestorePlan

if TYPE_CHECKING:
    from portal.ops.restore.config import RestoreResult
    from portal.ops.restore.context import RestoreContext
    from portal.ops.restore.journal import RestoreRecord
    from portal.ops.restore.outcome import ResultBuilder


class Rollback:
    """Rolls one restore back, or discards its rollback data.

    Arguments:
        context: the configuration, the repository and the requester.
    """

    def __init__(self, context: RestoreContext) -> None:
        self._context = context
        self._records = context.records
        self._history = context.history

    def plan(self, restore_id: str | None = None) -> tuple[str, RestorePlan]:
        """The restore to be rolled back, by default the last one, and the plan for a person; changes nothing.

        Raises:
            RestoreError: there is none, or it cannot be rolled back.
        """
        record = self._history.find(restore_id)
        return record.restore_id, replace(_plan_for(record), takes_back=record.restore_id)

    def run(self, restore_id: str | None = None, *, is_repeated: bool = False) -> RestoreResult:
        """Roll a restore back; every error becomes a result.

        Arguments:
            restore_id: the restore; by default the last one.
            is_repeated: an interrupted delivery of the same request may have done it already.
        """
        builder = self._context.result(RestoreScope.FULL, is_rollback=True)
        witnessed = self._context.witnessed(Action.ROLLBACK, builder, restore_id or "the last restore")
        with witnessed, reported(builder), self._records.locked():
            said, stuck = self._history.recover()
            builder.warn(said)
            for one in stuck:
                if one.record.restore_id == restore_id:
                    raise one.error()
            if is_repeated and restore_id is not None and self._is_rolled_back(restore_id, builder):
                return builder.result
            self._roll_back(self._history.find(restore_id), builder)
        self._context.note_portal_health(builder)
        return builder.result

    def _roll_back(self, record: RestoreRecord, builder: ResultBuilder) -> None:
        builder.note(**named(record))
        self._history.check(record)
        self._context.ask(replace(_plan_for(record), takes_back=record.restore_id))
        with self._context.live_change("rollback", record, builder):
            facts = self._history.roll_back(record)
        builder.note(success=True, components_restored=tuple(record.parts), facts=facts)
        builder.warn(warnings_of(facts))

    def earlier(self, restore_id: str) -> RestoreResult | None:
        """The result of an earlier rollback of that restore, or None if it was not rolled back.

        Raises:
            OpsError: the records cannot be read.
        """
        builder = self._context.result(RestoreScope.FULL, is_rollback=True)
        known = {record.restore_id for record in self._records.all()}
        return builder.result if restore_id in known and self._is_rolled_back(restore_id, builder) else None

    def _is_rolled_back(self, restore_id: str, builder: ResultBuilder) -> bool:
        record = self._history.record(restore_id)
        if record.state is not RestoreState.ROLLED_BACK:
            return False
        builder.note(success=True, components_restored=tuple(record.parts), **named(record))
        return True

    def discard(self, restore_id: str) -> RestoreResult:
        """Discard the rollback data of a restore: the previous database and files, and the record.

        A restore that was interrupted and cannot be finished is given up: whatever can be undone is undone.
        """
        builder = self._context.result(RestoreScope.FULL, is_rollback=True)
        witnessed = self._context.witnessed(Action.DISCARD, builder, restore_id)
        with witnessed, reported(builder), self._records.locked():
            record = self._history.record(restore_id)
            builder.note(**named(record))
            plan = replace(_plan_for(record), discards=record.restore_id, kept=self._history.kept(record))
            self._context.ask(plan)
            builder.warn(self._history.discard(record))
            builder.note(success=True)
        return builder.result

    def discard_old(self) -> tuple[str, ...]:
        """Discard rollback data older than `rollback_days`; return one sentence for each action.

        Raises:
            OpsError: a restore is running, or the records cannot be read.
        """
        if not self._records.all():
            return ()
        with self._records.locked():
            return self.discard_older()

    def discard_older(self, newest: RestoreRecord | None = None) -> tuple[str, ...]:
        """Like `discard_old`, for a caller that holds the restores' lock; writes the access log.

        Arguments:
            newest: the restore that has just succeeded, which is kept whatever the clock says.
        """
        before = self._records.all()
        said = self._history.discard_old(newest)
        left = {record.restore_id for record in self._records.all()}
        for record in before:
            if record.restore_id not in left:
                self._context.witness.saw(Action.DISCARD, record.restore_id, Outcome.DONE)
        return said


def _plan_for(record: RestoreRecord) -> RestorePlan:
    """The plan of a rollback of a finished restore."""
    return RestorePlan(
        backup_id=record.backup_id,
        backup_file=Path(record.backup_file),
        timestamp="",
        components=tuple(Component(name) for name in record.parts),
        targets=record.targets(),
    )
