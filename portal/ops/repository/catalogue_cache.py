"""The catalogue's cache: a small SQLite database that can be lost at any time.

After any error it behaves as if it were empty.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from portal.ops.repository.durable import make_hidden, open_own
from portal.ops.runtime.logs import engine_log

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

log = engine_log("portal.ops.repository.catalogue")

Row = tuple[Any, ...]

_COLUMNS: Final = (
    "name, stamp, finding_stamp, kind, taken, parent, base, components, fault, checksum, level, found_at, intact, read"
)
_VERSION: Final = 4
_WAIT_SECONDS: Final = 2.0


class Memory(NamedTuple):
    """The cached facts.

    Arguments:
        number: how many scans have been saved.
        findings: the stamp of the findings' directory when the rows were read; None if a row may be older.
        rows: one row for each archive, sorted by name: name, stamps of its files, and facts. Raises sqlite3.Error if
            the database turns out to be damaged.
    """

    number: int = 0
    findings: bytes | None = None
    rows: Iterator[Row] = iter(())


class CatalogueCache:
    """Stores the results of a scan for the next one.

    Arguments:
        path: the database file; its directory is created if possible.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Memory:
        """The results of the last scan; empty if there are none, or they are of another version.

        Raises:
            sqlite3.Error: the database is damaged.
        """
        if not self._path.exists():
            return Memory()
        with ExitStack() as opened:
            database = opened.enter_context(closing(self._open("ro")))
            database.execute("BEGIN")
            if _version(database) != _VERSION:
                return Memory()
            number, findings = database.execute("SELECT number, findings FROM look").fetchone()
            return Memory(number, findings, _rows(database, opened.pop_all()))

    def save(self, loaded: Memory, changed: Sequence[Row], gone: Sequence[bytes], findings: bytes | None) -> Memory:
        """Save the results of a scan, unless another one was saved meanwhile; failure is harmless.

        Returns the state to which the same scan may save more.

        Arguments:
            loaded: what the scan started with.
            changed: new and replaced rows.
            gone: names whose rows are to be removed.
            findings: as in `Memory`.
        """
        if not changed and not gone and findings == loaded.findings:
            return loaded
        try:
            self._prepare()
            with closing(self._open("rwc")) as database, database:
                database.execute("BEGIN IMMEDIATE")
                self._make_tables(database)
                saved = Memory(loaded.number + 1, findings)
                looked = database.execute(
                    "UPDATE look SET number = ?, findings = ? WHERE number = ?", (*saved[:2], loaded.number)
                )
                if looked.rowcount != 1:
                    return loaded
                places = ", ".join("?" * len(_COLUMNS.split(",")))
                database.executemany(f"REPLACE INTO archive VALUES ({places})", changed)  # noqa: S608 - no text
                database.executemany("DELETE FROM archive WHERE name = ?", [(name,) for name in gone])
        except (sqlite3.Error, OSError) as error:
            log.debug("catalogue_unsaved", detail=str(error))
            return loaded
        return saved

    def discard(self) -> None:
        """Remove the cache."""
        for path in (self._path, self._path.with_name(self._path.name + "-journal")):
            with suppress(OSError):
                path.unlink()

    def _open(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(f"{self._path.absolute().as_uri()}?mode={mode}", uri=True, timeout=_WAIT_SECONDS)

    def _prepare(self) -> None:
        make_hidden(self._path.parent)
        os.close(open_own(self._path))

    def _make_tables(self, database: sqlite3.Connection) -> None:
        if _version(database) != _VERSION:
            for table in ("archive", "look"):
                database.execute(f"DROP TABLE IF EXISTS {table}")
            database.execute(f"CREATE TABLE archive ({_COLUMNS}, PRIMARY KEY (name)) WITHOUT ROWID")
            database.execute("CREATE TABLE look (number, findings)")
            database.execute("INSERT INTO look VALUES (0, NULL)")
            database.execute(f"PRAGMA user_version = {_VERSION}")


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _rows(database: sqlite3.Connection, opened: ExitStack) -> Iterator[Row]:
    with opened:
        yield from database.execute(f"SELECT {_COLUMNS} FROM archive ORDER BY name")  # noqa: S608 - constants
