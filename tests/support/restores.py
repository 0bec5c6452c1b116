"""What the tests of restores share: how one ends, and archives and places that make it harder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.restore.job import RestoreResult
    from tests.support.world import World


def done(result: RestoreResult) -> RestoreResult:
    assert result.error is None
    assert result.success
    return result


def refused(result: RestoreResult, code: int, *words: str) -> RestoreResult:
    assert not result.success
    assert result.exit_code == code
    for word in words:
        assert word in (result.error or "")
    return result


def archive_bytes(archive: Path) -> int:
    """How large the dump in an archive is."""
    with tarfile.open(archive) as tar:
        return next(found.size for found in tar if found.name.endswith("/database.sql"))


def noon() -> datetime:
    """A clock that stands still."""
    return datetime(2026, 1, 2, 12, tzinfo=UTC)


@contextmanager
def mounted(place: Path, bind: Path | None = None) -> Iterator[None]:
    """A file system of its own at a place, or another directory of the same one."""
    mount = ["mount", "--bind", str(bind)] if bind else ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs"]
    if os.geteuid() != 0 or subprocess.run([*mount, str(place)], capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def snapshot(root: Path) -> dict[str, Any]:
    """Everything in a directory, what restores keep included."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        seen = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (seen.st_mode, seen.st_size if content else 0, seen.st_mtime_ns, content)
    return found


def flip(archive: Path) -> None:
    """Damage one byte in the middle."""
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)


def dump_of(world: World) -> bytes:
    """The dump in the world's archive."""
    name = f"{world.archive.name.removesuffix('.tar.gz')}/database.sql"
    with tarfile.open(world.archive) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


def plain(
    directory: Path, manifest: dict[str, Any] | None, *, dump: bytes | None = None, media: Path | None = None
) -> Path:
    """An archive as tar and gzip write it, without a sidecar."""
    backup_id = "full_20240115_120000_abc123"
    top = directory / "plain" / backup_id
    top.mkdir(parents=True)
    if manifest is not None:
        says = {"backup_id": backup_id, "type": "full", "timestamp": "2024-01-15T12:00:00Z", "format_version": 1}
        (top / "manifest.json").write_text(json.dumps(says | manifest))
    if dump is not None:
        (top / "database.sql").write_bytes(dump)
    if media is not None:
        shutil.copytree(media, top / "media", symlinks=True)
    archive = directory / f"{backup_id}.tar.gz"
    subprocess.run(["/bin/tar", "-czf", archive, "-C", top.parent, backup_id], check=True)
    return archive


def cut_off(world: World) -> str:
    """A restore that was killed when everything was staged; its id."""
    program = (
        "import os, sys; from portal.ops.restore import create_restore_job\n"
        "from portal.ops.restore.history import RestoreHistory\n"
        "RestoreHistory.apply = lambda *_: os.kill(os.getpid(), 9)\n"
        "create_restore_job().restore_full('latest')"
    )
    ended = subprocess.run([sys.executable, "-c", program], env=world.portal.environ(), check=False, timeout=60)
    assert ended.returncode == -9
    assert len(world.databases()) == 2
    (record,) = (world.portal.archives / ".restores").glob("restore_*.json")
    return record.stem
