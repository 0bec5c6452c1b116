"""The manifest: an archive's description of itself, in JSON that a person can read.

Seven keys are the portal's (`backup_id` to `db_name`); the others are this engine's. An archive made with tar and gzip
alone may have only those seven, or no manifest. It never contains a secret.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import NotIntactError
from portal.ops.model import (
    CHAINED_VERSION,
    CLUSTER_VERSION,
    FORMAT_VERSION,
    INCREMENTAL_VERSION,
    BackupId,
    BackupType,
    Component,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

WRITER: Final = "kekkai-backup 0.1.0"
WARNING_BYTES: Final = 16 << 10
"""About how many bytes of a manifest are for warnings; further ones are only counted."""

_VERSIONS: Final = (FORMAT_VERSION, INCREMENTAL_VERSION, CLUSTER_VERSION, CHAINED_VERSION)
_SHA256: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents, origin and facts of an archive.

    Arguments:
        backup_id: the id, which is also the archive's top directory.
        type: the requested type; see `BackupType`.
        timestamp: when the backup started, in UTC.
        components: the components in the archive.
        hostname: the machine that made it.
        db_name: the database's name; empty without one.
        details: for each component its bytes and files; for a database also versions and row counts.
        warnings: what a restore from it will lack, or may find inconsistent.
        warnings_total: the number of warnings, including those left out.
        parent: the parent of an incremental.
        parent_sha256: the SHA-256 of the parent's file, which links the chain.
        base: the first archive of its chain.
        writer: the program that made it.
    """

    backup_id: str
    type: str
    timestamp: str
    components: tuple[Component, ...]
    hostname: str
    db_name: str
    format_version: int = FORMAT_VERSION
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    warnings_total: int = 0
    parent: str | None = None
    parent_sha256: str | None = None
    base: str | None = None
    writer: str = WRITER

    def encode(self) -> bytes:
        """The content of `manifest.json`."""
        document = {
            "backup_id": self.backup_id,
            "type": self.type,
            "timestamp": self.timestamp,
            "format_version": self.format_version,
            "components": [component.value for component in self.components],
            "hostname": self.hostname,
            "db_name": self.db_name,
            "details": {name: dict(detail) for name, detail in self.details.items()},
            "warnings": list(self.warnings),
            "warnings_total": self.warnings_total,
            "parent": self.parent,
            **({"parent_sha256": self.parent_sha256} if self.parent_sha256 else {}),
            "base": self.base,
            "writer": self.writer,
        }
        return json.dumps(document, indent=4).encode("ascii") + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Decode a manifest of any release.

        Raises:
            NotIntactError: it is no manifest, or has a later format.
        """
        try:
            found = json.loads(data)
            version = found["format_version"]
            if version not in _VERSIONS:
                known = f"{', '.join(map(str, _VERSIONS[:-1]))} and {_VERSIONS[-1]}"
                raise NotIntactError(
                    f"the archive has format version {version!r}; this release reads {known}",
                    hint="Use the release that wrote the archive, or a later one.",
                )
            return cls(
                format_version=version,
                backup_id=_text(found["backup_id"]),
                type=_text(found["type"]),
                timestamp=_text(found["timestamp"]),
                components=tuple(Component(name) for name in found["components"]),
                hostname=_text(found.get("hostname", "")),
                db_name=_text(found.get("db_name") or ""),
                details={str(name): dict(detail) for name, detail in found.get("details", {}).items()},
                warnings=tuple(map(str, found.get("warnings", ()))),
                warnings_total=int(found.get("warnings_total", 0)),
                **_chain(found),
                writer=_text(found.get("writer", "")),
            )
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise NotIntactError("manifest.json is invalid", hint="Take another archive.") from error


def room_for(table_names: tuple[str, ...]) -> int:
    """The greatest size of a manifest in bytes, for these tables."""
    number_and_layout = 40
    tables = sum(len(json.dumps(name)) + number_and_layout for name in table_names)
    return (8 << 10) + WARNING_BYTES + tables


def _chain(found: Mapping[str, Any]) -> dict[str, str | None]:
    """The parents of an incremental, checked as names of archives, since they become file names."""
    names = {name: found.get(name) for name in ("parent", "base", "parent_sha256")}
    holds_cluster = Component.CLUSTER.value in found["components"]
    if holds_cluster != (found["format_version"] == CLUSTER_VERSION):
        raise ValueError("an archive of a cluster has a format of its own")
    if found["format_version"] == FORMAT_VERSION and any(names.values()):
        raise ValueError("an archive that follows another has a format of its own")
    if found["format_version"] == FORMAT_VERSION or (holds_cluster and not any(names.values())):
        return dict.fromkeys(names)
    if not all(BackupId.parse(_text(names[name])) for name in ("parent", "base")):
        raise ValueError("it follows what is no archive")
    if not _SHA256.fullmatch(_text(names["parent_sha256"])):
        raise ValueError("it does not say which archive it follows")
    if not holds_cluster:
        _check_kind(found)
    return names


def _check_kind(found: Mapping[str, Any]) -> None:
    """Check that an archive with a parent has the keys that its format needs."""
    held = set(found["components"])
    is_full = Component.DATABASE.value in held
    if is_full != (found["format_version"] == CHAINED_VERSION) or Component.MEDIA.value not in held:
        raise ValueError("an archive that follows another holds uploads alone, or is a full backup by its format")
    if is_full and found["type"] != BackupType.FULL.value:
        raise ValueError("an archive of this format is a full backup")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text expected, not {type(value).__name__}")
    return value
