"""The facts about the backups, and the status they amount to."""

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
        level: how closely it was verified; nothing where it was not.
    """

    backup_id: str
    moment: datetime
    size: int
    level: str | None = None


@dataclass(frozen=True, kw_only=True)
class Drill:
    """A restore that was tried.

    Arguments:
        seconds: how long it took, which is the RTO.
    """

    backup_id: str
    moment: datetime
    success: bool
    seconds: float
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Something that failed, and that nothing of its kind has put right since.

    Arguments:
        kind: what makes later ones answer it, such as ``backup database``.
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
        seconds: how long it took; nothing where that was not noted.
    """

    moment: datetime
    done: bool
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that is known.

    Arguments:
        components: those that are to be backed up.
        newest: for each component its newest archive that is not known to be damaged.
        verified: for each component its newest archive that is known to be intact.
        first: for each component the moment of its oldest archive.
        archives: how many there are.
        usages: what the archives of each type take, day by day, and how long they are kept.
        free: bytes on the repository's disk; `total` is the size of the disk.
        drills: those that were made, the newest first.
        failures: the newest first.
        last: how the last one of each action ended.
        damaged: archives that were found damaged, and are still there.
        incomplete: what is wrong with archives that count for nothing, as with a chain that has a gap; of each of these
            faults the archives that have it, the newest first.
        pins: the reason of each pin, by the archive's name.
        restores: those that can be rolled back, the newest first: id, archive, moment.
        offsite: the copies of each destination.
        cut_off: restores that were interrupted, and are neither finished nor undone.
        pitr: what is known of recoveries to a moment; nothing where no WAL is to be received.
        rejected: how many messages workers have rejected, by reason.
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
    """A target that is missed.

    Arguments:
        target: its name, such as ``rpo_database``.
        what: by how much, in a sentence without its end.
        mend: what to do.
    """

    target: str
    what: str
    mend: str

    def to_dict(self) -> dict[str, str]:
        """The miss in the types of JSON."""
        return {"target": self.target, "what": self.what, "mend": self.mend}


@dataclass(frozen=True, kw_only=True)
class ComponentStatus:
    """The status of one component.

    Arguments:
        rpo: the age that the newest archive may have.
        verified_age: the age that the newest one known to be intact may have.
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
        moment: when.
        misses: every target that is missed.
        forecast: how long the space lasts; nothing where there is too little history.
        drill: the last one; `drilled` is the last one that succeeded.
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
        """The status in the types of JSON."""
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
