"""Prunes of small repositories at a fixed time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from portal.ops.model import BackupType
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.repository import Repository
from portal.ops.retention.policy import RetentionPolicy, RetentionRule
from portal.ops.retention.prune import PruneJob
from tests.support.kept import put_archive

if TYPE_CHECKING:
    from pathlib import Path

NOW: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)
POLICY: Final = RetentionPolicy(rule=RetentionRule(days=10, count=1))
FULL: Final = BackupType.FULL
MEDIA: Final = BackupType.MEDIA


def job(directory: Path, policy: RetentionPolicy = POLICY) -> PruneJob:
    """A prune at that time."""
    return PruneJob(Repository(directory, lock_timeout=0.2), policy, clock=lambda: NOW, actor="ada")


def put(directory: Path, kind: BackupType, age: float, *, parent: str | None = None) -> str:
    """Put an archive of so many days into a repository; its name."""
    directory.mkdir(exist_ok=True)
    return put_archive(directory, kind, NOW - timedelta(days=age), parent=parent, request=str(age))


def archives(directory: Path) -> set[str]:
    """The names of all archives."""
    return {path.name.removesuffix(".tar.gz") for path in directory.glob("*.tar.gz")}


def assert_sound(directory: Path) -> None:
    """Every archive has its sidecar, and everything that it needs."""
    for one in Catalogue(Repository(directory)).entries():
        assert one.fault == ""
        assert one.parent is None or one.parent in archives(directory)
