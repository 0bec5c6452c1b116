"""Checks that the operator's commands can be started; otherwise backups, restores or drills fail."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from portal.ops.monitoring.doctor.check import Check, Finding, fault, ok

if TYPE_CHECKING:
    from portal.ops.settings.table import PortalSettings


def command_checks(settings: PortalSettings) -> list[Check]:
    """One check for all configured commands; none if there are none."""
    commands = {
        "BACKUP_BEFORE_COMMAND": settings.before_command,
        "BACKUP_AFTER_COMMAND": settings.after_command,
        "BACKUP_DRILL_COMMAND": settings.drill_command,
    }
    programs = {name: command[0] for name, command in commands.items() if command}
    return [Check(name="commands", look=lambda: _look(programs))] if programs else []


def _look(programs: dict[str, str]) -> Finding:
    search_path = os.environ.get("PATH", os.defpath)
    absent = [f"{name}: {program}" for name, program in programs.items() if not shutil.which(program, path=search_path)]
    if absent:
        return fault(
            f"there is no such program, or this user may not run it: {', '.join(absent)}",
            "Give the absolute path of the program, or install it.",
        )
    return ok(f"{', '.join(programs)} can be started")
