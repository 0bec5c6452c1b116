"""What others need to know of the workers to give them work: which tasks there are, and who does which."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Lane(StrEnum):
    """A queue, and the worker processes that do nothing else: so a restore never waits behind a verification."""

    BACKUP = "backup"
    RESTORE = "restore"
    MAINTENANCE = "maintenance"


class TaskName(StrEnum):
    """The tasks."""

    BACKUP_FULL = "backup.full"
    BACKUP_DATABASE = "backup.database"
    BACKUP_MEDIA = "backup.media"
    VERIFY_ARCHIVE = "verify.archive"
    RESTORE_ARCHIVE = "restore.archive"
    RESTORE_ROLLBACK = "restore.rollback"
    PRUNE_REPOSITORY = "prune.repository"
    DRILL_RESTORE = "drill.restore"
    PING = "health.ping"

    @property
    def lane(self) -> Lane:
        """Whose work it is."""
        return _LANES.get(self.value.partition(".")[0], Lane.MAINTENANCE)


_LANES: Final = {"backup": Lane.BACKUP, "restore": Lane.RESTORE}
