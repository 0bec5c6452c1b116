"""The configuration of a backup, and its result."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from portal.ops.errors import ConfigurationError
from portal.ops.model import (
    BackupType,
    Component,
    Compression,
    FullUploads,
    Loss,
    confirmed_losses,
    timestamp,
    version_of,
)
from portal.ops.offsite.config import OffsiteConfig
from portal.ops.retention.policy import RetentionPolicy, RetentionRule, own_rules
from portal.ops.runtime.commands import AroundCommands, around_commands
from portal.ops.settings.database_url import NamesDatabase
from portal.ops.settings.destination import DestinationError, with_own_names
from portal.ops.settings.load import DatabaseTarget, OffsiteSettings, Secret, Settings, refuse_unbuilt
from portal.ops.settings.parsers import why_no_cron

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime, tzinfo

    from portal.ops.runtime.progress import PathLike

_UTC: Final = ZoneInfo("UTC")
_SECRET_OPTIONS: Final = frozenset({"password", "sslpassword"})


class BackupDestination(Enum):
    """Where archives go first. The settings for off-site copies decide about further copies."""

    LOCAL = "local"
    S3 = "s3"


@dataclass(frozen=True, kw_only=True)
class BackupConfig(NamesDatabase):
    """The sources and the destination of backups.

    Arguments:
        destination: ``s3`` also copies each archive, encrypted, to `s3_bucket`.
        local_path: the repository.
        s3_bucket: the bucket for off-site copies, with `s3_prefix` and `s3_endpoint`. Without the destination ``s3``, a
            bucket or endpoint is refused as a contradiction; `s3_prefix` alone has no effect.
        db_host: the host name, or the directory of the server's socket.
        db_password: if absent, libpq looks for it in ``~/.pgpass``.
        db_options: further libpq connection options, such as ``sslmode``.
        media_path: the uploads; ``None`` or an empty path excludes them.
        audit_log_path: the audit log's directory, or the file itself; ``None`` excludes it.
        encryption_enabled: refused if True without off-site copies: these are always encrypted unless the settings say
            otherwise, and archives in the repository never are.
        encryption_key: refused if set; off-site copies are encrypted for `encryption_recipients`.
        encryption_recipients: age public keys; by default those in the settings.
        offsite: the settings for off-site copies; `store_variables` are the stores' credentials.
        retention_days: days to keep archives.
        retention_count: the number of archives of each type to keep, whatever their age.
        keep_hourly: for how many hours to keep the last archive of each type; likewise for longer periods.
        time_zone: the time zone of these hours and days.
        compress: must be True: archives are always compressed.
        pg_bin_dir: the directory of pg_dump; by default chosen by the server's version.
        dump_timeout: the time limit of pg_dump, in seconds.
        lock_timeout: seconds to wait for a lock.
        rollback_days: days to keep the rollback data of restores before a cleanup discards it.
        confirm_loss: the losses that a person has confirmed (``uploads``, ``audit-log``, ``repository``), or True for
            all. Otherwise a backup is refused where a source has lost nearly everything since the last one, or the
            repository is not the one used before.
        repository_id: the id that the repository must have; empty for any.
        jobs: how many processes and threads to use; by default one for each core.
        compression: the effort; with ``auto`` as high as possible without slowing the backup down.
        chain_length: the most incrementals in a chain.
        chain_percent: the most bytes of a chain's incrementals together, in percent of its base.
        full_uploads: how a full backup takes the uploads: ``complete``, or ``chain`` for changes only.
        schedule_complete: a cron expression: with ``chain``, the first full backup after each of these times is
            complete. Without it, only the limits of the chain decide.
        wal: whether WAL is received, without which base backups are useless.
        replication_target: the server with the replication role; by default that of the ``db_`` arguments.
        pitr_days: how many days back a recovery to a moment can reach.
        credential_key: the portal's key for stored credentials; backups of the database record its fingerprint.
        commands: the operator's commands before and after each backup.
        unbuilt: settings in the environment that this release does not support, in words. Backups are then refused, but
            existing archives can be managed.

    Raises:
        ConfigurationError: a value is invalid.
        UnsupportedError: this release does not support a value.
    """

    destination: str | Enum = "local"
    local_path: PathLike = Path("/var/lib/kekkai-portal/backups")
    s3_bucket: str | None = None
    s3_prefix: str = ""
    s3_endpoint: str | None = None
    db_host: str = "localhost"
    db_port: int = 5432
    db_name: str = "defectdojo"
    db_user: str = "defectdojo"
    db_password: Secret | str | None = None
    db_options: Mapping[str, str] = field(default_factory=dict)
    media_path: PathLike | None = Path("/var/lib/kekkai-portal/uploads")
    audit_log_path: PathLike | None = None
    encryption_enabled: bool = False
    encryption_key: bytes | str | None = field(default=None, repr=False)
    encryption_recipients: tuple[str, ...] = ()
    offsite: OffsiteSettings = field(default_factory=OffsiteSettings)
    store_variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    retention_days: int = 30
    retention_count: int = 10
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_yearly: int = 0
    retention_rules: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    time_zone: tzinfo = _UTC
    compress: bool = True
    pg_bin_dir: PathLike | None = None
    dump_timeout: float = 21600
    lock_timeout: float = 60
    rollback_days: int = 7
    confirm_loss: bool | Collection[str] = False
    repository_id: str = ""
    jobs: int | None = None
    compression: Compression = Compression.AUTO
    chain_length: int = 500
    chain_percent: int = 100
    full_uploads: FullUploads | str = FullUploads.COMPLETE
    schedule_complete: str | None = "0 2 * * 0"
    wal: bool = False
    replication_target: DatabaseTarget | None = None
    pitr_days: int = 7
    credential_key: Secret | str | None = None
    commands: AroundCommands = field(default_factory=AroundCommands)
    unbuilt: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("local_path", "media_path", "audit_log_path", "pg_bin_dir"):
            value = getattr(self, name)
            object.__setattr__(self, name, Path(value) if value else None)
        for name in ("db_password", "credential_key"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, Secret(value) if value else None)
        object.__setattr__(self, "confirm_loss", confirmed_losses(self.confirm_loss))
        self._refuse_nonsense()
        object.__setattr__(self, "full_uploads", FullUploads(self.full_uploads))
        self._refuse_unbuilt()

    def is_confirmed(self, loss: Loss) -> bool:
        """True if a person has confirmed a loss."""
        return loss in confirmed_losses(self.confirm_loss)

    def _refuse_nonsense(self) -> None:
        faults = []
        if self.local_path is None:
            faults.append("local_path is empty")
        if not 1 <= self.db_port <= 65535:
            faults.append(f"db_port is {self.db_port}, not a port")
        if self.retention_days < 0 or self.retention_count < 0:
            faults.append("retention_days and retention_count cannot be negative")
        if self.jobs is not None and self.jobs < 1:
            faults.append("jobs is less than 1")
        faults += self._chain_faults()
        if self.dump_timeout <= 0 or self.lock_timeout < 0:
            faults.append("dump_timeout and lock_timeout are seconds, the first of them more than 0")
        if secret := self.db_options.keys() & _SECRET_OPTIONS:
            faults.append(f"db_options has {' and '.join(sorted(secret))}, which is no place for a secret")
        if faults:
            raise ConfigurationError("; ".join(faults), hint="Correct the arguments of BackupConfig.")

    def _chain_faults(self) -> list[str]:
        faults = []
        if self.chain_length < 1 or self.chain_percent < 1:
            faults.append("chain_length and chain_percent are 1 or more")
        if self.full_uploads not in tuple(FullUploads):
            faults.append(f"full_uploads is {self.full_uploads!r}, and neither {' nor '.join(FullUploads)}")
        is_chained = self.full_uploads == FullUploads.CHAIN
        if is_chained and self.schedule_complete and (why := why_no_cron(self.schedule_complete)):
            faults.append(f"schedule_complete is {self.schedule_complete!r}, and no cron expression ({why})")
        return faults

    def _refuse_unbuilt(self) -> None:
        place = self.destination.value if isinstance(self.destination, Enum) else self.destination
        if place == "s3" or (place == "local" and (self.s3_bucket or self.s3_endpoint)):
            self._check_offsite(str(place))
        is_copied = place == "s3" and bool(self.offsite_settings.recipients)
        wanted = {
            f"the destination {place!r}": place not in ("local", "s3"),
            "encryption": bool(self.encryption_key or (self.encryption_enabled and not is_copied)),
            "an archive that is not compressed": not self.compress,
        }
        refuse_unbuilt(what for what, asked in wanted.items() if asked)

    def _check_offsite(self, place: str) -> None:
        """Refuse contradictions: a copy without a bucket, a bucket without a copy, or no recipient."""
        hint = "Give destination='s3' with s3_bucket and encryption_recipients, or none of them."
        try:
            with_own_names((), place=place, bucket=self.s3_bucket, prefix=self.s3_prefix, endpoint=self.s3_endpoint)
        except DestinationError as error:
            raise ConfigurationError(f"the configuration {error}", hint=hint) from None
        settings = self.offsite_settings
        if settings.encryption and not settings.recipients:
            raise ConfigurationError("a copy on S3 is asked for, and no recipient is named", hint=hint)

    @property
    def offsite_settings(self) -> OffsiteSettings:
        """The settings for off-site copies, with the recipients given here."""
        return replace(self.offsite, recipients=self.encryption_recipients or self.offsite.recipients)

    def offsite_config(self) -> OffsiteConfig | None:
        """The configuration of the job's own off-site copies; None unless `destination` requests them."""
        place = self.destination.value if isinstance(self.destination, Enum) else self.destination
        if place != "s3":
            return None
        destinations = with_own_names(
            (), place="s3", bucket=self.s3_bucket, prefix=self.s3_prefix, endpoint=self.s3_endpoint
        )
        return OffsiteConfig(
            local_path=Path(self.local_path),
            destinations=destinations,
            settings=self.offsite_settings,
            environ=self.store_variables or os.environ,
            lock_timeout=self.lock_timeout,
            jobs=self.jobs,
        )

    @classmethod
    def from_settings(cls, settings: Settings) -> BackupConfig:
        """Make the configuration from the settings."""
        return cls(
            local_path=settings.local_path,
            offsite=settings.offsite,
            store_variables=settings.store_variables,
            db_host=settings.database.host,
            db_port=settings.database.port,
            db_name=settings.database.name,
            db_user=settings.database.user,
            db_password=settings.database.password,
            db_options=settings.database.options,
            media_path=settings.upload_dir,
            audit_log_path=settings.audit_dir,
            retention_days=settings.retention.days,
            retention_count=settings.retention.count,
            keep_hourly=settings.retention.hourly,
            keep_daily=settings.retention.daily,
            keep_weekly=settings.retention.weekly,
            keep_monthly=settings.retention.monthly,
            keep_yearly=settings.retention.yearly,
            retention_rules=settings.retention.rules,
            time_zone=settings.schedules.time_zone,
            pg_bin_dir=settings.pg_bin_dir,
            dump_timeout=settings.dump_timeout,
            lock_timeout=settings.lock_timeout,
            rollback_days=settings.rollback_days,
            repository_id=settings.repository_id,
            jobs=settings.jobs,
            compression=settings.compression,
            chain_length=settings.chain_length,
            chain_percent=settings.chain_percent,
            full_uploads=settings.schedules.full_uploads,
            schedule_complete=settings.schedules.complete,
            wal=settings.pitr.wal,
            replication_target=settings.replication if settings.pitr.replication else None,
            pitr_days=settings.pitr.days,
            credential_key=settings.portal.credential_key,
            commands=around_commands(settings.portal),
            unbuilt=settings.unbuilt,
        )

    @property
    def replication(self) -> DatabaseTarget:
        """The server, with the replication role."""
        return self.replication_target or self.database

    @property
    def retention(self) -> RetentionPolicy:
        """The retention policy.

        Raises:
            ConfigurationError: a rule is invalid, or keeps nothing.
        """
        rule = RetentionRule(
            days=self.retention_days,
            count=self.retention_count,
            hourly=self.keep_hourly,
            daily=self.keep_daily,
            weekly=self.keep_weekly,
            monthly=self.keep_monthly,
            yearly=self.keep_yearly,
        )
        return RetentionPolicy(
            rule=rule,
            rules=own_rules(self.retention_rules, rule),
            zone=self.time_zone,
            pitr_days=self.pitr_days,
        )

    def source(self, component: Component) -> Path | None:
        """The path of a component; None for the database, and for excluded components."""
        path = {Component.MEDIA: self.media_path, Component.AUDIT_LOGS: self.audit_log_path}.get(component)
        return Path(path) if path else None


