"""The drawings: marks and bars placed in percent by the page's style, all on one time axis.

No drawing has a fixed size, so it is as wide as the screen or paper, and uses the page's font. If there are too many
marks, slices of time are drawn instead.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from portal.ops.model import BackupType, timestamp
from portal.ops.units import duration, human_bytes, span
from tools.report.axis import even_top
from tools.report.story import KIND_NAMES, ages_reached
from tools.report.text import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from tools.report.axis import Axis
    from tools.report.story import Story

MOST_MARKS: Final = 150
"""With more marks than this in a row, slices of time are drawn."""

SLICES: Final = 120

_OVERLAP: Final = 0.06
"""Percent by which a slice reaches over the next one, so that rounding to pixels leaves no seams."""

_LOW: Final = 35.0
"""Below this percentage of the height the words on a line stand above it."""

_SIZES: Final = tuple(float(number * 10**zeros) for zeros in range(18) for number in (1, 2, 5))
_TIMES: Final = tuple(
    float(seconds)
    for seconds in (
        *(1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800),
        *(3600 * hours for hours in (1, 2, 3, 6, 12, 24, 48, 96, 240, 720, 2400, 8760)),
    )
)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One event in a drawing.

    Arguments:
        style: the appearance: ``good``, ``plain``, ``bad``.
        said: the description.
    """

    moment: datetime
    style: str
    said: str


# -- the timeline ---------------------------------------------------------------------------------------------------


def timeline(story: Story) -> Iterator[str]:
    """The history: a row for each kind of archive, and rows for copies, proof and failures."""
    yield _legend((("good", "verified or succeeded"), ("plain", "not verified"), ("bad", "damaged or failed")))
    yield '<div class="timeline">'
    for kind in BackupType:
        if marks := [_archive_mark(story, number) for number in story.of_kind(kind)]:
            yield from _row(KIND_NAMES[kind], marks, story.axis)
    if story.windows:
        yield from _stretches("Recovery window", story.windows, story.axis)
    if story.copies is not None:
        yield from _row("Off-site copies", [_copy_mark(moment, name) for moment, name in story.copies], story.axis)
    yield from _row("Drills", [_drill_mark(story, number) for number in range(len(story.drills))], story.axis)
    failures = [Mark(moment=one.moment, style="bad", said=one.action.value) for one in story.failures]
    yield from _row("Failures", failures, story.axis)
    yield from _axis_row(story.axis)
    yield "</div>"


def _archive_mark(story: Story, number: int) -> Mark:
    archive = story.archives[number]
    finding = archive.finding
    if archive.fault or (finding and not finding.intact):
        style, state = "bad", "damaged" if finding and not finding.intact else "not complete"
    elif finding or archive.name in story.drilled:
        style, state = "good", "verified"
    else:
        style, state = "plain", "not verified"
    said = f"{archive.name}, {human_bytes(archive.size)}, {state}"
    return Mark(moment=archive.moment, style=style, said=said)


def _copy_mark(moment: datetime, name: str) -> Mark:
    return Mark(moment=moment, style="good", said=name)


def _drill_mark(story: Story, number: int) -> Mark:
    drill = story.drills[number]
    said = f"restored in {duration(drill.seconds)}" if drill.success else "failed"
    return Mark(moment=drill.moment, style="good" if drill.success else "bad", said=f"{drill.backup_id}, {said}")


def _row(name: str, marks: Sequence[Mark], axis: Axis) -> Iterator[str]:
    seen = [mark for mark in marks if axis.start <= mark.moment <= axis.end]
    yield f'<div class="row"><span>{shown(name)}</span><div class="lane">'
    if len(seen) <= MOST_MARKS:
        for mark in sorted(seen, key=lambda one: one.style == "bad"):
            said = shown(f"{_when(mark.moment)}: {mark.said}")
            yield f'<i class="mark {mark.style}" style="left:{axis.position(mark.moment):.2f}%" title="{said}"></i>'
    else:
        yield from _dense(seen, axis)
    yield f"</div><b>{len(seen):,}</b></div>" if seen else "</div><b>&ndash;</b></div>"


def _dense(marks: Iterable[Mark], axis: Axis) -> Iterator[str]:
    """Slices instead of marks, each with the worst and the best event in it."""
    slices: dict[int, list[Mark]] = defaultdict(list)
    for mark in marks:
        slices[axis.slice_of(mark.moment, SLICES) or 0].append(mark)
    width = 100 / SLICES
    for number, some in sorted(slices.items()):
        good = sum(mark.style == "good" for mark in some)
        bad = sum(mark.style == "bad" for mark in some)
        style = "bad" if bad else "good" if good * 2 >= len(some) else "plain"
        said = f"{_when(some[-1].moment)}: {len(some):,}, {good:,} verified" + (
            f", {bad:,} damaged or failed" if bad else ""
        )
        place = f"left:{number * width:.2f}%;width:{width + _OVERLAP:.2f}%"
        yield f'<i class="slice {style}" style="{place}" title="{shown(said)}"></i>'


