"""Decides which archives are kept, and why. This module is pure.

An archive is removed only if all of this holds: it is older than the days of its type's rule; as many newer complete
archives of its type are kept as the rule's count; it is not the last one of an hour, day, week, month or year to be
kept; no kept archive needs it; it is neither pinned, nor the newest of its type, nor the newest verified one of its
type. An incomplete archive counts for nothing and is kept until a person has examined it, like files whose names are no
ids. If an archive's dependencies are unknown, everything that it might need is kept.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from portal.ops.model import BackupType, VerifyLevel
from portal.ops.repository.restorability import chain_faults, own_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from portal.ops.repository.entry import Entry
    from portal.ops.retention.policy import RetentionPolicy, RetentionRule

CLOCK_TOLERANCE: Final = timedelta(minutes=10)
"""An archive further ahead of the clock than this suggests that the clock is wrong."""

_FAMILIES: Final = {
    "backup of uploads": (BackupType.FULL, BackupType.MEDIA),
    "base backup": (BackupType.BASE,),
}
"""The types that can be in one chain."""

_LATENESS: Final = timedelta(days=1)
"""By how much a parent may be for a later moment than its child: an id has the moment that was requested."""

_NAMES: Final = {"hourly": "hour", "daily": "day", "weekly": "week", "monthly": "month", "yearly": "year"}


class Decision(NamedTuple):
    """The decision about one archive, with its reasons.

    Arguments:
        entry: the archive.
        keep: whether it is kept.
        reasons: all reasons to keep it or, if it is removed, why it can be.
    """

    entry: Entry
    keep: bool
    reasons: tuple[str, ...]

    def line(self) -> str:
        """The decision in plain words."""
        return f"{'keep  ' if self.keep else 'remove'}  {self.entry.name}: {'; '.join(self.reasons)}"

    def to_dict(self) -> dict[str, Any]:
        """The decision as types of JSON."""
        return {
            "backup_id": self.entry.name,
            "keep": self.keep,
            "size_bytes": self.entry.size,
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True, kw_only=True)
class RetentionPlan:
    """The decisions about all archives.

    Arguments:
        decisions: one for each archive, in the given order.
        removals: the archives to remove, children before parents, so that no archive is ever left without its parent.
        warnings: warnings for people.
    """

    decisions: tuple[Decision, ...]
    removals: tuple[Decision, ...]
    warnings: tuple[str, ...]


def plan(archives: Sequence[Entry], policy: RetentionPolicy, now: datetime) -> RetentionPlan:
    """Decide about all archives.

    Arguments:
        archives: all archives of a repository, in any order.
        now: the time from which ages count.
    """
    family = _Family(archives)
    reasons = _Reasons()
    for entry in archives:
        for reason in _own_reasons(entry, family):
            reasons.add(entry.name, reason)
    for kind, complete in _by_type(archives, family).items():
        if kind is BackupType.BASE:
            _keep_bases(complete, policy.pitr_days, now, reasons.add)
        else:
            _keep_of_type(complete, policy.of(kind), policy.zone, now, reasons.add)
    warnings = _keep_all_if_the_clock_is_wrong(archives, now, reasons)
    warnings += _keep_what_strays_may_need(archives, reasons)
    _keep_chains_with_a_gap(archives, family, reasons)
    _keep_what_is_needed(archives, family, reasons)
    gone = {kind: (_gone(kind, policy.of(kind)),) for kind in BackupType}
    gone[BackupType.BASE] = (f"recoveries reach back {_days(policy.pitr_days)} without it",)
    decisions = tuple(_decision(entry, reasons.of(entry.name), gone) for entry in archives)
    removals = sorted(
        (decision for decision in decisions if not decision.keep),
        key=lambda decision: (-family.depth(decision.entry.name), decision.entry.read_at, decision.entry.name),
    )
    return RetentionPlan(decisions=decisions, removals=tuple(removals), warnings=warnings)


class _Reasons:
    """The reasons to keep each archive; equal combinations are stored once."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[str, ...]] = {}
        self._once: dict[tuple[str, ...], tuple[str, ...]] = {}

    def add(self, name: str, reason: str) -> None:
        """Add a reason to keep an archive."""
        reasons = (*self._of.get(name, ()), reason)
        self._of[name] = self._once.setdefault(reasons, reasons)

    def of(self, name: str) -> tuple[str, ...]:
        """All reasons for an archive."""
        return self._of.get(name, ())


