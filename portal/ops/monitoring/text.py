"""A status as text for people: one screen, with the verdict in the first line."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from portal.ops.hints import Advice
from portal.ops.monitoring.failures import name_of
from portal.ops.units import counted, duration, human_bytes, span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from portal.ops.monitoring.model import Archive, ComponentStatus, Status
    from portal.ops.offsite.health import DestinationState
    from portal.ops.pitr.health import PitrFacts

_MOST: Final = 4
_LABEL: Final = 12


def status_lines(status: Status) -> list[str]:
    """The lines of a status."""
    return [*_verdict(status), "", *_table(status), "", *_rest(status)]


def _verdict(status: Status) -> Iterator[str]:
    if not status.facts.archives:
        yield f"NOT OK: there is no archive in {status.facts.repository} yet"
        yield f"  - {Advice.BACK_UP_FULL} makes the first one"
        return
    if status.ok:
        met = f"OK: every target is met ({', '.join(one.component.spoken for one in status.components)}, drill, space)"
        failed = counted(len(status.facts.failures), "failure")
        yield f"{met}; {failed} below" if status.facts.failures else met
        return
    yield f"NOT OK: {len(status.misses)} {'target is' if len(status.misses) == 1 else 'targets are'} missed"
    for miss in status.misses:
        yield f"  - {miss.what}"
        yield f"    {miss.mend}"


def _table(status: Status) -> Iterator[str]:
    yield f"{'':<{_LABEL}}{'newest':<11}{'allowed':<10}{'verified':<22}{'allowed':<10}"
    for one in status.components:
        yield _row(one, status.moment)
    drill = status.drill
    how = span(status.moment - drill.moment) if drill else "never"
    missed = any(miss.target == "drill" for miss in status.misses)
    state = "MISSED" if missed else "ok" if drill else "not due"
    rto = f"restored in {duration(status.drilled.seconds)}" if status.drilled else ""
    if drill and not drill.success:
        rto = "failed"
    yield f"{'drill':<{_LABEL}}{how:<11}{span(status.drill_age):<10}{rto:<32}{state}"


def _row(one: ComponentStatus, now: datetime) -> str:
    newest = span(now - one.newest.moment) if one.newest else "none"
    verified = _verified(one.verified, now)
    state = "MISSED" if one.misses else "ok"
    return (
        f"{one.component.spoken:<{_LABEL}}{newest:<11}{span(one.rpo):<10}"
        f"{verified:<22}{span(one.verified_age):<10}{state}"
    )


def _verified(archive: Archive | None, now: datetime) -> str:
    return f"{span(now - archive.moment)} ({archive.level})" if archive else "none"


def _rest(status: Status) -> Iterator[str]:
    facts, now = status.facts, status.moment
    yield from _entry("newest", [one.newest.backup_id for one in status.components if one.newest])
    yield f"{'space':<{_LABEL}}{counted(facts.archives, 'archive')}, {human_bytes(facts.bytes)}; {_free(status)}"
    yield f"{'':<{_LABEL}}{_outlook(status)}"
    if facts.pitr:
        yield from _entry("recovery", [_window(facts.pitr, now), *map(str, facts.pitr.replaced)])
    yield from _entry(
        "failed",
        [
            f"{name_of(failure.kind)}, {span(now - failure.moment)} ago: {failure.error or 'no reason was noted'}"
            + (f"\n  {failure.hint}" if failure.hint else "")
            for failure in facts.failures
        ],
    )
    yield from _entry("damaged", list(facts.damaged))
    yield from _entry("incomplete", [_incomplete(fault, names) for fault, names in facts.incomplete.items()])
    yield from _entry("interrupted", [f"{restore}; any restore or rollback settles it" for restore in facts.cut_off])
    yield from _entry("off-site", [line for one in facts.offsite for line in _offsite(one, now)])
    yield from _entry("pinned", [f"{name}  {reason}".rstrip() for name, reason in facts.pins.items()])
    yield from _entry(
        "restores", [f"{restore} of {archive}, can be rolled back" for restore, archive, _ in facts.restores]
    )


def _window(facts: PitrFacts, now: datetime) -> str:
    if facts.window is None:
        return "none yet"
    lag = facts.lag_seconds(now)
    gaps = f", {counted(len(facts.window.gaps), 'gap')}" if facts.window.gaps else ""
    ago = "" if lag is None else f" (up to {duration(lag)} ago)"
    start, end = facts.window.start, facts.window.end
    return f"{start:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S} UTC{ago}{gaps}"


def _offsite(one: DestinationState, now: datetime) -> Iterator[str]:
    """The copies in a destination, in a line or two."""
    newest = f"newest {span(now - one.moment)} old" if one.moment else "none yet"
    missing = f", {len(one.missing)} missing" if one.missing else ""
    copies = f"{counted(one.copies, 'copy', 'copies')}, {human_bytes(one.stored_bytes)}, {newest}"
    yield f"{one.shown}: {copies if one.copies else 'this repository has made no copy yet'}{missing}"
    if one.foreign:
        more = f" and {len(one.foreign) - 1} more" if len(one.foreign) > 1 else ""
        yield f"  not made by this repository: {one.foreign[0]}{more}"
    proofs = [one.verified, one.drilled]
    if last := max((proof for proof in proofs if proof), key=lambda proof: proof.moment, default=None):
        state = f"DAMAGED: {', '.join(last.damaged[:_MOST])}" if last.damaged else "intact"
        yield f"  last proof {span(now - last.moment)} ago ({last.level}): {state}"
    elif one.copies:
        yield "  not verified yet"


def _incomplete(fault: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} older" if len(names) > 1 else ""
    return f"{names[0]}{more}: {fault}"


def _entry(label: str, texts: list[str]) -> Iterator[str]:
    """Some of the texts, one per line."""
    texts = list(dict.fromkeys(texts))
    for number, text in enumerate(texts[:_MOST]):
        first, _, rest = text.partition("\n")
        yield f"{label if number == 0 else '':<{_LABEL}}{first}"
        if rest:
            yield f"{'':<{_LABEL}}{rest}"
    if len(texts) > _MOST:
        yield f"{'':<{_LABEL}}and {len(texts) - _MOST} more"


def _free(status: Status) -> str:
    facts = status.facts
    return f"{human_bytes(facts.free)} free of {human_bytes(facts.total)}" if facts.total else "the disk cannot be seen"


def _outlook(status: Status) -> str:
    foreseen = status.forecast
    if foreseen is None:
        return f"too little history ({status.facts.history_days} whole days) to say how long that lasts"
    pace = f"about {human_bytes(foreseen.added_per_day)} a day"
    if foreseen.days_left is None:
        return f"{pace}; with prunes, the space lasts"
    day = (status.moment + timedelta(days=foreseen.days_left)).date()
    return f"{pace}; full on about {day.isoformat()}, in {foreseen.days_left} days"
