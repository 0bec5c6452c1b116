"""What lies below a directory and cannot be renamed into it: other file systems, and other mounts of the same."""

from __future__ import annotations

import re
from typing import Final

_MOUNTS: Final = "/proc/self/mountinfo"
_PLACE: Final = 4
"""The field of a line that says where the mount is, after two numbers, two more, and its root."""

_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")


def mounts_below(top: str) -> tuple[str, ...]:
    """What is mounted below a directory, relative to it; nothing where the kernel does not say.

    Arguments:
        top: a real path.
    """
    try:
        with open(_MOUNTS, "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return ()
    places = (_place(line) for line in lines)
    inside = f"{top.rstrip('/')}/"
    return tuple(sorted({place[len(inside) :] for place in places if place.startswith(inside) and place != inside}))


def _place(line: bytes) -> str:
    found = _ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), line.split(b" ")[_PLACE])
    return found.decode("utf-8", "surrogateescape")
