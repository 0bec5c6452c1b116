"""The tables: for a terminal, or as Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.outcome import Bound, Measure, Outcome, Target, ratio

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from benchmarks.cases import Case
    from benchmarks.measure import Statistic

Outcomes = dict[str, Outcome]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A heading, the names of the columns, and the cells; the first column is text, the others are figures."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """Return the table for a terminal."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [self._line(row, widths) for row in (self.header, tuple("-" * width for width in widths), *self.rows)]
        return "\n".join((self.title, *lines)) + "\n"

    def markdown(self) -> str:
        """Return the table as Markdown."""
        rule = ("---", *("---:" for _ in self.header[1:]))
        lines = ["| " + " | ".join(row) + " |" for row in (self.header, rule, *self.rows)]
        return "\n".join((f"### {self.title}", "", *lines)) + "\n"

    @staticmethod
    def _line(row: tuple[str, ...], widths: Sequence[int]) -> str:
        first, *others = (
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join((first, *others)).rstrip()


def results_table(case: Case, outcomes: Outcomes) -> Table:
    """Return a case's figures, one contender to a row; columns that nobody has a figure for are left out.

    Times of different amounts of data, as memory is watched for, are not compared.
    """
    baseline = None if case.watches_memory else outcomes[case.contenders[0].name]
    measures = [measure for measure in Measure if any(outcome.statistic(measure) for outcome in outcomes.values())]
    return Table(
        title=f"{case.name}: {case.title}",
        header=("", *map(_heading, measures), *([f"time / {baseline.name}"] if baseline else [])),
        rows=tuple(_results_row(outcome, measures, baseline) for outcome in outcomes.values()),
    )


def targets_table(played: Iterable[tuple[Case, Outcomes]]) -> Table:
    """Return what was wanted of each case, what was measured, and whether that is reached."""
    return Table(
        title="targets, for the whole of the data",
        header=("", "wanted", "measured", "reached"),
        rows=tuple(_target_row(case, target, outcomes) for case, outcomes in played for target in case.targets),
    )


def _heading(measure: Measure) -> str:
    unit = "s" if measure in (Measure.TIME, Measure.CPU) else "MB"
    return f"{measure.value}, {unit}"


def _results_row(outcome: Outcome, measures: Sequence[Measure], baseline: Outcome | None) -> tuple[str, ...]:
    name = f"{outcome.name} ({outcome.trouble})" if outcome.trouble else outcome.name
    figures = (_statistic(measure, outcome.statistic(measure)) for measure in measures)
    return (name, *figures, *([_compared(outcome, baseline)] if baseline else []))


def _compared(outcome: Outcome, baseline: Outcome) -> str:
    times = ratio(outcome.median(Measure.TIME), baseline.median(Measure.TIME))
    return "-" if times is None else f"{times:.2f}x"


def _statistic(measure: Measure, statistic: Statistic | None) -> str:
    """Return the median, and the ends behind it where they differ from it as they are printed."""
    if statistic is None:
        return "-"
    median, *ends = (_figure(measure, value) for value in (statistic.median, statistic.minimum, statistic.maximum))
    return median if ends == [median, median] else f"{median} ({ends[0]} - {ends[1]})"


def _figure(measure: Measure, value: float) -> str:
    return f"{value:.2f}" if measure in (Measure.TIME, Measure.CPU) else f"{value / 1e6:.1f}"


def _target_row(case: Case, target: Target, outcomes: Mapping[str, Outcome]) -> tuple[str, ...]:
    measured = target.measured(outcomes)
    if measured is None:
        shown, reached = "-", "-"
    else:
        shown, reached = _target_figure(target, measured), "yes" if target.is_reached(measured) else "no"
    return (_target_name(case, target), f"{target.bound.value} {_target_figure(target, target.wanted)}", shown, reached)


def _target_figure(target: Target, value: float) -> str:
    return f"{value:.2f}x" if target.reference else f"{_figure(target.measure, value)} MB"


def _target_name(case: Case, target: Target) -> str:
    if target.reference is None:
        return f"{case.name}: {target.measure.value} of {target.subject}"
    if target.measure is Measure.TIME and target.bound is Bound.AT_LEAST:
        return f"{case.name}: speed of {target.subject}, against {target.reference}"
    return f"{case.name}: {target.measure.value} of {target.subject}, against {target.reference}"
