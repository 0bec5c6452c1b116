"""Archives of any age."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.repository import Repository
from tests.support.waiting import wait_until

_SETTLED_SECONDS = 2.1


def age(directory: Path) -> None:
    """Let time pass: only what has settled is remembered, and nobody can set the time of a change."""
    newest = max(path.stat().st_ctime for path in (directory, *directory.rglob("*")))
    wait_until(lambda: time.time() > newest + _SETTLED_SECONDS)
    Catalogue(Repository(directory)).entries()
