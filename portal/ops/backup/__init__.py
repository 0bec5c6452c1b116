"""Making backups: one narrative from check to publish, the sources, and what an incremental has to hold.

Promises that a backup reported as successful is complete. May import retention, verify, chains, repository and what
these may.
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
    """Import a public name when it is first asked for (PEP 562): a command pays only for what it uses."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
