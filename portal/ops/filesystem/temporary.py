"""Names of temporary files, for content that appears under its name at once.

A number of the process would not do: threads share it, and so do processes in several containers.
"""

from __future__ import annotations

import secrets
from typing import Final

_NUMBERS: Final = 10**9


def temporary_name(name: str) -> str:
    """A hidden name that nobody else takes, to be renamed to the given one.

    Arguments:
        name: the name of a file, without a directory.
    """
    return f".{name}.{secrets.randbelow(_NUMBERS)}.tmp"
