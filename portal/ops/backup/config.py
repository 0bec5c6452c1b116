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
    """The first destination of archives. Copies elsewhere are made by the settings of off-site copies."""

    LOCAL = "local"
    S3 = "s3"


@dataclass(frozen=True, kw_only=True)
class BackupConfig(NamesDatabase):
    """The sources of a backup, and its destination.

    Arguments:
        destination: ``s3`` copies each archive to `s3_bucket` once it is in the repository, encrypted.
        local_path: the repository.
        s3_bucket: for off-site copies, like `s3_prefix` and `s3_endpoint`; without the destination ``s3`` a bucket
            or an endpoint is a contradiction, and `s3_prefix` alone asks for nothing.
        db_host: the server, or the directory of its socket.
        db_password: where it is not given, libpq looks for it in ``~/.pgpass``.
        db_options: further connection options of libpq, such as ``sslmode``.
        media_path: the uploads; ``None`` or an empty path excludes them.
        audit_log_path: the audit log's directory, or the file itself; nothing leaves it out.
        encryption_enabled: off-site copies are always encrypted, unless the settings say otherwise; archives in the
            repository are not, and asking for that is refused.
        encryption_key: refused; off-site copies are encrypted for `encryption_recipients`.
        encryption_recipients: age public keys; those of the settings by default.
        offsite: what the settings say of off-site copies; `store_variables` are the credentials of stores.
        retention_days: days to keep archives.
        retention_count: how many archives of each type to keep whatever their age.
        keep_hourly: keep the last archive of each type of so many hours; likewise for the longer periods.
        time_zone: whose hours and days are meant.
        compress: archives are always compressed; switching it off is refused.
        pg_bin_dir: where pg_dump is; by default chosen by the server's version.
        dump_timeout: seconds that pg_dump may take.
        lock_timeout: seconds to wait for a lock.
        rollback_days: days to keep the rollback data of restores, which a cleanup discards after that.
        confirm_loss: the losses that a person has confirmed (``uploads``, ``audit-log``, ``repository``), or True for
            all: a source that has lost nearly everything since the last backup is backed up, and a repository that is
            not the one that was used there before is taken; both are refused otherwise.
        repository_id: the id of the repository that is meant; a backup to another one is refused. Empty for any.
        jobs: processes and threads that work at once; by default the cores there are.
        compression: how hard to compress; ``auto`` is as hard as the source leaves time for.
        chain_length: incrementals that a chain has at the most.
        chain_percent: their size together, in percent of the base, at the most.
        full_uploads: what a full backup has of the uploads: ``complete``, or ``chain`` for what has changed.
        schedule_complete: a cron expression: with ``chain``, the first full backup from each of these times on is a
            complete one. Nothing leaves that to the chain's limits.
        wal: whether WAL is received, so that base backups are worth something.
        replication_target: the server as the role that may replicate; by default that of the ``db_`` arguments.
        pitr_days: how far back a recovery to any moment reaches.
        credential_key: the portal's key for stored credentials, whose fingerprint a backup of the database notes.
        commands: what the operator runs before and after each backup.
        unbuilt: what the environment asks for beside all this and this release cannot do, in words. It makes no backup
            then; archives that are there can be looked after.

    Raises:
        ConfigurationError: a value is invalid.
        UnsupportedError: it asks for what this release cannot do.
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
        """Refuse what contradicts itself: a copy without a place, a place without a copy, or no recipient."""
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
        """The settings of off-site copies, with the recipients given here."""
        return replace(self.offsite, recipients=self.encryption_recipients or self.offsite.recipients)

    def offsite_config(self) -> OffsiteConfig | None:
        """The off-site configuration of the job itself; nothing unless `destination` asks for copies."""
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
        """The configuration that the environment describes."""
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
        """The server, as the role that may replicate."""
        return self.replication_target or self.database

    @property
    def retention(self) -> RetentionPolicy:
        """The retention of archives.

        Raises:
            ConfigurationError: a rule keeps nothing, or is invalid.
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
        """The directory or file of a component; nothing for the database, and where it is left out."""
        path = {Component.MEDIA: self.media_path, Component.AUDIT_LOGS: self.audit_log_path}.get(component)
        return Path(path) if path else None


@dataclass(frozen=True, kw_only=True)
class BackupResult:
    """The result of a backup.

    Arguments:
        success: every component that was asked for is whole, in an archive that is there.
        timestamp: when the backup was started.
        size_bytes: the archive's size.
        checksum: the archive's SHA-256, in hexadecimal.
        destination_path: the archive.
        error: what went wrong and what to do, where it did not succeed.
        components: what the archive holds.
        warnings: what is not quite as it should be, although the archive is whole.
        exit_code: the code that a program should end with: 0, or that of the error.
        retryable: the same may succeed if it is tried again.
        parent: the archive that an incremental follows.
        base: the first archive of its chain.
        unchanged: nothing had changed since the archive that is named here, so no other was made.
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
        """The result in the types of JSON."""
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