@dataclass(frozen=True, kw_only=True)
class BackupResult:
    """The result of a backup.

    Arguments:
        success: every requested component is complete in an existing archive.
        timestamp: when the backup started.
        size_bytes: the archive's size.
        checksum: the archive's SHA-256, in hexadecimal.
        destination_path: the archive.
        error: what failed and what to do; None after a success.
        components: the components in the archive.
        warnings: warnings, although the archive is complete.
        exit_code: the exit code for a program: 0, or that of the error.
        retryable: whether a retry can help.
        parent: the parent of an incremental.
        base: the first archive of its chain.
        unchanged: whether nothing had changed since the named archive, so that no new one was made.
    """

    success: bool
    backup_id: str
    backup_type: BackupType
    timestamp: datetime
    size_bytes: int = 0
    checksum: str = ""
    destination_path: str = ""
    error: str | None = None
    duration_seconds: float = 0.0
    encrypted: bool = False
    components: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    exit_code: int = 0
    retryable: bool = False
    parent: str | None = None
    base: str | None = None
    unchanged: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The result as types of JSON."""
        return {
            "success": self.success,
            "backup_id": self.backup_id,
            "type": self.backup_type.value,
            "backup_type": self.backup_type.value,
            "timestamp": timestamp(self.timestamp),
            "path": self.destination_path,
            "destination_path": self.destination_path,
            "size_bytes": self.size_bytes,
            "checksum": self.checksum,
            "components": list(self.components),
            "warnings": list(self.warnings),
            "error": self.error,
            "duration_seconds": round(self.duration_seconds, 3),
            "encrypted": self.encrypted,
            "format_version": version_of(self.backup_type, self.parent),
            "parent": self.parent,
            "base": self.base,
            "unchanged": self.unchanged,
        }
