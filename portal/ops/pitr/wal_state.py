"""The progress of receiving WAL: which moments a position covers, and the service's state. This module is pure."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from portal.ops.pitr.lsn import format_lsn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from portal.ops.pitr.replication import Position


class Coverage:
    """Determines which moments of the server's clock a WAL position covers.

    A transaction takes its commit time shortly before its record is in the WAL. So a clock reading is only paired with
    a position read at a later query: the next one, if the server has flushed all that was written by then. Otherwise
    commits without a flush of their own (`synchronous_commit = off`) may be missing from what is flushed, and the
    reading has to be as old as the server lets them wait.
    """

    def __init__(self) -> None:
        self._looks: deque[tuple[int, datetime]] = deque()
        self._clocks: deque[datetime] = deque()

    def note(self, clock: datetime, *, flushed: int, inserted: int, delay: timedelta) -> None:
        """Add the result of one query.

        Arguments:
            clock: the server's clock.
            flushed: the position up to which the server's WAL is on its disk.
            inserted: the position up to which WAL is written in the server's memory.
            delay: how long a commit may wait for its flush.
        """
        latest = clock if flushed >= inserted else clock - delay
        covered = None
        while self._clocks and self._clocks[0] <= latest:
            covered = self._clocks.popleft()
        if covered:
            if self._looks and self._looks[-1][0] == flushed:
                self._looks.pop()
            self._looks.append((flushed, covered))
        self._clocks.append(clock)

    def recall(self, moment: datetime, lsn: int) -> None:
        """Add an earlier result: all commits up to the moment are before the position."""
        self._looks.append((lsn, moment))

    def at(self, lsn: int) -> datetime | None:
        """The latest moment whose commits are all before a position, or None if unknown."""
        return max((clock for flushed, clock in self._looks if flushed <= lsn), default=None)

    def forget(self, lsn: int) -> None:
        """Remove pairs that are no longer needed for this and later positions."""
        while len(self._looks) > 1 and self._looks[1][0] <= lsn:
            self._looks.popleft()


def state_of(found: Position, *, known: Mapping[str, Any], received: int, covered: datetime | None) -> dict[str, Any]:
    """The state to report.

    Arguments:
        found: the server's answer.
        known: the last reported state: a covered moment stays covered.
        received: the position up to which everything is on our disk.
        covered: the moment that this position covers.
    """
    clock = found.clock.astimezone(UTC)
    covered_to = max(_text(covered) if covered else "", known.get("covered_to") or "") or None
    behind = (clock - datetime.fromisoformat(covered_to)).total_seconds() if covered_to else None
    return {
        "server_clock": _text(clock),
        "received": received,
        "received_lsn": format_lsn(received),
        "covered_to": covered_to,
        "lag_bytes": max(0, found.flushed_lsn - received),
        "lag_seconds": 0.0 if received >= found.flushed_lsn else behind,
        "slot": {
            "name": found.slot,
            "active": found.active,
            "wal_status": found.wal_status,
            "safe_wal_size": found.safe_wal_size,
        },
    }


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")
