"""Restores archives: plan, stage, swap, report; and rolls a restore back.

Promises that a restore either succeeds completely or leaves the live data unchanged, and that it can be rolled back.
May import offsite, verify, retention, pitr, chains, repository and the rooms below them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from portal.ops.restore.config import (
        RestoreConfig,
        RestoreResult,
        RestoreScope,
    )
    from portal.ops.restore.job import RestoreJob, create_restore_job
    from portal.ops.restore.plan import RestorePlan

__all__ = ["RestoreConfig", "RestoreJob", "RestorePlan", "RestoreResult", "RestoreScope", "create_restore_job"]

_HOMES = {
    "RestoreConfig": "portal.ops.restore.config",
    "RestoreResult": "portal.ops.restore.config",
    "RestoreScope": "portal.ops.restore.config",
    "RestorePlan": "portal.ops.restore.plan",
    "RestoreJob": "portal.ops.restore.job",
    "create_restore_job": "portal.ops.restore.job",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562), so that a command loads only what it needs."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
