"""Formats the figures of cases as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.outcome import Bound, Measure, Outcome, Target, ratio
from benchmarks.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from benchmarks.case import Case
    from benchmarks.measure import Statistic

Outcomes = dict[str, Outcome]


def results_table(case: Case, outcomes: Outcomes) -> Table:
    """Return a case's figures, one contender a row, without columns that have no figures.

    Times are not compared between different amounts of data, as in cases that sample memory.
    """
    proofs = {contender.name: contender.proof for contender in case.contenders}
    baseline = None if case.watches_memory else outcomes[case.contenders[0].name]
    measures = [measure for measure in Measure if any(outcome.statistic(measure) for outcome in outcomes.values())]
    return Table(
        title=f"{case.name}: {case.title}",
        header=(
            "",
            *map(_heading, measures),
            *([f"time / {baseline.name}"] if baseline else []),
            *(["digests, sync"] if any(proofs.values()) else []),
        ),
        rows=tuple(
            (*_results_row(outcome, measures, baseline), *([proofs.get(name, "")] if any(proofs.values()) else []))
            for name, outcome in outcomes.items()
        ),
    )


def summary_table(played: Iterable[tuple[Case, Outcomes]]) -> Table:
    """Return all cases in one table for the README: medians, one contender a row.

    Ratios below one are bold: ours is slower.
    """
    return Table(
        title="speed and size",
        header=("", "program", "time", "time / ours", "size", "digests, sync"),
        rows=tuple(row for case, outcomes in played for row in _summary_rows(case, outcomes)),
    )


def _summary_rows(case: Case, outcomes: Outcomes) -> Iterator[tuple[str, ...]]:
    ours, title = outcomes[case.contenders[0].name], case.title
    for contender in case.contenders:
        outcome = outcomes[contender.name]
        time, size = outcome.median(Measure.TIME), outcome.median(Measure.SIZE)
        times = None if outcome is ours else ratio(time, ours.median(Measure.TIME))
        yield (
            title,
            contender.name,
            f"{time:.2f} s" if time else outcome.trouble,
            "" if times is None else f"{times:.2f}x" if times >= 1 else f"**{times:.2f}x**",
            f"{size / 1e6:.0f} MB" if size else "",
            contender.proof,
        )
        title = ""


def targets_table(played: Iterable[tuple[Case, Outcomes]]) -> Table:
    """Return each case's targets, the measured figures, and whether they are met."""
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
    """Return the median, with minimum and maximum if they print differently."""
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
