"""The facts for the report: archives, removed ones, drills, pins, removals and failures, sorted by time."""

from __future__ import annotations

import itertools
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Final

from portal.ops.model import BackupId, BackupType, Component
from portal.ops.monitoring.facts import read_status
from portal.ops.monitoring.failures import is_failure
from portal.ops.offsite.ledger import Ledger
from portal.ops.pitr.look import look
from portal.ops.repository.access_log import AccessLog, Action, Outcome
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.pins import Pins
from portal.ops.repository.repository import Repository
from tools.report.axis import Axis

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from portal.ops.monitoring.model import Drill, Status
    from portal.ops.repository.access_log import AccessEntry
    from portal.ops.repository.entry import Entry
    from portal.ops.repository.pins import Pin
    from portal.ops.settings.load import Settings

WINDOW: Final = timedelta(days=400)
"""How far back the drawings go."""

KIND_NAMES: Final = {
    BackupType.FULL: "Full backups",
    BackupType.DATABASE: "Database",
    BackupType.MEDIA: "Uploads",
    BackupType.AUDIT_LOGS: "Audit log",
    BackupType.BASE: "Base backups",
}

_LOG_BYTES: Final = 32 << 20
_MOST_LISTED: Final = 100
_MARGIN: Final = 1.02


@dataclass(frozen=True, kw_only=True)
class Run:
    """A backup in the access log; its archive may have been removed.

    Arguments:
        seconds: how long it took; None if that was not recorded.
    """

    kind: BackupType
    moment: datetime
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Story:
    """All facts for the report.

    Arguments:
        archives: all archives, newest first.
        runs: all backups, oldest first.
        removals: archives removed by prunes, newest first.
        failures: all failures, newest first.
        drilled: the archives that a drill has restored.
        windows: the periods to which the database can be recovered to the second, oldest first.
        host: the machine that the report was made on.
        copies: off-site copies with the times of their archives; None if none are configured.
    """

    status: Status
    archives: Sequence[Entry]
    runs: Sequence[Run]
    drills: Sequence[Drill]
    drilled: frozenset[str]
    pins: Sequence[Pin]
    removals: Sequence[AccessEntry]
    failures: Sequence[AccessEntry]
    windows: Sequence[tuple[datetime, datetime]] = ()
    host: str = ""
    copies: Sequence[tuple[datetime, str]] | None = None

    @property
    def now(self) -> datetime:
        """The time of the report."""
        return self.status.moment

    @cached_property
    def axis(self) -> Axis:
        """The period of all drawings: from the first backup, at least an hour."""
        moments = [run.moment for run in self.runs[:1]] + [archive.moment for archive in self.archives[-1:]]
        first = max(min(moments, default=self.now - timedelta(days=1)), self.now - WINDOW)
        length = max(self.now - first, timedelta(hours=1))
        return Axis(start=self.now - length * _MARGIN, end=self.now)

    def of_kind(self, kind: BackupType) -> list[int]:
        """The indexes of a kind's archives in `archives`."""
        return [number for number, archive in enumerate(self.archives) if archive.type is kind]


def read_story(settings: Settings, now: datetime) -> Story:
    """Gather all facts.

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
        host=socket.gethostname(),
        copies=_copies(settings, repository),
        windows=_merged((span.start, span.end) for span in look(repository, list(archives)).spans),
    )


def _copies(settings: Settings, repository: Repository) -> list[tuple[datetime, str]] | None:
    """The off-site copies in the repository's record, with the times of their archives."""
    destinations = settings.offsite.destinations()
    if not destinations:
        return None
    found = [
        (backup_id.moment, f"{backup_id} on {destination.shown}")
        for destination in destinations
        for stem in Ledger(repository, destination).copies()
        if (backup_id := BackupId.parse(stem.backup_id))
    ]
    return sorted(found)


def _merged(spans: Iterable[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """The periods, with overlapping ones merged."""
    merged: list[tuple[datetime, datetime]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


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


def ages_reached(story: Story, component: Component, slices: int) -> list[tuple[int, float]]:
    """For each slice of the axis, the greatest age in seconds that a component's newest backup had reached.

    Archives that have been removed count too, by the access log.
    """
    moments = {archive.moment for archive in story.archives if component in archive.components}
    moments |= {run.moment for run in story.runs if component in _held(run.kind, story)}
    times = [*sorted(moment for moment in moments if moment <= story.now), story.now]
    axis = story.axis
    reached: dict[int, float] = {}
    for earlier, later in itertools.pairwise(times):
        if later < axis.start:
            continue
        first = axis.slice_of(max(earlier, axis.start), slices) or 0
        last = axis.slice_of(later, slices) or 0
        for number in range(first, last + 1):
            end = min(later, axis.start + axis.length * ((number + 1) / slices))
            reached[number] = max(reached.get(number, 0.0), (end - earlier).total_seconds())
    return sorted(reached.items())


def _held(kind: BackupType, story: Story) -> tuple[Component, ...]:
    """The components that an archive of a kind holds in the charts; a base backup, of the whole cluster, none."""
    if kind is BackupType.FULL:
        return tuple(story.status.facts.components)
    return () if kind is BackupType.BASE else (Component(kind.value),)
