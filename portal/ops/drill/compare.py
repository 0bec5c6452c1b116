"""Compares a drill's restore with the backup: every table, every constraint and index, every file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from portal.ops.archive.damage import Damage
from portal.ops.drill.compare_files import FileComparison
from portal.ops.model import Component
from portal.ops.restore.database.row_check import check_rows
from portal.ops.units import counted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from portal.ops.archive.protocol import Archive
    from portal.ops.restore.database.object_check import ObjectCheck

MOST_DAMAGES: Final = 100


@dataclass(kw_only=True)
class Comparison:
    """Collects what was compared, and the differences from the backup."""

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
        """Compare the rows of every table with the manifest; without counts there, add a warning.

        Arguments:
            roots: the topmost partitioned table of each partition.
        """
        self.tables, self.rows = len(found), sum(found.values())
        if found and not expected:
            self.warnings.append("the manifest does not say how many rows there were, so they could not be compared")
            return
        checked = check_rows(found, expected, roots or {})
        for what in checked.wrong:
            self._damage(f"table {what}")
        self.warnings += checked.warnings()
        self.checks.append(f"{counted(self.tables, 'table')} with {counted(self.rows, 'row')}")

    def keys_of_tables(self, found: ObjectCheck) -> None:
        """Compare indexes, constraints and triggers with the recorded source."""
        for what in found.wrong:
            self._damage(what)
        self.warnings += found.warnings
        self.checks.append(
            f"{counted(found.indexes, 'index', 'indexes')} and {counted(found.constraints, 'constraint')}"
        )

    def files_of(self, archive: Archive, prefix: str, place: Path) -> None:
        """Compare every restored file with the archive: content, mode and time, and that there are no others.

        Arguments:
            prefix: the name of the component in the archive.
            place: the directory that was restored to.

        Raises:
            NotIntactError: the archive is damaged.
        """
        found = FileComparison(archive, prefix, place)
        for damage in found.damages():
            self._damage(damage.what, damage.path)
        self.warnings += found.warnings
        files, content_bytes = found.files, found.content_bytes
        self.files, self.bytes = self.files + files, self.bytes + content_bytes
        name = next(one.spoken for one in Component if one.member == prefix)
        self.checks.append(f"{name}: {counted(files, 'file')} with {counted(content_bytes, 'byte')}")

    def _damage(self, what: str, path: str | None = None) -> None:
        if len(self.damages) < MOST_DAMAGES:
            self.damages.append(Damage(what=what, path=path))
