"""The life of a restore: applied, undone, finished after a crash, rolled back, forgotten.

Everything here first writes down what it is going to do, and can be interrupted and continued. What is live is wholly
the old or wholly the new once a record is settled; a record that is not is worked on by the next restore or rollback.
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
    """A restore that was interrupted, and can be neither finished nor undone at the moment."""

    record: RestoreRecord
    reason: str

    def error(self) -> RestoreError:
        """The error for another operation on the same target."""
        return RestoreError(
            f"{self.record.restore_id} was interrupted and has to be finished or undone first, "
            f"which fails: {self.reason}",
            hint="Put that right, and start again. If its server or disk will not come back: "
            f"{Advice.DISCARD_ROLLBACK.of(self.record.restore_id)} gives it up.",
        )


class RestoreHistory:
    """The restores of a repository.

    Arguments:
        records: what is remembered of them.
        parts_of: makes the parts of a restore that was recorded.
        clock: what time it is.
        days: how long it is kept what takes an older restore back.
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
        """Write down that a restore will be staged; the record.

        Arguments:
            parts: for each component what its part needs to be finished or rolled back.
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
        """Put every part in its place, or none; the facts of each.

        Raises:
            OpsError: one could not be put in its place; everything is as before, or the error says that it is not yet.
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
        """Make everything as it was before a restore that has failed; where that fails too, a later start goes on.

        Raises:
            RestoreError: it has failed too, after an error that a person will read.
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
        """Undo every part, whatever happens with the others; the first error counts."""
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
        else:  # what was live for a moment may hold what somebody wrote, so it is kept
            self._save(record, RestoreState.ROLLED_BACK)

    # -- after a crash ----------------------------------------------------------------------------------------------

    def recover(self) -> tuple[tuple[str, ...], tuple[Stuck, ...]]:
        """Undo or finish what was interrupted; what was done, in words, and what could not be."""
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
        """The actions `recover` would take, one sentence each; changes nothing."""
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
        """The restore to take back; by default the last one that can be.

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
        """Restores lie on one another: only the uppermost can be taken away."""
        for newer in records:
            applied = newer.state is not RestoreState.ROLLED_BACK
            if newer.number > record.number and applied and newer.overlaps(record.parts):
                raise RestoreError(
                    f"{newer.restore_id} was restored over {record.restore_id}",
                    hint=f"Take that back first: {Advice.ROLL_BACK.of(newer.restore_id)}.",
                )

    def check(self, record: RestoreRecord) -> None:
        """Make sure that all that a rollback needs is there.

        Raises:
            RestoreError: it is not.
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
        """Make live again what was live before a restore; the facts of each part.

        Raises:
            OpsError: it could not be done; it is gone on with by whatever is started next, unless nothing was changed.
        """
        parts = self._parts_of(record)
        record = self._save(record, RestoreState.ROLLING_BACK)
        try:
            return self._go_back(record, parts)
        except BaseException as error:
            if self._is_still_applied(parts):
                self._save(record, RestoreState.APPLIED)
            elif not isinstance(error, Exception):  # somebody asks this process to end, but not half way
                self._go_back(record, parts)
            raise

    def _go_back(self, record: RestoreRecord, parts: Sequence[Part]) -> dict[str, Any]:
        """The database first: it alone can refuse because somebody else is in it."""
        facts = {part.component.value: part.roll_back() for part in parts if part.is_begun()}
        self._save(record, RestoreState.ROLLED_BACK)
        log.info("restore_rolled_back", restore_id=record.restore_id)
        return facts

    def _is_still_applied(self, parts: Sequence[Part]) -> bool:
        """True if the database, which goes first, has not gone back."""
        with suppress(*_FAULTS):
            return parts[0].component is Component.DATABASE and parts[0].is_begun()
        return False

    # -- discarding -------------------------------------------------------------------------------------------------

    def record(self, restore_id: str) -> RestoreRecord:
        """A restore, however far it is.

        Raises:
            RestoreError: there is none of that name.
        """
        for record in self._records.all():
            if record.restore_id == restore_id:
                return record
        raise RestoreError(f"there is no restore {restore_id}", hint=f"{Advice.LIST_ROLLBACKS} shows them.")

    def discard(self, record: RestoreRecord) -> tuple[str, ...]:
        """Discard a restore's rollback data, or undo an interrupted one; what could not be removed, in words."""
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
        """Discard rollback data that is too old; what was removed and what could not be, in words.

        Arguments:
            newest: the one that has just succeeded, and is not old whatever its clock said.
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
        """Every restore that something is kept of, newest first, in the types of JSON; no server is asked."""
        return [self._listed(record) for record in self._records.all()]

    def _listed(self, record: RestoreRecord) -> dict[str, Any]:
        return {
            "restore_id": record.restore_id,
            "backup_id": record.backup_id,
            "started": record.started,
            "changed": record.changed,
            "state": record.state.value,
            "components": list(record.parts),
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
    """True if anything live was touched, as far as one can tell."""
    try:
        return any(part.is_begun() for part in parts)
    except _FAULTS:
        return True


def _moment(record: RestoreRecord) -> datetime:
    return datetime.strptime(record.changed, _MOMENT).replace(tzinfo=UTC)


def _brief(error: OpsError | OSError) -> str:
    """The message without its hint, which is for another occasion."""
    return error.message if isinstance(error, OpsError) else f"{system_reason(error)} ({error.filename})"
