"""The moments for which a backup may be requested, given when the task was signed. This module is pure.

A moment becomes part of the archive's name. A future one would hide earlier archives, and a past one would stand for a
time that the archive does not show.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from portal.ops.model import timestamp
from portal.ops.settings.slots import newest_slot
from worker.errors import RefusedError
from worker.operations import Requester
from worker.signing import CLOCKS_DIFFER

if TYPE_CHECKING:
    from portal.ops.settings.load import ScheduleSettings
    from worker.operations import Operation

_BEAT_LATE: Final = timedelta(hours=1)
_DELAY: Final = {
    Requester.BEAT: timedelta(days=7),
    Requester.WATCHER: timedelta(days=7),
    Requester.WAL: timedelta(days=1),
    Requester.WORKER: timedelta(days=1),
    Requester.COMMAND: timedelta(days=1),
    Requester.FLOWER: timedelta(days=1),
}
"""How long before its signature a request may have been made: the watcher keeps requests while the broker is away."""


def check_moment(
    operation: Operation, moment: datetime, requester: Requester, signed_at: datetime, schedules: ScheduleSettings
) -> None:
    """Refuse a moment that the requester cannot have meant.

    Arguments:
        moment: the requested moment.
        signed_at: when the task was signed.
        schedules: the operation's schedules: beat sends the newest slot and no earlier one.

    Raises:
        RefusedError: the moment is too early or too late.
    """
    if moment > signed_at + CLOCKS_DIFFER:
        raise RefusedError(
            f"a backup for {timestamp(moment)}, which is to come, would be the newest until then",
            hint="Look at the clock of the machine that requested it.",
        )
    earliest = _earliest(operation, requester, signed_at, schedules)
    if moment < earliest:
        raise RefusedError(
            f"a backup for {timestamp(moment)}, requested by {requester} at {timestamp(signed_at)}, would carry the "
            f"name of a time that it does not hold; the earliest is {timestamp(earliest)}",
            hint="Give beat and the worker the same BACKUP_SCHEDULE_* and BACKUP_TIMEZONE, and look at their clocks.",
        )


def _earliest(operation: Operation, requester: Requester, signed_at: datetime, schedules: ScheduleSettings) -> datetime:
    if requester is Requester.BEAT and operation.schedule:
        expressions = operation.schedule.expressions(schedules)
        if slot := newest_slot(expressions, schedules.time_zone, signed_at - _BEAT_LATE):
            return slot
    return signed_at - _DELAY[requester]
