"""Whether what a drill has restored is what was backed up: every table, every constraint and index, every file."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from portal.ops.archive.damage import Damage
from portal.ops.drill.compare_files import FileComparison
from portal.ops.postgres.connection import connect
from portal.ops.postgres.server import restoring_errors
from portal.ops.restore.database.row_check import check_rows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from portal.ops.archive.protocol import Archive
    from portal.ops.settings.database_url import DatabaseTarget

MOST_DAMAGES: Final = 100

_SPECIAL_BITS: Final = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
_INDEXES: Final = """
    SELECT i.indexrelid::regclass::text, i.indisvalid AND i.indisready
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname !~ '^pg_' ORDER BY 1
"""
_CONSTRAINTS: Final = """
    SELECT c.conname || ' of ' || c.conrelid::regclass::text, c.convalidated
    FROM pg_constraint AS c JOIN pg_namespace AS n ON n.oid = c.connamespace
    WHERE c.conrelid <> 0 AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1
"""


@dataclass(kw_only=True)
class Comparison:
    """What was compared so far, and what is not as in the backup."""

    tables: int = 0
    rows: int = 0
    files: int = 0
    bytes: int = 0
    checks: list[str] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def rows_of_tables(
        self, found: Mapping[str, int], expected: Mapping[str, int], roots: Mapping[str, str] | None = None
    ) -> None:
        """Hold the rows of every table against the manifest; one that has none to say of them is a warning.

        Arguments:
            roots: the partitioned table that each partition belongs to.
        """
        self.tables, self.rows = len(found), sum(found.values())
        if not expected:
            self.warnings.append("the manifest does not say how many rows there were, so they could not be compared")
            return
        checked = check_rows(found, expected, roots or {})
        for what in checked.wrong:
            self._damage(f"table {what}")
        self.warnings += checked.warnings()
        self.checks.append(f"{self.tables:,} tables with {self.rows:,} rows")

    def keys_of_tables(self, scratch: DatabaseTarget) -> None:
        """Look whether every index and constraint is valid.

        A constraint that was never validated is one that the live database has like that, so it is only a warning.

        Raises:
            SourceError: the server cannot be asked.
        """
        with connect(scratch) as connection, restoring_errors(scratch):
            indexes = connection.execute(_INDEXES).fetchall()
            constraints = connection.execute(_CONSTRAINTS).fetchall()
        for name, is_valid in indexes:
            if not is_valid:
                self._damage(f"index {name} is not valid")
        unvalidated = [name for name, is_valid in constraints if not is_valid]
        if unvalidated:
            self.warnings.append(f"constraints that were never validated: {', '.join(unvalidated[:8])}")
        self.checks.append(f"{len(indexes):,} indexes and {len(constraints):,} constraints")

    def files_of(self, archive: Archive, prefix: str, place: Path) -> None:
        """Hold every file that was restored against the archive: content, mode and time, and that there is no other.

        Arguments:
            prefix: the component's name in the archive.
            place: where it was restored to.

        Raises:
            NotIntactError: the archive is damaged.
        """
        found = FileComparison(archive, prefix, place)
        for damage in found.damages():
            self._damage(damage.what, damage.path)
        self.warnings += found.warnings
        files, content_bytes = found.files, found.content_bytes
        self.files, self.bytes = self.files + files, self.bytes + content_bytes
        self.checks.append(f"{prefix}: {files:,} file{'' if files == 1 else 's'} with {content_bytes:,} bytes")

    def _damage(self, what: str, path: str | None = None) -> None:
        if len(self.damages) < MOST_DAMAGES:
            self.damages.append(Damage(what=what, path=path))
