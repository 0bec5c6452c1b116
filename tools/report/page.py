"""The page: what the story tells, in words, tables and drawings. Everything that is shown is escaped."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from html import escape
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final

from portal.ops.model import timestamp
from portal.ops.monitoring.status import spoken
from portal.ops.units import duration, human_bytes, span
from tools.report import charts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import date, datetime

    from portal.ops.monitoring.model import ComponentStatus
    from portal.ops.repository.access_log import AccessEntry
    from portal.ops.repository.entry import Entry
    from portal.ops.repository.pins import Pin
    from tools.report.charts import Drawing
    from tools.report.story import Story

MOST_ARCHIVES: Final = 1000
"""Beyond that many, the newest half of them are listed, and of the others each day."""

_SHOWN_AT_ONCE: Final = 30
_STYLE: Final = Path(__file__).with_name("page.css")
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def page(story: Story) -> str:
    """The whole file."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="robots" content="noindex">',
            "<title>Kekkai Portal backups</title>",
            f"<style>{_STYLE.read_text('utf-8')}</style></head><body><main>",
            *_sections(story),
            "</main></body></html>\n",
        ]
    )


def _sections(story: Story) -> Iterator[str]:
    yield "<h1>Kekkai Portal backups</h1>"
    yield f'<p class="soft">{_when(story.now)} &middot; {escape(story.status.facts.repository)}</p>'
    yield from _verdict(story)
    yield from _tiles(story)
    yield "<h2>Archives</h2>"
    yield from _figure(charts.timeline(story), "timeline")
    yield from _pair(charts.sizes(story))
    yield "<h2>What could be lost</h2>"
    yield '<p class="soft">How old the newest backup was at the most, day by day, before the next one came.</p>'
    yield from _pair(charts.ages(story))
    yield "<h2>How long it takes</h2>"
    if drawing := charts.restore_times(story):
        yield from _figure(drawing)
    yield from _pair(charts.durations(story))
    yield "<h2>Space</h2>"
    yield f'<p class="soft">{escape(_space(story))}</p>'
    if drawing := charts.space(story):
        yield from _figure(drawing)
    yield from _tables(story)


def _verdict(story: Story) -> Iterator[str]:
    misses = story.status.misses
    if not misses:
        yield '<div class="card verdict"><strong>Every target is met</strong></div>'
        return
    many = "1 target is missed" if len(misses) == 1 else f"{len(misses)} targets are missed"
    yield f'<div class="card verdict missed"><strong>{many}</strong><ul>'
    for miss in misses:
        yield f'<li>{escape(miss.what)}<div class="soft">{escape(miss.mend)}</div></li>'
    yield "</ul></div>"


def _tiles(story: Story) -> Iterator[str]:
    status = story.status
    yield '<div class="tiles">'
    for one in status.components:
        yield _component(one, story.now)
    drilled = status.drilled
    if drilled:
        lines = [f"tried {span(story.now - drilled.moment)} ago", f"allowed: {span(status.drill_age)}"]
        yield _tile("A restore takes", duration(drilled.seconds), lines)
    else:
        yield _tile("A restore", "never tried", ["'./tools/backup.sh drill' does"])
    facts = status.facts
    free = human_bytes(facts.free) if facts.total else "unknown"
    yield _tile("Space free", free, [f"{facts.archives} archives, {human_bytes(facts.bytes)}"])
    yield "</div>"


def _component(one: ComponentStatus, now: datetime) -> str:
    newest = f"{span(now - one.newest.moment)} ago" if one.newest else "no backup"
    verified = f"known to be intact: {span(now - one.verified.moment)} ago" if one.verified else "none verified yet"
    return _tile(spoken(one.component).capitalize(), newest, [f"allowed: {span(one.rpo)}", verified], bool(one.misses))


def _tile(label: str, figure: str, lines: Sequence[str], missed: bool = False) -> str:
    below = "".join(f'<p class="soft">{escape(line)}</p>' for line in lines)
    return (
        f'<div class="card tile"><span class="soft">{escape(label)}</span>'
        f"<b{' class=bad' if missed else ''}>{escape(figure)}</b>{below}</div>"
    )


def _figure(drawing: Drawing, kind: str = "") -> Iterator[str]:
    yield f'<section class="card {kind}"><h3>{escape(drawing.title)}</h3><ul class="legend">'
    if len(drawing.legend) > 1 or kind:
        yield from (f'<li><i class="c{colour}"></i>{escape(name)}</li>' for colour, name in drawing.legend)
    yield "</ul>"
    yield from drawing.svgs.values()
    yield "</section>"


def _pair(drawings: Iterable[Drawing]) -> Iterator[str]:
    """Drawings side by side where there is room, so the narrow ones are taken."""
    yield '<div class="pair">'
    for drawing in drawings:
        yield from _figure(drawing)
    yield "</div>"


def _space(story: Story) -> str:
    facts, foreseen = story.status.facts, story.status.forecast
    used = f"{human_bytes(facts.bytes)} in {facts.archives} archives, {human_bytes(facts.free)} free."
    if foreseen is None:
        return f"{used} There is too little history to say how long that lasts."
    pace = f"{used} A usual day takes {human_bytes(foreseen.added_per_day)}."
    if foreseen.days_left is None:
        return f"{pace} With what is removed, the space lasts."
    day = (story.now + timedelta(days=foreseen.days_left)).date()
    return f"{pace} At that pace it is full on about {day.isoformat()}."


