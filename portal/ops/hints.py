"""The operations that hints advise: the engine names one, and the front end says how a person starts it.

A front end calls `use_command_lines` when it starts. Without one, as in a program that uses the engine as a library,
a hint shows the operation's name.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Advice(Enum):
    """An operation that a hint advises; the values are names, for those who have no commands.

    In a text it stands for its command in quotes: ``f"{Advice.LIST_ARCHIVES} shows them"``.
    """

    BACK_UP_FULL = "full backup"
    BACK_UP_DATABASE = "database backup"
    BACK_UP_MEDIA = "media backup"
    BACK_UP_BASE = "base backup"
    LIST_ARCHIVES = "list of archives"
    VERIFY_DUMP = "verification of {} including its dump"
    DRILL = "drill"
    PRUNE = "prune"
    RUN_DOCTOR = "doctor"
    COPY_OFFSITE = "off-site copy"
    PLAN_RESTORE = "restore plan"
    FINISH_RESTORE = "restore"
    LIST_ROLLBACKS = "list of rollbacks"
    ROLL_BACK = "rollback of {}"
    DISCARD_ROLLBACK = "discarding the rollback data of {}"
    RECEIVE_WAL = "WAL service"

    def __str__(self) -> str:
        return self.of()

    def of(self, *arguments: str) -> str:
        """The command in quotes, with what it is started for."""
        return f"'{self.line(*arguments)}'"

    def line(self, *arguments: str) -> str:
        """The command as a person starts it."""
        return _command_lines.get(self, self.value).format(*arguments)


_command_lines: dict[Advice, str] = {}


def use_command_lines(lines: Mapping[Advice, str]) -> None:
    """Have hints show the commands of a front end.

    Arguments:
        lines: the command of each operation; ``{}`` stands where its argument goes.
    """
    _command_lines.clear()
    _command_lines.update(lines)


def another_archive() -> str:
    """The hint where an archive cannot be used."""
    return f"Take another archive: {Advice.LIST_ARCHIVES} shows them."
