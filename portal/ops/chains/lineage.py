"""The line of archives that an incremental stands on: found by their manifests, held together by their digests.

Every incremental has the SHA-256 of its parent in its manifest, so that no other archive of the same name can take the
parent's place. Sidecars are believed here; whether an archive has the SHA-256 of its sidecar, a verification says.
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
    """One archive of a line.

    Arguments:
        path: its file.
        manifest: what it says of itself.
        sha256: the digest that it has to have: its sidecar's, and what the next one of the line says of it.
    """

    path: Path
    manifest: Manifest
    sha256: str

    @property
    def name(self) -> str:
        """The archive's id."""
        return self.manifest.backup_id


def read_manifest(path: Path) -> Manifest | None:
    """The manifest at the front of an archive, without a look at the rest; nothing where it is not there.

    Raises:
        NotIntactError: it is invalid.
        RepositoryError: the file cannot be read.
    """
    try:
        return peek_manifest(path)
    except OSError as error:
        raise explain(error, "cannot read", path) from error


def line_of(path: Path) -> tuple[Ancestor, ...]:
    """All that an archive needs, its base first and itself last; one without a parent stands alone.

    Raises:
        NotIntactError: one of them is missing, is not the one that the next was made on, or cannot be one.
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
    """True if an archive needs others; one that cannot be read is looked at elsewhere."""
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
    """Hold a manifest against the name it was found by, and against those that follow it."""
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
