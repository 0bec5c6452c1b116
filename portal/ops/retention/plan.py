"""Which archives are kept, and why: a pure decision about values.

An archive is removed only where all of this holds: it is older than the days of its type's rule; as many newer complete
ones of its type as the rule's count are kept; it is not the last one of an hour, day, week, month or year that is to be
kept; nothing that is kept hangs on it; it is neither pinned nor the newest, nor the newest that verified, of its type.
An incomplete archive counts for nothing and is kept until a person has looked at it, like files whose names are no ids.
Where it is not even known what an archive needs, all that it may need is kept.
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
"""How far ahead of the clock an archive may be before the clock is doubted."""

_FAMILIES: Final = {
    "backup of uploads": (BackupType.FULL, BackupType.MEDIA),
    "base backup": (BackupType.BASE,),
}
"""The types that may follow one another."""

_LATENESS: Final = timedelta(days=1)
"""An id names the moment that a backup is for: by so much the one that it follows may be for a later one."""

_NAMES: Final = {"hourly": "hour", "daily": "day", "weekly": "week", "monthly": "month", "yearly": "year"}


class Decision(NamedTuple):
    """The decision about an archive, with its reasons.

    Arguments:
        entry: the archive.
        keep: whether it stays.
        reasons: everything that speaks for keeping it; for one that goes, why it may.
    """

    entry: Entry
    keep: bool
    reasons: tuple[str, ...]

    def line(self) -> str:
        """The decision in plain words."""
        return f"{'keep  ' if self.keep else 'remove'}  {self.entry.name}: {'; '.join(self.reasons)}"

    def to_dict(self) -> dict[str, Any]:
        """The decision in the types of JSON."""
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
        decisions: one for each, in the order in which they were given.
        removals: those that go, in an order in which nothing is left without what it needs: children before parents.
        warnings: what a person should know before relying on it.
    """

    decisions: tuple[Decision, ...]
    removals: tuple[Decision, ...]
    warnings: tuple[str, ...] = ()


def plan(archives: Sequence[Entry], policy: RetentionPolicy, now: datetime) -> RetentionPlan:
    """Decide about every archive.

    Arguments:
        archives: all of a repository, in any order.
        now: ages are counted from here.
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
    """The reasons to keep each archive; each combination of them is stored once."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[str, ...]] = {}
        self._once: dict[tuple[str, ...], tuple[str, ...]] = {}

    def add(self, name: str, reason: str) -> None:
        """One more reason to keep an archive."""
        reasons = (*self._of.get(name, ()), reason)
        self._of[name] = self._once.setdefault(reasons, reasons)

    def of(self, name: str) -> tuple[str, ...]:
        """All that there are."""
        return self._of.get(name, ())


class _Family:
    """The dependencies of archives, and whether everything they need is present and complete."""

    def __init__(self, archives: Sequence[Entry]) -> None:
        self._entries = {entry.name: entry for entry in archives}
        self._faults = chain_faults(archives)
        self._faults |= {entry.name: fault for entry in archives if (fault := own_fault(entry))}
        self._depths: dict[str, int] = {}
        for entry in archives:
            self._settle(entry.name)

    def depth(self, name: str) -> int:
        """The number of archives it needs."""
        return self._depths[name]

    def fault(self, name: str) -> str:
        """The known reason why it cannot be restored; empty if there is none."""
        return self._faults.get(name, "")

    def has(self, name: str) -> bool:
        """True if an archive is there."""
        return name in self._entries

    def needs(self, entry: Entry) -> Iterable[Entry]:
        """The archives it names as needed, as far as they exist; others between parent and base may be missing."""
        return (self._entries[name] for name in (entry.parent, entry.base) if name and name in self._entries)

    def _settle(self, name: str) -> None:
        """Find out how many archives one needs, and each of those on the way, the first one of its chain first."""
        path: dict[str, None] = {}
        at: str | None = name
        while at is not None and at in self._entries and at not in self._depths and at not in path:
            path[at] = None
            at = self._entries[at].parent
        depth = self._depths.get(at, -1) if at is not None else -1
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
    """Say what of a type is kept, and why.

    Arguments:
        complete: the complete archives of the type, newest first.
        keep: takes a name and a reason.
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
    """Say which base backups are kept: all that are young, and the one that the earliest recoveries begin with.

    Arguments:
        complete: the complete ones, newest first.
        days: how far back recoveries reach.
        keep: takes a name and a reason.
    """
    keep(complete[0].name, "it is the newest base backup")
    for name, level in _newest_verified(complete).items():
        keep(name, f"it is the newest base backup that has passed a verification ({level})")
    earliest = now - timedelta(days=days)
    for entry in complete:
        if entry.modified <= earliest:  # until then it was not complete
            keep(entry.name, f"recoveries to {_days(days)} ago begin with it")
            return
        keep(entry.name, f"it is not older than {_days(days)}")


def _newest_verified(complete: Sequence[Entry]) -> dict[str, VerifyLevel]:
    """For each level the newest archive that was looked at as closely; the closest level of each of these."""
    newest: dict[str, VerifyLevel] = {}
    for level in VerifyLevel:
        verified = (entry.name for entry in complete if entry.finding and entry.finding.level.covers(level))
        if name := next(verified, None):
            newest[name] = level
    return newest


def _last_of_each(
    complete: Iterable[Entry], period_of: Callable[[datetime], tuple[Any, ...]], zone: tzinfo, count: int
) -> Iterable[Entry]:
    """The newest archive of each of the newest `count` periods that have one."""
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
    """If archives are from the future, ages mean nothing: keep all, and warn of the first few."""
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
    """Keep every archive that an unreadable one may stand on; a warning where there is such a one."""
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
    """Keep what is left of a chain that one is missing of: it may be put back, and needs the ones before it."""
    broken = {entry.base for entry in archives if entry.parent and entry.base and not family.has(entry.parent)}
    for entry in archives:
        if entry.base in broken:
            reasons.add(entry.name, "an archive of its chain is missing")


def _keep_what_is_needed(archives: Sequence[Entry], family: _Family, reasons: _Reasons) -> None:
    """Keep everything that something kept needs: its parent and its base, and what these need."""
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