def _stretches(name: str, stretches: Sequence[tuple[datetime, datetime]], axis: Axis) -> Iterator[str]:
    yield f'<div class="row"><span>{shown(name)}</span><div class="lane">'
    for start, end in stretches:
        left, right = axis.position(start), axis.position(end)
        said = f"any moment from {_when(start)} to {_when(end)}"
        width = max(right - left, 0.4)
        yield f'<i class="slice good" style="left:{left:.2f}%;width:{width:.2f}%" title="{shown(said)}"></i>'
    yield f"</div><b>{span(stretches[-1][1] - stretches[0][0])}</b></div>"


# -- bars upon the same axis ----------------------------------------------------------------------------------------


def ages(story: Story) -> Iterator[str]:
    """How old each component's newest backup had become, relative to its target, on one scale."""
    for one in story.status.components:
        reached = ages_reached(story, one.component, SLICES)
        allowed = one.rpo.total_seconds()
        worst = max((age for _, age in reached), default=0.0)
        top = max(2 * allowed, worst)
        bars = [
            (number, 100 * age / top, "bad" if age > allowed else "good", f"{span(timedelta(seconds=age))} old")
            for number, age in reached
        ]
        title = f"{one.component.spoken.capitalize()}: allowed {span(one.rpo)}, worst {span(timedelta(seconds=worst))}"
        yield from _bars(title, bars, story.axis, line=(100 * allowed / top, "allowed"))


def restore_times(story: Story) -> Iterator[str]:
    """The durations of drills' restores."""
    done = [(drill.moment, drill.seconds, "good") for drill in story.drills if drill.success]
    yield from _valued("Restore time in drills", done, story.axis, _TIMES, duration)


def durations(story: Story) -> Iterator[str]:
    """The durations of backups of each kind, on one scale."""
    runs = [run for run in story.runs if run.seconds is not None and run.moment >= story.axis.start]
    top = even_top(max((run.seconds or 0 for run in runs), default=1), _TIMES)
    for kind in BackupType:
        values = [(run.moment, run.seconds or 0.0, "c0") for run in runs if run.kind is kind]
        if values:
            yield from _valued(f"Duration: {KIND_NAMES[kind].lower()}", values, story.axis, _TIMES, duration, top=top)


def growth(story: Story) -> Iterator[str]:
    """The size of all present archives, by the time they were made."""
    added = [0] * SLICES
    before = 0
    for archive in story.archives:
        number = story.axis.slice_of(archive.moment, SLICES)
        if number is None:
            before += archive.size
        else:
            added[number] += archive.size
    values = []
    for number, size in enumerate(added):
        before += size
        values.append((number, float(before)))
    top = even_top(values[-1][1], _SIZES) or 1
    bars = [(number, 100 * size / top, "c0", human_bytes(size)) for number, size in values]
    yield from _bars(f"Space used by the archives of today (scale to {human_bytes(top)})", bars, story.axis)


def _valued(
    title: str,
    values: Iterable[tuple[datetime, float, str]],
    axis: Axis,
    evens: Sequence[float],
    formatter: Callable[[float], str],
    top: float = 0,
) -> Iterator[str]:
    """Bars for values at moments; in each slice the greatest value."""
    greatest: dict[int, tuple[float, str]] = {}
    for moment, value, style in values:
        number = axis.slice_of(moment, SLICES)
        if number is not None:
            greatest[number] = max(greatest.get(number, (0.0, style)), (value, style))
    if not greatest:
        return
    top = top or even_top(max(value for value, _ in greatest.values()), evens)
    bars = [
        (number, 100 * value / (top or 1), style, formatter(value))
        for number, (value, style) in sorted(greatest.items())
    ]
    yield from _bars(f"{title} (scale to {formatter(top)})", bars, axis)


def _bars(
    title: str, bars: Iterable[tuple[int, float, str, str]], axis: Axis, line: tuple[float, str] | None = None
) -> Iterator[str]:
    width = 100 / SLICES
    yield f'<figure><figcaption>{shown(title)}</figcaption><div class="bars">'
    for number, height, style, said in bars:
        if not height:
            continue
        begin = axis.start + axis.length * (number / SLICES)
        yield (
            f'<i class="{style}" style="left:{number * width:.2f}%;width:{width:.2f}%;height:{max(height, 1):.1f}%" '
            f'title="{shown(_when(begin))}: {shown(said)}"></i>'
        )
    if line:
        side = ' class="low"' if line[0] < _LOW else ""
        yield f'<em{side} style="top:{100 - line[0]:.1f}%"><span>{shown(line[1])}</span></em>'
    yield "</div>"
    yield from _ticks(axis)
    yield "</figure>"


def _ticks(axis: Axis) -> Iterator[str]:
    yield '<div class="ticks">'
    for tick in axis.ticks():
        side = " end" if tick.position > 92 else " start" if tick.position < 8 else ""
        yield f'<u class="{side.strip()}" style="left:{tick.position:.2f}%">{shown(tick.label)}</u>'
    yield "</div>"


def _axis_row(axis: Axis) -> Iterator[str]:
    yield '<div class="row axis"><span></span><div class="lane-ticks">'
    yield from _ticks(axis)
    yield "</div><b></b></div>"


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    items = "".join(f'<li><i class="mark {style}"></i>{shown(name)}</li>' for style, name in entries)
    return f'<ul class="legend">{items}</ul>'


def _when(moment: datetime) -> str:
    return f"{timestamp(moment)[:16].replace('T', ' ')} UTC"
