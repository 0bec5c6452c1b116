"""Tables for a terminal, or as Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


WORDS = frozenset({"program", "digests, sync", "version", "from"})
"""Columns of text, by heading."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Headings and cells; the first column is text, the others are figures."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """Return the table for a terminal."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [self._line(row, widths) for row in (self.header, tuple("-" * width for width in widths), *self.rows)]
        return "\n".join((self.title, *lines)) + "\n"

    def markdown(self) -> str:
        """Return the table as Markdown."""
        rule = ("---", *("---" if name in WORDS else "---:" for name in self.header[1:]))
        lines = ["| " + " | ".join(row) + " |" for row in (self.header, rule, *self.rows)]
        return "\n".join((f"### {self.title}", "", *lines)) + "\n"

    @staticmethod
    def _line(row: tuple[str, ...], widths: Sequence[int]) -> str:
        first, *others = (
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join((first, *others)).rstrip()
