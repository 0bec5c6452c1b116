"""Archives of any age."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.repository import Repository


def age(directory: Path) -> None:
    """Let time pass: only what has settled is remembered, and nobody can set the time of a change."""
    time.sleep(2.1)
    Catalogue(Repository(directory)).entries()