# -- tables ----------------------------------------------------------------------------------------------------------


def _tables(story: Story) -> Iterator[str]:
    yield from _table(
        "Pinned: kept until somebody lets them go",
        ("Archive", "Why"),
        [(_code(pin.backup_id), _reason(pin)) for pin in story.pins],
        "Nothing is pinned.",
    )
    yield from _table(
        "Removed, and why",
        ("Archive", "Why"),
        list(islice(_removals(story.removals), MOST_ARCHIVES)),
        "Nothing was removed yet.",
    )
    yield from _table(
        "Drills",
        ("When", "Archive", "How it ended"),
        [
            (
                _when(drill.moment),
                _code(drill.backup_id),
                f'<span class="good">restored in {duration(drill.seconds)}</span>'
                if drill.success
                else f'<span class="bad">failed</span> {escape(drill.error)}',
            )
            for drill in story.drills
        ],
        "No restore was tried yet.",
    )
    yield from _table(
        "Failures",
        ("When", "What", "Why"),
        [(_when(entry.moment), _what(entry), _why(entry)) for entry in story.failures],
        "Nothing failed.",
    )
    pinned = {pin.backup_id for pin in story.pins}
    listed = story.archives if len(story.archives) <= MOST_ARCHIVES else story.archives[: MOST_ARCHIVES // 2]
    yield from _table(
        "All archives" if len(listed) == len(story.archives) else f"The newest {len(listed)} archives",
        ("Made", "Size", "State"),
        [_row(archive, story, pinned) for archive in listed],
        "There is none yet.",
    )
    older = story.archives[len(listed) :]
    if older:
        yield from _table(f"{len(older)} older archives, by day", ("Day", "Size", "Archives"), list(_by_day(older)), "")


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], nothing: str) -> Iterator[str]:
    """A table; where it is long, the rest of it is folded away."""
    yield f"<h2>{escape(title)}</h2><div class=card>"
    if not rows:
        yield f'<p class="soft">{escape(nothing)}</p></div>'
        return
    yield from _grid(heads, rows[:_SHOWN_AT_ONCE])
    if rest := rows[_SHOWN_AT_ONCE:]:
        yield f"<details><summary>{len(rest)} more</summary>"
        yield from _grid(heads, rest)
        yield "</details>"
    yield "</div>"


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f'<div class="scroll"><table><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr>'
    for row in rows:
        yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
    yield "</table></div>"


def _row(archive: Entry, story: Story, pinned: set[str]) -> tuple[str, str, str]:
    states = []
    if archive.fault:
        states.append(f'<span class="bad">not whole: {escape(archive.fault)}</span>')
    if archive.finding and not archive.finding.intact:
        states.append('<span class="bad">damaged</span>')
    elif archive.finding:
        states.append(f'<span class="good">intact</span> ({archive.finding.level.value})')
    elif not archive.fault:
        states.append('<span class="soft">not verified</span>')
    if archive.name in story.drilled:
        states.append('<span class="good">restored in a drill</span>')
    if archive.name in pinned:
        states.append('<span class="warm">pinned</span>')
    return _when(archive.moment) + _code(archive.name), human_bytes(archive.size), "<br>".join(states)


def _by_day(archives: Sequence[Entry]) -> Iterator[tuple[str, str, str]]:
    days: dict[date, list[int]] = defaultdict(list)
    for archive in archives:
        days[archive.moment.date()].append(archive.size)
    for day, sizes in days.items():
        yield day.isoformat(), human_bytes(sum(sizes)), str(len(sizes))


def _what(entry: AccessEntry) -> str:
    return f"{entry.action.value}{_code(entry.subject)}"


def _why(entry: AccessEntry) -> str:
    error, hint = (escape(str(entry.details.get(name, ""))) for name in ("error", "hint"))
    return f'{error or "no reason was noted"}<div class="soft">{hint}</div>'


def _removals(entries: Iterable[AccessEntry]) -> Iterator[tuple[str, str]]:
    """A row for each archive that a prune has removed."""
    for entry in entries:
        names, reasons = (entry.details.get(name) for name in ("archives", "reasons"))
        if isinstance(names, list):
            whys = reasons if isinstance(reasons, list) else []
            for name, why in zip_longest(names, whys[: len(names)], fillvalue="no reason was noted"):
                yield _code(str(name)), f'{escape(str(why))}<div class="soft">{_by(entry)}</div>'


def _by(entry: AccessEntry) -> str:
    return escape(f"{entry.who}, {_when(entry.moment)}")


def _reason(pin: Pin) -> str:
    by = f"{pin.who or 'somebody'}, {_when(pin.moment)}"
    return f'{escape(pin.reason or "no reason was given")}<div class="soft">{escape(by)}</div>'


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _when(moment: datetime) -> str:
    return f"{timestamp(moment)[:16].replace('T', ' ')} UTC"
