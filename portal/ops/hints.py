"""The operations that hints recommend: the engine names an operation, the front end its command.

A front end calls `use_command_lines` when it starts. Otherwise, as in a program that uses the engine as a library, a
hint shows the operation's name.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Advice(Enum):
    """An operation that a hint recommends; the values are its names for programs without commands.

    Formatted as text, it is its command in quotes: ``f"{Advice.LIST_ARCHIVES} shows them"``.
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
    INSTALL_ADMIN = "installation with the extra admin"

    def __str__(self) -> str:
        return self.of()

    def of(self, *arguments: str) -> str:
        """The command in quotes, with its argument."""
        return f"'{self.line(*arguments)}'"

    def line(self, *arguments: str) -> str:
        """The command to type."""
        return _command_lines.get(self, self.value).format(*arguments)


_command_lines: dict[Advice, str] = {}


def use_command_lines(lines: Mapping[Advice, str]) -> None:
    """Make hints show a front end's commands.

    Arguments:
        lines: the command for each operation; ``{}`` is replaced by the argument.
    """
    _command_lines.clear()
    _command_lines.update(lines)


def another_archive() -> str:
    """The hint for an unusable archive."""
    return f"Take another archive: {Advice.LIST_ARCHIVES} shows them."
