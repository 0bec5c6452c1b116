"""The check for a source that lost nearly everything at once: most likely it is not mounted."""

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
"""Fewer files may well go at once."""
_LEFT: Final = 10
"""Of nearly everything, less than one part in this number is left."""
_HOLDING: Final = {
    Component.MEDIA: (BackupType.FULL, BackupType.MEDIA),
    Component.AUDIT_LOGS: (BackupType.FULL, BackupType.AUDIT_LOGS),
}


LOSS_OF: Final = {Component.MEDIA: Loss.UPLOADS, Component.AUDIT_LOGS: Loss.AUDIT_LOG}
"""The loss of a source."""


@dataclass(frozen=True, kw_only=True)
class SourceState:
    """The state of a source at its last backup.

    Arguments:
        files: how many files it had.
        backup_id: the archive that says so.
        device: the number of the device that it was on; nothing where that is not known.
        is_mount: whether it was a mount point; nothing where that is not known.
    """

    files: int
    backup_id: str
    device: int | None = None
    is_mount: bool | None = None

    @classmethod
    def of(cls, manifest: Manifest, component: Component) -> Self | None:
        """The state that a manifest tells of; nothing where it does not."""
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
        """True if it was somewhere else then than it is now, as far as that is known."""
        was_mount = bool(self.is_mount) and not now["is_mount"]
        return was_mount or (self.device is not None and self.device != now["device"])


def place_of(source: Path) -> dict[str, Any]:
    """The place of a source, as the manifest records it."""
    return {"device": os.stat(source).st_dev, "is_mount": os.path.ismount(source)}


def last_state(repository: Repository, component: Component) -> SourceState | None:
    """The state of a source in the newest archive; nothing if no archive has it."""
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
    """Refuse to take for deletions what looks like a source that is not there.

    Arguments:
        before: what there was.
        files: how many files there are now.

    Raises:
        SourceError: nearly everything is gone at once.
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
