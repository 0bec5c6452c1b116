"""`backup.sh report`: write the backup report, one HTML page."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from portal.ops.errors import ConfigurationError
from tools.terminal.output import print_result, say

if TYPE_CHECKING:
    import argparse

_REPORT: Final = "kekkai-backup-report.html"


def add_arguments(parser: argparse.ArgumentParser, _name: str) -> None:
    """Add what the command takes."""
    parser.add_argument("--output", metavar="FILE", default=_REPORT, help="where to (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Write the report, completely or not at all."""
    from portal.ops.runtime.environment import current_settings
    from portal.ops.runtime.progress import utc_now
    from tools.report.page import page
    from tools.report.story import read_story

    text = page(read_story(current_settings(), utc_now()))
    path = os.path.abspath(arguments.output)
    _write(path, text.encode("utf-8", "replace"))
    say(f"the report is {path}; it needs no other file, and any browser shows it")
    print_result({"success": True, "path": path, "size_bytes": os.path.getsize(path)})
    return 0


def _write(path: str, data: bytes) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "xb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise ConfigurationError(
            f"cannot write {path}: {error.strerror}", hint="Choose another place with --output FILE."
        ) from error
