"""The progress of the WAL: the moments that a position covers, and the service's state. Values in, values out."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from portal.ops.pitr.lsn import format_lsn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from portal.ops.pitr.replication import Position


class Coverage:
    """Which moments of the server's clock a position covers.

    A transaction takes its time a moment before its record reaches the WAL. So a clock reading counts only with the
    position that was read one look later.
    """

    def __init__(self) -> None:
        self._looks: deque[tuple[int, datetime]] = deque()
        self._clock: datetime | None = None

    def note(self, clock: datetime, flushed: int) -> None:
        """Note one look at the server: what its clock said, and how far its WAL was on its disk."""
        if self._clock:
            if self._looks and self._looks[-1][0] == flushed:
                self._looks.pop()
            self._looks.append((flushed, self._clock))
        self._clock = clock

    def recall(self, moment: datetime, lsn: int) -> None:
        """Take up what was known before: a moment of which everything lies before a position."""
        self._looks.append((lsn, moment))

    def at(self, lsn: int) -> datetime | None:
        """The latest moment of which everything lies before a position; nothing where no look tells."""
        return max((clock for flushed, clock in self._looks if flushed <= lsn), default=None)

    def forget(self, lsn: int) -> None:
        """Drop what only tells of positions before this one."""
        while len(self._looks) > 1 and self._looks[1][0] <= lsn:
            self._looks.popleft()


def state_of(found: Position, *, known: Mapping[str, Any], received: int, covered: datetime | None) -> dict[str, Any]:
    """The state to report for the positions.

    Arguments:
        found: what the server says.
        known: what was told last: a moment that was covered stays covered.
        received: up to where everything is on our disk.
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
