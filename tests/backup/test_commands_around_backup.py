"""The operator's commands around a backup, and the note of the portal's key in it."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from portal.ops.archive.open import open_archive
from portal.ops.postgres.credential_key import fingerprint_of, is_key_of
from portal.ops.runtime.commands import AroundCommands
from portal.ops.settings.database_url import Secret
from tests.support import commands
from tests.support.portal import execute, succeeded

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.manifest import Manifest
    from tests.support.portal import Portal

KEY = Secret("the portal's key")


def manifest_of(archive: Path) -> Manifest:
    with closing(open_archive(archive)) as reader:
        return reader.manifest()


def test_they_run_before_and_after(portal: Portal, tmp_path: Path) -> None:
    """What the first one changes is in the backup, and the second one knows the archive."""
    before = ("sh", "-c", f'echo quiet >"{portal.uploads}/maintenance"')
    after = ("sh", "-c", f'echo $KEKKAI_OPERATION $KEKKAI_RESULT $KEKKAI_ARCHIVE >"{tmp_path}/told"')
    archive = succeeded(portal.job(commands=AroundCommands(before=before, after=after)).backup_media())
    assert (tmp_path / "told").read_text() == f"backup succeeded {archive}\n"
    with closing(open_archive(archive)) as reader:
        assert any(member.path == "media/maintenance" for member in reader.members())


def test_one_that_fails_before_makes_no_backup(portal: Portal) -> None:
    """The result says why, and nothing is in the repository."""
    result = portal.job(commands=AroundCommands(before=("sh", "-c", "echo portal is busy; exit 3"))).backup_media()
    assert (result.success, result.exit_code) == (False, 1)
    assert "BACKUP_BEFORE_COMMAND ended with 3: portal is busy" in (result.error or "")
    assert portal.left() == set()


def test_one_that_fails_after_is_a_warning(portal: Portal) -> None:
    """The backup is complete by then."""
    result = portal.job(commands=AroundCommands(after=("false",))).backup_media()
    assert (result.success, result.exit_code, result.warnings) == (True, 0, ("BACKUP_AFTER_COMMAND ended with 1",))


def test_a_backup_that_fails_is_told(portal: Portal, tmp_path: Path) -> None:
    """The second command runs, with the error."""
    after = ("sh", "-c", f'echo "$KEKKAI_RESULT: $KEKKAI_ERROR" >"{tmp_path}/told"')
    result = portal.job(commands=AroundCommands(after=after), db_port=1).backup_database()
    assert not result.success
    assert (tmp_path / "told").read_text().startswith("failed: ")


def test_a_backup_of_the_database_notes_the_key(portal: Portal) -> None:
    """Its fingerprint is in the manifest, and the key is nowhere in the archive."""
    archive = succeeded(portal.job(credential_key=KEY).backup_database())
    manifest = manifest_of(archive)
    assert is_key_of(manifest, KEY)
    assert not is_key_of(manifest, Secret("another"))
    assert KEY.reveal().encode() not in manifest.encode()
    assert fingerprint_of(manifest_of(succeeded(portal.job().backup_database()))) is None


def test_the_command_reads_the_settings(portal: Portal, tmp_path: Path) -> None:
    """`backup.sh` has them from the environment."""
    execute(portal.database, "CREATE TABLE before_backup (n int)")
    environ = portal.environ(
        BACKUP_BEFORE_COMMAND=f"touch '{tmp_path}/a b'",
        BACKUP_AFTER_COMMAND="/no/such/program",
        DD_CREDENTIAL_AES_256_KEY=KEY.reveal(),
    )
    result, _ = commands.done("database", environ=environ)
    assert (tmp_path / "a b").exists()
    assert result["warnings"] == ["BACKUP_AFTER_COMMAND: there is no program /no/such/program"]
