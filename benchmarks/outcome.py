"""The results of contenders, compared with the targets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from benchmarks.measure import Memory, Statistic

if TYPE_CHECKING:
    from collections.abc import Mapping


class Measure(Enum):
    """What is compared: times in seconds, all others in bytes."""

    TIME = "time"
    CPU = "CPU"
    SIZE = "size"
    PSS = "peak PSS"
    RSS = "peak RSS"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One round of one contender: seconds, the size of its output, and its memory if that was sampled."""

    wall: float
    cpu: float
    size: int | None = None
    peak: Memory | None = None

    def value(self, measure: Measure) -> float | None:
        """Return one figure of this round, or None if it was not measured."""
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
    """All rounds of one contender, or why there are none.

    Arguments:
        name: the contender.
        results: its rounds; empty after an error in any round.
        trouble: the text in place of figures.
        failed: whether a command failed, and not merely a program is missing.
    """

    name: str
    results: tuple[Result, ...] = ()
    trouble: str = ""
    failed: bool = False

    def statistic(self, measure: Measure) -> Statistic | None:
        """Summarise one figure over all rounds that have it."""
        values = [value for result in self.results if (value := result.value(measure)) is not None]
        return Statistic.of(values) if values else None

    def median(self, measure: Measure) -> float | None:
        """Return the median of one figure over all rounds."""
        statistic = self.statistic(measure)
        return statistic.median if statistic else None


class Bound(Enum):
    """Whether a target is a minimum or a maximum."""

    AT_LEAST = "≥"
    AT_MOST = "≤"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A target: bytes of one contender, or a ratio of two medians.

    Arguments:
        measure: what is compared.
        subject: the contender, by name.
        reference: the contender to compare with; None for an absolute figure.
        bound: with `AT_LEAST`, the reference's figure is divided by the subject's (a speed-up); with `AT_MOST` the
            reverse.
        wanted: the figure.
    """

    measure: Measure
    subject: str
    bound: Bound
    wanted: float
    reference: str | None = None

    def measured(self, outcomes: Mapping[str, Outcome]) -> float | None:
        """Return the measured figure, or None if one is missing."""
        subject = outcomes[self.subject].median(self.measure)
        if self.reference is None:
            return subject
        reference = outcomes[self.reference].median(self.measure)
        return ratio(reference, subject) if self.bound is Bound.AT_LEAST else ratio(subject, reference)

    def is_reached(self, measured: float) -> bool:
        """Return whether a measured figure meets the target."""
        return measured >= self.wanted if self.bound is Bound.AT_LEAST else measured <= self.wanted


def ratio(dividend: float | None, divisor: float | None) -> float | None:
    """Divide two figures, if both exist."""
    return dividend / divisor if dividend is not None and divisor else None
