"""The configuration of a restore, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portal.ops.errors import ConfigurationError, UnsupportedError
from portal.ops.hints import Advice
from portal.ops.model import FORMAT_VERSION, timestamp
from portal.ops.restore.database.model import RestoreMode
from portal.ops.restore.portal_health import HealthCheck
from portal.ops.runtime.commands import AroundCommands, around_commands
from portal.ops.settings.database_url import NamesDatabase
from portal.ops.settings.load import Secret, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


class RestoreScope(StrEnum):
    """Which part of a backup is restored."""

    FULL = "full"
    DATABASE = "database"
    MEDIA = "media"
    AUDIT_LOGS = "audit_logs"


@dataclass(frozen=True, kw_only=True)
class RestoreConfig(NamesDatabase):
    """The targets and options of a restore.

    Arguments:
        local_path: the repository with the archives; restores are recorded here too.
        db_host: the server to restore to; the other ``db_`` arguments as for a backup.
        media_path: the directory for the uploads; ``None`` or an empty path excludes them.
        audit_log_path: the live audit log, next to which the restored one is put; None excludes it.
        dry_run: verify and plan; change nothing.
        stop_services: must be False: a restore stops no services; it ends the database sessions itself when it swaps.
        encryption_key: must be empty: archives in the repository are not encrypted, and off-site copies use identities.
        verify_before_restore: verify the whole archive first. Restored data is checked during staging in any case.
        mode: how the database is replaced.
        exact: move uploads aside that the backup does not have.
        patterns: restore only matching files, such as ``tenant-a/*.sarif``.
        target_database: restore into this database instead of the configured one.
        create_database: create the database if there is none.
        owner: the role that will own the database and everything in it; by default the owner of the live database, or
            else the owner that the backup names.
        allow_unverified: accept an archive without a sidecar.
        allow_outside_links: restore symlinks that lead out of the uploads.
        rollback_days: days to keep rollback data; a later successful restore removes older data.
        time_zone: the time zone of a moment without an offset.
        credential_key: the portal's key for stored credentials; the plan compares it with the backup's.
        commands: the operator's commands before and after live data changes.
        health: the page that shows whether the portal answers after a restore.
        wal: whether WAL is received, so that a drill also has to recover the database to moments.

    Raises:
        ConfigurationError: a value is invalid.
    """

    local_path: str | Path = Path("/var/lib/kekkai-portal/backups")
    db_host: str = "localhost"
    db_port: int = 5432
    db_name: str = "defectdojo"
    db_user: str = "defectdojo"
    db_password: Secret | str | None = None
    db_options: Mapping[str, str] = field(default_factory=dict)
    media_path: str | Path | None = Path("/var/lib/kekkai-portal/uploads")
    audit_log_path: str | Path | None = None
    dry_run: bool = False
    verify_before_restore: bool = True
    stop_services: bool = False
    encryption_key: str | None = field(default=None, repr=False)
    mode: RestoreMode | str = RestoreMode.AUTO
    exact: bool = False
    patterns: tuple[str, ...] = ()
    target_database: str | None = None
    create_database: bool = False
    owner: str | None = None
    allow_unverified: bool = False
    allow_outside_links: bool = False
    pg_bin_dir: str | Path | None = None
    lock_timeout: float = 60
    jobs: int | None = None
    rollback_days: int = 7
    time_zone: tzinfo = UTC
    credential_key: Secret | None = None
    commands: AroundCommands = field(default_factory=AroundCommands)
    health: HealthCheck = field(default_factory=HealthCheck)
    wal: bool = False

    def __post_init__(self) -> None:
        for name in ("local_path", "media_path", "audit_log_path", "pg_bin_dir"):
            value = getattr(self, name)
            object.__setattr__(self, name, Path(value) if value else None)
        if self.local_path is None:
            raise ConfigurationError("local_path is empty", hint="Name the directory of the archives.")
        if self.jobs is not None and self.jobs < 1:
            raise ConfigurationError(f"{self.jobs} processes cannot do anything", hint="Give 1 or more as jobs.")
        if self.stop_services:
            raise UnsupportedError(
                "a restore does not stop services, as stop_services=True asks for",
                hint="Omit it: the restore ends database sessions itself when it swaps. Stop the portal before, if you "
                "want to be sure that nobody writes meanwhile.",
            )
        if self.encryption_key:
            raise UnsupportedError(
                "archives in the repository are not encrypted, so a restore takes no encryption_key",
                hint="Omit it. An off-site copy is opened with the file that BACKUP_ENCRYPTION_IDENTITY_FILE names.",
            )
        if self.rollback_days < 0:
            raise ConfigurationError("rollback_days is negative", hint="Give 0 or more days.")
        if isinstance(self.db_password, str):
            object.__setattr__(self, "db_password", Secret(self.db_password) if self.db_password else None)
        try:
            object.__setattr__(self, "mode", RestoreMode(self.mode))
        except ValueError:
            raise ConfigurationError(
                f"{self.mode!r} is no way to restore a database", hint=f"Use one of {', '.join(RestoreMode)}."
            ) from None

    @classmethod
    def from_settings(cls, settings: Settings, **others: Any) -> RestoreConfig:
        """Make the configuration from the settings; `others` adds or overrides arguments."""
        return cls(
            **{
                "local_path": settings.local_path,
                "db_host": settings.database.host,
                "db_port": settings.database.port,
                "db_name": settings.database.name,
                "db_user": settings.database.user,
                "db_password": settings.database.password,
                "db_options": settings.database.options,
                "media_path": settings.upload_dir,
                "audit_log_path": settings.audit_dir,
                "pg_bin_dir": settings.pg_bin_dir,
                "lock_timeout": settings.lock_timeout,
                "jobs": settings.jobs,
                "rollback_days": settings.rollback_days,
                "time_zone": settings.schedules.time_zone,
                "credential_key": settings.portal.credential_key,
                "commands": around_commands(settings.portal),
                "health": HealthCheck(
                    url=settings.portal.health_url, timeout_seconds=settings.portal.health_timeout.total_seconds()
                ),
                "wal": settings.pitr.wal,
                **others,
            }
        )


@dataclass(frozen=True, kw_only=True)
class RestoreResult:
    """The result of a restore.

    Arguments:
        success: every requested component is restored; for a dry run: it could be.
        components_restored: the components that were put in place.
        error: what failed and what to do next; the live data is then unchanged, or the error says otherwise.
        restore_id: the id for a rollback; empty if nothing was changed.
        plan: the steps that were or would be taken, in plain words.
        facts: figures of the restore, such as the downtime of the database.
        exit_code: the exit code for a program.
        at: the moment that was restored to, in ISO 8601; empty if an archive was restored.
        is_rollback: the operation rolled a restore back or discarded its rollback data, so it cannot be rolled back
            itself.
        portal: whether the portal answers on the live data; None if it was not asked.
    """

    success: bool
    backup_id: str
    scope: RestoreScope
    timestamp: datetime
    backup_file: str = ""
    components_restored: tuple[str, ...] = ()
    error: str | None = None
    duration_seconds: float = 0.0
    dry_run: bool = False
    warnings: tuple[str, ...] = ()
    restore_id: str = ""
    plan: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int = 0
    is_rollback: bool = False
    portal: Mapping[str, Any] | None = None
    at: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The result in the types of JSON."""
        return {
            "success": self.success,
            "backup_file": self.backup_file,
            "backup_id": self.backup_id,
            "scope": self.scope.value,
            "timestamp": timestamp(self.timestamp),
            "dry_run": self.dry_run,
            "components_restored": list(self.components_restored),
            "warnings": list(self.warnings),
            "error": self.error,
            "duration_seconds": round(self.duration_seconds, 3),
            "restore_id": self.restore_id,
            "rollback": None if self.is_rollback or not self.restore_id else Advice.ROLL_BACK.line(self.restore_id),
            "facts": dict(self.facts),
            "portal": dict(self.portal) if self.portal else None,
            **({"at": self.at} if self.at else {}),
            "plan": list(self.plan),
            "format_version": FORMAT_VERSION,
        }
