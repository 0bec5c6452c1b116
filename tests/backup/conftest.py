"""What the tests of backups share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from portal.ops.archive.index import MemberType
from tests.support.incrementals import Uploads

if TYPE_CHECKING:
    from pathlib import Path

FILE, DIRECTORY, HARDLINK = MemberType.FILE, MemberType.DIRECTORY, MemberType.HARDLINK


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    """Two tenants, and no backup yet."""
    found = Uploads(directory=tmp_path)
    for path in ("tenant-1/scan.json", "tenant-1/old/report.sarif", "tenant-2/scan.json"):
        found.write(path, path.encode())
    return found
