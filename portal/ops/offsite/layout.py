"""Names of objects: where the parts of a copy lie, relative to the destination.

    <stem>/00000.age …     the segments
    <stem>.json            the commit, written last

The stem is the archive's id. Objects are never overwritten, so a copy that is made again, for new recipients or because
the memory of an interrupted one was lost, has a stem of its own: the id with ``.1``, ``.2``, … behind it.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from portal.ops.model import BackupId

SEGMENT_BYTES: Final = 64 << 20
"""So much of the archive is in each segment but the last."""

LEAST_SEGMENT_BYTES: Final = 1 << 20
WAL: Final = "wal/"

_COMMIT: Final = re.compile(r"(.+?)(?:\.([1-9]\d{0,4}))?\.json")
_SEALED: Final = ".age"
_PLAIN: Final = ".part"


class Stem(NamedTuple):
    """The start of the names of one copy.

    Arguments:
        backup_id: the archive.
        generation: 0 for the first copy of it in this destination.
    """

    backup_id: str
    generation: int = 0

    def __str__(self) -> str:
        return f"{self.backup_id}.{self.generation}" if self.generation else self.backup_id

    @property
    def directory(self) -> str:
        """The prefix of the segments."""
        return f"{self}/"

    @property
    def commit(self) -> str:
        """The name of the commit."""
        return f"{self}.json"

    def segment(self, number: int, *, encrypted: bool) -> str:
        """The name of a segment."""
        return f"{self}/{number:05d}{_SEALED if encrypted else _PLAIN}"


def parse_stem(text: str) -> Stem | None:
    """The stem that a text is; nothing where it starts with no id."""
    found = _COMMIT.fullmatch(f"{text}.json")
    if not found or BackupId.parse(found[1]) is None:
        return None
    return Stem(found[1], int(found[2] or 0))


def stem_of_commit(name: str) -> Stem | None:
    """The stem of a commit's name; nothing where the name is another object's."""
    return parse_stem(name.removesuffix(".json")) if name.endswith(".json") else None


def segment_bytes_for(rate: int) -> int:
    """The bytes of the archive per segment: fewer if the rate is limited, so that bursts stay short.

    Arguments:
        rate: bytes per second; 0 is no limit.
    """
    if not rate:
        return SEGMENT_BYTES
    seconds = 4
    return max(LEAST_SEGMENT_BYTES, min(SEGMENT_BYTES, rate * seconds))
