"""Taking restores back: the rollback of one, and the removal of the data that a rollback needs.

recover   a restore that was interrupted is undone, or finished
find      the restore, which must not lie under a newer one
check     all that the rollback needs is there
confirm   somebody says yes
go back   the live data and the rollback data change places
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
    """Takes restores back, and discards what that needs.

    Arguments:
        context: the configuration, the repository, and who asked.
    """

    def __init__(self, context: RestoreContext) -> None:
        self._context = context
        self._records = context.records
        self._history = context.history

    def plan(self, restore_id: str | None = None) -> tuple[str, RestorePlan]:
        """Which restore would be rolled back, by default the last one, and the plan for a person; touches nothing.

        Raises:
            RestoreError: there is none, or it cannot be rolled back.
        """
        record = self._history.find(restore_id)
        return record.restore_id, replace(_plan_for(record), takes_back=record.restore_id)

    def run(self, restore_id: str | None = None, *, is_repeated: bool = False) -> RestoreResult:
        """Take a restore back; every fault becomes a result.

        Arguments:
            restore_id: which one; the last one by default.
            is_repeated: the same was asked for before and was interrupted, so it may have been done.
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
        """The result of a rollback that was made before, if that restore was rolled back.

        Raises:
            OpsError: the records of restores cannot be read.
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
        """Discard the rollback data of a restore: the old database, the old files, and the record of it.

        A restore that was interrupted, and cannot be finished, is given up: what can be undone of it is undone.
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
        """Discard rollback data that is older than `rollback_days`; what was done, in words.

        Raises:
            OpsError: a restore is running, or the records cannot be read.
        """
        if not self._records.all():
            return ()
        with self._records.locked():
            return self.discard_older()

    def discard_older(self, newest: RestoreRecord | None = None) -> tuple[str, ...]:
        """As `discard_old`, by somebody who has the restores locked; each with a line in the access log.

        Arguments:
            newest: the restore that has just succeeded, and is not old whatever its clock said.
        """
        before = self._records.all()
        said = self._history.discard_old(newest)
        left = {record.restore_id for record in self._records.all()}
        for record in before:
            if record.restore_id not in left:
                self._context.witness.saw(Action.DISCARD, record.restore_id, Outcome.DONE)
        return said


def _plan_for(record: RestoreRecord) -> RestorePlan:
    """The plan of a rollback for a finished restore."""
    return RestorePlan(
        backup_id=record.backup_id,
        backup_file=Path(record.backup_file),
        timestamp="",
        components=tuple(Component(name) for name in record.parts),
    )
