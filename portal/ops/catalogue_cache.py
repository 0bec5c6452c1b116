"""The catalogue's memory: a small SQLite database that can be lost at any moment.

Whatever goes wrong with it, it behaves as if it were empty.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Final

from portal.ops.logs import engine_log
from portal.ops.repository import give_to_owner, make_hidden

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

log = engine_log("portal.ops.catalogue")

Row = tuple[Any, ...]

_COLUMNS: Final = "name, stamp, kind, taken, parent, base, components, fault, checksum, level, found_at, intact"
_VERSION: Final = 2
_WAIT_SECONDS: Final = 2.0


class CatalogueCache:
    """What is remembered of each archive: its name, the stamp of its files, and what these say.

    Arguments:
        path: the database's file; its directory is made where that can be done.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def rows(self) -> Iterator[Row]:
        """Every row, in the order of the names; none where they cannot be read.

        Raises:
            sqlite3.Error: the database turned out to be damaged on the way.
        """
        if not self._path.exists():
            return
        with closing(self._open("ro")) as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == _VERSION:
                yield from database.execute(f"SELECT {_COLUMNS} FROM archive ORDER BY name")  # noqa: S608 - constants

    def save(self, changed: Sequence[Row], gone: Sequence[bytes]) -> None:
        """Remember rows, and forget others; it does not matter if that fails."""
        if not changed and not gone:
            return
        try:
            self._prepare()
            with closing(self._open("rwc")) as database, database:
                self._make_table(database)
                places = ", ".join("?" * len(_COLUMNS.split(",")))
                database.executemany(f"REPLACE INTO archive VALUES ({places})", changed)  # noqa: S608 - no text
                database.executemany("DELETE FROM archive WHERE name = ?", [(name,) for name in gone])
        except (sqlite3.Error, OSError) as error:
            log.debug("catalogue_unsaved", detail=str(error))

    def discard(self) -> None:
        """Forget everything."""
        for path in (self._path, self._path.with_name(self._path.name + "-journal")):
            with suppress(OSError):
                path.unlink()

    def _open(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(f"{self._path.absolute().as_uri()}?mode={mode}", uri=True, timeout=_WAIT_SECONDS)

    def _prepare(self) -> None:
        make_hidden(self._path.parent)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            give_to_owner(descriptor, self._path.parent)
        finally:
            os.close(descriptor)

    def _make_table(self, database: sqlite3.Connection) -> None:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version != _VERSION:
            database.execute("DROP TABLE IF EXISTS archive")
            database.execute(f"CREATE TABLE archive ({_COLUMNS}, PRIMARY KEY (name)) WITHOUT ROWID")
            database.execute(f"PRAGMA user_version = {_VERSION}")