class _Family:
    """The dependencies of archives, and whether everything they need exists and is complete."""

    def __init__(self, archives: Sequence[Entry]) -> None:
        self._entries = {entry.name: entry for entry in archives}
        self._faults = chain_faults(archives)
        self._faults |= {entry.name: fault for entry in archives if (fault := own_fault(entry))}
        self._depths: dict[str, int] = {}
        for entry in archives:
            self._settle(entry.name)

    def depth(self, name: str) -> int:
        """The number of archives that it needs."""
        return self._depths[name]

    def fault(self, name: str) -> str:
        """Why it cannot be restored, as far as known; empty if it can."""
        return self._faults.get(name, "")

    def has(self, name: str) -> bool:
        """True if the archive exists."""
        return name in self._entries

    def needs(self, entry: Entry) -> Iterable[Entry]:
        """The existing archives that it names as needed; others between parent and base may be missing."""
        return (self._entries[name] for name in (entry.parent, entry.base) if name and name in self._entries)

    def _settle(self, name: str) -> None:
        """Determine the depth of an archive and its ancestors, base first."""
        path: dict[str, None] = {}
        at: str | None = name
        while at is not None and at in self._entries and at not in self._depths and at not in path:
            path[at] = None
            at = self._entries[at].parent
        depth = self._depths.get(at or "", -1)
        self._depths |= {one: above for above, one in enumerate(reversed(path), depth + 1)}


def _own_reasons(entry: Entry, family: _Family) -> Iterable[str]:
    """The reasons to keep an archive, regardless of others."""
    if entry.pinned:
        yield "it is pinned"
    if entry.type is None:
        yield "its name is no id of ours"
    elif fault := family.fault(entry.name):
        yield f"it is not complete, and stays until a person has looked at it: {fault}"


def _by_type(archives: Sequence[Entry], family: _Family) -> dict[BackupType, list[Entry]]:
    """The complete archives of each type, newest first: only these count."""
    found: dict[BackupType, list[Entry]] = defaultdict(list)
    for entry in archives:
        if entry.type is not None and not family.fault(entry.name):
            found[entry.type].append(entry)
    for entries in found.values():
        entries.sort(key=lambda entry: (entry.read_at, entry.modified, entry.name), reverse=True)
    return found


def _keep_of_type(
    complete: Sequence[Entry], rule: RetentionRule, zone: tzinfo, now: datetime, keep: Callable[[str, str], None]
) -> None:
    """Keep archives of a type by its rule.

    Arguments:
        complete: the complete archives of the type, newest first.
        keep: receives a name and a reason.
    """
    kind = complete[0].type
    keep(complete[0].name, f"it is the newest {kind} backup")
    for name, level in _newest_verified(complete).items():
        keep(name, f"it is the newest {kind} backup that has passed a verification ({level})")
    young = f"it is not older than {_days(rule.days)}"
    for entry in complete:
        if now - entry.read_at > timedelta(days=rule.days):
            break
        keep(entry.name, young)
    for entry in complete[: rule.count]:
        keep(entry.name, f"it is one of the newest {rule.count} {kind} backups")
    for name, count in rule.periods():
        for entry in _last_of_each(complete, _PERIOD_OF[name], zone, count):
            keep(entry.name, f"it is the last of its {_NAMES[name]}")


def _keep_bases(complete: Sequence[Entry], days: int, now: datetime, keep: Callable[[str, str], None]) -> None:
    """Keep base backups: all recent ones, and the one that the earliest recoveries need.

    Arguments:
        complete: the complete base backups, newest first.
        days: how far back recoveries reach, in days.
        keep: receives a name and a reason.
    """
    keep(complete[0].name, "it is the newest base backup")
    for name, level in _newest_verified(complete).items():
        keep(name, f"it is the newest base backup that has passed a verification ({level})")
    earliest = now - timedelta(days=days)
    for entry in complete:
        if entry.modified <= earliest:  # it was not complete before
            keep(entry.name, f"recoveries to {_days(days)} ago begin with it")
            return
        keep(entry.name, f"it is not older than {_days(days)}")


