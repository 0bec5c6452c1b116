"""The program behind `backup.sh`: runs the command that is named."""

from __future__ import annotations

import sys
from typing import Final

from tools import command_line
from tools.commands import BACKUP_COMMANDS
from tools.terminal.output import fitted
from tools.terminal.run import EXIT_CODES, run_command

_EXAMPLES: Final = f"""examples:
  backup.sh                         a full backup: database, uploads and audit log
  backup.sh database                the database only
  backup.sh media --incremental     only uploads that changed since the newest archive that contains them
  backup.sh list                    the archives, newest first
  backup.sh verify latest           is the newest archive intact?
  backup.sh verify full_2024 --level dump
  backup.sh schedule                next and last run of everything that is scheduled
  backup.sh versions scan.sarif     which versions of this file are there, and where?
  backup.sh extract latest media/tenant-a/scan.sarif --output scan.sarif
  backup.sh prune --dry-run         what would be removed, and why the rest is kept
  backup.sh pin full_2024 --reason 'before the migration'
  backup.sh drill                   restore the newest full backup to a scratch place, and compare
  backup.sh audit --verify          who did what, and was the log altered?

'backup.sh COMMAND --help' shows the options of a command.
Settings come from the environment and from a file: 'backup.sh config' shows them, docs/settings.md explains them.
On a terminal the output is text; otherwise standard output is one JSON object,
and text goes to standard error.

{EXIT_CODES}"""


def main() -> int:
    """Run one command; return the exit code."""
    argv = sys.argv[1:]
    commands = command_line.Commands("backup.sh", BACKUP_COMMANDS, default="full")
    if argv[:1] in (["-h"], ["--help"]):
        text = (
            "usage: backup.sh [COMMAND] [OPTION ...]\n\nBack up Kekkai Portal, and look after the archives.\n\n"
            f"commands:\n{commands.lines()}\n\n"
            "options:\n  --version               show the version\n"
            "  --completion bash|zsh   print a script for tab completion\n"
            f"  --json, --quiet, --no-color   see 'backup.sh list --help'\n\n{_EXAMPLES}\n"
        )
        sys.stdout.write(fitted(text))
        return 0
    if argv == ["--version"]:
        return command_line.show_version()
    if argv[:1] == ["--completion"]:
        return _show_completion(commands, argv)
    name, rest = commands.choose(argv)
    if name is None:
        return commands.unknown(next(word for word in argv if not word.startswith("-")))
    return command_line.run(commands.parser(name).parse_args(rest), commands.doing(name))


def _show_completion(commands: command_line.Commands, argv: list[str]) -> int:
    parser = commands.all()
    command_line.add_program_options(parser)
    arguments = parser.parse_args(argv)
    return command_line.show_completion(parser, arguments.completion)


if __name__ == "__main__":
    run_command(main)
