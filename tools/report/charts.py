"""The drawings: pygal's, without its scripts, styles and links, so that the page's own style colours them.

Each is drawn twice, wide and narrow, since a drawing that is scaled down to a phone has letters that nobody can read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree as ET

import pygal
from pygal.etree import etree
from pygal.style import Style

from portal.ops.model import BackupType, timestamp
from portal.ops.monitoring.status import spoken
from portal.ops.units import duration, human_bytes, span
from tools.report.story import by_day, longest_ages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from portal.ops.repository.entry import Entry
    from tools.report.story import Story

etree.to_etree()  # the library's own choice would be lxml, where somebody has installed it

MOST_POINTS: Final = 400
"""Beyond that many in a row, days are shown instead."""

KINDS: Final = tuple(BackupType)
STATES: Final = ("known to be intact", "not verified", "damaged", "restored in a drill")

_WIDTHS: Final = {"wide": 1000, "narrow": 380}
_LABELS: Final = {"wide": 7, "narrow": 3}
_BARS: Final = {"wide": 60, "narrow": 24}
_DOTS: Final = {"wide": 3, "narrow": 3}
_FONT: Final = 14
_LONG_NUMBER: Final = re.compile(r"(\d+\.\d)\d+")
_SIZES: Final = tuple(number * 10**zeros for zeros in range(18) for number in (1, 2, 5))
_TIMES: Final = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800),
    *(3600 * hours for hours in (1, 2, 3, 6, 12, 24, 48, 120, 240, 720, 2400, 8760)),
)
_GUIDES: Final = 4

Point = tuple[datetime, float, str]
"""Where it is on the axis of time, how high, and what is said of it."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A drawing in both widths.

    Arguments:
        legend: what its colours mean, by the number of the colour.
        svgs: by the name of the width.
    """

    title: str
    legend: tuple[tuple[int, str], ...]
    svgs: dict[str, str]


def timeline(story: Story) -> Drawing:
    """Every archive, in a row for its type, by what is known of it."""
    kinds = [kind for kind in KINDS if any(archive.type is kind for archive in story.archives)]
    rows = {kind: len(kinds) - number for number, kind in enumerate(kinds)}
    series: list[list[Point]] = [[] for _ in STATES]
    for kind in kinds:
        archives = [one for one in story.archives if one.type is kind and one.moment >= story.start]
        for state, moment, said in _marks(archives, story.drilled):
            series[state].append((moment, rows[kind], said))
    return _draw(
        "Archives that are there, by type",
        story,
        [(number, STATES[number], points) for number, points in enumerate(series)],
        height=90 + 46 * len(kinds),
        rows={row: kind.value.replace("_", " ") for kind, row in rows.items()},
        stroke=False,
        dots={"wide": 5, "narrow": 3},
    )


def sizes(story: Story) -> list[Drawing]:
    """How large the archives of each type are."""
    drawings = []
    for number, kind in enumerate(KINDS):
        archives = [one for one in story.archives if one.type is kind and one.moment >= story.start]
        if archives:
            points = _points([(one.moment, float(one.size), one.name) for one in archives], human_bytes)
            series = [(number, kind.value.replace("_", " "), points)]
            drawings.append(_draw(f"Size of {_named(kind)}", story, series, formatter=human_bytes))
    return drawings


def durations(story: Story) -> list[Drawing]:
    """How long backups of each type took."""
    drawings = []
    for number, kind in enumerate(KINDS):
        runs = [run for run in story.runs if run.kind is kind and run.seconds is not None and run.moment >= story.start]
        if runs:
            points = _points([(run.moment, run.seconds or 0.0, "") for run in runs], duration)
            series = [(number, kind.value.replace("_", " "), points)]
            drawings.append(_draw(f"Duration of {_named(kind)}", story, series, formatter=duration))
    return drawings


def ages(story: Story) -> list[Drawing]:
    """What could have been lost, day by day, beside what is allowed."""
    drawings = []
    for number, one in enumerate(story.status.components, start=1):
        found = longest_ages(story, one.component)
        if not found:
            continue
        reached = [(moment, age.total_seconds(), f"{_day(moment)}: {span(age)}") for moment, age in found]
        line = [(moment, one.rpo.total_seconds(), f"allowed: {span(one.rpo)}") for moment in (story.start, story.now)]
        drawings.append(
            _draw(
                f"Greatest age of the newest backup: {spoken(one.component)}",
                story,
                [(number, "reached on that day", reached), (5, "allowed", line)],
                formatter=lambda seconds: span(timedelta(seconds=seconds)),
            )
        )
    return drawings


def restore_times(story: Story) -> Drawing | None:
    """How long drills took to restore everything."""
    drills = [drill for drill in reversed(story.drills) if drill.moment >= story.start]
    series = []
    for number, title, success in ((0, "succeeded", True), (4, "failed", False)):
        points = [(drill.moment, drill.seconds, drill.backup_id) for drill in drills if drill.success is success]
        series.append((number, title, _points(points, duration)))
    if not drills:
        return None
    return _draw("Restores, by drills", story, series, formatter=duration, dots={"wide": 4, "narrow": 4})


def space(story: Story) -> Drawing | None:
    """What the archives that are there take, by when they were made."""
    if not story.archives:
        return None
    return Drawing(
        title="Space that the archives take, by when they were made",
        legend=tuple((number, kind.value.replace("_", " ")) for number, kind in enumerate(KINDS) if _has(story, kind)),
        svgs={width: _bars(story, width) for width in _WIDTHS},
    )


def _has(story: Story, kind: BackupType) -> bool:
    return any(archive.type is kind for archive in story.archives)


def _bars(story: Story, width: str) -> str:
    """As many bars as there is room for, each of the same number of days."""
    reach = max(1, (story.now.date() - story.start.date()).days + 1)
    days = -(-reach // _BARS[width])
    count = -(-reach // days)
    totals = {kind: [0] * count for kind in KINDS}
    for archive in story.archives:
        bar = count - 1 - (story.now.date() - archive.moment.date()).days // days
        if archive.type is not None and 0 <= bar < count:
            totals[archive.type][bar] += archive.size
    chart = pygal.StackedBar(**_options(width, 300, human_bytes))
    first = [story.now - timedelta(days=(count - bar) * days - 1) for bar in range(count)]
    chart.x_labels = [_day(moment) for moment in first]
    step = max(1, count // _LABELS[width])
    chart.x_labels_major = chart.x_labels[::step]
    chart.show_minor_x_labels = False
    top = max(map(sum, zip(*totals.values(), strict=True)))
    chart.y_labels = heights(top, _SIZES)
    chart.range = (0, max(top, chart.y_labels[-1]))
    for kind in KINDS:
        values = [
            {"value": total, "label": f"{label}: {human_bytes(total)} of {kind.value}"} if total else None
            for label, total in zip(chart.x_labels, totals[kind], strict=True)
        ]
        chart.add(kind.value, values)
    return _svg(chart, width, "Space that the archives take")


def _marks(archives: Sequence[Entry], drilled: frozenset[str]) -> list[tuple[int, datetime, str]]:
    """A mark for each archive; where they are very many, for each day, with the worst of it."""
    if len(archives) <= MOST_POINTS:
        return [(_state(one, drilled), one.moment, f"{one.name}, {human_bytes(one.size)}") for one in archives]
    states = {(one.moment, one.name): _state(one, drilled) for one in archives}
    days: dict[datetime, list[int]] = {}
    for (moment, _), state in states.items():
        days.setdefault(moment.replace(hour=12, minute=0, second=0), []).append(state)
    return [(_of_day(found), day, f"{_day(day)}: {len(found)} archives") for day, found in days.items()]


def _of_day(states: list[int]) -> int:
    return next(state for state in (2, 3, 0, 1) if state in states)


def _state(archive: Entry, drilled: frozenset[str]) -> int:
    if archive.fault or (archive.finding and not archive.finding.intact):
        return 2
    if archive.name in drilled:
        return 3
    return 0 if archive.finding else 1


def _points(values: Sequence[tuple[datetime, float, str]], formatter: Callable[[float], str]) -> list[Point]:
    """A point for each value; where they are very many, for each day."""
    if len(values) <= MOST_POINTS:
        return sorted(
            (moment, value, f"{name or _minute(moment)}: {formatter(value)}") for moment, value, name in values
        )
    days = by_day((moment, value) for moment, value, _ in values)
    return [(day, value, f"{_day(day)}: {formatter(value)} at the most, of {many}") for day, value, many in days]


def _draw(
    title: str,
    story: Story,
    series: Sequence[tuple[int, str, Sequence[Point]]],
    *,
    height: int = 260,
    rows: dict[int, str] | None = None,
    formatter: Callable[[float], str] | None = None,
    stroke: bool = True,
    dots: Mapping[str, int] = _DOTS,
) -> Drawing:
    svgs = {}
    for width in _WIDTHS:
        chart = pygal.DateTimeLine(**_options(width, height, formatter), stroke=stroke, dots_size=dots[width])
        chart.x_labels = _ticks(story, _LABELS[width])
        chart.xrange = (story.start.timestamp(), story.now.timestamp())
        if rows:
            chart.y_labels = [{"label": label, "value": row} for row, label in rows.items()]
            chart.range = (0.5, len(rows) + 0.5)
        else:
            top = max((value for _, _, points in series for _, value, _ in points), default=0)
            chart.y_labels = heights(top, _SIZES if formatter is human_bytes else _TIMES)
            chart.range = (0, max(top * 1.05, chart.y_labels[-1]))
        colours = {number for number, _, _ in series}
        for colour in range(max(colours, default=0) + 1):
            points = next((points for number, _, points in series if number == colour), ())
            chart.add("", [{"value": (moment, value), "label": said} for moment, value, said in points])
        svgs[width] = _svg(chart, width, title)
    legend = tuple((number, name) for number, name, points in series if points)
    return Drawing(title=title, legend=legend, svgs=svgs)


def _options(width: str, height: int, formatter: Callable[[float], str] | None) -> dict[str, Any]:
    style = Style(label_font_size=_FONT, major_label_font_size=_FONT, font_family="sans-serif")
    options: dict[str, Any] = {
        "style": style,
        "js": (),
        "width": _WIDTHS[width],
        "height": height,
        "margin": 8,
        "margin_right": 24,
        "show_legend": False,
        "show_x_guides": False,
        "truncate_label": -1,
        "x_value_formatter": _day,
        "no_data_text": "nothing yet",
    }
    return options | ({"value_formatter": formatter} if formatter else {})


def _ticks(story: Story, count: int) -> list[datetime]:
    step = (story.now - story.start) / count
    return [(story.start + step * number).replace(tzinfo=None) for number in range(count + 1)]


def heights(top: float, steps: Sequence[int]) -> list[float]:
    """Where the guides are: a few at even numbers, up to the first one that nothing is above."""
    step = next((step for step in steps if step * _GUIDES >= top), top / _GUIDES)
    return [step * number for number in range(max(1, ceil(top / step)) + 1)]


def _svg(chart: Any, width: str, title: str) -> str:
    """The drawing without anything but shapes and words; what was said of a point becomes its title."""
    root = chart.render_tree()
    for parent in list(root.iter()):
        for child in list(parent):
            if not isinstance(child.tag, str) or child.tag in ("defs", "title", "script", "style"):
                parent.remove(child)
    for parent in list(root.iter()):
        _say(parent)
    for name in ("xmlns", "id"):
        root.attrib.pop(name, None)
    root.attrib |= {"class": width, "role": "img", "aria-label": title}
    return _LONG_NUMBER.sub(r"\1", ET.tostring(root, encoding="unicode"))


def _say(parent: Any) -> None:
    """Put the words that pygal leaves for its script where a browser shows them by itself."""
    words = [child for child in parent if child.tag == "desc"]
    label = next((child.text for child in words if child.attrib.get("class") == "label"), None)
    for child in words:
        parent.remove(child)
    if label:
        ET.SubElement(parent, "title").text = label


def _named(kind: BackupType) -> str:
    return f"{kind.value.replace('_', ' ')} backups"


def _day(moment: datetime) -> str:
    return f"{moment.day} {moment:%b}"


def _minute(moment: datetime) -> str:
    return timestamp(moment)[:16].replace("T", " ")