def _newest_verified(complete: Sequence[Entry]) -> dict[str, VerifyLevel]:
    """The newest archive verified at each level or a higher one, with its own highest level."""
    newest: dict[str, VerifyLevel] = {}
    for level in VerifyLevel:
        verified = (entry.name for entry in complete if entry.finding and entry.finding.level.covers(level))
        if name := next(verified, None):
            newest[name] = level
    return newest


def _last_of_each(
    complete: Iterable[Entry], period_of: Callable[[datetime], tuple[Any, ...]], zone: tzinfo, count: int
) -> Iterable[Entry]:
    """The newest archive of each of the newest `count` periods that have any."""
    last: tuple[Any, ...] | None = None
    for entry in complete:
        period = period_of(entry.read_at.astimezone(zone))
        if period == last:
            continue
        if count == 0:
            return
        last, count = period, count - 1
        yield entry


_PERIOD_OF: Final[Mapping[str, Callable[[datetime], tuple[Any, ...]]]] = {
    "hourly": lambda moment: (moment.date(), moment.hour, moment.utcoffset()),
    "daily": lambda moment: (moment.date(),),
    "weekly": lambda moment: moment.isocalendar()[:2],
    "monthly": lambda moment: (moment.year, moment.month),
    "yearly": lambda moment: (moment.year,),
}


def _keep_all_if_the_clock_is_wrong(archives: Sequence[Entry], now: datetime, reasons: _Reasons) -> tuple[str, ...]:
    """Keep everything if archives are from the future, since ages mean nothing then; name some in a warning."""
    ahead = [entry for entry in archives if entry.read_at - now > CLOCK_TOLERANCE]
    if not ahead:
        return ()
    newest = max(ahead, key=lambda entry: entry.read_at)
    doubt = f"the clock is in doubt: {newest.name} is from the future"
    for entry in archives:
        reasons.add(entry.name, doubt)
    return (
        f"{newest.name} is from the future, so either the clock is wrong now or it was then; nothing is removed. "
        "Set the clock, or move what is from the future away",
    )


def _keep_what_strays_may_need(archives: Sequence[Entry], reasons: _Reasons) -> tuple[str, ...]:
    """Keep all archives that one with an unknown parent may need, with a warning."""
    warnings = []
    for what, kinds in _FAMILIES.items():
        strays = [entry for entry in archives if entry.is_stray and entry.type in kinds]
        if not strays:
            continue
        newest = max(strays, key=lambda entry: (entry.read_at, entry.name))
        for entry in archives:
            if entry.type in kinds and entry.read_at <= newest.read_at + _LATENESS:
                reasons.add(entry.name, f"{newest.name}, which cannot be read, may need it")
        warnings.append(
            f"{newest.name} cannot be read, so its needs are unknown, and no older {what} is removed. "
            "Make it readable, or move it away"
        )
    return tuple(warnings)


def _keep_chains_with_a_gap(archives: Sequence[Entry], family: _Family, reasons: _Reasons) -> None:
    """Keep the rest of a chain with a missing archive: that may be put back, and needs its ancestors."""
    broken = {entry.base for entry in archives if entry.parent and entry.base and not family.has(entry.parent)}
    for entry in archives:
        if entry.base in broken:
            reasons.add(entry.name, "an archive of its chain is missing")


def _keep_what_is_needed(archives: Sequence[Entry], family: _Family, reasons: _Reasons) -> None:
    """Keep everything that kept archives need: parents and bases, recursively."""
    needed: set[str] = set()
    waiting = [entry for entry in archives if reasons.of(entry.name)]
    while waiting:
        for other in family.needs(waiting.pop()):
            if other.name not in needed:
                needed.add(other.name)
                reasons.add(other.name, "a later backup of its chain needs it")
                waiting.append(other)


def _decision(entry: Entry, reasons: tuple[str, ...], gone: Mapping[BackupType, tuple[str, ...]]) -> Decision:
    if reasons:
        return Decision(entry, True, reasons)
    assert entry.type is not None
    return Decision(entry, False, gone[entry.type])


def _gone(kind: BackupType, rule: RetentionRule) -> str:
    periods = ", ".join(_NAMES[name] for name, _ in rule.periods())
    last = f", and not the last of a kept {periods}" if periods else ""
    return f"it is older than {_days(rule.days)}, not among the newest {rule.count} {kind} backups{last}"


def _days(count: int) -> str:
    return "1 day" if count == 1 else f"{count} days"
