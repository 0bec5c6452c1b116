"""Repositories of small archives for tests of what keeps, prunes and lists them."""

from __future__ import annotations

import io
import tarfile
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from isal import igzip

from portal.ops.manifest import Manifest
from portal.ops.model import (
    INCREMENTAL_VERSION,
    SIDECAR_SUFFIX,
    SUFFIX,
    BackupId,
    BackupType,
    Component,
    VerifyLevel,
    timestamp,
)
from portal.ops.repository.verifications import Verification

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

COMPONENTS: Final = {
    BackupType.FULL: (Component.DATABASE, Component.MEDIA),
    BackupType.DATABASE: (Component.DATABASE,),
    BackupType.MEDIA: (Component.MEDIA,),
    BackupType.AUDIT_LOGS: (Component.AUDIT_LOGS,),
}


def put_archive(
    directory: Path, kind: BackupType, moment: datetime, *, parent: str | None = None, request: str = ""
) -> str:
    """Put an archive with a manifest and nothing else, and its sidecar, into a repository; its name."""
    name = str(BackupId.of(kind, moment, request))
    manifest = Manifest(
        backup_id=name,
        type=kind.value,
        timestamp=timestamp(moment),
        components=COMPONENTS[kind],
        hostname="portal-server",
        db_name="defectdojo",
        **(_following(parent) if parent else {}),
    )
    data = packed(name, manifest.encode())
    (directory / f"{name}{SUFFIX}").write_bytes(data)
    put_sidecar(directory / f"{name}{SUFFIX}")
    return name


def _following(parent: str) -> dict[str, Any]:
    """What the manifest of an incremental has; the digest is not looked at here."""
    return {"format_version": INCREMENTAL_VERSION, "parent": parent, "base": parent, "parent_sha256": "0" * 64}


def put_sidecar(archive: Path) -> None:
    """Write the sidecar of an archive."""
    digest = sha256(archive.read_bytes()).hexdigest()
    archive.with_name(archive.name + SIDECAR_SUFFIX).write_text(f"{digest}  {archive.name}\n")


def packed(name: str, manifest: bytes) -> bytes:
    """An archive as tar and gzip write it."""
    header = tarfile.TarInfo(f"{name}/manifest.json")
    header.size = len(manifest)
    tar_file = io.BytesIO()
    with tarfile.open(fileobj=tar_file, mode="w") as tar:
        tar.addfile(header, io.BytesIO(manifest))
    return igzip.compress(tar_file.getvalue())


def finding(directory: Path, name: str, level: VerifyLevel, *, damage: str = "", checksum: str = "") -> Verification:
    """What a verification of an archive may have found."""
    from portal.ops.archive.damage import Damage

    path = directory / f"{name}{SUFFIX}"
    return Verification(
        path=path,
        level=level,
        checksum=checksum or sha256(path.read_bytes()).hexdigest(),
        damages=(Damage(what=damage),) if damage else (),
    )
