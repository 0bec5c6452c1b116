"""What the tests of backups share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from portal.ops.archive.index import MemberType
from tests.support.incrementals import Uploads, two_tenants

if TYPE_CHECKING:
    from pathlib import Path

FILE, DIRECTORY, HARDLINK = MemberType.FILE, MemberType.DIRECTORY, MemberType.HARDLINK


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    """Two tenants, and no backup yet."""
    return two_tenants(tmp_path)
