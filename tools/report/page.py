"""The page: the verdict, the answers, the timeline, proof and gaps, growth, and the details. All text is escaped."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from portal.ops.model import BackupType, Component
from portal.ops.units import counted, duration, human_bytes, span
from tools.report import charts
from tools.report.story import ages_reached
from tools.report.tables import tables, when
from tools.report.text import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.monitoring.model import ComponentStatus
    from tools.report.story import Story

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
            "<title>Kekkai Portal backup report</title>",
            f"<style>{_STYLE.read_text('utf-8')}</style></head><body><main>",
            *_sections(story),
            "</main></body></html>\n",
        ]
    )


def _sections(story: Story) -> Iterator[str]:
    yield "<h1>Kekkai Portal backup report</h1>"
    place = f"{story.host}: {story.status.facts.repository}" if story.host else story.status.facts.repository
    yield f'<p class="soft place">{when(story.now)} &middot; {shown(place)}</p>'
    yield from _verdict(story)
    yield '<div class="answers">'
    yield from _answer("What could be lost?", _loss(story), any(one.misses for one in story.status.components))
    yield from _answer("How long does a restore take?", _restore(story), story.status.drilled is None)
    yield "</div>"
    yield "<h2>Timeline</h2><div class=card>"
    yield from charts.timeline(story)
    yield "</div>"
    yield "<h2>Proof and gaps</h2><div class=card><ul class=proof>"
    for state, text in _proof(story):
        yield f'<li class="{state}">{text}</li>'
    yield "</ul></div>"
    yield "<h2>Age of the newest backup</h2><div class=card>"
    yield '<p class="soft">How old the newest backup became before the next one was made, against what is allowed.</p>'
    yield from charts.ages(story)
    yield "</div><h2>Growth</h2><div class=card>"
    yield f"<p>{shown(_space(story))}</p>"
    yield from charts.growth(story)
    yield "</div>"
    if drawn := [*charts.restore_times(story), *charts.durations(story)]:
        yield "<h2>Durations</h2><div class=card>"
        yield from drawn
        yield "</div>"
    yield from tables(story)


def _verdict(story: Story) -> Iterator[str]:
    misses = story.status.misses
    if not misses:
        yield '<div class="card verdict"><strong>Every target is met.</strong>'
        yield f'<div class="soft">{shown(_targets(story))}</div></div>'
        return
    many = "1 target is missed" if len(misses) == 1 else f"{len(misses)} targets are missed"
    yield f'<div class="card verdict missed"><strong>{many}.</strong><ul>'
    for miss in misses:
        yield f'<li>{shown(_sentence(miss.what))}<div class="soft">{shown(miss.mend)}</div></li>'
    yield "</ul></div>"


def _targets(story: Story) -> str:
    """The targets, in a sentence."""
    newest = ", ".join(f"{one.component.spoken} {span(one.rpo)}" for one in story.status.components)
    verified = (
        span(max(one.verified_age for one in story.status.components)) if story.status.components else "unlimited"
    )
    return f"Maximum ages: {newest}; verified backup {verified}; drill {span(story.status.drill_age)}."


# -- the two answers ------------------------------------------------------------------------------------------------


def _answer(question: str, answer: str, is_bad: bool) -> Iterator[str]:
    yield f'<div class="card answer"><h3>{question}</h3><p class="{"bad" if is_bad else ""}">{shown(answer)}</p></div>'


def _loss(story: Story) -> str:
    """One sentence on what a loss of the portal now would mean."""
    known = [(one.component.spoken, lost) for one in story.status.components if (lost := _lost(story, one)) is not None]
    never = [one.component.spoken for one in story.status.components if _lost(story, one) is None]
    parts = [f"the last {span(lost)} of the {name}" for name, lost in known]
    if never:
        parts.append(f"all of the {_and(never)}, of which there is no backup")
    return f"If the portal were lost now, {_and(parts)} would be gone."


def _lost(story: Story, one: ComponentStatus) -> timedelta | None:
    moments = [one.newest.moment] if one.newest else []
    if one.component is Component.DATABASE and story.windows:
        moments.append(story.windows[-1][1])
    return story.now - max(moments) if moments else None


def _restore(story: Story) -> str:
    """One sentence on the restore time measured by drills."""
    drilled = story.status.drilled
    if drilled is None:
        return "Unknown: no drill has restored a backup yet."
    return f"The last drill restored everything in {duration(drilled.seconds)}, {span(story.now - drilled.moment)} ago."


# -- proof and gaps -------------------------------------------------------------------------------------------------


def _proof(story: Story) -> Iterator[tuple[str, str]]:
    """The evidence: a state and a sentence each."""
    for one in story.status.components:
        name, verified = shown(one.component.spoken), one.verified
        if verified is None:
            yield "bad", f"The {name}: no backup has been verified."
        else:
            age = story.now - verified.moment
            state = "good" if age <= one.verified_age else "bad"
            yield state, f"The {name}: the newest verified backup is {span(age)} old ({verified.level})."
    drills = story.drills
    done = sum(drill.success for drill in drills)
    last = (
        ""
        if not drills
        else f"; the last one, {span(story.now - drills[0].moment)} ago, "
        + ("succeeded" if drills[0].success else "failed")
    )
    said = f"{done} of {len(drills)} drills succeeded{last}." if drills else "No drill has tried a restore yet."
    yield ("good" if drills and drills[0].success else "bad"), said
    yield from _archives(story)
    for one in story.status.components:
        worst = max((age for _, age in ages_reached(story, one.component, charts.SLICES)), default=0.0)
        if worst > one.rpo.total_seconds():
            said = f"the newest backup of the {one.component.spoken} was once {span(timedelta(seconds=worst))} old"
            yield "bad", f"A gap: {shown(said)}; {span(one.rpo)} are allowed."
    yield from _elsewhere(story)


def _archives(story: Story) -> Iterator[tuple[str, str]]:
    total = len(story.archives)
    verified = sum(archive.finding is not None or archive.name in story.drilled for archive in story.archives)
    damaged = len(story.status.facts.damaged)
    yield ("good" if verified == total else "warm"), f"{verified:,} of {total:,} archives have been verified."
    if damaged:
        yield "bad", f"{damaged:,} {'archive is' if damaged == 1 else 'archives are'} damaged."
    if not_complete := sum(map(len, story.status.facts.incomplete.values())):
        yield "bad", f"{not_complete:,} {'archive is' if not_complete == 1 else 'archives are'} not complete."


def _elsewhere(story: Story) -> Iterator[tuple[str, str]]:
    if story.copies is None:
        yield "warm", "No off-site copies: whatever destroys this host destroys the backups too."
    elif not story.copies:
        yield "bad", "Off-site copies are configured, and there is none yet."
    else:
        newest = max(moment for moment, _ in story.copies)
        copies = counted(len(story.copies), "off-site copy", "off-site copies")
        yield "good", f"{copies}; the newest archive among them is {span(story.now - newest)} old."
    for one in story.status.facts.offsite:
        if one.foreign:
            names = ", ".join(one.foreign)
            yield "bad", f"In {one.shown} there are copies that this repository did not make: {names}."
    if story.windows:
        start, end = story.windows[-1]
        yield "good", f"The database can be recovered to any second from {when(start)} to {when(end)}."
        if len(story.windows) > 1:
            yield "warm", f"The recovery window has {counted(len(story.windows) - 1, 'gap')} before that."
    elif any(archive.type is BackupType.BASE for archive in story.archives):
        yield "bad", "There are base backups, but no moment that the database can be recovered to."


def _space(story: Story) -> str:
    facts, foreseen = story.status.facts, story.status.forecast
    used = f"{facts.archives:,} archives take {human_bytes(facts.bytes)}; {human_bytes(facts.free)} are free."
    if foreseen is None:
        return f"{used} There is too little history for a forecast."
    pace = f"{used} A usual day adds {human_bytes(foreseen.added_per_day)}."
    if foreseen.days_left is None:
        return f"{pace} Retention removes as much, so the disk does not fill."
    day = (story.now + timedelta(days=foreseen.days_left)).date()
    return f"{pace} At this rate the disk is full on about {day.isoformat()}."


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _and(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
