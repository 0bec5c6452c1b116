"""`backup.sh verify`: verifies that an archive is intact."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from tools import tasks
from tools.commands import drill
from tools.jobs import backup_job
from tools.terminal.output import print_result, say, say_error
from tools.terminal.run import watched_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

_LEVELS: Final = (
    "checksum: the file as a whole; contents (default): every file in it; dump: the database dump as well; "
    "drill: restored to a scratch place and compared"
)
_DAMAGED_HINT: Final = (
    "If the archive was copied here, copy it and its .sha256 file again; if not, check the disk, and use another "
    "archive: 'backup.sh list' shows them."
)


def add_arguments(parser: argparse.ArgumentParser, _name: str) -> None:
    """Define the command's arguments."""
    parser.add_argument("archive", help="a path, an id or the start of one, 'latest', or 'offsite:ID'")
    parser.add_argument("--level", choices=("checksum", "contents", "dump", "drill"), default="contents", help=_LEVELS)
    tasks.add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Verify an archive, here or by a worker; exit code 4 if it is not intact."""
    from portal.ops.model import VerifyLevel

    if arguments.level == VerifyLevel.DRILL:
        return drill.run(arguments)
    settings, show = watched_settings()
    if arguments.archive.startswith("offsite:"):
        from tools.commands.offsite import verify_copy

        return verify_copy(settings, show, arguments.archive, arguments.level)
    if tasks.is_remote(settings, arguments):
        from worker.arguments import VerifyArguments
        from worker.operations import VERIFY_ARCHIVE

        given = VerifyArguments(archive=tasks.absolute(arguments.archive), level=arguments.level)
        return tasks.do_remotely(settings, show, arguments, VERIFY_ARCHIVE, given)
    found = backup_job(settings, show).verify(arguments.archive, VerifyLevel(arguments.level))
    tell(found.to_dict())
    return 0 if found.intact else 4


def tell(found: Mapping[str, Any]) -> None:
    """Show the result of a verification."""
    if found["success"]:
        say(found["message"])
    elif "damages" not in found:
        say_error(found["error"])
    else:
        damages = [f"damage: {damage}" for damage in found["damages"]]
        say_error(f"{os.path.basename(found['path'])} is not intact", damages, _DAMAGED_HINT)
    for note in found.get("notes", ()):
        say(f"note: {note}")
    print_result(found)
