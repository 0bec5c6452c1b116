"""A command, its help, its completion and its task in the registry say the same of what it does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.commands import ROOT
from tools.command_line import Commands, Parser
from tools.commands import BACKUP_COMMANDS
from tools.commands.offsite import add_arguments
from worker.operations import OPERATIONS

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

COMMANDS: Final = Commands("backup.sh", BACKUP_COMMANDS, default="full")
OF_COMMANDS: Final = {
    "full": "backup.full",
    "database": "backup.database",
    "media": "backup.media",
    "base": "backup.base",
    "verify": "verify.archive",
    "drill": "drill.restore",
    "prune": "prune.repository",
}


def helps(parser: ArgumentParser) -> dict[str, str]:
    """The commands of a parser, with their help."""
    choices = next(action for action in parser._actions if action.choices and action.metavar)
    pseudo: list[Namespace] = choices._choices_actions  # type: ignore[attr-defined]
    return {one.dest: one.help for one in pseudo}


@pytest.mark.parametrize(("command", "operation"), OF_COMMANDS.items())
def test_a_command_says_what_the_registry_says(command: str, operation: str) -> None:
    """In its own help, in the list of commands, and in the completion."""
    said = OPERATIONS[operation].description
    assert COMMANDS.parser(command).description == f"{said}."
    assert helps(COMMANDS.all())[command].capitalize() == said.capitalize()
    assert re.search(rf"^  {command} +{re.escape(said[0].lower() + said[1:])}", COMMANDS.lines(), re.MULTILINE)


@pytest.mark.parametrize("word", ["copy", "verify", "prune"])
def test_an_offsite_command_says_what_the_registry_says(word: str) -> None:
    """An exit code may follow."""
    parser = Parser(prog="backup.sh offsite")
    add_arguments(parser, "offsite")
    said = OPERATIONS[f"offsite.{word}"].description
    assert helps(parser)[word].partition("; exit code")[0] == said[0].lower() + said[1:]


def test_every_task_that_a_command_requests_is_compared() -> None:
    """A new operation is added to the table above, or has no command of its own."""
    others = {"restore.archive", "restore.rollback", "health.ping"}  # options of restore.sh; nobody's
    offsite = {"offsite.copy", "offsite.verify", "offsite.prune"}
    assert OPERATIONS.keys() == {*OF_COMMANDS.values(), *others, *offsite}


def test_the_documents_name_every_command() -> None:
    """Each command of `backup.sh` is in README.md or in docs/."""
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(path.read_text("utf-8") for path in documents)
    missing = [name for name in BACKUP_COMMANDS if not re.search(rf"backup\.sh {name}\b|`{name}\b", text)]
    assert missing == []
