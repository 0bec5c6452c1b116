"""Archives that the portal's own scripts and API have made: listed with their type, verified, kept and pruned."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.model import BackupId, BackupType
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.repository import Repository
from portal.ops.retention.policy import RetentionPolicy, RetentionRule
from portal.ops.retention.prune import PruneJob

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def put(repository: Path, name: str, files: dict[str, str]) -> Path:
    """Put an archive of tar and gzip with its checksum into a repository."""
    top = repository.parent / "work" / name
    for path, text in files.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(text)
    archive = repository / f"{name}.tar.gz"
    subprocess.run(["/bin/tar", "-czf", archive, "-C", top.parent, name], check=True)
    digest = sha256(archive.read_bytes()).hexdigest()
    archive.with_name(f"{archive.name}.sha256").write_text(f"{digest}  {archive.name}\n")
    return archive


def manifest(name: str, kind: str) -> str:
    """What the portal's scripts write, whatever they have put in."""
    return (
        f'{{"backup_id": "{name}", "type": "{kind}", "timestamp": "2026-11-01T12:00:00Z", "format_version": 1, '
        '"components": ["database", "media", "audit_logs"], "hostname": "h", "db_name": "defectdojo"}'
    )


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """An empty repository."""
    directory = tmp_path / "archives"
    directory.mkdir()
    return directory


def test_the_apis_database_archives_are_databases(archives: Path) -> None:
    """Their names begin with `db`, and there is no manifest."""
    put(archives, "db_20261101_120000_abc123de", {"database.sql": "PGDMP"})
    (found,) = Catalogue(Repository(archives)).entries()
    assert (found.type, found.components, found.fault) == (BackupType.DATABASE, ("database",), "")
    assert found.moment == datetime(2026, 11, 1, 12, tzinfo=UTC)
    assert BackupJob(BackupConfig(local_path=archives)).verify_backup(found.name)[0]


def test_their_names_are_ids_that_stay_what_they_are() -> None:
    """The id of such a name is that name again."""
    name = "db_20261101_120000_abc123de"
    assert str(BackupId.parse(name)) == name


def test_a_manifest_that_lists_more_than_there_is(archives: Path) -> None:
    """The list has what the archive holds; it verifies, and what is missing is said."""
    name = "media_20261101_120000_abc123"
    put(archives, name, {"manifest.json": manifest(name, "media"), "media/scan.json": "{}"})
    job = BackupJob(BackupConfig(local_path=archives))
    (listed,) = job.list_backups()
    assert (listed["type"], listed["components"], listed["fault"]) == ("media", ["media"], None)
    found = job.verify(name)
    assert found.intact
    assert [note for note in found.notes if "lists database" in note]


def test_they_count_for_retention_and_go(archives: Path) -> None:
    """The newest stays, the older ones go with their checksums."""
    for day in (1, 2, 3):
        put(archives, f"db_2026110{day}_120000_abc123de", {"database.sql": "PGDMP"})
    policy = RetentionPolicy(rule=RetentionRule(days=7, count=1))
    assert len(PruneJob(Repository(archives), policy, clock=lambda: NOW).run().removed) == 2
    left = "db_20261103_120000_abc123de.tar.gz"
    assert {path.name for path in archives.iterdir() if not path.name.startswith(".")} == {left, f"{left}.sha256"}
    assert NOW - timedelta(days=7) > datetime(2026, 11, 3, tzinfo=UTC)
