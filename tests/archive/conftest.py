"""What the tests of archives share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import archives

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.archive.compressor_pool import CompressorPool


@pytest.fixture(scope="module")
def pool() -> Iterator[CompressorPool]:
    """Helper processes that all tests of this module share, as the components of one backup do."""
    with archives.compressor_pool() as pool:
        yield pool


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """An empty directory of uploads."""
    root = tmp_path / "uploads"
    root.mkdir()
    return root
