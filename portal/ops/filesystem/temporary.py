"""Names of temporary files, for content that appears under its name at once.

A number of the process would not do: threads share it, and so do processes in several containers.
"""

from __future__ import annotations

import os
import re
import secrets
from typing import Final

_NUMBERS: Final = 10**9
_LONGEST: Final = 255 - len(f"..{_NUMBERS - 1}.tmp")  # bytes that a file system leaves of a name
_TEMPORARY: Final = re.compile(r"\..+\.[0-9]{1,9}\.tmp", re.DOTALL)


def temporary_name(name: str) -> str:
    """A hidden name that nobody else takes, to be renamed to the given one; it holds as much of that as fits.

    Arguments:
        name: the name of a file, without a directory.
    """
    start = os.fsdecode(os.fsencode(name)[:_LONGEST])
    return f".{start}.{secrets.randbelow(_NUMBERS)}.tmp"


def is_temporary(name: str) -> bool:
    """Whether `temporary_name` has made this name."""
    return _TEMPORARY.fullmatch(name) is not None


def is_visible(name: str) -> bool:
    """Whether a name is not hidden; temporary files are, and what others hide in a directory."""
    return not name.startswith(".")
