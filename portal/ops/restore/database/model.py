"""The request, plan, state and report of a database restore."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from portal.ops.units import counted, human_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from portal.ops.errors import OpsError
    from portal.ops.postgres.database_names import Marked
    from portal.ops.postgres.server import Session

_MOST_LISTED: Final = 8


class RestoreMode(StrEnum):
    """The ways to replace the live database.

    ``auto`` is ``swap`` if the server permits a swap, and ``in-place`` otherwise.
    """

    AUTO = "auto"
    SWAP = "swap"
    IN_PLACE = "in-place"


class DatabaseState(StrEnum):
    """The states of a database restore."""

    NOTHING = "nothing"
    STAGING = "staging"
    STAGED = "staged"
    APPLIED = "applied"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, kw_only=True)
class DatabaseReport:
    """The report of a database restore.

    Arguments:
        downtime_seconds: seconds during which the database could not be used.
        kept_database: the database with the previous data or, after a rollback, with the restored data.
        safety_dump: the file from which a restore in place is rolled back.
        row_counts: restored rows by table; empty if another process restored them.
        warnings: differences and doubts.
    """

    database: str
    mode: RestoreMode
    downtime_seconds: float
    kept_database: str | None = None
    safety_dump: Path | None = None
    row_counts: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DatabasePlan:
    """The plan of a database restore, with its obstacles.

    Arguments:
        exists: whether there is a live database.
        mode: ``swap`` or ``in-place``.
        reason: why that mode.
        server_version: the server's version string.
        pg_restore_version: the version of pg_restore; None if none fits.
        rows_now: rows of each live table.
        rows_are_estimated: whether these are the server's estimates, because counting would take long.
        rows_in_backup: rows by table in the manifest; may be empty.
        needed_bytes: about how many bytes a second copy takes on the server.
        free_bytes: free bytes on the server; None if they cannot be seen from here, because the server is on another
            machine or the user may not ask for its directory.
        sessions: the sessions connected to the live database.
        leftovers: databases that other restores have left behind.
        blockers: the errors that make the restore impossible.
    """

    database: str
    host: str
    port: int
    exists: bool
    mode: RestoreMode
    reason: str
    server_version: str
    pg_restore_version: str | None
    rows_now: Mapping[str, int]
    rows_are_estimated: bool
    rows_in_backup: Mapping[str, int]
    needed_bytes: int
    free_bytes: int | None
    sessions: tuple[Session, ...]
    leftovers: tuple[Marked, ...]
    blockers: tuple[OpsError, ...]
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """The plan in plain words, without blockers and warnings."""
        return [
            f"Database {self.database} on {self.host}:{self.port} (PostgreSQL {self.server_version}"
            f"{f', pg_restore {self.pg_restore_version}' if self.pg_restore_version else ''})",
            self._now(),
            self._backup(),
            f"Mode {self.mode.value}: {self.reason}",
            self._room(),
            *self._sessions(),
            *self._leftovers(),
        ]

    def _now(self) -> str:
        if not self.exists:
            return "Now: there is no such database; it will be created"
        about = "about " if self.rows_are_estimated else ""
        return f"Now: {counted(len(self.rows_now), 'table')}, {about}{counted(sum(self.rows_now.values()), 'row')}"

    def _backup(self) -> str:
        if not self.rows_in_backup:
            return "In the backup: the manifest does not say how many rows"
        rows = counted(sum(self.rows_in_backup.values()), "row")
        return f"In the backup: {counted(len(self.rows_in_backup), 'table')}, {rows}"

    def _room(self) -> str:
        needed = f"Room on the server for a second copy: about {human_bytes(self.needed_bytes)}"
        if self.free_bytes is not None:
            return f"{needed}; {human_bytes(self.free_bytes)} are free"
        return f"{needed}; how much is free cannot be seen from here: look at the server's disk before you go on"

    def _sessions(self) -> list[str]:
        if not self.sessions:
            return []
        return [f"{counted(len(self.sessions), 'open session')} will be ended:", *_some(self.sessions)]

    def _leftovers(self) -> list[str]:
        if not self.leftovers:
            return []
        return ["Earlier restores have left:", *_some([marked.name for marked in self.leftovers])]


def _some(things: tuple[Session, ...] | list[str]) -> list[str]:
    more = len(things) - _MOST_LISTED
    return [f"  {thing}" for thing in things[:_MOST_LISTED]] + ([f"  and {more} more"] if more > 0 else [])
