"""The results of verifications: for each archive the latest of the highest level, in `.verifications/`.

A result belongs to the bytes with its SHA-256, not to another file of the same name. A failure counts until an equally
thorough verification of the same bytes succeeds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime  # noqa: TC003  (the codec reads the annotations)
from typing import TYPE_CHECKING, Any, Final

from portal.ops.codec import decode, encode
from portal.ops.errors import NotIntactError, OpsError, RepositoryError
from portal.ops.hints import another_archive
from portal.ops.model import FORMAT_VERSION, SUFFIX, Component, VerifyLevel
from portal.ops.repository.records import ENVELOPE, DamagedRecordError, RecordStore
from portal.ops.repository.sidecar import read_sidecar
from portal.ops.runtime.logs import engine_log

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from portal.ops.archive.damage import Damage
    from portal.ops.manifest import Manifest
    from portal.ops.repository.repository import Repository

log = engine_log("portal.ops.repository.verifications")

DIRECTORY: Final = ".verifications"


@dataclass(frozen=True, kw_only=True)
class VerificationRecord:
    """The result of a verification.

    Arguments:
        backup_id: the archive's name without suffix.
        level: how thoroughly it was verified.
        moment: when.
        intact: whether no damage was found.
        checksum: the SHA-256 of the file.
        message: the finding in words.
    """

    backup_id: str
    level: VerifyLevel
    moment: datetime
    intact: bool
    checksum: str
    message: str

    def stands_beside(self, newer: VerificationRecord) -> bool:
        """True if this result says more than a newer one about the same bytes, and is kept instead."""
        if self.checksum != newer.checksum or newer.level.covers(self.level):
            return False
        return newer.intact

    def is_of(self, checksum: str | None) -> bool:
        """True if the result applies to an archive with this SHA-256 in its sidecar.

        A failure always applies: it may be that the file does not match its sidecar.
        """
        return not self.intact or checksum is None or self.checksum == checksum


def _decoded(facts: Mapping[str, Any]) -> VerificationRecord:
    return decode(VerificationRecord, facts, beside=ENVELOPE)


class Verifications:
    """The results of a repository's verifications."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._store = RecordStore(repository.path / DIRECTORY)

    def record(self, found: Verification, moment: datetime) -> VerificationRecord:
        """Store a result, unless a better one for the same bytes is stored; return what is stored.

        Raises:
            RepositoryError: it cannot be written.
        """
        new = VerificationRecord(
            backup_id=found.path.name.removesuffix(SUFFIX),
            level=found.level,
            moment=moment,
            intact=found.intact,
            checksum=found.checksum,
            message=found.message,
        )
        try:
            old = self._read(new.backup_id)
        except DamagedRecordError:
            old = None
        if old and old.stands_beside(new):
            return old
        self._store.write(new.backup_id, encode(new))
        return new

    def note(self, found: Verification, moment: datetime) -> None:
        """Store a result if possible: for an archive of this repository, and a user who may write there."""
        if os.path.realpath(found.path.parent) != os.path.realpath(self._repository.path):
            return
        try:
            self.record(found, moment)
        except RepositoryError as error:
            log.warning("verification_unrecorded", path=str(found.path), error=str(error))

    def of(self, backup_id: str) -> VerificationRecord | None:
        """The result for an archive, or None if it was not verified, or other bytes of that name were.

        Raises:
            RepositoryError: the record is damaged or cannot be read.
        """
        record = self._read(backup_id)
        if record is None or record.is_of(self._checksum(backup_id)):
            return record
        return None

    def all(self) -> dict[str, VerificationRecord]:
        """The results of all archives; damaged records are logged.

        Raises:
            RepositoryError: the directory of records cannot be read.
        """
        found = self._store.each(_decoded)
        return {name: record for name, record in found if record and record.is_of(self._checksum(name))}

    def names(self) -> list[str]:
        """The names of all records.

        Raises:
            RepositoryError: the directory of records cannot be read.
        """
        return self._store.names()

    def forget(self, backup_id: str) -> None:
        """Remove the result of an archive.

        Raises:
            RepositoryError: it cannot be removed.
        """
        self._store.remove(backup_id)

    def _read(self, backup_id: str) -> VerificationRecord | None:
        record: VerificationRecord | None = self._store.decoded(backup_id, _decoded)
        return record

    def _checksum(self, backup_id: str) -> str | None:
        try:
            return read_sidecar(self._repository.path / f"{backup_id}{SUFFIX}")
        except NotIntactError:
            return ""  # an invalid sidecar confirms nothing
        except OpsError:
            return None


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The result of a verification.

    Arguments:
        level: the final level; higher than requested if the checksum left a doubt.
        checksum: the SHA-256 that the file has.
        damages: the damage found, at most `MOST_DAMAGES` places.
        notes: other remarks.
        manifest: the manifest, if it could be read.
        files: the number of files, if they were checked.
        content_bytes: the size of their content.
        has_digests: whether the archive has a digest of each file; archives by tar and gzip have none.
    """

    path: Path
    level: VerifyLevel
    checksum: str
    damages: tuple[Damage, ...] = ()
    notes: tuple[str, ...] = ()
    manifest: Manifest | None = None
    files: int = 0
    content_bytes: int = 0
    has_digests: bool = True
    duration_seconds: float = 0.0

    @property
    def intact(self) -> bool:
        """True if nothing is wrong."""
        return not self.damages

    @property
    def message(self) -> str:
        """The finding in words."""
        name = self.path.name.removesuffix(SUFFIX)
        if self.damages:
            more = f"; and {len(self.damages) - 3} more" if len(self.damages) > 3 else ""
            return f"{name} is not intact: " + "; ".join(map(str, self.damages[:3])) + more
        if self.level is VerifyLevel.CHECKSUM:
            return f"{name} is intact: its SHA-256 is {self.checksum}"
        decoded = self.level is VerifyLevel.DUMP and self.manifest and Component.DATABASE in self.manifest.components
        dump = ", the dump decodes to its end" if decoded else ""
        files = "1 file" if self.files == 1 else f"{self.files:,} files"
        if self.level is VerifyLevel.DRILL:
            return f"{name} is intact: it was restored, and every table and every file ({files}) is as in the backup"
        right = "every digest is right" if self.has_digests else "all of it is as gzip's checksum says"
        return f"{name} is intact: {files}, {self.content_bytes:,} bytes, {right}{dump}"

    def raise_damage(self) -> None:
        """Raise an error if there is damage.

        Raises:
            NotIntactError: there is damage.
        """
        if self.damages:
            raise NotIntactError(f"verification failed: {self.message}", hint=another_archive())

    def to_dict(self) -> dict[str, Any]:
        """The result as types of JSON."""
        return {
            "success": self.intact,
            "path": str(self.path),
            "backup_id": self.path.name.removesuffix(SUFFIX),
            "level": self.level.value,
            "message": self.message,
            "checksum": self.checksum,
            "damages": [str(damage) for damage in self.damages],
            "notes": list(self.notes),
            "files": self.files,
            "content_bytes": self.content_bytes,
            "duration_seconds": round(self.duration_seconds, 3),
            "format_version": FORMAT_VERSION,
        }
