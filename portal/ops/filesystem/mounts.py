"""The mounted file systems, as the kernel lists them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

TABLE: Final = Path("/proc/self/mountinfo")

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
_PLACE: Final = 4
"""The field with the mount point: two numbers, a device and a root come before it."""


class Mount(NamedTuple):
    """A file system and its mount point.

    Arguments:
        place: the mount point.
        kind: the type of the file system, such as ``ext4``.
    """

    place: str
    kind: str


def read_mounts(table: Path = TABLE) -> list[Mount]:
    """All mounts, in the kernel's order, in which a later one covers an earlier one; none if it does not list them."""
    try:
        return parse_mounts(table.read_bytes())
    except OSError:
        return []


def parse_mounts(table: bytes) -> list[Mount]:
    """The mounts in a table in the form of `/proc/self/mountinfo`, without invalid lines."""
    found = []
    for line in table.split(b"\n"):  # a name may have any other line end in it
        before, dash, after = line.partition(b" - ")
        fields = before.split(b" ")
        if dash and len(fields) > _PLACE:
            place = _ESCAPE.sub(lambda code: bytes([int(code[1], 8)]), fields[_PLACE])
            found.append(Mount(os.fsdecode(place), os.fsdecode(after.partition(b" ")[0])))
    return found
