"""What the tests of the commands share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """The variables of a portal without a database: uploads, and an empty repository."""
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "scan.sarif").write_text('{"runs": []}')
    (tmp_path / "elsewhere").mkdir()
    return {
        "PATH": os.environ["PATH"],
        "BACKUP_LOCAL_PATH": str(tmp_path / "archives"),
        "PORTAL_UPLOAD_DIR": str(tmp_path / "uploads"),
        "BACKUP_JOBS": "1",
    }
