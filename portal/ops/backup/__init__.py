"""Makes backups: the job from check to publish, the sources, and what an incremental holds.

Promises that a backup reported as successful is complete. May import restore, offsite, retention, verify, pitr, chains,
repository and the rooms below them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from portal.ops.backup.config import BackupConfig, BackupDestination, BackupResult
    from portal.ops.backup.job import BackupJob, create_backup_job
    from portal.ops.model import BackupType

__all__ = ["BackupConfig", "BackupDestination", "BackupJob", "BackupResult", "BackupType", "create_backup_job"]

_HOMES = {
    "BackupConfig": "portal.ops.backup.config",
    "BackupDestination": "portal.ops.backup.config",
    "BackupResult": "portal.ops.backup.config",
    "BackupJob": "portal.ops.backup.job",
    "create_backup_job": "portal.ops.backup.job",
    "BackupType": "portal.ops.model",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562), so that a command loads only what it needs."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
