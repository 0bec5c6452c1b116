"""Lines that are longer than the terminal is wide: broken between words, and continued where their text began."""

from __future__ import annotations

import re
from typing import Final

_SIGN: Final = re.compile(r" *[-!*] +")
_LABEL: Final = re.compile(r"\S(?:\S| (?! ))* {2,}(?:! +)?")

_PIECE: Final = re.compile(r"(?<![^\s(])'\S(?:[^']*\S)?'(?=[\s.,;:)]|$)\S*|\S+")
"""A word, or a command or statement in quotes, which can be copied only as a whole."""

_FURTHER: Final = 4
"""More than the indentation of any line of ours that follows another, such as a hint."""

_COLUMN: Final = 8
_IN_COLUMN: Final = 2
"""The same for text that stands in a column, by its indentation."""

_LEAST: Final = 30
_MOST_INDENT: Final = 44


def wrapped(line: str, width: int) -> list[str]:
    """The lines of a terminal that a line takes.

    A word that is longer than the terminal is wide, such as a path, stays whole, for the terminal to break: what is
    copied from there is the path again.

    Arguments:
        line: without ends of lines and colours.
        width: in columns.
    """
    if len(line) <= width:
        return [line]
    begin, indent = _start(line, min(_MOST_INDENT, width - _LEAST))
    lines, current, end = [], line[:begin], begin
    fresh = True
    for piece in _PIECE.finditer(line, begin):
        gap = "" if fresh else line[end : piece.start()]
        if not fresh and len(current) + len(gap) + len(piece[0]) > width:
            lines.append(current)
            current, gap = " " * indent, ""
        current += gap + piece[0]
        end, fresh = piece.end(), False
    return [*lines, current]


def _start(line: str, most: int) -> tuple[int, int]:
    """Where the text of a line begins, behind the sign of a list or the labels of columns; where it is continued."""
    if sign := _SIGN.match(line):
        return sign.end(), sign.end()
    spaces = begin = len(line) - len(line.lstrip(" "))
    while (label := _LABEL.match(line, begin)) and label.end() <= most:
        begin = label.end()
    if begin > spaces:
        return begin, begin
    return spaces, spaces + (_IN_COLUMN if spaces >= _COLUMN else _FURTHER)
