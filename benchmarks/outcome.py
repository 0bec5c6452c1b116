"""What came out for each contender, and how it stands against what was wanted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from benchmarks.measure import Memory, Statistic

if TYPE_CHECKING:
    from collections.abc import Mapping


class Measure(Enum):
    """What is compared. Times are seconds, all others bytes."""

    TIME = "time"
    CPU = "CPU"
    SIZE = "size"
    PSS = "peak PSS"
    RSS = "peak RSS"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One round of one contender: seconds, the size of what it wrote, its memory where that was watched."""

    wall: float
    cpu: float
    size: int | None = None
    peak: Memory | None = None

    def value(self, measure: Measure) -> float | None:
        """Return one figure of this round, or nothing where it was not taken."""
        match measure:
            case Measure.TIME:
                return self.wall
            case Measure.CPU:
                return self.cpu
            case Measure.SIZE:
                return self.size
            case Measure.PSS:
                return self.peak.pss if self.peak else None
            case Measure.RSS:
                return self.peak.rss if self.peak else None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All rounds of one contender, or the reason why there are none.

    Arguments:
        name: the contender.
        results: its rounds; empty where something went wrong, in whichever round that was.
        trouble: what to write in place of figures.
        failed: the trouble is a command that failed, and not a program that is not installed.
    """

    name: str
    results: tuple[Result, ...] = ()
    trouble: str = ""
    failed: bool = False

    def statistic(self, measure: Measure) -> Statistic | None:
        """Summarise one figure over all rounds, where it was taken in any."""
        values = [value for result in self.results if (value := result.value(measure)) is not None]
        return Statistic.of(values) if values else None

    def median(self, measure: Measure) -> float | None:
        """Return the median of one figure over all rounds."""
        statistic = self.statistic(measure)
        return statistic.median if statistic else None


class Bound(Enum):
    """On which side of the wanted figure the good lies."""

    AT_LEAST = "≥"
    AT_MOST = "≤"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A wanted figure: bytes of one contender, or a ratio of two medians.

    Arguments:
        measure: what is compared.
        subject: the contender the wish is about, by name.
        reference: the one it is compared with; without one the figure itself is meant.
        bound: `AT_LEAST` asks how many times the reference needs of what the subject needs (a speed-up), `AT_MOST` the
            reverse.
        wanted: the figure.
    """

    measure: Measure
    subject: str
    bound: Bound
    wanted: float
    reference: str | None = None

    def measured(self, outcomes: Mapping[str, Outcome]) -> float | None:
        """Return what was reached, or nothing where one of the two has no figure."""
        subject = outcomes[self.subject].median(self.measure)
        if self.reference is None:
            return subject
        reference = outcomes[self.reference].median(self.measure)
        return ratio(reference, subject) if self.bound is Bound.AT_LEAST else ratio(subject, reference)

    def is_reached(self, measured: float) -> bool:
        """Return whether a measured figure is good enough."""
        return measured >= self.wanted if self.bound is Bound.AT_LEAST else measured <= self.wanted


def ratio(dividend: float | None, divisor: float | None) -> float | None:
    """Divide where there is something to divide."""
    return dividend / divisor if dividend is not None and divisor else None
