"""The backup status: facts compared with targets. This module is pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from portal.ops.hints import Advice
from portal.ops.model import Component
from portal.ops.monitoring.forecast import forecast
from portal.ops.monitoring.model import Archive, ComponentStatus, Drill, Facts, Miss, Status
from portal.ops.pitr.health import misses as pitr_misses
from portal.ops.units import human_bytes, span

if TYPE_CHECKING:
    from collections.abc import Iterable

    from portal.ops.pitr.health import PitrMiss
    from portal.ops.settings.load import TargetSettings

SPACE_WARNING: Final = timedelta(days=14)
"""Disk space that lasts for less than this is a missed target."""

SPACE_NEEDED: Final = 64 << 20
"""A backup leaves this many bytes free, so with less none is started."""

_BACKUPS: Final = {
    Component.DATABASE: Advice.BACK_UP_DATABASE,
    Component.MEDIA: Advice.BACK_UP_MEDIA,
    Component.AUDIT_LOGS: Advice.BACK_UP_FULL,
}


def evaluate(facts: Facts, targets: TargetSettings, now: datetime) -> Status:
    """Compare the facts with the targets."""
    components = tuple(_component(component, facts, targets, now) for component in facts.components)
    last = facts.drills[0] if facts.drills else None
    drilled = next((drill for drill in facts.drills if drill.success), None)
    foreseen = forecast(facts.usages, free=facts.free) if facts.total else None
    days_left = foreseen.days_left if foreseen else None
    misses = [
        *(miss for component in components for miss in component.misses),
        *_missed_drill(last, drilled, facts, targets.drill_age, now),
        *_missed_space(facts, days_left),
        *(Miss(target=miss.target, what=miss.what, mend=miss.mend) for miss in _missed_pitr(facts, now)),
        *_missed_offsite(facts, targets.rpo_offsite, now),
    ]
    return Status(
        moment=now,
        facts=facts,
        components=components,
        drill=last,
        drilled=drilled,
        drill_age=targets.drill_age,
        misses=tuple(misses),
        forecast=foreseen,
    )


def _component(component: Component, facts: Facts, targets: TargetSettings, now: datetime) -> ComponentStatus:
    rpo = {
        Component.DATABASE: targets.rpo_database,
        Component.MEDIA: targets.rpo_media,
        Component.AUDIT_LOGS: targets.rpo_audit_logs,
    }[component]
    newest, verified = facts.newest.get(component), facts.verified.get(component)
    misses = []
    covered = facts.pitr.covered if facts.pitr and component is Component.DATABASE else None
    if (late := _late(newest, rpo, now)) and (covered is None or now - covered > rpo):
        misses.append(
            Miss(
                target=f"rpo_{component.value}",
                what=f"the newest backup of the {component.spoken} is {late}" if newest else _none(component, facts),
                mend=f"{_BACKUPS[component]} makes one now; then find out why the schedule made none.",
            )
        )
    due = verified is not None or _is_overdue(facts.first.get(component), targets.verified_age, now)
    if due and (late := _late(verified, targets.verified_age, now)):
        newest_of = f"the newest backup of the {component.spoken} that is known to be intact"
        misses.append(
            Miss(
                target=f"verified_{component.value}",
                what=f"{newest_of} is {late}" if verified else f"no backup of the {component.spoken} was verified yet",
                mend=f"{Advice.VERIFY_DUMP.of(newest.backup_id if newest else 'latest')} does it now.",
            )
        )
    return ComponentStatus(
        component=component,
        newest=newest,
        verified=verified,
        rpo=rpo,
        verified_age=targets.verified_age,
        misses=tuple(misses),
    )


def _missed_drill(
    last: Drill | None, drilled: Drill | None, facts: Facts, allowed: timedelta, now: datetime
) -> list[Miss]:
    """A failed drill misses the target too: its archive could not be restored."""
    mend = f"{Advice.DRILL} tests a restore now, without changing live data."
    if last is not None and not last.success:
        return [Miss(target="drill", what=f"the last drill, of {last.backup_id}, failed: {last.error}", mend=mend)]
    if drilled is None:
        first = min(facts.first.values(), default=None)
        if not _is_overdue(first, allowed, now):
            return []
        return [Miss(target="drill", what="no restore was ever tried", mend=mend)]
    if (age := now - drilled.moment) > allowed:
        what = f"the last successful drill was {span(age)} ago, and {span(allowed)} are allowed"
        return [Miss(target="drill", what=what, mend=mend)]
    return []


def _missed_pitr(facts: Facts, now: datetime) -> Iterable[PitrMiss]:
    return pitr_misses(facts.pitr, now) if facts.pitr else ()


def _missed_offsite(facts: Facts, allowed: timedelta, now: datetime) -> list[Miss]:
    """Missing, outdated and damaged copies, and WAL that is not copied, by destination."""
    mend = f"{Advice.COPY_OFFSITE} copies whatever is missing, or names the reason."
    faults = ((one, one.fault(allowed, now)) for one in facts.offsite)
    copies = [Miss(target=f"offsite_{one.identifier}", what=what, mend=mend) for one, what in faults if what]
    wal = ((one, *one.wal_fault(now)) for one in facts.offsite)
    return copies + [
        Miss(target=f"offsite_wal_{one.identifier}", what=what, mend=remedy) for one, what, remedy in wal if what
    ]


def _missed_space(facts: Facts, days_left: int | None) -> list[Miss]:
    """Space that is used up or soon will be; without a forecast only a full disk is reported."""
    if facts.total and facts.free < SPACE_NEEDED:
        what = f"the disk of {facts.repository} is full: {human_bytes(facts.free)} are free"
    elif days_left is not None and days_left < SPACE_WARNING.days:
        what = f"at the pace of the last weeks the space lasts for {days_left} more days"
    else:
        return []
    mend = (
        f"Keep less (BACKUP_RETENTION_DAYS or BACKUP_RETENTION_RULES, then {Advice.PRUNE}), or move to a larger disk."
    )
    return [Miss(target="space", what=what, mend=mend)]


def _late(archive: Archive | None, allowed: timedelta, now: datetime) -> str:
    """By how much the permitted age is exceeded, in words; empty if it is not."""
    if archive is None:
        return "missing"
    age = now - archive.moment
    return f"{span(age)} old, and {span(allowed)} are allowed" if age > allowed else ""


def _none(component: Component, facts: Facts) -> str:
    return f"there is no {'complete ' if facts.archives else ''}backup of the {component.spoken}"


def _is_overdue(first: datetime | None, allowed: timedelta, now: datetime) -> bool:
    """True if there was enough time since the first backup; if there is no backup, that is the problem."""
    return first is not None and now - first > allowed
