"""Gathers the facts for a status from the repository's catalogue and records."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from datetime import timedelta
from math import ceil
from typing import TYPE_CHECKING, Final

from portal.ops.backup.config import BackupConfig
from portal.ops.drill.report import DrillReports
from portal.ops.errors import ConfigurationError, OpsError
from portal.ops.model import BackupType, Component
from portal.ops.monitoring.failures import last_outcomes, unanswered
from portal.ops.monitoring.forecast import Usage
from portal.ops.monitoring.model import Archive, Drill, Facts, Failure, Status
from portal.ops.monitoring.status import evaluate
from portal.ops.offsite.config import OffsiteConfig
from portal.ops.offsite.state import destination_states
from portal.ops.pitr.health import PitrFacts
from portal.ops.pitr.look import look
from portal.ops.pitr.plan import clock_offset
from portal.ops.repository.access_log import AccessLog, Action, brief
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.pins import Pins
from portal.ops.repository.rejected import rejected_counts
from portal.ops.repository.repository import Repository
from portal.ops.restore.journal import DIRECTORY as RESTORES
from portal.ops.restore.journal import RestoreRecord, RestoreRecords, RestoreState
from portal.ops.retention.policy import RetentionPolicy

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import date, datetime

    from portal.ops.drill.report import DrillReport
    from portal.ops.offsite.health import DestinationState
    from portal.ops.repository.entry import Entry
    from portal.ops.retention.policy import RetentionRule
    from portal.ops.settings.load import Settings

_HISTORY_DAYS: Final = 400
_NAMED: Final = 3


def read_status(settings: Settings, now: datetime, *, archives: Sequence[Entry] | None = None) -> Status:
    """The backup status.

    Arguments:
        archives: the catalogue, if it was read already.

    Raises:
        RepositoryError: the repository cannot be read.
    """
    if archives is None:
        archives = Catalogue(Repository(settings.local_path)).entries()
    return evaluate(read_facts(settings, now, archives), settings.targets, now)


def read_facts(settings: Settings, now: datetime, archives: Sequence[Entry]) -> Facts:
    """Gather all facts.

    Raises:
        RepositoryError: the repository cannot be read.
    """
    repository = Repository(settings.local_path)
    components = _components(settings)
    found = _Newest(components)
    found.look_at(archives)
    entries = AccessLog(repository).recent()
    names = {archive.name for archive in archives}
    failures = [one for one in unanswered(entries) if _matters(one, names, is_wal_received=settings.pitr.wal)]
    damaged = [one.subject for one in failures if one.action == Action.VERIFY]
    restores, unreadable = _restores(repository, now)
    disk = shutil.disk_usage(repository.path) if repository.path.is_dir() else None
    return Facts(
        repository=str(repository.path),
        components=components,
        newest=found.newest,
        verified=found.verified,
        first=found.first,
        archives=len(archives),
        bytes=sum(archive.size for archive in archives),
        usages=tuple(_usages(archives, _policy(settings), now)),
        free=disk.free if disk else 0,
        total=disk.total if disk else 0,
        drills=tuple(map(_drill, DrillReports(repository).all())),
        failures=(*unreadable, *failures),
        last=last_outcomes(entries),
        damaged=tuple(dict.fromkeys([*found.damaged, *damaged])),
        incomplete={fault: tuple(names) for fault, names in found.incomplete.items()},
        pins={name: pin.reason for name, pin in Pins(repository).all().items()},
        restores=tuple(
            (record.restore_id, record.backup_id, record.started)
            for record in restores
            if record.state is RestoreState.APPLIED
        ),
        cut_off=_cut_off(repository, restores),
        pitr=_pitr(repository, archives) if settings.pitr.wal else None,
        rejected=rejected_counts(repository.path),
        offsite=_offsite(settings, repository, archives, now),
    )


def _matters(failure: Failure, names: Collection[str], *, is_wal_received: bool) -> bool:
    """False for a verification of an archive that is gone, and for a base backup where no WAL makes it useful."""
    if failure.action == Action.VERIFY:
        return failure.subject in names
    return is_wal_received or failure.kind != f"{Action.BACKUP} {BackupType.BASE.value}"


def _pitr(repository: Repository, archives: Sequence[Entry]) -> PitrFacts:
    """The facts about point-in-time recovery."""
    found = look(repository, list(archives))
    return PitrFacts(
        window=found.window,
        state=found.state,
        wal_bytes=sum(file.size for file in found.archive.files().values()) if found.archive else 0,
        ahead=clock_offset(found.archive),
        replaced=found.replaced,
    )


def _offsite(
    settings: Settings, repository: Repository, archives: Sequence[Entry], now: datetime
) -> tuple[DestinationState, ...]:
    """The facts about off-site copies."""
    if not settings.offsite.destinations():
        return ()
    try:
        policy = BackupConfig.from_settings(settings).retention
    except ConfigurationError:  # a prune refuses it, and reports that
        policy = RetentionPolicy()
    config = OffsiteConfig.from_settings(settings)
    return destination_states(config, policy, repository, archives, now, has_wal=settings.pitr.wal)


def _restores(repository: Repository, now: datetime) -> tuple[list[RestoreRecord], tuple[Failure, ...]]:
    """The restores with rollback data; invalid records count as a failure."""
    try:
        return RestoreRecords(repository).all(), ()
    except OpsError as error:
        kind = "reading what is known of restores"
        failure = Failure(kind=kind, action=kind, subject=RESTORES, moment=now, error=error.message, hint=error.hint)
        return [], (failure,)


def _cut_off(repository: Repository, restores: Iterable[RestoreRecord]) -> tuple[str, ...]:
    unsettled = tuple(record.restore_id for record in restores if not record.state.is_settled)
    return () if unsettled and RestoreRecords(repository).are_locked() else unsettled


def _policy(settings: Settings) -> RetentionPolicy | None:
    """The retention policy, or None if no prune is scheduled or the policy is invalid."""
    try:
        return BackupConfig.from_settings(settings).retention if settings.schedules.prune else None
    except ConfigurationError:
        return None


def _usages(archives: Sequence[Entry], policy: RetentionPolicy | None, now: datetime) -> Iterable[Usage]:
    """The bytes of archives of each type, for each day since the first archive.

    Arguments:
        archives: all archives, newest first.
    """
    today = now.date()
    first = min((archive.moment.date() for archive in archives), default=today)
    first = max(first, today - timedelta(days=_HISTORY_DAYS))
    types: defaultdict[BackupType | None, list[Entry]] = defaultdict(list)
    for archive in archives:
        types[archive.type].append(archive)
    for kind, alike in types.items():
        sizes: Counter[date] = Counter()
        for archive in alike:
            sizes[archive.moment.date()] += archive.size
        daily = tuple(sizes[first + timedelta(days=day)] for day in range((today - first).days))
        kept_days = _kept_days(alike, policy.of(kind), now) if policy and kind else None
        yield Usage(daily=daily, kept_days=kept_days)


def _kept_days(alike: Sequence[Entry], rule: RetentionRule, now: datetime) -> int:
    """After how many days archives of a type are removed: by the days of the rule, or by its count.

    Archives kept for hourly to yearly rules, by pins or for chains stay longer; the forecast ignores that.

    Arguments:
        alike: the archives of the type, newest first.
    """
    count = max(1, rule.count)  # the newest one always stays
    there = min(count, len(alike))
    return max(rule.days, ceil((now - alike[there - 1].moment) * count / there / timedelta(days=1)))


class _Newest:
    """Finds the newest archives of each component, from the newest archive on."""

    def __init__(self, components: tuple[Component, ...]) -> None:
        self._components = frozenset(components)
        self.newest: dict[Component, Archive] = {}
        self.verified: dict[Component, Archive] = {}
        self.first: dict[Component, datetime] = {}
        self.damaged: list[str] = []
        self.incomplete: defaultdict[str, list[str]] = defaultdict(list)

    def look_at(self, entries: Iterable[Entry]) -> None:
        """Examine archives, newest first. An incomplete one does not count."""
        for entry in entries:
            finding = entry.finding
            if finding is not None and not finding.intact:
                self.damaged.append(entry.name)
            elif entry.fault:
                self.incomplete[entry.fault].append(entry.name)
            else:
                self._note(entry)

    def _note(self, entry: Entry) -> None:
        for component in entry.components:
            if component in self._components:
                self.first[component] = entry.moment
                if component not in self.newest:
                    self.newest[component] = _archive(entry)
                if component not in self.verified and entry.finding is not None:
                    self.verified[component] = _archive(entry)


def _archive(entry: Entry) -> Archive:
    level = entry.finding.level.value if entry.finding else None
    return Archive(backup_id=entry.name, moment=entry.moment, size=entry.size, level=level)


def _components(settings: Settings) -> tuple[Component, ...]:
    """The components to be backed up."""
    given = {Component.MEDIA: settings.upload_dir, Component.AUDIT_LOGS: settings.audit_dir}
    return (Component.DATABASE, *(component for component, path in given.items() if path))


def _drill(report: DrillReport) -> Drill:
    return Drill(
        backup_id=report.backup_id,
        moment=report.started,
        success=report.success,
        seconds=report.seconds,
        error=brief(report.error) or "; ".join(report.damages[:_NAMED]),
    )
