"""`backup.sh list`: the archives of the repository, newest first."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import OpsError
from tools.jobs import repository, restore_job
from tools.terminal import output
from tools.terminal.output import Lines, is_json, is_quiet, print_listing, say, warn
from tools.terminal.run import watched_settings
from tools.terminal.table import Column, Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from portal.ops.settings.load import Settings

_COLUMNS: Final = (
    Column(title="TIME (UTC)", width=16),
    Column(title="TYPE", width=10),
    Column(title="SIZE", width=8, is_number=True),
    Column(title="ARCHIVE", width=33, least=27),
    Column(title="STATE", width=10, least=4),
)


def add_arguments(_parser: argparse.ArgumentParser, _name: str) -> None:
    """It takes nothing."""


def run(_: argparse.Namespace) -> int:
    """List the archives, and the restores that were made."""
    from portal.ops.backup.listing import iterate_archives

    gc.disable()  # there may be very many archives, and none of what is made for them is garbage
    settings, _show = watched_settings()
    place = repository(settings)
    restores, trouble = _restores(settings)
    backups = _told(iterate_archives(place))
    others = {"success": True, "repository": str(place.path), "restores": restores}
    if not print_listing("backups", backups, **others):
        say(f"there is no archive in {place.path}; 'backup.sh full' makes the first one")
    if restores:
        from tools.commands.restore import restore_lines

        for line in ["", "Restores:", *restore_lines(restores)]:
            say(line)
    if trouble:
        warn(trouble)
    return 0


def _told(backups: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Tell a person of each archive on its way into the result."""
    if is_quiet() and not is_json():
        for backup in backups:
            sys.stdout.write(f"{backup['backup_id']}\n")
            yield backup
        return
    table = None if is_json() else Table(_COLUMNS, output.width())
    with Lines() as lines:
        for number, backup in enumerate(backups):
            if table and number == 0:
                lines.say(table.head())
            lines.say(table.row(_cells(backup)) if table else _line(backup))
            yield backup


def _restores(settings: Settings) -> tuple[list[dict[str, Any]], str]:
    """The restores that were made; if they cannot be read that is told, and hides no archive."""
    from portal.ops.restore.journal import DIRECTORY

    if not (settings.local_path / DIRECTORY).exists():  # what follows takes a while to import
        return [], ""
    try:
        return restore_job(settings).list_restores(), ""
    except OpsError as error:
        return [], str(error)


def _cells(backup: dict[str, Any]) -> list[str]:
    from portal.ops.units import human_bytes

    moment = backup["timestamp"][:16].replace("T", " ")
    return [moment, _kind(backup), human_bytes(backup["size_bytes"]), backup["backup_id"], ", ".join(_marks(backup))]


def _line(backup: dict[str, Any]) -> str:
    from portal.ops.units import human_bytes

    marks = [*_marks(backup), *([f"on {backup['parent']}"] if backup["parent"] else [])]
    size = human_bytes(backup["size_bytes"])
    return f"{backup['timestamp']}  {_kind(backup):<10}  {size:>8}  {backup['backup_id']}  {'  '.join(marks)}".rstrip()


def _kind(backup: dict[str, Any]) -> str:
    kind = backup["type"] or "?"
    return f"+ {kind}" if backup["parent"] else kind


def _marks(backup: dict[str, Any]) -> list[str]:
    verified = backup["verified"]
    marks = []
    if backup["fault"]:
        marks.append(f"NOT COMPLETE: {backup['fault']}")
    if verified:
        marks.append(f"verified: {verified['level']}" if verified["intact"] else "DAMAGED")
    if backup["pinned"]:
        marks.append("pinned")
    return marks
