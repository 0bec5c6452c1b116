"""Gathers what a status is made of: from the repository alone, and without looking into archives."""

from __future__ import annotations

import shutil
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from portal.ops.access_log import AccessLog, Action
from portal.ops.failures import last_outcomes, unanswered
from portal.ops.model import BackupType, Component
from portal.ops.pins import Pins
from portal.ops.record_store import DamagedRecordError, RecordStore
from portal.ops.repository import Repository
from portal.ops.restore_record import RestoreRecords, RestoreState
from portal.ops.status import evaluate
from portal.ops.status_model import Archive, Drill, Facts, Status
from portal.ops.verifications import DIRECTORY as VERIFICATIONS
from portal.ops.verifications import VerificationRecord, Verifications

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import date, datetime

    from portal.ops.repository import ArchiveFile
    from portal.ops.settings import Settings

_HISTORY_DAYS: Final = 400


def read_status(settings: Settings, now: datetime) -> Status:
    """How it stands.

    Raises:
        RepositoryError: the repository cannot be read.
    """
    kept_days = settings.retention.days if settings.schedules.prune else None
    return evaluate(read_facts(settings, now), settings.targets, now, kept_days=kept_days)


def read_facts(settings: Settings, now: datetime) -> Facts:
    """Everything that is known.

    Raises:
        RepositoryError: the repository cannot be read.
    """
    repository = Repository(settings.local_path)
    components = _components(settings)
    archives = repository.archives()
    found = _Newest(repository, components)
    found.look_at(archives)
    entries = AccessLog(repository).recent()
    names = {archive.name for archive in archives}
    failures = [one for one in unanswered(entries) if one.action != Action.VERIFY or one.subject in names]
    damaged = [one.subject for one in failures if one.action == Action.VERIFY]
    records = RestoreRecords(repository)
    restores = records.all()
    disk = shutil.disk_usage(repository.path) if repository.path.is_dir() else None
    return Facts(
        repository=str(repository.path),
        components=components,
        newest=found.newest,
        verified=found.verified,
        first=found.first,
        archives=len(archives),
        bytes=sum(archive.size for archive in archives),
        daily=daily_bytes(archives, now),
        free=disk.free if disk else 0,
        total=disk.total if disk else 0,
        drills=_drills(repository),
        failures=tuple(failures),
        last=last_outcomes(entries),
        damaged=tuple(dict.fromkeys([*found.damaged, *damaged])),
        pins={name: pin.reason for name, pin in Pins(repository).all().items()},
        restores=tuple(
            (record.restore_id, record.backup_id, record.started)
            for record in restores
            if record.state is RestoreState.APPLIED
        ),
        cut_off=()
        if records.are_locked()
        else tuple(record.restore_id for record in restores if not record.state.is_settled),
    )


def daily_bytes(archives: Iterable[ArchiveFile], now: datetime) -> tuple[int, ...]:
    """Bytes of the archives of each day since the first one, the oldest day first, without today."""
    today = now.date()
    sizes: Counter[date] = Counter()
    for archive in archives:
        sizes[archive.moment.date()] += archive.size
    first = max(min(sizes, default=today), today - timedelta(days=_HISTORY_DAYS))
    return tuple(sizes[first + timedelta(days=day)] for day in range((today - first).days))


class _Newest:
    """Looks for the newest archives of each component, from the newest one backwards."""

    def __init__(self, repository: Repository, components: tuple[Component, ...]) -> None:
        self._components = components
        self._verifications = Verifications(repository)
        self._known = frozenset(RecordStore(repository.path / VERIFICATIONS).names())
        self.newest: dict[Component, Archive] = {}
        self.verified: dict[Component, Archive] = {}
        self.first: dict[Component, datetime] = {}
        self.damaged: list[str] = []

    def look_at(self, archives: Sequence[ArchiveFile]) -> None:
        """Go through the archives, the newest first."""
        for archive in archives:
            components = self._of(archive)
            for component in components:
                self.first[component] = archive.moment
            if any(component not in self.verified for component in components):
                self._note(archive, components)

    def _note(self, archive: ArchiveFile, components: Sequence[Component]) -> None:
        record = self._record(archive.name)
        if record is not None and not record.intact:
            self.damaged.append(archive.name)
            return
        level = record.level.value if record else None
        seen = Archive(backup_id=archive.name, moment=archive.moment, size=archive.size, level=level)
        for component in components:
            self.newest.setdefault(component, seen)
            if record is not None:
                self.verified.setdefault(component, seen)

    def _record(self, name: str) -> VerificationRecord | None:
        if name not in self._known:
            return None
        try:
            return self._verifications.of(name)
        except DamagedRecordError:
            return None

    def _of(self, archive: ArchiveFile) -> tuple[Component, ...]:
        if archive.backup_id is None:
            return ()
        kind = archive.backup_id.type
        if kind is BackupType.FULL:
            return self._components
        component = Component(kind.value)
        return (component,) if component in self._components else ()


def _components(settings: Settings) -> tuple[Component, ...]:
    """What is to be backed up."""
    given = {Component.MEDIA: settings.upload_dir, Component.AUDIT_LOGS: settings.audit_dir}
    return (Component.DATABASE, *(component for component, path in given.items() if path))


def _drills(_: Repository) -> tuple[Drill, ...]:
    return ()
