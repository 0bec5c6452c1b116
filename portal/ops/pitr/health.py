"""Judges the health of point-in-time recovery: facts in, missed targets out. This module is pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from portal.ops.hints import Advice
from portal.ops.units import human_bytes, span

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from portal.ops.pitr.replaced import ReplacedCluster
    from portal.ops.pitr.window import Window

SILENT: Final = timedelta(seconds=60)
"""A WAL service that has reported nothing for this time counts as stopped."""

GAP_TOLD: Final = timedelta(days=1)
"""A gap counts as a missed target for this time; later it is only shown."""

_CLOCK_DOUBT: Final = timedelta(seconds=5)
_MUCH_BYTES: Final = 1 << 30
_LOST_STATES: Final = ("unreserved", "lost")


@dataclass(frozen=True, kw_only=True)
class PitrFacts:
    """The facts about point-in-time recovery.

    Arguments:
        window: the recovery window; None if there is none yet.
        state: the last report of the WAL service.
        wal_bytes: the bytes that the WAL takes.
        ahead: how far the server's clock is ahead of ours.
        replaced: the WAL of clusters that came before.
    """

    window: Window | None
    state: Mapping[str, Any]
    wal_bytes: int = 0
    ahead: timedelta = timedelta(0)
    replaced: tuple[ReplacedCluster, ...] = ()

    @property
    def covered(self) -> datetime | None:
        """The moment, by our clock, up to which nothing of the database can be lost."""
        return self.window.end - self.ahead if self.window else None

    @property
    def lag_bytes(self) -> int | None:
        """The bytes of WAL that the server has and the archive lacks."""
        return self.state.get("lag_bytes")

    def lag_seconds(self, now: datetime) -> float | None:
        """The seconds since our WAL was last complete."""
        return max(0.0, (now - self.covered).total_seconds()) if self.covered else None

    def to_dict(self, now: datetime) -> dict[str, Any]:
        """The facts in the types of JSON."""
        lag = self.lag_seconds(now)
        return {
            **(self.window.to_dict() if self.window else {"from": None, "to": None, "gaps": []}),
            "lag_bytes": self.lag_bytes,
            "lag_seconds": None if lag is None else round(lag, 1),
            "wal_bytes": self.wal_bytes,
            "replaced_clusters": [one.to_dict() for one in self.replaced],
            "slot": self.state.get("slot"),
            "problem": self.state.get("problem"),
        }


class PitrMiss(NamedTuple):
    """A missed target: its name, by how much, and what to do."""

    target: str
    what: str
    mend: str


def misses(facts: PitrFacts, now: datetime) -> Iterator[PitrMiss]:
    """The missed targets.

    Arguments:
        now: the present time, by our clock.
    """
    yield from _service(facts.state, now)
    yield from _slot(facts.state)
    if facts.window is None:
        yield PitrMiss(
            "recovery_window",
            "the database cannot be recovered to any moment yet: there is no base backup with the WAL after it",
            f"{Advice.BACK_UP_BASE} makes one now; the WAL service asks for it by itself.",
        )
        return
    for start, end in facts.window.gaps:
        if now + facts.ahead - end <= GAP_TOLD:
            yield PitrMiss(
                "recovery_window",
                f"the database cannot be recovered to moments between {start:%Y-%m-%d %H:%M:%S} and {end:%H:%M:%S} UTC",
                "That is over: recoveries to later moments work. The log of the WAL service says why.",
            )


def _service(state: Mapping[str, Any], now: datetime) -> Iterator[PitrMiss]:
    updated = datetime.fromisoformat(state["updated"]).astimezone(UTC) if state.get("updated") else None
    if updated is None or now - updated > SILENT + _CLOCK_DOUBT:
        since = f"for {span(now - updated)}" if updated else "yet"
        yield PitrMiss("wal", f"no WAL has been received {since}", f"Start the WAL service: {Advice.RECEIVE_WAL}.")
    elif problem := state.get("problem"):
        what, _, mend = str(problem).partition("\n  hint: ")
        yield PitrMiss("wal", f"the WAL is not being received: {what}", mend or "Its log says more.")


def _slot(state: Mapping[str, Any]) -> Iterator[PitrMiss]:
    """The problem of a slot that retains more and more WAL: it will be lost, or fill the server's disk."""
    slot = state.get("slot") or {}
    lag, safe = int(state.get("lag_bytes") or 0), slot.get("safe_wal_size")
    mend = "Look at the WAL service and its disk; the server keeps WAL only as far as max_slot_wal_keep_size."
    if slot.get("wal_status") in _LOST_STATES:
        yield PitrMiss("wal_slot", f"the replication slot {slot.get('name')} is {slot['wal_status']}", mend)
    elif lag > _MUCH_BYTES or (safe is not None and lag > max(int(safe), 0)):
        yield PitrMiss("wal_slot", f"the server holds {human_bytes(lag)} of WAL back for us", mend)
