"""Every variable of the environment that is read, with its meaning and default: docs/settings.md is this list."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from portal.ops.model import LogFormat
from portal.ops.settings.parsers import (
    HUNDRED_YEARS,
    MOST_KEPT,
    Setting,
    as_secret,
    as_text,
    cron,
    database_url,
    directories,
    directory,
    duration,
    one_of,
    optional_directory,
    optional_jobs,
    optional_port,
    rules,
    switch,
    time_zone,
    whole_number,
)


class WatchMode(StrEnum):
    """How changes of the uploads are noticed."""

    AUTO = "auto"
    EVENTS = "events"
    POLLING = "polling"


RULED_TYPES: Final = ("full", "database", "media", "audit_logs", "base")
RULE_WORDS: Final = ("days", "count", "hourly", "daily", "weekly", "monthly", "yearly")

DATABASE_HOST: Final = Setting(
    name="DD_DATABASE_HOST",
    meaning="PostgreSQL host, or the directory of its socket",
    default="localhost",
    parse=as_text,
)
DATABASE_PORT: Final = Setting(
    name="DD_DATABASE_PORT", meaning="PostgreSQL port", default="5432", parse=whole_number(1, 65535)
)
DATABASE_NAME: Final = Setting(name="DD_DATABASE_NAME", meaning="Database name", default="defectdojo", parse=as_text)
DATABASE_USER: Final = Setting(name="DD_DATABASE_USER", meaning="Database user", default="defectdojo", parse=as_text)
DATABASE_PASSWORD: Final = Setting(
    name="DD_DATABASE_PASSWORD", meaning="Database password", without="(required)", parse=as_secret, secret=True
)
DATABASE_URL: Final = Setting(
    name="DD_DATABASE_URL",
    meaning="All of these as `postgres://user:password@host:port/name?sslmode=require`",
    parse=database_url,
    secret=True,
)
LOCAL_PATH: Final = Setting(
    name="BACKUP_LOCAL_PATH",
    meaning="Backup storage directory",
    default="/var/lib/kekkai-portal/backups",
    parse=directory,
)
UPLOAD_DIR: Final = Setting(
    name="PORTAL_UPLOAD_DIR",
    meaning="Media uploads directory; set to nothing, it leaves the media out",
    default="/var/lib/kekkai-portal/uploads",
    parse=optional_directory,
    empty_counts=True,
)
AUDIT_DIR: Final = Setting(
    name="PORTAL_AUDIT_DIR", meaning="Audit logs directory, or the log file itself", parse=optional_directory
)
RETENTION_DAYS: Final = Setting(
    name="BACKUP_RETENTION_DAYS",
    meaning="Days to keep backups",
    default="30",
    parse=whole_number(0, HUNDRED_YEARS),
)
RETENTION_COUNT: Final = Setting(
    name="BACKUP_RETENTION_COUNT",
    meaning="Minimum backups to keep",
    default="10",
    parse=whole_number(0, MOST_KEPT),
)
ROLLBACK_DAYS: Final = Setting(
    name="BACKUP_ROLLBACK_DAYS",
    meaning="Days to keep what takes a restore back; the next prune or restore removes it then",
    default="7",
    parse=whole_number(0, HUNDRED_YEARS),
)
PG_BIN_DIR: Final = Setting(
    name="BACKUP_PG_BIN_DIR",
    meaning="Where the PostgreSQL client programs are",
    without="(chosen by the server's version)",
    parse=optional_directory,
)
DUMP_TIMEOUT: Final = Setting(
    name="BACKUP_DUMP_TIMEOUT",
    meaning="Seconds that `pg_dump` may take",
    default="21600",
    parse=whole_number(1),
)
LOCK_TIMEOUT: Final = Setting(
    name="BACKUP_LOCK_TIMEOUT",
    meaning="Seconds to wait for a lock before giving up as busy",
    default="60",
    parse=whole_number(0),
)
JOBS: Final = Setting(
    name="BACKUP_JOBS",
    meaning="Processes and threads that work at once",
    without="(the cores this process may use)",
    parse=optional_jobs,
)
LOG_FORMAT: Final = Setting(
    name="BACKUP_LOG_FORMAT",
    meaning="`json`, `console`, or `auto`: JSON unless standard error is a terminal",
    default="auto",
    parse=one_of(LogFormat),
)
CHAIN_LENGTH: Final = Setting(
    name="BACKUP_CHAIN_LENGTH",
    meaning="Incremental media backups before a new base is made",
    default="500",
    parse=whole_number(1),
)
CHAIN_PERCENT: Final = Setting(
    name="BACKUP_CHAIN_PERCENT",
    meaning="Size of all incrementals of a chain, in percent of its base, before a new base is made",
    default="100",
    parse=whole_number(1),
)
KEEP_HOURLY: Final = Setting(
    name="BACKUP_KEEP_HOURLY",
    meaning="Keep the last backup of each type of so many hours, beyond days and count",
    default="0",
    parse=whole_number(0, MOST_KEPT),
)
KEEP_DAILY: Final = Setting(
    name="BACKUP_KEEP_DAILY", meaning="The same, of so many days", default="0", parse=whole_number(0, MOST_KEPT)
)
KEEP_WEEKLY: Final = Setting(
    name="BACKUP_KEEP_WEEKLY", meaning="The same, of so many weeks", default="0", parse=whole_number(0, MOST_KEPT)
)
KEEP_MONTHLY: Final = Setting(
    name="BACKUP_KEEP_MONTHLY", meaning="The same, of so many months", default="0", parse=whole_number(0, MOST_KEPT)
)
KEEP_YEARLY: Final = Setting(
    name="BACKUP_KEEP_YEARLY", meaning="The same, of so many years", default="0", parse=whole_number(0, MOST_KEPT)
)
RETENTION_RULES: Final = Setting(
    name="BACKUP_RETENTION_RULES",
    meaning="Rules of their own for types of backups, such as `database: count 48, hourly 24; media: days 7`",
    parse=rules(RULED_TYPES, RULE_WORDS),
)
BROKER_URL: Final = Setting(
    name="CELERY_BROKER_URL",
    meaning="Redis database of the workers' own, as `redis://:password@host:6379/5`; without it commands do the work "
    "themselves",
    parse=as_secret,
    secret=True,
)
RESULT_BACKEND: Final = Setting(
    name="CELERY_RESULT_BACKEND",
    meaning="Redis database of the results",
    without="(the broker's)",
    parse=as_secret,
    secret=True,
)
ALLOWED_PATHS: Final = Setting(
    name="BACKUP_ALLOWED_PATHS",
    meaning="Directories beside the repository that a task may read archives from or restore files to, with colons "
    "between them",
    parse=directories,
)
TASK_TIMEOUT: Final = Setting(
    name="BACKUP_TASK_TIMEOUT",
    meaning="Seconds that a task may take before it is ended",
    default="28800",
    parse=whole_number(10),
)
TASK_ATTEMPTS: Final = Setting(
    name="BACKUP_TASK_ATTEMPTS",
    meaning="How often a task is begun at the most: when its worker died, and when it failed but may succeed later",
    default="3",
    parse=whole_number(1, 100),
)
SHUTDOWN_GRACE: Final = Setting(
    name="BACKUP_SHUTDOWN_GRACE",
    meaning="Seconds that a worker which is asked to end gives to the task at hand",
    default="20",
    parse=whole_number(1),
)
FLOWER_PASSWORD: Final = Setting(
    name="BACKUP_FLOWER_PASSWORD",
    meaning="Password of user `kekkai` in Flower, which does not start without one",
    parse=as_secret,
    secret=True,
)
SCHEDULE_FULL: Final = Setting(
    name="BACKUP_SCHEDULE_FULL", meaning="When a full backup is made: cron, or `off`", default="0 2 * * *", parse=cron
)
SCHEDULE_DATABASE: Final = Setting(
    name="BACKUP_SCHEDULE_DATABASE", meaning="When the database is backed up", default="0 * * * *", parse=cron
)
SCHEDULE_VERIFY: Final = Setting(
    name="BACKUP_SCHEDULE_VERIFY",
    meaning="When new archives, and a seventh of the others, are verified",
    default="0 4 * * *",
    parse=cron,
)
SCHEDULE_PRUNE: Final = Setting(
    name="BACKUP_SCHEDULE_PRUNE",
    meaning="When old archives are removed; a backup without a worker removes them itself, unless this is `off`",
    default="30 3 * * *",
    parse=cron,
)
SCHEDULE_DRILL: Final = Setting(
    name="BACKUP_SCHEDULE_DRILL", meaning="When a restore is tried", default="0 5 * * 0", parse=cron
)
SCHEDULE_BASE: Final = Setting(
    name="BACKUP_SCHEDULE_BASE",
    meaning="When a base backup of the whole database cluster is made, where `BACKUP_WAL` is `on`",
    default="0 1 * * *",
    parse=cron,
)
WAL: Final = Setting(
    name="BACKUP_WAL",
    meaning="`on`: receive the server's WAL, so that the portal can be recovered to any second",
    default="off",
    parse=switch,
)
REPLICATION_URL: Final = Setting(
    name="BACKUP_REPLICATION_URL",
    meaning="The server as a role with `REPLICATION`, as `postgres://user:password@host:port/postgres`",
    without="(the database's own settings)",
    parse=database_url,
    secret=True,
)
PITR_DAYS: Final = Setting(
    name="BACKUP_PITR_DAYS",
    meaning="Days that a recovery to any second reaches back",
    default="7",
    parse=whole_number(0, HUNDRED_YEARS),
)
TIME_ZONE: Final = Setting(name="BACKUP_TIMEZONE", meaning="Time zone of the schedules", default="UTC", parse=time_zone)
WATCH_QUIET: Final = Setting(
    name="BACKUP_WATCH_QUIET", meaning="Quiet after an upload before it is backed up", default="2s", parse=duration
)
WATCH_LATEST: Final = Setting(
    name="BACKUP_WATCH_LATEST",
    meaning="How long an upload waits at the most where it is never quiet",
    default="30s",
    parse=duration,
)
WATCH_SCAN: Final = Setting(
    name="BACKUP_WATCH_SCAN", meaning="How often the whole tree is looked at", default="15m", parse=duration
)
WATCH_MODE: Final = Setting(
    name="BACKUP_WATCH_MODE",
    meaning="`events`, `polling`, or `auto`: polling where the file system has no events",
    default="auto",
    parse=one_of(WatchMode),
)
RPO_DATABASE: Final = Setting(
    name="BACKUP_RPO_DATABASE",
    meaning="Age that the newest backup of the database may have",
    default="2h",
    parse=duration,
)
RPO_MEDIA: Final = Setting(name="BACKUP_RPO_MEDIA", meaning="The same for the uploads", default="26h", parse=duration)
RPO_AUDIT_LOGS: Final = Setting(
    name="BACKUP_RPO_AUDIT_LOGS", meaning="The same for the audit log", default="26h", parse=duration
)
VERIFIED_AGE: Final = Setting(
    name="BACKUP_VERIFIED_AGE",
    meaning="Age that the newest backup known to be intact may have",
    default="2d",
    parse=duration,
)
DRILL_AGE: Final = Setting(
    name="BACKUP_DRILL_AGE", meaning="Age that the last successful drill may have", default="8d", parse=duration
)
METRICS_FILE: Final = Setting(
    name="BACKUP_METRICS_FILE",
    meaning="Where metrics are written for Prometheus' textfile collector",
    parse=optional_directory,
)
METRICS_PORT: Final = Setting(
    name="BACKUP_METRICS_PORT", meaning="Port at which beat serves metrics to Prometheus", parse=optional_port
)
NOTIFY_URLS: Final = Setting(
    name="BACKUP_NOTIFY_URLS",
    meaning="Whom to tell of failures, recoveries and missed targets: URLs of Apprise, with spaces between them",
    parse=as_secret,
    secret=True,
)
PING_URL: Final = Setting(
    name="BACKUP_PING_URL",
    meaning="URL that is called after each full backup, with `/fail` behind it after one that failed",
    parse=as_secret,
    secret=True,
)

SETTINGS: Final[tuple[Setting[object], ...]] = (
    DATABASE_HOST,
    DATABASE_PORT,
    DATABASE_NAME,
    DATABASE_USER,
    DATABASE_PASSWORD,
    DATABASE_URL,
    LOCAL_PATH,
    UPLOAD_DIR,
    AUDIT_DIR,
    RETENTION_DAYS,
    RETENTION_COUNT,
    KEEP_HOURLY,
    KEEP_DAILY,
    KEEP_WEEKLY,
    KEEP_MONTHLY,
    KEEP_YEARLY,
    RETENTION_RULES,
    CHAIN_LENGTH,
    CHAIN_PERCENT,
    ROLLBACK_DAYS,
    PG_BIN_DIR,
    DUMP_TIMEOUT,
    LOCK_TIMEOUT,
    JOBS,
    LOG_FORMAT,
    BROKER_URL,
    RESULT_BACKEND,
    ALLOWED_PATHS,
    TASK_TIMEOUT,
    TASK_ATTEMPTS,
    SHUTDOWN_GRACE,
    FLOWER_PASSWORD,
    SCHEDULE_FULL,
    SCHEDULE_DATABASE,
    SCHEDULE_VERIFY,
    SCHEDULE_PRUNE,
    SCHEDULE_DRILL,
    SCHEDULE_BASE,
    TIME_ZONE,
    WATCH_QUIET,
    WATCH_LATEST,
    WATCH_SCAN,
    WATCH_MODE,
    RPO_DATABASE,
    RPO_MEDIA,
    RPO_AUDIT_LOGS,
    VERIFIED_AGE,
    DRILL_AGE,
    METRICS_FILE,
    METRICS_PORT,
    NOTIFY_URLS,
    PING_URL,
    WAL,
    REPLICATION_URL,
    PITR_DAYS,
)
