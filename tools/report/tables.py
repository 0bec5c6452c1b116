"""The tables of the report: pins, removals, drills, failures and archives. All text is escaped."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Final

from portal.ops.model import timestamp
from portal.ops.units import counted, duration, human_bytes
from tools.report.text import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import date, datetime

    from portal.ops.repository.access_log import AccessEntry
    from portal.ops.repository.entry import Entry
    from portal.ops.repository.pins import Pin
    from tools.report.story import Story

MOST_ARCHIVES: Final = 1000
"""With more archives than this, the newest half of this number is listed, and the others by day."""

_SHOWN_AT_ONCE: Final = 10


def tables(story: Story) -> Iterator[str]:
    """All tables."""
    yield from _table(
        "Pinned: kept until somebody unpins them",
        ("Archive", "Why"),
        [(_code(pin.backup_id), _reason(pin)) for pin in story.pins],
        "",
    )
    yield from _table(
        "Removed, and why",
        ("Archive", "Why"),
        list(islice(_removals(story.removals), MOST_ARCHIVES)),
        "",
    )
    yield from _table(
        "Drills",
        ("When", "Archive", "Result"),
        [
            (
                when(drill.moment),
                _code(drill.backup_id),
                f'<span class="good">restored in {duration(drill.seconds)}</span>'
                if drill.success
                else f'<span class="bad">failed</span> {shown(drill.error)}',
            )
            for drill in story.drills
        ],
        "No drill yet.",
    )
    yield from _table(
        "Failures",
        ("When", "What", "Why"),
        [(when(entry.moment), _what(entry), _why(entry)) for entry in story.failures],
        "Nothing failed.",
    )
    pinned = {pin.backup_id for pin in story.pins}
    listed = story.archives if len(story.archives) <= MOST_ARCHIVES else story.archives[: MOST_ARCHIVES // 2]
    yield from _table(
        "All archives" if len(listed) == len(story.archives) else f"The newest {len(listed)} archives",
        ("Made", "Size", "State"),
        [_row(archive, story, pinned) for archive in listed],
        "No archive yet.",
    )
    older = story.archives[len(listed) :]
    if older:
        title = f"{counted(len(older), 'older archive')}, by day"
        yield from _table(title, ("Day", "Size", "Archives"), list(_by_day(older)), "")


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], nothing: str) -> Iterator[str]:
    """A table; the rest of a long one is folded; an empty one says so, or is left out."""
    if not (rows or nothing):
        return
    yield f"<h2>{shown(title)}</h2><div class=card>"
    if not rows:
        yield f'<p class="soft">{shown(nothing)}</p></div>'
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
        states.append(f'<span class="bad">not complete: {shown(archive.fault)}</span>')
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
    return when(archive.moment) + _code(archive.name), human_bytes(archive.size), "<br>".join(states)


def _by_day(archives: Sequence[Entry]) -> Iterator[tuple[str, str, str]]:
    days: dict[date, list[int]] = defaultdict(list)
    for archive in archives:
        days[archive.moment.date()].append(archive.size)
    for day, sizes in days.items():
        yield day.isoformat(), human_bytes(sum(sizes)), str(len(sizes))


def _what(entry: AccessEntry) -> str:
    return f"{entry.action.value}{_code(entry.subject)}"


def _why(entry: AccessEntry) -> str:
    error, hint = (shown(str(entry.details.get(name, ""))) for name in ("error", "hint"))
    return f'{error or "no reason recorded"}<div class="soft">{hint}</div>'


def _removals(entries: Iterable[AccessEntry]) -> Iterator[tuple[str, str]]:
    """A row for each archive that a prune has removed."""
    for entry in entries:
        names, reasons = (entry.details.get(name) for name in ("archives", "reasons"))
        if isinstance(names, list):
            whys = reasons if isinstance(reasons, list) else []
            for name, why in zip_longest(names, whys[: len(names)], fillvalue="no reason recorded"):
                yield _code(str(name)), f'{shown(str(why))}<div class="soft">{_by(entry)}</div>'


def _by(entry: AccessEntry) -> str:
    return shown(f"{entry.who}, {when(entry.moment)}")


def _reason(pin: Pin) -> str:
    by = f"{pin.who or 'somebody'}, {when(pin.moment)}"
    return f'{shown(pin.reason or "no reason was given")}<div class="soft">{shown(by)}</div>'


def _code(text: str) -> str:
    return f"<code>{shown(text)}</code>"


def when(moment: datetime) -> str:
    """A time for people."""
    return f"{timestamp(moment)[:16].replace('T', ' ')} UTC"
