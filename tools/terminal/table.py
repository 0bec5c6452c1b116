"""Tables that fit the terminal, written row by row without a limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from portal.ops.units import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

_GAP: Final = "  "
_CUT: Final = "…"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Arguments:
        title: its heading.
        width: how wide it is.
        least: the least width on a small terminal; columns that can shrink share the missing width, and the last column
            takes the rest.
        is_number: whether it is right-aligned.
    """

    title: str
    width: int
    least: int = 0
    is_number: bool = False


class Table:
    """Formats rows as lines of equal width.

    Arguments:
        columns: the columns from left to right; the last one is as wide as the terminal permits.
        columns_there: the width of the terminal.
    """

    def __init__(self, columns: Sequence[Column], columns_there: int) -> None:
        self._columns = columns
        self._widths = _fitted(columns, columns_there)

    def head(self) -> str:
        """The line of headings."""
        return self.row([column.title for column in self._columns])

    def row(self, cells: Sequence[str]) -> str:
        """One row; a cell that does not fit is cut, with an ellipsis."""
        fitted = []
        for column, width, text in zip(self._columns, self._widths, cells, strict=True):
            cell = printable(text)
            shown = cell if len(cell) <= width else cell[: width - 1] + _CUT
            fitted.append(shown.rjust(width) if column.is_number else shown.ljust(width))
        return _GAP.join(fitted).rstrip()


def _fitted(columns: Sequence[Column], there: int) -> list[int]:
    """The widths: as wanted, with the missing width taken from the widest columns that can shrink."""
    widths = [column.width for column in columns]
    free = there - len(_GAP) * (len(columns) - 1)
    while sum(widths) > free:
        shrinkable = [
            number for number, column in enumerate(columns) if widths[number] > (column.least or column.width)
        ]
        if not shrinkable:
            break
        widths[max(shrinkable, key=lambda number: widths[number])] -= 1
    widths[-1] += max(0, free - sum(widths))
    return widths
