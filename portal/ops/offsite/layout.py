"""The names of a copy's objects, relative to the destination.

    <stem>/00000.age …     the segments
    <stem>.json            the commit, written last

The stem is the archive's id. Objects are never overwritten. So if a copy is made again, for new recipients or because
the record of an interrupted copy was lost, it has a new stem: the id followed by ``.1``, ``.2``, …
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from portal.ops.model import BackupId

SEGMENT_BYTES: Final = 64 << 20
"""The bytes of the archive in each segment but the last."""

LEAST_SEGMENT_BYTES: Final = 1 << 20
MOST_SEGMENTS: Final = 50_000
"""The most segments of a copy: a commit that lists more could not be read back, and their names would not sort."""

WAL: Final = "wal/"

_COMMIT: Final = re.compile(r"(.+?)(?:\.([1-9]\d{0,4}))?\.json")
_SEALED: Final = ".age"
_PLAIN: Final = ".part"


class Stem(NamedTuple):
    """The common start of all names of one copy.

    Arguments:
        backup_id: the archive.
        generation: 0 for the first copy of the archive in this destination.
    """

    backup_id: str
    generation: int = 0

    def __str__(self) -> str:
        return f"{self.backup_id}.{self.generation}" if self.generation else self.backup_id

    @property
    def directory(self) -> str:
        """The prefix of the segments' names."""
        return f"{self}/"

    @property
    def commit(self) -> str:
        """The name of the commit."""
        return f"{self}.json"

    def segment(self, number: int, *, encrypted: bool) -> str:
        """The name of a segment."""
        return f"{self}/{number:05d}{_SEALED if encrypted else _PLAIN}"


def parse_stem(text: str) -> Stem | None:
    """Parse a stem; None if the text does not start with a backup id."""
    found = _COMMIT.fullmatch(f"{text}.json")
    if not found or BackupId.parse(found[1]) is None:
        return None
    return Stem(found[1], int(found[2] or 0))


def stem_of_commit(name: str) -> Stem | None:
    """The stem in a commit's name, or None if the name is another object's."""
    return parse_stem(name.removesuffix(".json")) if name.endswith(".json") else None


def segment_bytes_for(rate: int, size: int) -> int:
    """The bytes of the archive in each segment: fewer for a limited rate, so that bursts stay short.

    Arguments:
        rate: bytes per second; 0 for no limit.
        size: the size of the archive, of which there are never more than `MOST_SEGMENTS`.
    """
    seconds = 4
    wanted = max(LEAST_SEGMENT_BYTES, min(SEGMENT_BYTES, rate * seconds)) if rate else SEGMENT_BYTES
    return max(wanted, -(-size // MOST_SEGMENTS))
