"""Archives that the portal's own scripts and API have made are restored for real, with what they hold."""

from __future__ import annotations

import json
import subprocess
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.model import VerifyLevel
from tests.support.restores import done

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.world import World

THREE = ["database", "media", "audit_logs"]
NAMES = {"database": "database.sql", "media": "media", "audit_logs": "audit"}


def made_by_portal(world: World, name: str, held: tuple[str, ...], *, with_manifest: bool = True) -> Path:
    """What the portal makes of the parts of the world's backup: `tar -czf`, and a manifest that lists three of them."""
    work = world.portal.directory / "portal-work"
    work.mkdir()
    subprocess.run(["/bin/tar", "-xzf", world.archive, "-C", work], check=True)
    (source,) = work.iterdir()
    top = source.rename(work / name)
    for component, member in NAMES.items():
        if component not in held:
            subprocess.run(["rm", "-rf", top / member], check=True)
    (top / "index.jsonl").unlink()
    (top / "manifest.json").unlink()
    if with_manifest:
        said: dict[str, Any] = {
            "backup_id": name,
            "type": name.partition("_")[0],
            "timestamp": "2026-11-01T12:00:00Z",
            "format_version": 1,
            "components": THREE,
            "hostname": "h",
            "db_name": world.portal.database.name,
        }
        (top / "manifest.json").write_text(json.dumps(said))
    archive = world.portal.archives / f"{name}.tar.gz"
    subprocess.run(["/bin/tar", "-czf", archive, "-C", work, name], check=True)
    digest = sha256(archive.read_bytes()).hexdigest()
    archive.with_name(f"{archive.name}.sha256").write_text(f"{digest}  {archive.name}\n")
    return archive


@pytest.mark.parametrize(
    ("name", "held", "with_manifest"),
    [
        ("full_20261101_120000_abc123", ("database", "media"), True),
        ("database_20261101_120000_abc123", ("database",), True),
        ("media_20261101_120000_abc123", ("media",), True),
        ("db_20261101_120000_abc123de", ("database",), False),
    ],
)
def test_it_is_restored_with_what_it_holds(world: World, name: str, held: tuple[str, ...], with_manifest: bool) -> None:
    """Verified to the end of the dump, listed with its parts, and restored; a listed part that is missing is told."""
    archive = made_by_portal(world, name, held, with_manifest=with_manifest)
    job = world.portal.job()
    assert job.verify(name, VerifyLevel.DUMP).intact
    (listed,) = [one for one in job.list_backups() if one["backup_id"] == name]
    assert (listed["type"], sorted(listed["components"])) == (
        name.partition("_")[0].replace("db", "database"),
        sorted(held),
    )
    result = done(world.job().restore_full(archive))
    tables, files = world.state()
    before_tables, before_files = world.before
    assert sorted(result.components_restored) == sorted(held)
    assert (tables == before_tables) is ("database" in held)
    assert ({path: found[-1] for path, found in files.items()} == {p: f[-1] for p, f in before_files.items()}) is (
        "media" in held
    )
    if with_manifest and len(held) < len(THREE):
        assert any("lists" in warning for warning in result.warnings)
