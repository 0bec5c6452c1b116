"""The table of settings: each setting is one entry, a field of a group.

An entry has the field's name and type, the variable, its description for docs/settings.md, a parser and a default.
Adding one takes nothing else: loading, ``config``, the documentation test and `SETTINGS` read this table.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from portal.ops.model import Compression, LogFormat
from portal.ops.settings.database_url import DatabaseTarget, Secret, UrlParts
from portal.ops.settings.destination import with_own_names
from portal.ops.settings.entry import (
    COPIED_TYPES,
    GROUP,
    RULE_WORDS,
    RULED_TYPES,
    Group,
    Place,
    WatchMode,
    entries,
    group,
    setting,
)
from portal.ops.settings.file_columns import FileColumns, file_columns
from portal.ops.settings.parsers import (
    HUNDRED_YEARS,
    MOST_KEPT,
    Setting,
    as_secret,
    as_text,
    command,
    database_url,
    destinations,
    directories,
    directory,
    duration,
    one_of,
    optional_directory,
    optional_jobs,
    optional_port,
    optional_switch,
    recipients,
    rules,
    signers,
    switch,
    web_url,
    whole_number,
    words_of,
)
from portal.ops.settings.schedule_table import ScheduleSettings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta
    from pathlib import Path

    from portal.ops.settings.destination import Destination


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DatabaseSettings(Group):
    """The database: single variables, and a URL that overrides them."""

    host: str = setting("DD_DATABASE_HOST", "PostgreSQL host, or the directory of its socket", as_text, "localhost")
    port: int = setting("DD_DATABASE_PORT", "PostgreSQL port", whole_number(1, 65535), "5432")
    name: str = setting("DD_DATABASE_NAME", "Database name", as_text, "defectdojo")
    user: str = setting("DD_DATABASE_USER", "Database user", as_text, "defectdojo")
    password: Secret | None = setting(
        "DD_DATABASE_PASSWORD", "Database password", as_secret, without="(required)", secret=True
    )
    url: UrlParts = setting(
        "DD_DATABASE_URL",
        "All of these as `postgres://user:password@host:port/name?sslmode=require`",
        database_url,
        secret=True,
    )

    def target(self) -> DatabaseTarget:
        """The database to connect to: parts of the URL, or single variables for absent parts."""
        single = DatabaseTarget(host=self.host, port=self.port, name=self.name, user=self.user, password=self.password)
        return replace(single, **self.url)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RetentionSettings(Group):
    """The retention of archives."""

    days: int = setting("BACKUP_RETENTION_DAYS", "Days to keep backups", whole_number(0, HUNDRED_YEARS), "30")
    count: int = setting("BACKUP_RETENTION_COUNT", "Minimum backups to keep", whole_number(0, MOST_KEPT), "10")
    hourly: int = setting(
        "BACKUP_KEEP_HOURLY",
        "Also keep the last backup of each type from each of the last N hours",
        whole_number(0, MOST_KEPT),
        "0",
    )
    daily: int = setting("BACKUP_KEEP_DAILY", "The same for days", whole_number(0, MOST_KEPT), "0")
    weekly: int = setting("BACKUP_KEEP_WEEKLY", "The same for weeks", whole_number(0, MOST_KEPT), "0")
    monthly: int = setting("BACKUP_KEEP_MONTHLY", "The same for months", whole_number(0, MOST_KEPT), "0")
    yearly: int = setting("BACKUP_KEEP_YEARLY", "The same for years", whole_number(0, MOST_KEPT), "0")
    rules: Mapping[str, Mapping[str, int]] = setting(
        "BACKUP_RETENTION_RULES",
        "Separate rules for single backup types, such as `database: count 48, hourly 24; media: days 7`",
        rules(RULED_TYPES, RULE_WORDS),
    )


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class WorkerSettings(Group):
    """The settings of the workers and their broker."""

    broker_url: Secret | None = setting(
        "CELERY_BROKER_URL",
        "Redis database of the task queues, such as `redis://:password@host:6379/5`; without it, commands do the work "
        "themselves",
        as_secret,
        secret=True,
    )
    result_backend: Secret | None = setting(
        "CELERY_RESULT_BACKEND",
        "Redis database of the task results",
        as_secret,
        without="(the broker's)",
        secret=True,
    )
    allowed_paths: tuple[Path, ...] = setting(
        "BACKUP_ALLOWED_PATHS",
        "Directories, separated by colons, that a task may read archives from or restore files to, besides the "
        "repository",
        directories,
    )
    task_timeout: int = setting(
        "BACKUP_TASK_TIMEOUT", "Seconds after which a running task is stopped", whole_number(10), "28800"
    )
    attempts: int = setting(
        "BACKUP_TASK_ATTEMPTS",
        "How often a task is started at most, after its worker died or after a failure that may pass",
        whole_number(1, 100),
        "3",
    )
    shutdown_grace: int = setting(
        "BACKUP_SHUTDOWN_GRACE",
        "Seconds that a stopping worker gives to the running task",
        whole_number(1),
        "20",
    )
    flower_password: Secret | None = setting(
        "BACKUP_FLOWER_PASSWORD",
        "Password of user `kekkai` in Flower; Flower does not start without one",
        as_secret,
        secret=True,
    )


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class WatchSettings(Group):
    """The settings of the watcher."""

    quiet: timedelta = setting(
        "BACKUP_WATCH_QUIET", "Time without changes after which uploads are backed up", duration, "2s"
    )
    latest: timedelta = setting(
        "BACKUP_WATCH_LATEST", "Longest time an upload waits while changes continue", duration, "30s"
    )
    scan: timedelta = setting("BACKUP_WATCH_SCAN", "Interval between scans of the whole tree", duration, "15m")
    mode: WatchMode = setting(
        "BACKUP_WATCH_MODE",
        "`events`, `polling`, or `auto`: polling if the file system has no events",
        one_of(WatchMode),
        "auto",
    )


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class TargetSettings(Group):
    """The targets of the backups, and the recipients of alerts."""

    rpo_database: timedelta = setting(
        "BACKUP_RPO_DATABASE", "Maximum age of the newest backup of the database", duration, "2h"
    )
    rpo_media: timedelta = setting("BACKUP_RPO_MEDIA", "The same for the uploads", duration, "26h")
    rpo_audit_logs: timedelta = setting("BACKUP_RPO_AUDIT_LOGS", "The same for the audit log", duration, "26h")
    rpo_offsite: timedelta = setting(
        "BACKUP_RPO_OFFSITE", "Maximum age of the newest archive copied to each off-site destination", duration, "26h"
    )
    verified_age: timedelta = setting(
        "BACKUP_VERIFIED_AGE", "Maximum age of the newest backup that passed verification", duration, "2d"
    )
    drill_age: timedelta = setting("BACKUP_DRILL_AGE", "Maximum age of the last successful drill", duration, "8d")
    metrics_file: Path | None = setting(
        "BACKUP_METRICS_FILE", "File to write metrics to, for Prometheus' textfile collector", optional_directory
    )
    metrics_port: int | None = setting(
        "BACKUP_METRICS_PORT", "Port on which beat serves metrics to Prometheus", optional_port
    )
    notify_urls: Secret | None = setting(
        "BACKUP_NOTIFY_URLS",
        "Recipients of alerts about failures, recoveries and missed targets: Apprise URLs, separated by spaces",
        as_secret,
        secret=True,
    )
    ping_url: Secret | None = setting(
        "BACKUP_PING_URL",
        "URL called after each full backup, with `/fail` appended if the backup failed",
        as_secret,
        secret=True,
    )


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class PitrSettings(Group):
    """Recovery to a point in time."""

    wal: bool = setting(
        "BACKUP_WAL", "`on`: receive the server's WAL, so that the portal can be recovered to any second", switch, "off"
    )
    replication: UrlParts = setting(
        "BACKUP_REPLICATION_URL",
        "The server as a role with `REPLICATION`, such as `postgres://user:password@host:port/postgres`",
        database_url,
        without="(as for the database)",
        secret=True,
    )
    days: int = setting(
        "BACKUP_PITR_DAYS", "Days that a recovery to any second reaches back", whole_number(0, HUNDRED_YEARS), "7"
    )


def _place(text: str) -> Place | None:
    return one_of(Place)(text) if text.strip() else None


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class OffsiteSettings(Group):
    """Off-site copies. The portal's own variables must be consistent with the other settings."""

    urls: tuple[Destination, ...] = setting(
        "BACKUP_OFFSITE_URLS",
        "Destinations of off-site copies, separated by spaces: `s3://`, `gs://`, `az://`, `sftp://` or `file://` URLs",
        destinations,
    )
    recipients: tuple[str, ...] = setting(
        "BACKUP_ENCRYPTION_RECIPIENTS",
        "age public keys that copies are encrypted for, separated by spaces; without one, nothing leaves the machine",
        recipients,
    )
    identity_file: Path | None = setting(
        "BACKUP_ENCRYPTION_IDENTITY_FILE",
        "File with the age secret key; only on machines that restore from off-site copies",
        optional_directory,
    )
    encryption: bool = setting(
        "BACKUP_OFFSITE_ENCRYPTION",
        "`off`: store copies unencrypted, if there are no recipients",
        switch,
        "on",
    )
    signers: tuple[str, ...] = setting(
        "BACKUP_OFFSITE_SIGNERS",
        "Public keys of repositories whose off-site copies are trusted beside this one's; `any`: all",
        signers,
        without="(this repository's, once it has made a copy; before that all)",
    )
    types: tuple[str, ...] = setting(
        "BACKUP_OFFSITE_TYPES",
        "Types of archives to copy, separated by spaces",
        words_of(COPIED_TYPES),
        without="(all)",
    )
    rate: int = setting(
        "BACKUP_OFFSITE_RATE", "Average bytes per second that a copy may send; `0`: no limit", whole_number(0), "0"
    )
    lock_days: int = setting(
        "BACKUP_OFFSITE_LOCK",
        "Days that the store locks each new object (S3 object lock); `0`: as the bucket says",
        whole_number(0, HUNDRED_YEARS),
        "0",
    )
    password: Secret | None = setting(
        "BACKUP_OFFSITE_SFTP_PASSWORD", "Password of SFTP servers that take no key", as_secret, secret=True
    )
    rules: Mapping[str, Mapping[str, int]] = setting(
        "BACKUP_OFFSITE_RETENTION_RULES",
        "Retention rules of off-site copies, in the words of `BACKUP_RETENTION_RULES`",
        rules(COPIED_TYPES, RULE_WORDS),
        without="(as in the repository)",
    )
    destination: Place | None = setting(
        "BACKUP_DESTINATION",
        "The portal's own name: `s3` asks for a copy in `BACKUP_S3_BUCKET`, `local` for none",
        _place,
    )
    s3_bucket: str = setting("BACKUP_S3_BUCKET", "The portal's own name of a bucket for off-site copies", as_text)
    s3_prefix: str = setting("BACKUP_S3_PREFIX", "The prefix in this bucket", as_text)
    s3_endpoint: str = setting("BACKUP_S3_ENDPOINT", "The endpoint of this bucket", as_text)
    encryption_enabled: bool | None = setting(
        "BACKUP_ENCRYPTION_ENABLED",
        "The portal's own switch: `true` requires recipients, `false` forbids them",
        optional_switch,
    )

    def destinations(self) -> tuple[Destination, ...]:
        """All destinations: the URLs, and the bucket in the portal's own variables.

        Raises:
            DestinationError: they contradict each other.
        """
        return with_own_names(
            self.urls, place=self.destination, bucket=self.s3_bucket, prefix=self.s3_prefix, endpoint=self.s3_endpoint
        )


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class PortalSettings(Group):
    """The settings of the portal: its key, its files, its own checks, and the operator's commands."""

    credential_key: Secret | None = setting(
        "DD_CREDENTIAL_AES_256_KEY",
        "The portal's key for stored credentials: each backup notes its fingerprint, and a drill decrypts with it",
        as_secret,
        secret=True,
    )
    file_columns: FileColumns = setting(
        "BACKUP_FILE_COLUMNS",
        "Database columns with paths of uploads, besides DefectDojo's, such as `report.file, scan.path=scans`; `off` "
        "if the database refers to files in another tree",
        file_columns,
        without="(DefectDojo's)",
    )
    before_command: tuple[str, ...] = setting(
        "BACKUP_BEFORE_COMMAND",
        "Command that runs before each backup, and before a restore changes live data; if it fails, nothing is done",
        command,
    )
    after_command: tuple[str, ...] = setting(
        "BACKUP_AFTER_COMMAND", "Command that runs after each backup and each restore, whatever the result", command
    )
    drill_command: tuple[str, ...] = setting(
        "BACKUP_DRILL_COMMAND", "Command that checks the restored portal at the end of each drill", command
    )
    command_timeout: timedelta = setting(
        "BACKUP_COMMAND_TIMEOUT", "Time limit of each of these commands", duration, "10m"
    )
    health_url: str | None = setting(
        "PORTAL_HEALTH_URL",
        "URL that is asked after a restore until the portal answers, such as `http://localhost:8000/api/v1/health`",
        web_url,
    )
    health_timeout: timedelta = setting(
        "PORTAL_HEALTH_TIMEOUT", "Time that the portal has to answer after a restore", duration, "1m"
    )


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Settings(Group):
    """All settings with valid values. ``None`` means not set and without a default.

    Arguments:
        database: the database to connect to, built from `DatabaseSettings`.
        unbuilt: settings in the environment that this release does not support; see `refuse_unbuilt`.
        store_variables: variables of off-site stores, such as ``AWS_ACCESS_KEY_ID``; some are secrets.
    """

    database: DatabaseTarget = field(
        default_factory=lambda: DatabaseSettings().target(), metadata={GROUP: DatabaseSettings}
    )
    local_path: Path = setting(
        "BACKUP_LOCAL_PATH", "Backup storage directory", directory, "/var/lib/kekkai-portal/backups"
    )
    upload_dir: Path | None = setting(
        "PORTAL_UPLOAD_DIR",
        "Media uploads directory; set to an empty value, it excludes the media",
        optional_directory,
        "/var/lib/kekkai-portal/uploads",
        empty_counts=True,
    )
    audit_dir: Path | None = setting(
        "PORTAL_AUDIT_DIR", "Audit logs directory, or the log file itself", optional_directory
    )
    retention: RetentionSettings = group(RetentionSettings)
    chain_length: int = setting(
        "BACKUP_CHAIN_LENGTH", "Incremental media backups before a new base is made", whole_number(1), "500"
    )
    chain_percent: int = setting(
        "BACKUP_CHAIN_PERCENT",
        "Total size of a chain's incrementals, in percent of its base, before a new base is made",
        whole_number(1),
        "100",
    )
    rollback_days: int = setting(
        "BACKUP_ROLLBACK_DAYS",
        "Days to keep rollback data; the next prune or restore discards it then",
        whole_number(0, HUNDRED_YEARS),
        "7",
    )
    pg_bin_dir: Path | None = setting(
        "BACKUP_PG_BIN_DIR",
        "Directory of the PostgreSQL client programs",
        optional_directory,
        without="(chosen by the server's version)",
    )
    dump_timeout: int = setting("BACKUP_DUMP_TIMEOUT", "Seconds that `pg_dump` may take", whole_number(1), "21600")
    lock_timeout: int = setting(
        "BACKUP_LOCK_TIMEOUT", "Seconds to wait for a lock before giving up as busy", whole_number(0), "60"
    )
    repository_id: str = setting(
        "BACKUP_REPOSITORY_ID", "Id of the repository; a backup to another one is refused", as_text
    )
    jobs: int | None = setting(
        "BACKUP_JOBS",
        "Processes and threads that work at the same time",
        optional_jobs,
        without="(the cores this process may use)",
    )
    compression: Compression = setting(
        "BACKUP_COMPRESSION",
        "`fast`, `small`, or `auto`: as hard as the source leaves time for",
        one_of(Compression),
        "auto",
    )
    log_format: LogFormat = setting(
        "BACKUP_LOG_FORMAT",
        "`json`, `console`, or `auto`: JSON unless standard error is a terminal",
        one_of(LogFormat),
        "auto",
    )
    worker: WorkerSettings = group(WorkerSettings)
    schedules: ScheduleSettings = group(ScheduleSettings)
    watch: WatchSettings = group(WatchSettings)
    targets: TargetSettings = group(TargetSettings)
    portal: PortalSettings = group(PortalSettings)
    pitr: PitrSettings = group(PitrSettings)
    offsite: OffsiteSettings = group(OffsiteSettings)
    unbuilt: tuple[str, ...] = ()
    store_variables: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def replication(self) -> DatabaseTarget:
        """The server, with the replication role."""
        return replace(self.database, **self.pitr.replication)


SETTINGS: Final[tuple[Setting[object], ...]] = tuple(entries(Settings))
