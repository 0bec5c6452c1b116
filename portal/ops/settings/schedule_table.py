"""The schedules of the table of settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from portal.ops.model import FullUploads
from portal.ops.settings.entry import Group, setting
from portal.ops.settings.parsers import cron, one_of, time_zone

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ScheduleSettings(Group):
    """The schedules: cron expressions in one time zone; ``None`` means never."""

    full: str | None = setting("BACKUP_SCHEDULE_FULL", "Schedule of full backups: cron, or `off`", cron, "0 2 * * *")
    database: str | None = setting("BACKUP_SCHEDULE_DATABASE", "Schedule of database backups", cron, "0 * * * *")
    verify: str | None = setting(
        "BACKUP_SCHEDULE_VERIFY",
        "When new archives, and one seventh of the others, are verified",
        cron,
        "0 4 * * *",
    )
    prune: str | None = setting(
        "BACKUP_SCHEDULE_PRUNE",
        "When old archives are removed; without a worker, each backup removes them itself, unless this is `off`",
        cron,
        "30 3 * * *",
    )
    drill: str | None = setting("BACKUP_SCHEDULE_DRILL", "Schedule of test restores (drills)", cron, "0 5 * * 0")
    base: str | None = setting(
        "BACKUP_SCHEDULE_BASE",
        "Schedule of base backups of the database cluster, if `BACKUP_WAL` is `on`",
        cron,
        "0 1 * * *",
    )
    offsite: str | None = setting(
        "BACKUP_SCHEDULE_OFFSITE", "When off-site copies that are missing are made up for", cron, "20 * * * *"
    )
    offsite_verify: str | None = setting(
        "BACKUP_SCHEDULE_OFFSITE_VERIFY",
        "When new off-site copies, and one seventh of the others, are verified by the store's digests",
        cron,
        "40 6 * * *",
    )
    offsite_prune: str | None = setting(
        "BACKUP_SCHEDULE_OFFSITE_PRUNE",
        "When old off-site copies are removed, where the credentials permit that",
        cron,
        "off",
    )
    full_uploads: FullUploads = setting(  # noqa: RUF009  (an entry is a field)
        "BACKUP_FULL_UPLOADS",
        "Uploads in a full backup: `complete`, or `chain`: only what has changed since the last backup of the uploads",
        one_of(FullUploads),
        "complete",
    )
    complete: str | None = setting(
        "BACKUP_SCHEDULE_COMPLETE",
        "Schedule of complete full backups, if `BACKUP_FULL_UPLOADS` is `chain`",
        cron,
        "0 2 * * 0",
    )
    time_zone: ZoneInfo = setting(  # noqa: RUF009
        "BACKUP_TIMEZONE", "Time zone of the schedules", time_zone, "UTC"
    )
