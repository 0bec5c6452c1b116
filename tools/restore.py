"""The program behind `restore.sh`: restores, or rolls a restore back."""

from __future__ import annotations

from typing import Final

from tools import command_line, tasks
from tools.commands import restore, rollback
from tools.terminal.run import EXIT_CODES, run_command

_EXAMPLES: Final = f"""examples:
  restore.sh latest --dry-run            shows the plan, changes nothing
  restore.sh latest                      shows the plan, asks, restores everything
  restore.sh offsite:latest              fetches the newest off-site copy, then the same
  restore.sh full_2024 --database-only   only the database, as it was in that archive
  restore.sh latest --path 'tenant-a/*.sarif'
                                         single files of the uploads
  restore.sh latest --database-only --target-database try --create-database --force
                                         into a database beside the live one, to have a look
  restore.sh latest --media-only --media-dir /tmp/try --force
                                         the uploads into another directory
  restore.sh --at '10 minutes ago'       database and uploads as they were then
  restore.sh --at latest --data-dir /srv/postgresql
                                         the database cluster itself, for a new server
  restore.sh --rollback                  rolls the last restore back
  restore.sh --rollback --list           lists the restores that can be rolled back, and their data
  restore.sh --rollback --discard restore_20240115_120000_abc123
                                         discards the rollback data of that restore, to free space

A restore changes nothing until the archive is verified and everything is staged, and it can be rolled back.
The SQL in a dump runs as the user of the restore: restore only archives that you trust.
On a terminal the output is text; otherwise standard output is one JSON object,
and text goes to standard error.

{EXIT_CODES}"""


def main() -> int:
    """Run the command; return the exit code."""
    parser = restore_parser()
    arguments = parser.parse_args()
    if arguments.version:
        return command_line.show_version()
    if arguments.completion:
        return command_line.show_completion(parser, arguments.completion)
    if arguments.wait:
        if arguments.archive or arguments.rollback or arguments.no_wait:
            parser.error("--wait takes the id of a task and nothing else")
        arguments.run = restore.wait
    elif arguments.rollback:
        rollback.check(parser, arguments)
        arguments.run = rollback.run
    else:
        restore.check(parser, arguments)
        arguments.run = restore.run
    return command_line.run(arguments, "reading the archive")


def restore_parser() -> command_line.Parser:
    """Make the parser of the command line."""
    parser = command_line.Parser(
        prog="restore.sh",
        description="Restore Kekkai Portal, or a part of it, from an archive.",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "archive",
        nargs="?",
        help="a path, an id or the start of one, 'latest', or 'offsite:ID'; with --rollback: a restore's id",
    )
    restore.add_arguments(parser)
    rollback.add_arguments(parser)
    tasks.add_options(parser, with_wait=True)
    command_line.add_output_options(parser)
    command_line.add_program_options(parser)
    return parser


if __name__ == "__main__":
    run_command(main)
