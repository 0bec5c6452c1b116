"""What there is to tell: archives, those that are gone, drills, pins, removals and failures, in the order of time."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from portal.ops.model import BackupId, BackupType, Component
from portal.ops.monitoring.facts import read_status
from portal.ops.monitoring.failures import is_failure
from portal.ops.repository.access_log import AccessLog, Action, Outcome
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.pins import Pins
from portal.ops.repository.repository import Repository

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import date

    from portal.ops.monitoring.model import Drill, Status
    from portal.ops.repository.access_log import AccessEntry
    from portal.ops.repository.entry import Entry
    from portal.ops.repository.pins import Pin
    from portal.ops.settings.load import Settings

WINDOW: Final = timedelta(days=180)
"""What drawings go back to."""

_LOG_BYTES: Final = 32 << 20
_MOST_LISTED: Final = 100


@dataclass(frozen=True, kw_only=True)
class Run:
    """A backup that was made, by the access log; its archive may be gone.

    Arguments:
        seconds: how long it took; nothing where that was not noted.
    """

    kind: BackupType
    moment: datetime
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Story:
    """Everything that the report tells.

    Arguments:
        archives: the newest first.
        runs: the oldest first.
        removals: what prunes have removed, the newest first.
        failures: the newest first.
        drilled: the archives that a drill has restored.
    """

    status: Status
    archives: Sequence[Entry]
    runs: Sequence[Run]
    drills: Sequence[Drill]
    drilled: frozenset[str]
    pins: Sequence[Pin]
    removals: Sequence[AccessEntry]
    failures: Sequence[AccessEntry]

    @property
    def now(self) -> datetime:
        """When the report was made."""
        return self.status.moment

    @property
    def start(self) -> datetime:
        """Where drawings begin."""
        moments = [run.moment for run in self.runs[:1]] + [archive.moment for archive in self.archives[-1:]]
        first = min(moments, default=self.now - timedelta(days=1))
        return min(max(first, self.now - WINDOW), self.now - timedelta(hours=12))


def read_story(settings: Settings, now: datetime) -> Story:
    """Read everything that the report tells.

    Raises:
        RepositoryError: the repository cannot be read.
    """
    repository = Repository(settings.local_path)
    archives = Catalogue(repository).entries()
    status = read_status(settings, now, archives=archives)
    entries = AccessLog(repository).recent(_LOG_BYTES)
    pins = sorted(Pins(repository).all().values(), key=lambda pin: pin.moment, reverse=True)
    drills = status.facts.drills
    return Story(
        status=status,
        archives=archives,
        runs=sorted(_runs(entries), key=lambda run: run.moment),
        drills=drills,
        drilled=frozenset(drill.backup_id for drill in drills if drill.success),
        pins=pins,
        removals=[entry for entry in reversed(entries) if "archives" in entry.details],
        failures=[entry for entry in reversed(entries) if is_failure(entry)][:_MOST_LISTED],
    )


def _runs(entries: Iterable[AccessEntry]) -> Iterator[Run]:
    for entry in entries:
        backup_id = BackupId.parse(entry.subject)
        if entry.action is Action.BACKUP and entry.outcome is Outcome.DONE and backup_id:
            seconds = entry.details.get("seconds")
            yield Run(
                kind=backup_id.type,
                moment=backup_id.moment,
                seconds=float(seconds) if isinstance(seconds, int | float) else None,
            )


def longest_ages(story: Story, component: Component) -> list[tuple[datetime, timedelta]]:
    """For each day the greatest age that the newest backup of a component had reached: what could have been lost.

    Archives that were removed since count too, by the access log: they were there then.
    """
    moments = {archive.moment for archive in story.archives if component in archive.components}
    moments |= {run.moment for run in story.runs if component in _held(run.kind, story)}
    times = [*sorted(moment for moment in moments if moment <= story.now), story.now]
    longest: dict[date, timedelta] = {}
    for earlier, later in itertools.pairwise(times):
        for day in _days(max(earlier, story.start), later):
            end = min(later, datetime.combine(day + timedelta(days=1), datetime.min.time(), UTC))
            longest[day] = max(longest.get(day, timedelta()), end - earlier)
    return [(_noon(day), age) for day, age in sorted(longest.items())]


def by_day(points: Iterable[tuple[datetime, float]]) -> list[tuple[datetime, float, int]]:
    """The greatest value of each day, and of how many it is."""
    days: dict[date, list[float]] = defaultdict(list)
    for moment, value in points:
        days[moment.date()].append(value)
    return [(_noon(day), max(values), len(values)) for day, values in sorted(days.items())]


def _held(kind: BackupType, story: Story) -> tuple[Component, ...]:
    return story.status.facts.components if kind is BackupType.FULL else (Component(kind.value),)


def _days(first: datetime, last: datetime) -> Iterator[date]:
    day = first.date()
    while day <= last.date():
        yield day
        day += timedelta(days=1)


def _noon(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
