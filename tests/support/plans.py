"""Archives to plan with, and what a plan keeps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from portal.ops.model import BackupId, BackupType, VerifyLevel
from portal.ops.repository.entry import Entry, Finding
from portal.ops.retention.policy import RetentionPolicy, RetentionRule

if TYPE_CHECKING:
    from portal.ops.retention.plan import RetentionPlan

NOW: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)
FULL: Final = BackupType.FULL
DATABASE: Final = BackupType.DATABASE
MEDIA: Final = BackupType.MEDIA


def entry(kind: BackupType | None, age: timedelta, **facts: Any) -> Entry:
    """An archive of an age."""
    moment = NOW - age
    name = f"copy-{age}" if kind is None else str(BackupId.of(kind, moment, str(facts)))
    facts.pop("request", None)
    return Entry(
        **{"name": name, "type": kind, "moment": moment, "modified": moment, "size": 1000, **facts},
    )


def days(kind: BackupType, *ages: float, **facts: Any) -> list[Entry]:
    """Archives of so many days."""
    return [entry(kind, timedelta(days=age), **facts) for age in ages]


def rule(**numbers: int) -> RetentionPolicy:
    """A policy of one rule, with 0 for what is left out."""
    return RetentionPolicy(rule=RetentionRule(**{"days": 0, "count": 0, **numbers}))


def kept(found: RetentionPlan) -> set[str]:
    """The names of the archives that a plan keeps."""
    return {decision.entry.name for decision in found.decisions if decision.keep}


def intact(level: VerifyLevel = VerifyLevel.CONTENTS) -> Finding:
    """A verification that found no damage."""
    return Finding(level, NOW, True)
