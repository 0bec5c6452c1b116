"""The health of point-in-time recovery: facts go in, problems come out. A pure function."""

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
"""A WAL service that has said nothing for so long does not run."""

GAP_TOLD: Final = timedelta(days=1)
"""So long a gap counts as a missed target; afterwards it is only shown."""

_CLOCK_DOUBT: Final = timedelta(seconds=5)
_MUCH_BYTES: Final = 1 << 30
_LOST_STATES: Final = ("unreserved", "lost")


@dataclass(frozen=True, kw_only=True)
class PitrFacts:
    """The facts about point-in-time recovery.

    Arguments:
        window: nothing where there is none yet.
        state: what the WAL service said last.
        wal_bytes: how much room the WAL takes.
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
        """Up to when, by our clock, nothing of the database can be lost."""
        return self.window.end - self.ahead if self.window else None

    @property
    def lag_bytes(self) -> int | None:
        """The bytes of WAL that the server has and the archive does not."""
        return self.state.get("lag_bytes")

    def lag_seconds(self, now: datetime) -> float | None:
        """For how long the WAL that we have is not complete any more."""
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
    """A target that is missed: its name, by how much, and what to do."""

    target: str
    what: str
    mend: str


def misses(facts: PitrFacts, now: datetime) -> Iterator[PitrMiss]:
    """The problems.

    Arguments:
        now: by our clock.
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
    """A slot that holds back more and more WAL will be lost, or fill the server's disk."""
    slot = state.get("slot") or {}
    lag, safe = int(state.get("lag_bytes") or 0), slot.get("safe_wal_size")
    mend = "Look at the WAL service and its disk; the server keeps WAL only as far as max_slot_wal_keep_size."
    if slot.get("wal_status") in _LOST_STATES:
        yield PitrMiss("wal_slot", f"the replication slot {slot.get('name')} is {slot['wal_status']}", mend)
    elif lag > _MUCH_BYTES or (safe is not None and lag > max(int(safe), 0)):
        yield PitrMiss("wal_slot", f"the server holds {human_bytes(lag)} of WAL back for us", mend)
