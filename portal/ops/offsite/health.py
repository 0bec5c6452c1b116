"""The state of a destination, and whether its target is missed. This module is pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from portal.ops.model import timestamp
from portal.ops.units import span

if TYPE_CHECKING:
    from datetime import datetime

WAL_PATIENCE: Final = timedelta(minutes=2)
"""How long the copying of WAL may fail before that is a missed target."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The result of the last verification of copies, or of the last drill with one.

    Arguments:
        level: the level of the verification, or ``drill``.
        damaged: damaged copies, or the archive of a failed drill.
    """

    moment: datetime
    level: str
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WalCopying:
    """The copying of WAL to a destination.

    Arguments:
        worked: when it last succeeded, or was started.
        problem: the fault with its hint; empty if there is none.
    """

    worked: datetime
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class DestinationState:
    """The state of one destination.

    Arguments:
        newest: the newest archive with a copy; `moment` is when the archive was made.
        missing: archives that should have a copy.
        stored_bytes: the size of all copies.
        verified: the last verification.
        drilled: the last drill with a copy from here.
        recipients_proven: whether that drill used an identity of a present recipient.
        foreign: copies put there by others, as found by the last verification.
        wal: None if no WAL is received, or none was ever copied there.
    """

    shown: str
    identifier: str
    copies: int
    newest: str | None
    moment: datetime | None
    missing: tuple[str, ...]
    oldest_missing: datetime | None
    stored_bytes: int
    verified: Proof | None
    drilled: Proof | None
    recipients_proven: bool
    foreign: tuple[str, ...] = ()
    wal: WalCopying | None = None

    def wal_fault(self, now: datetime) -> tuple[str, str]:
        """How long some or all WAL has not been copied, with reason and hint; empty if it is being copied."""
        if self.wal is None or now - self.wal.worked <= WAL_PATIENCE:
            return "", ""
        problem, _, hint = self.wal.problem.partition("\n  hint: ")
        why = f": {problem}" if problem else ""
        what = f"not all WAL has been copied to {self.shown} for {span(now - self.wal.worked)}{why}"
        return what, hint or "See whether the WAL service runs and the store answers; the service's log says more."

    def fault(self, allowed: timedelta, now: datetime) -> str:
        """How the target is missed; empty if it is met.

        Arguments:
            allowed: the greatest age of the newest archive with a copy.
        """
        if self.verified and self.verified.damaged:
            return f"copies in {self.shown} are damaged: {', '.join(self.verified.damaged[:3])}"
        if self.oldest_missing is not None and now - self.oldest_missing > allowed:
            return (
                f"{self.missing[-1]} has no copy in {self.shown}, although it is {span(now - self.oldest_missing)} old"
            )
        if self.moment is not None and now - self.moment > allowed:
            age = span(now - self.moment)
            return f"the newest archive with a copy in {self.shown} is {age} old, and {span(allowed)} are allowed"
        return ""

    def to_dict(self, now: datetime) -> dict[str, Any]:
        """The state as types of JSON."""
        return {
            "destination": self.shown,
            "copies": self.copies,
            "newest": self.newest,
            "age_seconds": (now - self.moment).total_seconds() if self.moment else None,
            "missing": list(self.missing),
            "stored_bytes": self.stored_bytes,
            "verified": _proof(self.verified),
            "drilled": _proof(self.drilled),
            "recipients_proven": self.recipients_proven,
            "foreign": list(self.foreign),
            "wal": {"worked": timestamp(self.wal.worked), "problem": self.wal.problem} if self.wal else None,
        }


def _proof(proof: Proof | None) -> dict[str, Any] | None:
    if proof is None:
        return None
    return {"timestamp": timestamp(proof.moment), "level": proof.level, "damaged": list(proof.damaged)}
