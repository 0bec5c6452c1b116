"""Detects a source that has lost nearly everything at once, probably because it is not mounted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from portal.ops.chains.lineage import read_manifest
from portal.ops.errors import OpsError, SourceError
from portal.ops.model import BackupType, Component, Loss

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from portal.ops.manifest import Manifest
    from portal.ops.repository.repository import Repository

_ENOUGH: Final = 10
"""A loss of fewer files than this is normal."""
_LEFT: Final = 10
"""The loss is nearly everything if less than one part in this number is left."""
_HOLDING: Final = {
    Component.MEDIA: (BackupType.FULL, BackupType.MEDIA),
    Component.AUDIT_LOGS: (BackupType.FULL, BackupType.AUDIT_LOGS),
}


LOSS_OF: Final = {Component.MEDIA: Loss.UPLOADS, Component.AUDIT_LOGS: Loss.AUDIT_LOG}
"""The loss of a source."""


@dataclass(frozen=True, kw_only=True)
class SourceState:
    """A source at its last backup.

    Arguments:
        files: the number of its files.
        backup_id: the archive that records it.
        device: the number of its device; None if unknown.
        is_mount: whether it was a mount point; None if unknown.
    """

    files: int
    backup_id: str
    device: int | None = None
    is_mount: bool | None = None

    @classmethod
    def of(cls, manifest: Manifest, component: Component) -> Self | None:
        """The state that a manifest records, or None."""
        details = manifest.details.get(component.value, {})
        files = details.get("tree", details).get("files")
        source = details.get("source", {})
        if type(files) is not int:
            return None
        return cls(
            files=files,
            backup_id=manifest.backup_id,
            device=source.get("device"),
            is_mount=source.get("is_mount"),
        )

    def has_moved(self, now: Mapping[str, Any]) -> bool:
        """True if it was at another place than now, as far as known."""
        was_mount = bool(self.is_mount) and not now["is_mount"]
        return was_mount or (self.device is not None and self.device != now["device"])


def place_of(source: Path) -> dict[str, Any]:
    """The place of a source, for the manifest."""
    return {"device": os.stat(source).st_dev, "is_mount": os.path.ismount(source)}


def last_state(repository: Repository, component: Component) -> SourceState | None:
    """The state of a source in the newest archive that has it, or None."""
    alike = [one for one in repository.archives() if one.backup_id and one.backup_id.type in _HOLDING[component]]
    for archive in sorted(alike, key=lambda one: one.modified, reverse=True):
        try:
            manifest = read_manifest(archive.path)
        except OpsError:
            continue
        if manifest and (state := SourceState.of(manifest, component)):
            return state
    return None


def check_loss(component: Component, source: Path, before: SourceState | None, files: int) -> None:
    """Refuse to treat an apparently absent source as a deletion.

    Arguments:
        before: the recorded state.
        files: the present number of files.

    Raises:
        SourceError: nearly everything is gone.
    """
    if before is None or files >= before.files:
        return
    moved = before.has_moved(place_of(source))
    nearly_all = before.files >= _ENOUGH and files * _LEFT < before.files
    all_of_it = not files and (moved or component is Component.AUDIT_LOGS)
    if not (nearly_all or all_of_it):
        return
    where = ", and it is not on the device that it was on then" if moved else ""
    raise SourceError(
        f"{source} has {files:,} files, and {before.backup_id} had {before.files:,} of it{where}: "
        "nearly everything is gone at once, so nothing was backed up",
        hint="See that it is mounted. If the files were removed on purpose, confirm that once: "
        f"--confirm-loss {LOSS_OF[component]}.",
    )
