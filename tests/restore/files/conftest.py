"""What the tests of restores of files share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.archives import NAME, Recipe, write_archive
from tests.support.file_restores import put

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.archive.compressor_pool import CompressorPool

OLD_NS = 1_700_000_000_000_000_001


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Uploads to back up: two tenants, a link, an empty directory."""
    root = tmp_path / "source"
    for tenant in ("tenant-a", "tenant-b"):
        (root / tenant / "2024").mkdir(parents=True)
        for number in range(3):
            put(root / tenant / "2024" / f"scan-{number}.sarif", f"{tenant} {number}")
        put(root / tenant / "notes.json", tenant)
    (root / "empty").mkdir(mode=0o750)
    (root / "latest").symlink_to("tenant-a/2024/scan-2.sarif")
    return root


@pytest.fixture
def archive(pool: CompressorPool, tmp_path: Path, source: Path) -> Path:
    """A backup of `source`."""
    return write_archive(tmp_path / NAME, pool, Recipe(media=source))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Live uploads: one file as in the backup but older, one that the backup lacks, one where it has a directory."""
    root = tmp_path / "live"
    (root / "tenant-a" / "2024").mkdir(parents=True)
    put(root / "tenant-a" / "2024" / "scan-0.sarif", "an earlier upload")
    put(root / "tenant-a" / "new.json", "since the backup")
    put(root / "tenant-b", "a file in the way")
    os.utime(root / "tenant-a", ns=(OLD_NS, OLD_NS))
    os.utime(root, ns=(OLD_NS, OLD_NS))
    return root
