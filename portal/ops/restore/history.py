"""The life of a restore: applied, undone, finished after a crash, rolled back, discarded.

Every operation first records what it is about to do, and can be interrupted and continued. In a settled record, the
live data is completely the old or completely the new. The next restore or rollback continues a record that is not
settled.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import OpsError, RestoreError
from portal.ops.hints import Advice
from portal.ops.model import Component, timestamp
from portal.ops.restore.journal import RestoreRecord, RestoreRecords, RestoreState
from portal.ops.runtime.logs import engine_log
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from portal.ops.restore.components import Part

log = engine_log("portal.ops.restore")

_MOMENT: Final = "%Y-%m-%dT%H:%M:%SZ"
_WILL: Final = {
    RestoreState.STAGING: "was interrupted before it changed anything; its remains will be removed",
    RestoreState.APPLYING: "was interrupted half way; it will be finished, or undone where nothing was changed yet",
    RestoreState.UNDOING: "failed, and could not be undone then; it will be undone",
    RestoreState.ROLLING_BACK: "was being rolled back, and was interrupted; that will be finished",
}
_FAULTS: Final = (OpsError, OSError)


@dataclass(frozen=True, kw_only=True)
class Stuck:
    """An interrupted restore that can be neither finished nor undone at the moment."""

    record: RestoreRecord
    reason: str

    def error(self) -> RestoreError:
        """The error for another operation on the same targets."""
        return RestoreError(
            f"{self.record.restore_id} was interrupted and has to be finished or undone first, "
            f"which fails: {self.reason}",
            hint="Put that right, and start again. If its server or disk will not come back: "
            f"{Advice.DISCARD_ROLLBACK.of(self.record.restore_id)} gives it up.",
        )


class RestoreHistory:
    """The restores of a repository.

    Arguments:
        records: the records of restores.
        parts_of: recreates the parts of a recorded restore.
        clock: returns the current time.
        days: days to keep rollback data.
    """

    def __init__(
        self,
        records: RestoreRecords,
        *,
        parts_of: Callable[[RestoreRecord], list[Part]],
        clock: Callable[[], datetime],
        days: int,
    ) -> None:
        self._records = records
        self._parts_of = parts_of
        self._clock = clock
        self._days = days

    # -- one restore ------------------------------------------------------------------------------------------------

    def begin(
        self, restore_id: str, backup_id: str, backup_file: str, parts: Mapping[str, Mapping[str, Any]]
    ) -> RestoreRecord:
        """Record that a restore will be staged; return the record.

        Arguments:
            parts: for each component, the facts from which its part is recreated.
        """
        now = timestamp(self._clock())
        return self._records.save(
            RestoreRecord(
                restore_id=restore_id,
                number=1 + max((record.number for record in self._records.all()), default=0),
                backup_id=backup_id,
                backup_file=backup_file,
                started=now,
                changed=now,
                parts=parts,
            )
        )

    def apply(self, record: RestoreRecord, parts: Sequence[Part]) -> dict[str, Any]:
        """Apply every part or none; return the facts of each.

        Raises:
            OpsError: a part failed. Everything is as before, or the error says that it is not yet.
        """
        record = self._save(record, RestoreState.APPLYING)
        facts: dict[str, Any] = {}
        try:
            for part in parts:
                started = time.monotonic()
                facts[part.component.value] = part.apply()
                seconds = round(time.monotonic() - started, 3)
                log.info("component_applied", component=part.component.value, seconds=seconds)
            self._save(record, RestoreState.APPLIED)
        except BaseException as error:
            self.give_up(record, parts, error)
            raise
        return facts

    def give_up(self, record: RestoreRecord, parts: Sequence[Part], error: BaseException) -> None:
        """Undo a restore that failed; if that fails too, the next operation continues it.

        Raises:
            RestoreError: undoing failed; the message has both errors.
        """
        try:
            self._undo(record, parts)
        except _FAULTS as second:
            log.error("undo_failed", restore_id=record.restore_id, error=str(second))
            if isinstance(error, _FAULTS):
                raise RestoreError(
                    f"{_brief(error)}; and the begun changes could not be undone: {_brief(second)}",
                    hint="Put that right, then start any restore, or --rollback: it goes on from here.",
                ) from error

    def _undo(self, record: RestoreRecord, parts: Sequence[Part]) -> None:
        """Undo every part even if another fails; raise the first error."""
        if record.state is RestoreState.APPLYING:
            record = self._save(record, RestoreState.UNDOING if _is_any_begun(parts) else RestoreState.STAGING)
        failed: OpsError | OSError | None = None
        for part in parts:
            try:
                part.undo()
            except _FAULTS as error:
                failed = failed or error
        if failed is not None:
            raise failed
        if record.state is RestoreState.STAGING:
            self._records.remove(record)
        else:  # it was live for a moment and may hold new data, so it is kept
            self._save(record, RestoreState.ROLLED_BACK)

    # -- after a crash ----------------------------------------------------------------------------------------------

    def recover(self) -> tuple[tuple[str, ...], tuple[Stuck, ...]]:
        """Undo or finish interrupted restores; return sentences about what was done, and errors."""
        said, stuck = [], []
        for record in self._unsettled():
            try:
                said.append(f"{record.restore_id} {self._settle(record)}")
            except _FAULTS as error:
                stuck.append(Stuck(record=record, reason=_brief(error)))
                said.append(
                    f"{record.restore_id} was interrupted, and cannot be finished or undone now: {_brief(error)}"
                )
        for sentence in said:
            log.warning("unfinished_work_found", detail=sentence)
        return tuple(said), tuple(stuck)

    def to_recover(self) -> tuple[str, ...]:
        """The actions that `recover` would take, one sentence each; changes nothing."""
        records = self._unsettled()
        if records and self._records.are_locked():
            return tuple(f"{record.restore_id} is at work at this moment" for record in records)
        return tuple(f"{record.restore_id} {_WILL[record.state]}" for record in records)

    def _unsettled(self) -> list[RestoreRecord]:
        return [record for record in self._records.all() if not record.state.is_settled]

    def _settle(self, record: RestoreRecord) -> str:
        parts = self._parts_of(record)
        if record.state is RestoreState.ROLLING_BACK:
            self._go_back(record, parts)
            return "was being rolled back, and had been interrupted; that is finished now"
        if record.state is RestoreState.UNDOING:
            self._undo(record, parts)
            return "had failed; it is undone now, and everything is as it was before"
        if record.state is RestoreState.STAGING or not any(part.is_begun() for part in parts):
            self._undo(record, parts)
            return "had been interrupted before it changed anything; its remains are removed"
        try:
            for part in parts:
                part.finish()
        except _FAULTS as error:
            self._undo(record, parts)
            return f"had been interrupted half way and could not be finished ({_brief(error)}); it is undone now"
        self._save(record, RestoreState.APPLIED)
        return "had been interrupted half way; it is finished now"

    # -- going back -------------------------------------------------------------------------------------------------

    def find(self, restore_id: str | None) -> RestoreRecord:
        """The restore to roll back; by default the last one that can be.

        Raises:
            RestoreError: there is none, or it cannot be rolled back.
        """
        records = self._records.all()
        if restore_id is None:
            found = next((record for record in records if record.state is RestoreState.APPLIED), None)
        else:
            found = next((record for record in records if record.restore_id == restore_id), None)
        if found is None:
            what = f"there is no restore {restore_id}" if restore_id else "there is no restore"
            raise RestoreError(f"{what} that could be rolled back", hint=f"{Advice.LIST_ROLLBACKS} shows them.")
        if found.state is RestoreState.ROLLED_BACK:
            raise RestoreError(
                f"{found.restore_id} was rolled back already", hint=f"{Advice.LIST_ROLLBACKS} shows them."
            )
        self._refuse_covered(found, records)
        return found

    def _refuse_covered(self, record: RestoreRecord, records: Sequence[RestoreRecord]) -> None:
        """Refuse to roll back a restore that a newer one covers."""
        for newer in records:
            applied = newer.state is not RestoreState.ROLLED_BACK
            if newer.number > record.number and applied and newer.overlaps(record.parts):
                raise RestoreError(
                    f"{newer.restore_id} was restored over {record.restore_id}",
                    hint=f"Roll that back first: {Advice.ROLL_BACK.of(newer.restore_id)}.",
                )

    def check(self, record: RestoreRecord) -> None:
        """Make sure that everything the rollback needs exists.

        Raises:
            RestoreError: something is missing.
        """
        gone = [part for part in self._parts_of(record) if not part.is_begun()]
        if gone:
            what = ", ".join(part.kept(rolled_back=False) for part in gone)
            raise RestoreError(
                f"{record.restore_id} cannot be rolled back any more, because this is gone: {what}",
                hint=f"{Advice.DISCARD_ROLLBACK.of(record.restore_id)} takes it off the list; "
                f"{Advice.LIST_ARCHIVES} shows the archives that can be restored instead.",
            )

    def roll_back(self, record: RestoreRecord) -> dict[str, Any]:
        """Roll a restore back; return the facts of each part.

        Raises:
            OpsError: it failed. The next operation continues it, unless nothing was changed.
        """
        parts = self._parts_of(record)
        record = self._save(record, RestoreState.ROLLING_BACK)
        try:
            return self._go_back(record, parts)
        except BaseException as error:
            if self._is_still_applied(parts):
                self._save(record, RestoreState.APPLIED)
            elif not isinstance(error, Exception):  # this process is to end, but not half way through
                self._go_back(record, parts)
            raise

    def _go_back(self, record: RestoreRecord, parts: Sequence[Part]) -> dict[str, Any]:
        """Roll back the database first, since only it can refuse because of other sessions."""
        facts = {part.component.value: part.roll_back() for part in parts if part.is_begun()}
        self._save(record, RestoreState.ROLLED_BACK)
        log.info("restore_rolled_back", restore_id=record.restore_id)
        return facts

    def _is_still_applied(self, parts: Sequence[Part]) -> bool:
        """True if the database, which goes first, was not rolled back."""
        with suppress(*_FAULTS):
            return parts[0].component is Component.DATABASE and parts[0].is_begun()
        return False

    # -- discarding -------------------------------------------------------------------------------------------------

    def record(self, restore_id: str) -> RestoreRecord:
        """The record of a restore, whatever its state.

        Raises:
            RestoreError: there is no restore of that id.
        """
        for record in self._records.all():
            if record.restore_id == restore_id:
                return record
        raise RestoreError(f"there is no restore {restore_id}", hint=f"{Advice.LIST_ROLLBACKS} shows them.")

    def discard(self, record: RestoreRecord) -> tuple[str, ...]:
        """Discard a restore's rollback data, or undo an interrupted one; return what could not be removed."""
        left: list[str] = []
        for part in self._parts_of(record):
            try:
                if not record.state.is_settled:
                    part.undo()
                left += part.discard()
            except _FAULTS as error:
                what = part.kept(rolled_back=record.state is RestoreState.ROLLED_BACK)
                left.append(f"{what} is left, to be removed by hand: {_brief(error)}")
        self._records.remove(record)
        log.info("rollback_data_discarded", restore_id=record.restore_id)
        return tuple(left)

    def discard_old(self, newest: RestoreRecord | None = None) -> tuple[str, ...]:
        """Discard rollback data that is too old; return sentences about what was and could not be removed.

        Arguments:
            newest: the restore that has just succeeded, which is kept whatever the clock says.
        """
        said: list[str] = []
        limit = self._clock() - timedelta(days=self._days)
        for record in self._records.all():
            if (
                (newest and record.restore_id == newest.restore_id)
                or not record.state.is_settled
                or _moment(record) > limit
            ):
                continue
            try:
                for part in self._parts_of(record):
                    said += part.discard()
                self._records.remove(record)
                said.append(f"{record.restore_id} is more than {self._days} days old and can no longer be rolled back")
            except _FAULTS as error:
                said.append(f"{record.restore_id} is old, but its rollback data cannot be removed: {_brief(error)}")
        return tuple(said)

    def listed(self) -> list[dict[str, Any]]:
        """Every restore with data left, newest first, as types of JSON; no server is queried."""
        return [self._listed(record) for record in self._records.all()]

    def _listed(self, record: RestoreRecord) -> dict[str, Any]:
        return {
            **record.told(),
            "can_be_taken_back": record.state is RestoreState.APPLIED,
            "kept": list(self.kept(record)),
            "kept_until": timestamp(_moment(record) + timedelta(days=self._days)),
        }

    def kept(self, record: RestoreRecord) -> tuple[str, ...]:
        """The rollback data of a restore, in words."""
        rolled_back = record.state is RestoreState.ROLLED_BACK
        return tuple(kept for part in self._parts_of(record) if (kept := part.kept(rolled_back=rolled_back)))

    def _save(self, record: RestoreRecord, state: RestoreState) -> RestoreRecord:
        return self._records.save(record, state=state, changed=timestamp(self._clock()))


def _is_any_begun(parts: Sequence[Part]) -> bool:
    """True if live data was changed, as far as that can be determined."""
    try:
        return any(part.is_begun() for part in parts)
    except _FAULTS:
        return True


def _moment(record: RestoreRecord) -> datetime:
    return datetime.strptime(record.changed, _MOMENT).replace(tzinfo=UTC)


def _brief(error: OpsError | OSError) -> str:
    """The message without its hint, which is meant for another situation."""
    return error.message if isinstance(error, OpsError) else f"{system_reason(error)} ({error.filename})"
