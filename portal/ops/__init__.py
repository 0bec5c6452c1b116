"""The backup and restore engine of Kekkai Portal: a library that knows no Celery, no Redis and no terminal.

Promises that the guide's imports work, and load only what is used. Its rooms import downwards as `pyproject.toml` says;
none imports a front end (`worker`, `beat`, `tools`).

`portal` itself has no ``__init__.py``: it is a namespace package, so that this engine installs beside the
portal's own code.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from portal.ops.backup.config import BackupConfig, BackupDestination, BackupResult
    from portal.ops.backup.job import BackupJob, create_backup_job
    from portal.ops.model import BackupType
    from portal.ops.restore.config import RestoreConfig, RestoreResult, RestoreScope
    from portal.ops.restore.job import RestoreJob, create_restore_job

__all__ = [
    "BackupConfig",
    "BackupDestination",
    "BackupJob",
    "BackupResult",
    "BackupType",
    "RestoreConfig",
    "RestoreJob",
    "RestoreResult",
    "RestoreScope",
    "create_backup_job",
    "create_restore_job",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562), so that a command loads only what it needs."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = "restore" if "estore" in name else "backup"
    return getattr(import_module(f"portal.ops.{room}"), name)
