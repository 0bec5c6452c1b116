"""What the tests of prunes share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from portal.ops.model import VerifyLevel
from portal.ops.repository.repository import Repository
from portal.ops.repository.verifications import Verifications
from tests.support.kept import finding
from tests.support.pruning import FULL, MEDIA, NOW, put

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three full backups of which two are old, and an old chain of three beside a young one of two."""
    place = tmp_path / "repository"
    for age in (1, 20, 30):
        put(place, FULL, age)
    base = put(place, MEDIA, 60)
    middle = put(place, MEDIA, 50, parent=base)
    put(place, MEDIA, 40, parent=middle)
    young = put(place, MEDIA, 30)
    put(place, MEDIA, 2, parent=young)
    old = finding(place, base, VerifyLevel.CHECKSUM)
    Verifications(Repository(place)).record(old, NOW)
    Verifications(Repository(place)).record(finding(place, young, VerifyLevel.DRILL), NOW)
    return place
