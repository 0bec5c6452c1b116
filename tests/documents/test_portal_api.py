"""The guide's Python example, run as it is written there: what the portal itself calls."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from demo.compare import tree_contents
from portal.ops.restore.job import RestoreConfig, RestoreResult, RestoreScope, create_restore_job
from tests.support.commands import ROOT, run
from tests.support.portal import Portal, succeeded

# From the guide, "Python API"; the paths are replaced by those of the test.
EXAMPLE = """\
from portal.ops.backup import BackupConfig, BackupJob, create_backup_job
from portal.ops.restore import RestoreJob, create_restore_job

# Create backup
backup_job = create_backup_job(
    local_path="/var/backups/kekkai",
    db_host="localhost",
    media_path="/var/lib/kekkai-portal/uploads"
)

# Run full backup
result = backup_job.backup_full()
if result.success:
    print(f"Backup created: {result.destination_path}")
    print(f"Checksum: {result.checksum}")

# Verify backup integrity
valid, message = backup_job.verify_backup(result.destination_path)
print(f"Integrity check: {message}")

# Restore
restore_job = create_restore_job(dry_run=True)  # Validate first
restore_result = restore_job.restore_full("/path/to/backup.tar.gz")
"""


def test_the_example_of_the_guide(portal: Portal) -> None:
    """The example prints what it says it does, and its dry run finds that the backup could be restored."""
    replaced = {
        '"/var/backups/kekkai"': f'"{portal.archives}"',
        '"localhost"': f'"{portal.database.host}"',
        '"/var/lib/kekkai-portal/uploads"': f'"{portal.uploads}"',
        '"/path/to/backup.tar.gz"': "result.destination_path",
    }
    program = EXAMPLE
    for old, new in replaced.items():
        assert old in program
        program = program.replace(old, new)
    program += "\nassert restore_result.success, restore_result.error\nassert restore_result.dry_run\n"
    ended = run("-c", program, environ=portal.environ(), script=Path(sys.executable), cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    created, checksum, integrity = ended.stdout.splitlines()
    assert re.fullmatch(rf"Backup created: {portal.archives}/full_\d{{8}}_\d{{6}}_[0-9a-f]{{6}}\.tar\.gz", created)
    assert re.fullmatch(r"Checksum: [0-9a-f]{64}", checksum)
    assert re.fullmatch(r"Integrity check: full_\w+ is intact: .+", integrity)


def test_a_restore_that_the_portal_asks_for(portal: Portal, tmp_path: Path) -> None:
    """The portal gives places as arguments and the repository as a backup job, and reads the fields of the result."""
    backup_job = portal.job()
    archive = succeeded(backup_job.backup_full())
    job = create_restore_job(
        db_host=portal.database.host,
        db_name=portal.database.name,
        media_path=tmp_path / "elsewhere",
        backup_job=backup_job,
        environ=portal.environ(BACKUP_LOCAL_PATH=str(tmp_path / "unused")),
    )
    assert job.validate_backup(archive)[0]
    result = job.restore_media(archive)
    assert isinstance(result, RestoreResult)
    assert (result.success, result.error, result.dry_run) == (True, None, False)
    assert result.scope is RestoreScope.MEDIA
    assert result.backup_id == archive.name.removesuffix(".tar.gz")
    assert result.components_restored == ("media",)
    assert result.duration_seconds > 0
    assert tree_contents(tmp_path / "elsewhere") == tree_contents(portal.uploads)
    assert not (tmp_path / "unused").exists()


def test_a_component_that_failed_is_no_success(portal: Portal) -> None:
    """Where the database cannot be restored nothing is, and the result says so instead of an exception."""
    succeeded(portal.job().backup_full())
    result = create_restore_job(environ=portal.environ(DD_DATABASE_PORT="1")).restore_full("latest")
    assert not result.success
    assert result.components_restored == ()
    assert "no PostgreSQL server answers" in (result.error or "")


def test_what_is_given_wins_over_the_environment(portal: Portal) -> None:
    """An argument counts more than a variable."""
    job = create_restore_job(db_name="other", dry_run=True, environ=portal.environ(), exact=True)
    assert (job.config.db_name, job.config.dry_run, job.config.exact) == ("other", True, True)
    assert job.config.db_host == portal.database.host


def test_secrets_are_not_shown() -> None:
    """A configuration that is printed does not show the password."""
    assert "hunter2" not in repr(RestoreConfig(db_password="hunter2"))
