"""Compares the row counts of a restored database with the manifest.

The number of rows of each whole table must be equal. The server chooses the partition of a row, and another version of
a collation or hash may choose a different one. So a partitioned table is compared as a whole; rows that have moved
within it only cause a warning.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from portal.ops.errors import NotIntactError
from portal.ops.hints import another_archive

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAMED: Final = 5


@dataclass(frozen=True, kw_only=True)
class RowCheck:
    """The result of the comparison.

    Arguments:
        wrong: tables with another number of rows.
        moved: partitioned tables with the right number of rows in other partitions.
    """

    wrong: tuple[str, ...]
    moved: tuple[str, ...]

    def raise_wrong(self) -> None:
        """Raise an error if a table differs.

        Raises:
            NotIntactError: a table is missing or has another number of rows.
        """
        if not self.wrong:
            return
        more = f"; and {len(self.wrong) - _NAMED} more" if len(self.wrong) > _NAMED else ""
        raise NotIntactError(
            f"the restored rows differ from the backup: {'; '.join(self.wrong[:_NAMED])}{more}",
            hint=another_archive(),
        )

    def warnings(self) -> list[str]:
        """Warnings."""
        return [f"rows of {table} are in other partitions than they were; none is missing" for table in self.moved]


def check_rows(found: Mapping[str, int], expected: Mapping[str, int], roots: Mapping[str, str]) -> RowCheck:
    """Compare restored rows with the manifest; without counts there, nothing is compared.

    Arguments:
        roots: the partitioned table that each partition belongs to.
    """
    if not expected:
        return RowCheck(wrong=(), moved=())
    now, then = _by_root(found, roots), _by_root(expected, roots)
    wrong = tuple(
        f"{table} has {now.get(table, 'no')} rows, not {then.get(table, 'any: it is not in the backup')}"
        for table in sorted(now.keys() | then.keys())
        if now.get(table) != then.get(table)
    )
    differing = {roots[table] for table in roots if found.get(table, 0) != expected.get(table, 0)}
    moved = tuple(sorted(root for root in differing if now.get(root) == then.get(root)))
    return RowCheck(wrong=wrong, moved=moved)


def _by_root(counts: Mapping[str, int], roots: Mapping[str, str]) -> dict[str, int]:
    whole: dict[str, int] = defaultdict(int)
    for table, rows in counts.items():
        whole[roots.get(table, table)] += rows
    return dict(whole)
