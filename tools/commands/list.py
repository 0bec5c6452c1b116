"""`backup.sh list`: lists the archives of the repository, newest first."""

from __future__ import annotations

import gc
import textwrap
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import OpsError
from portal.ops.hints import Advice
from portal.ops.units import human_bytes, printable
from tools.jobs import repository, restore_job
from tools.terminal import output
from tools.terminal.output import Lines, is_json, is_quiet, print_line, print_listing, say, warn
from tools.terminal.run import watched_settings
from tools.terminal.table import Column, Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from portal.ops.pitr.window import Window
    from portal.ops.repository.repository import Repository
    from portal.ops.settings.load import Settings

_MOMENT: Final = "%Y-%m-%d %H:%M:%S"
_WAL: Final = "wal"
"""The directory of the WAL archive; its own module takes time to import."""

_INDENT: Final = " " * 4
_TIME: Final = Column(title="TIME (UTC)", width=16)
_TYPE: Final = Column(title="TYPE", width=10)
_SIZE: Final = Column(title="SIZE", width=8, is_number=True)
_ARCHIVE: Final = Column(title="ARCHIVE", width=33, least=27)
_PARENT: Final = Column(title="PARENT", width=33)
_BASE: Final = Column(title="BASE", width=33)
_STATE: Final = Column(title="STATE", width=10, least=4)
_TIME_FROM, _TYPE_FROM, _PARENT_FROM, _BASE_FROM = 72, 100, 140, 180
"""The widths from which on there are columns for time, type, parent and base.

On a narrower terminal, parent and faults have lines of their own; the time is in the name.
"""


def add_arguments(_parser: argparse.ArgumentParser, _name: str) -> None:
    """Define no arguments."""


def run(_: argparse.Namespace) -> int:
    """List archives, the recovery window, and restores."""
    from portal.ops.backup.listing import iterate_archives

    gc.disable()  # there may be very many archives, without garbage to collect
    settings, _show = watched_settings()
    place = repository(settings)
    restores, trouble = _restores(settings)
    window = _window(place)
    backups = _told(iterate_archives(place))
    others = {
        "success": True,
        "repository": str(place.path),
        "recovery_window": window.to_dict() if window else None,
        "restores": restores,
    }
    if not print_listing("backups", backups, **others):
        if place.path.is_dir():
            say(f"there is no archive in {place.path}; {Advice.BACK_UP_FULL} makes the first one")
        else:
            say(f"{place.path} is not there: BACKUP_LOCAL_PATH names another directory, or its disk is not mounted")
    for line in window_lines(window) if window else ():
        say(line)
    if restores:
        from tools.commands.restore import restore_lines

        for line in ["", "Restores:", *restore_lines(restores)]:
            say(line)
    if trouble:
        warn(trouble)
    return 0


def _told(backups: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Show each archive while the result is written."""
    if is_quiet() and not is_json():
        for backup in backups:
            print_line(backup["backup_id"])
            yield backup
        return
    rows = None if is_json() else _Rows(output.width())
    with Lines() as lines:
        for number, backup in enumerate(backups):
            if rows and number == 0:
                lines.say(rows.head(), "head")
            for line in rows.lines(backup) if rows else [_line(backup)]:
                lines.say(line)
            yield backup


class _Rows:
    """Archives as rows of a table with as many columns as fit.

    Arguments:
        width: the width of the terminal.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._columns = [
            *([_TIME] if width >= _TIME_FROM else []),
            *([_TYPE] if width >= _TYPE_FROM else []),
            _SIZE,
            _ARCHIVE,
            *([_PARENT] if width >= _PARENT_FROM else []),
            *([_BASE] if width >= _BASE_FROM else []),
            _STATE,
        ]
        self._table = Table(self._columns, width)

    def head(self) -> str:
        """The line of headings."""
        return self._table.head()

    def lines(self, backup: dict[str, Any]) -> list[str]:
        """One archive: its row, and below it what does not fit into the row."""
        is_narrow = self._width < _TYPE_FROM
        cells = {
            _TIME: backup["timestamp"][:16].replace("T", " "),
            _TYPE: _kind(backup),
            _SIZE: human_bytes(backup["size_bytes"]),
            _ARCHIVE: backup["backup_id"],
            _PARENT: backup["parent"] or "",
            _BASE: (backup["base"] or "") if backup["parent"] else "",
            _STATE: ", ".join(_marks(backup, is_short=is_narrow)),
        }
        below = []
        if backup["parent"] and _PARENT not in self._columns:
            below.append(f"{_INDENT}incremental, on {backup['parent']}")
        if backup["fault"] and is_narrow:
            below += textwrap.wrap(
                printable(backup["fault"]), self._width, initial_indent=_INDENT, subsequent_indent=_INDENT
            )
        return [self._table.row([cells[column] for column in self._columns]), *below]


def _window(place: Repository) -> Window | None:
    """The recovery window, or None if no WAL was ever received."""
    if not (place.path / _WAL).exists():
        return None
    from portal.ops.pitr.look import look

    return look(place).window


def window_lines(window: Window) -> Iterator[str]:
    """The recovery window for people."""
    yield f"\nRecovery window: {window.start:{_MOMENT}} to {window.end:{_MOMENT}} UTC"
    for start, end in window.gaps:
        yield f"  except {start:{_MOMENT}} to {end:{_MOMENT}} UTC: WAL is missing"


def _restores(settings: Settings) -> tuple[list[dict[str, Any]], str]:
    """The restores; if they cannot be read, that is reported, and the archives are still listed."""
    from portal.ops.restore.journal import DIRECTORY

    if not (settings.local_path / DIRECTORY).exists():  # importing the rest takes time
        return [], ""
    try:
        return restore_job(settings).list_restores(), ""
    except OpsError as error:
        return [], str(error)


def _line(backup: dict[str, Any]) -> str:
    marks = [*_marks(backup), *([f"on {backup['parent']}"] if backup["parent"] else [])]
    size = human_bytes(backup["size_bytes"])
    return f"{backup['timestamp']}  {_kind(backup):<10}  {size:>8}  {backup['backup_id']}  {'  '.join(marks)}".rstrip()


def _kind(backup: dict[str, Any]) -> str:
    kind = backup["type"] or "?"
    return f"+ {kind}" if backup["parent"] else kind


def _marks(backup: dict[str, Any], *, is_short: bool = False) -> list[str]:
    """The notes about an archive, most serious first."""
    verified = backup["verified"]
    marks = []
    if backup["fault"]:
        marks.append("NOT COMPLETE" if is_short else f"NOT COMPLETE: {backup['fault']}")
    if verified:
        intact = "verified" if is_short else f"verified: {verified['level']}"
        marks.append(intact if verified["intact"] else "DAMAGED")
    if backup["pinned"]:
        marks.append("pinned")
    return marks
