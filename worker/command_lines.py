"""The command lines of operations in hints, for all programs of this project.

Workers' results, service logs and the commands themselves show the same lines.
"""

from __future__ import annotations

from typing import Final

from portal.ops import hints
from portal.ops.hints import Advice

BACKUP: Final = "./tools/backup.sh"
RESTORE: Final = "./tools/restore.sh"
SERVICE: Final = "./tools/service.sh"

COMMAND_LINES: Final = {
    Advice.BACK_UP_FULL: f"{BACKUP} full",
    Advice.BACK_UP_DATABASE: f"{BACKUP} database",
    Advice.BACK_UP_MEDIA: f"{BACKUP} media",
    Advice.BACK_UP_BASE: f"{BACKUP} base",
    Advice.LIST_ARCHIVES: f"{BACKUP} list",
    Advice.VERIFY_DUMP: f"{BACKUP} verify {{}} --level dump",
    Advice.DRILL: f"{BACKUP} drill",
    Advice.PRUNE: f"{BACKUP} prune",
    Advice.RUN_DOCTOR: f"{BACKUP} doctor",
    Advice.COPY_OFFSITE: f"{BACKUP} offsite copy",
    Advice.PLAN_RESTORE: f"{RESTORE} latest --dry-run",
    Advice.FINISH_RESTORE: RESTORE,
    Advice.LIST_ROLLBACKS: f"{RESTORE} --rollback --list",
    Advice.ROLL_BACK: f"{RESTORE} --rollback {{}}",
    Advice.DISCARD_ROLLBACK: f"{RESTORE} --rollback --discard {{}}",
    Advice.RECEIVE_WAL: f"{SERVICE} wal",
    Advice.INSTALL_ADMIN: "./tools/setup.sh admin",
}


def show_commands() -> None:
    """Make the engine's hints show these lines in this process."""
    hints.use_command_lines(COMMAND_LINES)
