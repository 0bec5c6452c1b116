"""Lists the moments that can be restored, and when many rows of which tables were removed.

The WAL has file numbers instead of table names. Every base backup records the names at its time, and the live server
has the present ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from portal.ops.model import SUFFIX, BackupType, timestamp
from portal.ops.pitr.look import base_of, look
from portal.ops.pitr.wal_reader import commits, segments_between
from portal.ops.repository.catalogue import Catalogue
from portal.ops.units import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from portal.ops.pitr.look import PitrLook
    from portal.ops.pitr.replaced import ReplacedCluster
    from portal.ops.pitr.wal_reader import Commit, Relation
    from portal.ops.pitr.window import Window
    from portal.ops.repository.entry import Entry
    from portal.ops.repository.repository import Repository
    from portal.ops.runtime.process import ProcessRunner

_KINDS: Final = {
    BackupType.FULL: "full backup",
    BackupType.DATABASE: "backup of the database",
    BackupType.MEDIA: "backup of uploads",
    BackupType.AUDIT_LOGS: "backup of the audit log",
    BackupType.BASE: "base backup",
}

MANY_ROWS: Final = 100
"""A transaction that removes fewer rows of a table is ordinary work and not listed, unless one asks for it."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """Rows removed by one transaction.

    Arguments:
        moment: the commit time, by the server's clock.
        table: the table's name, or its number if the name is unknown.
        rows: the number of rows; None for a whole table.
    """

    moment: datetime
    table: str
    rows: int | None

    def to_dict(self) -> dict[str, Any]:
        """The removal in the types of JSON."""
        return {"moment": self.moment.isoformat(), "table": self.table, "rows": self.rows}

    def __str__(self) -> str:
        what = "emptied, dropped or rewritten" if self.rows is None else f"{self.rows:,} rows removed"
        return f"{self.table}: {what}"


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The restorable moments, and events in them.

    Arguments:
        window: the recovery window; None if there is none.
        least_rows: transactions that removed fewer rows of a table are not listed.
        replaced: the WAL of earlier clusters, which is in no window.
    """

    window: Window | None
    archives: tuple[Entry, ...]
    removals: tuple[Removal, ...]
    least_rows: int = MANY_ROWS
    replaced: tuple[ReplacedCluster, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The timeline in the types of JSON."""
        return {
            "recovery_window": self.window.to_dict() if self.window else None,
            "archives": [
                {"backup_id": entry.name, "type": entry.type, "timestamp": timestamp(entry.moment)}
                for entry in self.archives
            ],
            "removals": [removal.to_dict() for removal in self.removals],
            "least_rows": self.least_rows,
            "replaced_clusters": [one.to_dict() for one in self.replaced],
        }

    def lines(self) -> list[str]:
        """The timeline for people, oldest first."""
        window = f"recovery window: {self.window}" if self.window else "there is no recovery window"
        entries = [
            (entry.moment, f"{_KINDS[entry.type] if entry.type else 'archive'} {entry.name}") for entry in self.archives
        ]
        entries += [(removal.moment, f"! {removal}") for removal in self.removals]
        shown = [
            f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}+00:00  {what}"
            for moment, what in sorted(entries)
        ]
        if self.window and not self.removals:
            none = f"no transaction removed {counted(self.least_rows, 'row')} of a table or more"
            shown.append(none if self.least_rows == 1 else f"{none}; --rows 1 shows smaller ones")
        return [*shown, window, *map(str, self.replaced)]


def read_timeline(
    repository: Repository,
    *,
    start: datetime | None,
    end: datetime | None,
    live_names: Mapping[Relation, str],
    least_rows: int = MANY_ROWS,
    runner: ProcessRunner,
    bin_dir: Path | None,
) -> Timeline:
    """Read the events between two moments.

    Arguments:
        start: the first moment; None for the beginning of the recovery window.
        end: the last moment; None for now.
        live_names: the present names of tables on the server.
        least_rows: do not list transactions that removed fewer rows of a table.

    Raises:
        RepositoryError: the repository cannot be read.
        ClientToolError: there is no pg_waldump of the server's version.
    """
    entries = Catalogue(repository).entries()
    found = look(repository, entries)
    removals: list[Removal] = []
    if found.archive is not None:
        segments = segments_between(found.archive, start or (found.window.start if found.window else None), end)
        names = {**_names_of_bases(repository, found), **live_names}
        for commit in commits(found.archive, segments, runner=runner, bin_dir=bin_dir, with_rows=True):
            if (start is None or start <= commit.moment) and (end is None or commit.moment <= end):
                removals += _removals(commit, names, least_rows)
    held = tuple(
        entry
        for entry in reversed(entries)
        if (start is None or start <= entry.moment) and (end is None or entry.moment <= end)
    )
    return Timeline(
        window=found.window,
        archives=held,
        removals=tuple(removals),
        least_rows=least_rows,
        replaced=found.replaced,
    )


def _removals(commit: Commit, names: Mapping[Relation, str], least_rows: int) -> Sequence[Removal]:
    """What a transaction removed. Few rows of a table without a name are the server's own, or values stored apart."""
    moment = commit.moment.astimezone(UTC)
    many = [
        Removal(moment=moment, table=names.get(relation, f"table {relation[1]}"), rows=rows)
        for relation, rows in commit.deleted.items()
        if rows >= (least_rows if relation in names else max(least_rows, MANY_ROWS))
    ]
    whole = {names[relation] for relation in commit.removed if relation in names}
    return [*many, *(Removal(moment=moment, table=name, rows=None) for name in sorted(whole))]


def _names_of_bases(repository: Repository, found: PitrLook) -> dict[Relation, str]:
    """The names of tables recorded by the base backups."""
    names: dict[Relation, str] = {}
    for base in sorted(found.bases, key=lambda base: base.ended):
        described = base_of(repository.path / f"{base.name}{SUFFIX}")
        relations = described[1].get("relations", {}) if described else {}
        database = int(relations.get("database", 0))
        names |= {(database, int(number)): str(name) for number, name in relations.get("names", {}).items()}
    return names
