"""`backup.sh config`: shows every setting with its value and origin; exit code 2 if something is wrong."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import ConfigurationError
from tools.terminal import output
from tools.terminal.output import Lines, is_json, print_result, say, say_error, warn
from tools.terminal.table import Column, Table

if TYPE_CHECKING:
    import argparse

    from portal.ops.settings.load import EffectiveSetting

_NAME: Final = 30
"""The longest name of a setting: a name that is cut cannot be looked up."""

_ORIGIN: Final = 44
"""The usual file and a line of it."""


def add_arguments(parser: argparse.ArgumentParser, _name: str) -> None:
    """Define the command's arguments."""
    parser.add_argument("--check", action="store_true", help="show problems only, for scripts; exit code 2 if any")


def run(arguments: argparse.Namespace) -> int:
    """Show the settings, invalid values, and names that are no settings."""
    from portal.ops.runtime.environment import current_settings, read_env_file
    from portal.ops.runtime.progress import read_text
    from portal.ops.settings.load import effective_settings, foreign_names

    env_file = read_env_file()
    settings = list(effective_settings(os.environ, read_text, env_file))
    unknown = foreign_names(os.environ, env_file)
    if not arguments.check:
        say(f"settings file: {env_file.path or 'none'}\n")
        _tell(settings)
    for warning in unknown:
        warn(warning)
    error = ""
    try:
        current_settings()
    except ConfigurationError as fault:
        error = str(fault)
        say_error(fault)
    has_problem = bool(error or (arguments.check and unknown))
    facts: dict[str, Any] = {"success": not has_problem, "file": env_file.path or None, "error": error or None}
    print_result({**facts, "unknown": unknown, "settings": [_facts(one) for one in settings]})
    if arguments.check and not has_problem:
        say("every setting can be used")
    return ConfigurationError.exit_code if has_problem else 0


def _tell(settings: list[EffectiveSetting]) -> None:
    room = output.width() if not is_json() else 200
    columns = (
        Column(title="SETTING", width=_NAME),
        Column(title="VALUE", width=max(36, room - _NAME - _ORIGIN - 4), least=20),
        Column(title="ORIGIN", width=_ORIGIN, least=8),
    )
    table = Table(columns, room)
    with Lines() as lines:
        lines.say(table.head(), "head")
        for one in settings:
            lines.say(table.row([one.setting.name, one.shown or _unset(one), one.origin]))


def _unset(one: EffectiveSetting) -> str:
    return "(excluded)" if one.origin != "default" else one.setting.without


def _facts(one: EffectiveSetting) -> dict[str, Any]:
    return {"name": one.setting.name, "value": one.shown or None, "origin": one.origin, "fault": one.fault or None}
