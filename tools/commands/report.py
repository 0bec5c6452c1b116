"""`backup.sh report`: writes the backup report, one HTML page."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from portal.ops.errors import ConfigurationError
from portal.ops.filesystem.temporary import temporary_name
from portal.ops.units import system_reason
from tools.terminal.output import print_result, say, standard_output

if TYPE_CHECKING:
    import argparse

_REPORT: Final = "kekkai-backup-report.html"
_STANDARD_OUTPUT: Final = "-"


def add_arguments(parser: argparse.ArgumentParser, _name: str) -> None:
    """Define the command's arguments."""
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=f"file to write, or - for standard output (default: {_REPORT} in this directory, or in the repository if "
        "this directory is not writable)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the report, completely or not at all."""
    from portal.ops.runtime.environment import current_settings
    from portal.ops.runtime.progress import utc_now
    from tools.report.page import page
    from tools.report.story import read_story

    settings = current_settings()
    data = page(read_story(settings, utc_now())).encode("utf-8", "replace")
    if arguments.output == _STANDARD_OUTPUT:
        with standard_output() as stream:
            stream.buffer.write(data)
            stream.flush()
        return 0
    here = os.getcwd() if os.access(os.curdir, os.W_OK) else settings.local_path
    path = os.path.abspath(arguments.output or os.path.join(here, _REPORT))
    _write(path, data)
    say(f"the report is {path}; it needs no other file, and any browser shows it")
    print_result({"success": True, "path": path, "size_bytes": os.path.getsize(path)})
    return 0


def _write(path: str, data: bytes) -> None:
    temporary = os.path.join(os.path.dirname(path), temporary_name(os.path.basename(path)))
    try:
        with open(temporary, "xb") as file:
            _show_to_the_same(file.fileno(), path)
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise ConfigurationError(
            f"cannot write {path}: {system_reason(error)}", hint="Choose another place with --output FILE."
        ) from error


def _show_to_the_same(descriptor: int, path: str) -> None:
    """Let those read a report who could read the one before it; a first one is for its owner alone."""
    try:
        before = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        before = None
    os.fchmod(descriptor, 0o600)
    if before is not None and stat.S_ISREG(before.st_mode):
        try:
            os.fchown(descriptor, before.st_uid if os.geteuid() == 0 else -1, before.st_gid)
        except PermissionError:
            return  # this user is not in that group, so nobody else gets to see it
        os.fchmod(descriptor, stat.S_IMODE(before.st_mode) & 0o666)
