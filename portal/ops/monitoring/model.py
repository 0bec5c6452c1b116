"""The facts about backups, and the status derived from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from portal.ops.model import Component, timestamp

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

    from portal.ops.monitoring.forecast import Forecast, Usage
    from portal.ops.offsite.health import DestinationState
    from portal.ops.pitr.health import PitrFacts


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive that has a component.

    Arguments:
        level: how thoroughly it was verified; None if it was not.
    """

    backup_id: str
    moment: datetime
    size: int
    level: str | None = None


@dataclass(frozen=True, kw_only=True)
class Drill:
    """A test restore.

    Arguments:
        seconds: how long the restore took: the RTO.
    """

    backup_id: str
    moment: datetime
    success: bool
    seconds: float
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An unresolved failure.

    Arguments:
        kind: the kind that a later success resolves, such as ``backup database``.
    """

    kind: str
    action: str
    subject: str
    moment: datetime
    error: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class LastOutcome:
    """The last outcome of an action.

    Arguments:
        seconds: how long it took; None if that was not recorded.
    """

    moment: datetime
    done: bool
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All facts for a status.

    Arguments:
        components: the components to be backed up.
        newest: for each component, the newest archive not known to be damaged.
        verified: for each component, the newest archive known to be intact.
        first: for each component, the time of its oldest archive.
        archives: the number of archives.
        usages: the bytes of archives of each type, by day, and how long they are kept.
        free: free bytes on the repository's disk; `total` is the disk's size.
        drills: all drills, newest first.
        failures: unresolved failures, newest first.
        last: the last outcome of each action.
        damaged: existing archives that were found damaged.
        incomplete: archives that do not count, such as those of a chain with a gap: by fault, the archives, newest
            first.
        pins: the reason of each pin, by the archive's name.
        restores: restores that can be rolled back, newest first: id, archive, time.
        offsite: the state of each destination.
        cut_off: interrupted restores, neither finished nor undone.
        pitr: the facts about point-in-time recovery; None if WAL is not received.
        rejected: the number of messages rejected by workers, by reason.
    """

    repository: str
    components: tuple[Component, ...]
    newest: Mapping[Component, Archive] = field(default_factory=dict)
    verified: Mapping[Component, Archive] = field(default_factory=dict)
    first: Mapping[Component, datetime] = field(default_factory=dict)
    archives: int = 0
    bytes: int = 0
    usages: tuple[Usage, ...] = ()
    free: int = 0
    total: int = 0
    drills: tuple[Drill, ...] = ()
    failures: tuple[Failure, ...] = ()
    last: Mapping[str, LastOutcome] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    incomplete: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pins: Mapping[str, str] = field(default_factory=dict)
    restores: tuple[tuple[str, str, str], ...] = ()
    cut_off: tuple[str, ...] = ()
    pitr: PitrFacts | None = None
    rejected: Mapping[str, int] = field(default_factory=dict)

    offsite: tuple[DestinationState, ...] = ()

    @property
    def history_days(self) -> int:
        """Whole days since the first archive."""
        return len(self.usages[0].daily) if self.usages else 0


@dataclass(frozen=True, kw_only=True)
class Miss:
    """A missed target.

    Arguments:
        target: its name, such as ``rpo_database``.
        what: by how much, as a sentence without its full stop.
        mend: what to do.
    """

    target: str
    what: str
    mend: str

    def to_dict(self) -> dict[str, str]:
        """The miss as types of JSON."""
        return {"target": self.target, "what": self.what, "mend": self.mend}


@dataclass(frozen=True, kw_only=True)
class ComponentStatus:
    """The status of one component.

    Arguments:
        rpo: the greatest permitted age of the newest archive.
        verified_age: the greatest permitted age of the newest archive known to be intact.
    """

    component: Component
    newest: Archive | None
    verified: Archive | None
    rpo: timedelta
    verified_age: timedelta
    misses: tuple[Miss, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Status:
    """The backup status.

    Arguments:
        moment: the time of the status.
        misses: all missed targets.
        forecast: the forecast of disk space; None if there is too little history.
        drill: the last drill; `drilled` is the last successful one.
    """

    moment: datetime
    facts: Facts
    components: tuple[ComponentStatus, ...]
    drill: Drill | None
    drilled: Drill | None
    drill_age: timedelta
    misses: tuple[Miss, ...]
    forecast: Forecast | None

    @property
    def ok(self) -> bool:
        """True if every target is met."""
        return not self.misses

    def to_dict(self) -> dict[str, Any]:
        """The status as types of JSON."""
        facts = self.facts
        return {
            "success": self.ok,
            "moment": timestamp(self.moment),
            "repository": facts.repository,
            "missed": [miss.to_dict() for miss in self.misses],
            "components": {one.component.value: self._component(one) for one in self.components},
            "drill": self._drill(),
            "space": self._space(),
            "failures": [_failure(failure) for failure in facts.failures],
            "damaged": list(facts.damaged),
            "incomplete": [{"fault": fault, "archives": list(names)} for fault, names in facts.incomplete.items()],
            "pinned": dict(facts.pins),
            "restores": [
                {"restore_id": restore_id, "backup_id": backup_id, "started": started}
                for restore_id, backup_id, started in facts.restores
            ],
            "restores_cut_off": list(facts.cut_off),
            "offsite": [one.to_dict(self.moment) for one in facts.offsite],
            "recovery_window": facts.pitr.to_dict(self.moment) if facts.pitr else None,
        }

    def _component(self, one: ComponentStatus) -> dict[str, Any]:
        return {
            "newest": self._archive(one.newest),
            "allowed_age_seconds": one.rpo.total_seconds(),
            "newest_verified": self._archive(one.verified),
            "allowed_verified_age_seconds": one.verified_age.total_seconds(),
            "missed": [miss.target for miss in one.misses],
        }

    def _archive(self, archive: Archive | None) -> dict[str, Any] | None:
        if archive is None:
            return None
        return {
            "backup_id": archive.backup_id,
            "timestamp": timestamp(archive.moment),
            "age_seconds": (self.moment - archive.moment).total_seconds(),
            "size_bytes": archive.size,
            "verify_level": archive.level,
        }

    def _drill(self) -> dict[str, Any] | None:
        if self.drill is None:
            return None
        return {
            "backup_id": self.drill.backup_id,
            "timestamp": timestamp(self.drill.moment),
            "success": self.drill.success,
            "rto_seconds": round(self.drilled.seconds, 3) if self.drilled else None,
            "last_success": timestamp(self.drilled.moment) if self.drilled else None,
            "allowed_age_seconds": self.drill_age.total_seconds(),
            "error": self.drill.error,
        }

    def _space(self) -> dict[str, Any]:
        facts, foreseen = self.facts, self.forecast
        return {
            "archives": facts.archives,
            "bytes": facts.bytes,
            "free_bytes": facts.free,
            "total_bytes": facts.total,
            "days_of_history": facts.history_days,
            "added_bytes_per_day": foreseen.added_per_day if foreseen else None,
            "days_left": foreseen.days_left if foreseen else None,
        }


def _failure(failure: Failure) -> dict[str, str]:
    return {
        "action": failure.action,
        "subject": failure.subject,
        "timestamp": timestamp(failure.moment),
        "error": failure.error,
        "hint": failure.hint,
    }
