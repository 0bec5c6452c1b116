"""What the tests of backups look at: an archive with Python's own tarfile, and a backup that failed as it should."""

from __future__ import annotations

import json
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from portal.ops.backup.job import BackupResult
    from tests.support.portal import Portal


ROOT = Path(__file__).parents[2]
NOON = datetime(2024, 1, 15, 12, tzinfo=UTC)
GUIDE_KEYS = {"backup_id", "type", "timestamp", "format_version", "components", "hostname", "db_name"}


def refused(result: BackupResult, portal: Portal) -> str:
    """The error of a backup that failed as it should: with a hint, and without a trace."""
    assert not result.success
    assert (result.destination_path, result.checksum, result.size_bytes, result.components) == ("", "", 0, ())
    assert result.error is not None
    assert "\n  hint: " in result.error
    assert portal.left() == set()
    return result.error


def members(archive: Path) -> list[str]:
    """What tar finds below the archive's directory."""
    with tarfile.open(archive) as tar:
        return [name.partition("/")[2] for name in tar.getnames()]


def member(archive: Path, path: str) -> bytes:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"{archive.name.removesuffix('.tar.gz')}/{path}")
        assert file is not None
        return file.read()


def manifest(archive: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(member(archive, "manifest.json"))
    return found


def files_below(directory: Path, prefix: str) -> dict[str, bytes]:
    return {
        f"{prefix}/{path.relative_to(directory)}": path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }
