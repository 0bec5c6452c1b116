"""The commands that hints name: the engine knows none, and a front end says how each is started."""

import importlib
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import portal.ops
from portal.ops import hints
from portal.ops.hints import Advice, another_archive
from tools import command_line
from tools.commands import BACKUP_COMMANDS
from worker.command_lines import BACKUP, COMMAND_LINES, show_commands

ENGINE = Path(portal.ops.__path__[0])


@pytest.fixture(autouse=True)
def _no_front_end() -> Iterator[None]:
    before = dict(hints._command_lines)
    hints.use_command_lines({})
    yield
    hints.use_command_lines(before)


def test_a_library_names_the_operation() -> None:
    """Without a front end a hint names the operation, since there is no command to start."""
    assert another_archive() == "Take another archive: 'list of archives' shows them."


def test_a_front_end_shows_its_commands() -> None:
    """With a front end, a hint shows a command that can be copied, with what it is started for."""
    show_commands()
    assert another_archive() == "Take another archive: './tools/backup.sh list' shows them."
    assert Advice.ROLL_BACK.line("restore_1") == "./tools/restore.sh --rollback restore_1"


def test_every_operation_has_a_command() -> None:
    """The front ends know a command for every operation that the engine may advise."""
    assert COMMAND_LINES.keys() == set(Advice)


@pytest.mark.parametrize("name", [one.name for one in Advice if COMMAND_LINES[one].startswith(BACKUP)])
def test_commands_can_be_parsed(name: str) -> None:
    """Each command of `backup.sh` that a hint shows is one that it understands."""
    show_commands()
    commands = command_line.Commands("backup.sh", BACKUP_COMMANDS, default="full")
    command, rest = commands.choose(shlex.split(Advice[name].line("latest"))[1:])
    assert command is not None
    commands.parser(command).parse_args(rest)


def test_the_engine_holds_no_command_line() -> None:
    """No module of the engine names a script of `tools/`."""
    found = [
        path
        for path in ENGINE.rglob("*.py")
        if re.search(r"tools/|(backup|restore|service)\.sh", path.read_text("utf-8"))
    ]
    assert found == []


def test_no_hint_is_fixed_when_it_is_imported() -> None:
    """A hint is written when it is shown: one made at import would not know the front end's commands."""
    names = [module.name for module in pkgutil.walk_packages(portal.ops.__path__, "portal.ops.")]
    quoted = {f"'{value}'" for advice in Advice for value in (advice.value, COMMAND_LINES[advice])}
    assert len(names) > 100
    for name in names:
        texts = [one for one in vars(importlib.import_module(name)).values() if isinstance(one, str)]
        assert not [one for one in texts if any(mark in one for mark in quoted)], name
