"""Repositories with a history: archives that hold nothing but a manifest, and what was noted of them."""

from __future__ import annotations

import gzip
import tarfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from portal.ops.codec import encode
from portal.ops.drill.report import DrillReport, DrillReports
from portal.ops.manifest import Manifest
from portal.ops.model import FORMAT_VERSION, INCREMENTAL_VERSION, BackupId, BackupType, Component, VerifyLevel
from portal.ops.repository.access_log import AccessLog, Action, Outcome
from portal.ops.repository.pins import Pins
from portal.ops.repository.records import RecordStore
from portal.ops.repository.repository import Repository
from portal.ops.repository.sidecar import sidecar_of
from portal.ops.repository.verifications import DIRECTORY, VerificationRecord
from portal.ops.settings.load import Settings, load_settings

if TYPE_CHECKING:
    from pathlib import Path

NOW: Final = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
CHECKSUM: Final = "0" * 64


@dataclass(frozen=True, kw_only=True)
class History:
    """A repository that things have happened to.

    Arguments:
        path: the repository.
    """

    path: Path

    @property
    def repository(self) -> Repository:
        """The repository."""
        return Repository(self.path)

    def settings(self, **variables: str) -> Settings:
        """Settings for it: database and uploads, unless variables say otherwise."""
        environ = {"BACKUP_LOCAL_PATH": str(self.path), "PORTAL_UPLOAD_DIR": "/srv/uploads"}
        return load_settings(environ | variables, lambda _: "")

    def archive(
        self,
        kind: BackupType,
        age: timedelta,
        *,
        size: int = 1000,
        seconds: float | None = None,
        parent: str | None = None,
    ) -> str:
        """An archive of that age, with its sidecar; its id. With `seconds` the access log has it too.

        Arguments:
            parent: the archive that an incremental follows, which is the base of its chain.
        """
        backup_id = BackupId.of(kind, NOW - age, f"{kind}{age}")
        self.path.mkdir(mode=0o700, exist_ok=True)
        path = self.repository.archive_path(backup_id)
        with path.open("wb") as file:
            file.write(manifest_alone(str(backup_id), kind, parent))
            file.truncate(max(size, file.tell()))
        sidecar_of(path).write_text(f"{CHECKSUM}  {path.name}\n")
        if seconds is not None:
            self.entry(Action.BACKUP, str(backup_id), age=age, seconds=seconds)
        return str(backup_id)

    def verified(
        self,
        backup_id: str,
        *,
        intact: bool = True,
        level: VerifyLevel = VerifyLevel.DUMP,
        age: timedelta | None = None,
    ) -> None:
        """A verification of an archive."""
        record = VerificationRecord(
            backup_id=backup_id,
            level=level,
            moment=NOW - (age or timedelta()),
            intact=intact,
            checksum=CHECKSUM,
            message="looked at",
        )
        RecordStore(self.path / DIRECTORY).write(backup_id, encode(record))

    def pin(self, backup_id: str, reason: str) -> None:
        """A pin."""
        Pins(self.repository).pin(backup_id, reason=reason, who="anna", moment=NOW)

    def drill(self, backup_id: str, age: timedelta, *, seconds: float = 100, error: str | None = None) -> None:
        """A drill of that age."""
        report = DrillReport(
            drill_id=f"drill_{NOW - age:%Y%m%d_%H%M%S}_aaaaaa",
            backup_id=backup_id,
            started=NOW - age,
            success=error is None,
            seconds=seconds,
            error=error,
        )
        DrillReports(self.repository).save(report)

    def entry(
        self,
        action: Action,
        subject: str,
        outcome: Outcome = Outcome.DONE,
        *,
        age: timedelta = timedelta(),
        **details: Any,
    ) -> None:
        """A line of the access log."""
        self.path.mkdir(mode=0o700, exist_ok=True)
        AccessLog(self.repository).append(
            action, subject, outcome, who="kekkai", host="portal-server", moment=NOW - age, **details
        )


def manifest_alone(backup_id: str, kind: BackupType, parent: str | None = None) -> bytes:
    """The start of an archive: what a catalogue reads of it."""
    components = (Component.DATABASE, Component.MEDIA) if kind is BackupType.FULL else (Component(kind.value),)
    manifest = Manifest(
        backup_id=backup_id,
        type=kind.value,
        timestamp=backup_id,
        components=components,
        hostname="portal-server",
        db_name="defectdojo",
        format_version=INCREMENTAL_VERSION if parent else FORMAT_VERSION,
        parent=parent,
        parent_sha256=CHECKSUM if parent else None,
        base=parent,
    ).encode()
    header = tarfile.TarInfo(f"{backup_id}/manifest.json")
    header.size = len(manifest)
    return gzip.compress(header.tobuf() + manifest, mtime=0)
