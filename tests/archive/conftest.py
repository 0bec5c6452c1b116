"""What the tests of archives share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """An empty directory of uploads."""
    root = tmp_path / "uploads"
    root.mkdir()
    return root
