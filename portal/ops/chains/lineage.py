"""The archives that an incremental needs, found by their manifests and checked by digests.

Every incremental has its parent's SHA-256 in its manifest, so that no other archive of that name can take the parent's
place. Sidecars are trusted here; a verification checks that an archive matches its sidecar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from portal.ops.archive.open import peek_manifest
from portal.ops.chains.graph import absent, circle, missing_link
from portal.ops.errors import NotIntactError, RepositoryError
from portal.ops.model import SUFFIX, Component
from portal.ops.repository.faults import explain
from portal.ops.repository.sidecar import file_digest, read_sidecar

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """One archive in a line.

    Arguments:
        path: its file.
        manifest: its manifest.
        sha256: the digest that it must have, by its sidecar and by the next archive's manifest.
    """

    path: Path
    manifest: Manifest
    sha256: str

    @property
    def name(self) -> str:
        """The archive's id."""
        return self.manifest.backup_id


def read_manifest(path: Path) -> Manifest | None:
    """Read the manifest at the front of an archive; None if it is not there.

    Raises:
        NotIntactError: the manifest is invalid.
        RepositoryError: the file cannot be read.
    """
    try:
        return peek_manifest(path)
    except OSError as error:
        raise explain(error, "cannot read", path) from error


def line_of(path: Path) -> tuple[Ancestor, ...]:
    """Everything that an archive needs, its base first and itself last; without a parent, itself alone.

    Raises:
        NotIntactError: one is missing or invalid, or is not the one that its child was made on.
        RepositoryError: one of them cannot be read.
    """
    line: list[Ancestor] = []
    names: set[str] = set()
    expected: str | None = None
    while True:
        manifest = _manifest_of(path)
        _check_place(path, manifest, line)
        digest = read_sidecar(path) or file_digest(path)
        if expected is not None and digest != expected:
            raise NotIntactError(
                f"{path.name} is not the archive that {line[-1].name} was made on: its SHA-256 is another",
                hint=missing_link(),
            )
        line.append(Ancestor(path=path, manifest=manifest, sha256=digest))
        names.add(manifest.backup_id)
        if manifest.parent is None:
            return tuple(reversed(line))
        if manifest.parent in names:
            raise circle(line[0].name, manifest.parent)
        path, expected = path.with_name(manifest.parent + SUFFIX), manifest.parent_sha256
        if not path.is_file():
            raise absent(manifest.backup_id, manifest.parent)


def is_incremental(path: Path) -> bool:
    """True if an archive has a parent; unreadable ones are reported elsewhere."""
    try:
        manifest = read_manifest(path)
    except (NotIntactError, RepositoryError):
        return False
    return manifest is not None and manifest.parent is not None


def _manifest_of(path: Path) -> Manifest:
    manifest = read_manifest(path)
    if manifest is None:
        raise NotIntactError(f"the manifest of {path.name} cannot be read", hint=missing_link())
    return manifest


def _check_place(path: Path, manifest: Manifest, line: list[Ancestor]) -> None:
    """Check a manifest against the archive's name and its descendants."""
    if not line:
        return
    child = line[-1].manifest
    if manifest.backup_id != child.parent:
        raise NotIntactError(f"{path.name} says that it is {manifest.backup_id}", hint=missing_link())
    held = Component.CLUSTER if Component.CLUSTER in child.components else Component.MEDIA
    if held not in manifest.components:
        raise NotIntactError(
            f"{path.name} holds no {held}, although {child.backup_id} was made on it", hint=missing_link()
        )
    if child.base != (manifest.backup_id if manifest.parent is None else manifest.base):
        raise NotIntactError(f"{child.backup_id} and {manifest.backup_id} name different bases", hint=missing_link())
