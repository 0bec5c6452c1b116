"""Positions in the WAL and names of its files. This module is pure.

A log sequence number (LSN) counts bytes from the start of the WAL; PostgreSQL writes it as ``16/B374D848``. A segment
is one WAL file. Its name is the timeline, then the number of the segment in two parts, each as eight hexadecimal
digits.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_LSN: Final = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_SEGMENT: Final = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})")
_HISTORY: Final = re.compile(r"([0-9A-F]{8})\.history")
_HISTORY_LINE: Final = re.compile(r"\s*(\d+)\s+([0-9A-Fa-f]+/[0-9A-Fa-f]+)")
_LOG_BYTES: Final = 1 << 32

PARTIAL: Final = ".partial"


def parse_lsn(text: str) -> int:
    """Parse a position as PostgreSQL writes it, two hexadecimal numbers.

    Raises:
        ValueError: the text is no position.
    """
    found = _LSN.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no position in the WAL")
    return (int(found[1], 16) << 32) | int(found[2], 16)


def format_lsn(lsn: int) -> str:
    """A position as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


class Segment(NamedTuple):
    """One segment.

    Arguments:
        timeline: the timeline on which it was written.
        number: the number of segments of this size before it.
    """

    timeline: int
    number: int

    def name(self, segment_bytes: int) -> str:
        """The name of its file."""
        in_a_log = _LOG_BYTES // segment_bytes
        return f"{self.timeline:08X}{self.number // in_a_log:08X}{self.number % in_a_log:08X}"


def parse_segment(name: str, segment_bytes: int) -> Segment | None:
    """The segment that a file name denotes, or None."""
    found = _SEGMENT.fullmatch(name)
    if not found:
        return None
    timeline, log, rest = (int(part, 16) for part in found.groups())
    return Segment(timeline, log * (_LOG_BYTES // segment_bytes) + rest)


def parse_history_name(name: str) -> int | None:
    """The timeline of a history file by its name, or None."""
    found = _HISTORY.fullmatch(name)
    return int(found[1], 16) if found else None


def parse_history(text: str) -> tuple[tuple[int, int], ...]:
    """The ancestors of a timeline, oldest first, each with the position at which its successor branched off."""
    lines = (_HISTORY_LINE.match(line) for line in text.splitlines())
    return tuple((int(found[1]), parse_lsn(found[2])) for found in lines if found)
