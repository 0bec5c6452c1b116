"""Selects the archive and the components for a restore."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from portal.ops.errors import ConfigurationError
from portal.ops.hints import another_archive
from portal.ops.model import BackupType, Component, spoken_names
from portal.ops.restore.config import RestoreScope

if TYPE_CHECKING:
    from portal.ops.manifest import Manifest
    from portal.ops.repository.repository import ArchiveFile, Repository
    from portal.ops.restore.config import RestoreConfig
    from portal.ops.restore.outcome import ResultBuilder
    from portal.ops.runtime.progress import PathLike

_LATEST: Final = {
    RestoreScope.FULL: (BackupType.FULL,),
    RestoreScope.DATABASE: (BackupType.FULL, BackupType.DATABASE),
    RestoreScope.MEDIA: (BackupType.FULL, BackupType.MEDIA),
    RestoreScope.AUDIT_LOGS: (BackupType.FULL, BackupType.AUDIT_LOGS),
}
_SET_PLACE: Final = {
    Component.MEDIA: "Set PORTAL_UPLOAD_DIR or give --media-dir.",
    Component.AUDIT_LOGS: "Set PORTAL_AUDIT_DIR to the live audit log: what is restored is put beside it.",
}


def choose_archive(repository: Repository, builder: ResultBuilder, path: PathLike) -> ArchiveFile:
    """Find the archive by path, id or ``latest`` (the newest with the requested components), and note it in the result.

    Its name comes from the file until the manifest has been read.

    Raises:
        ArchiveAbsentError: there is no such archive, or more than one.
    """
    scope = builder.result.scope
    archive = repository.find(path, latest_of=_LATEST[scope])
    builder.note(backup_id=archive.name, backup_file=str(absolute(archive.path)))
    if os.fspath(path) == "latest" and scope is RestoreScope.FULL:
        for part, component in ((RestoreScope.DATABASE, Component.DATABASE), (RestoreScope.MEDIA, Component.MEDIA)):
            newest = repository.find("latest", latest_of=_LATEST[part])
            if newest.moment > archive.moment:
                builder.warn(
                    [f"{newest.name} is newer and holds the {component.spoken} alone; --{part}-only restores that one"]
                )
    return archive


def name_of(archive: ArchiveFile, manifest: Manifest) -> str:
    """The backup id in the manifest, since a file may have any name; or the file's if that id is invalid."""
    said = manifest.backup_id
    return said if said and said.isprintable() else archive.name


def absolute(path: Path) -> Path:
    """The absolute path; symlinks are not resolved."""
    return Path(os.path.abspath(path))


def choose_components(
    config: RestoreConfig, scope: RestoreScope, manifest: Manifest
) -> tuple[tuple[Component, ...], list[str]]:
    """The components to restore, the database first, and a sentence for each other component that is present.

    Raises:
        ConfigurationError: a component is missing in the archive, or has no target.
    """
    places = {
        Component.DATABASE: True,
        Component.MEDIA: config.media_path is not None,
        Component.AUDIT_LOGS: config.audit_log_path is not None,
    }
    held = [component for component in Component if component in manifest.components]
    wanted = held if scope is RestoreScope.FULL else [Component(scope.value)]
    if not set(wanted) & set(held):
        contents, asked = spoken_names(held) or "nothing", spoken_names(wanted) or "component"
        raise ConfigurationError(
            f"{manifest.backup_id} holds {contents}, and no {asked}",
            hint=another_archive(),
        )
    if config.patterns and Component.DATABASE in wanted:
        raise ConfigurationError("no part of a database can be restored by a pattern", hint="Leave --path out.")
    homeless = [component for component in wanted if not places[component]]
    if len(homeless) == len(wanted):
        raise ConfigurationError(
            f"there is no place configured for the {' and the '.join(one.spoken for one in homeless)}",
            hint=_SET_PLACE[homeless[0]],
        )
    left_out = [
        f"left out: the {component.spoken} of the backup, for which no place is configured" for component in homeless
    ]
    return tuple(component for component in wanted if places[component]), left_out
