"""A drill proves the portal: files, key, and what the portal itself says of what was restored."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from portal.ops.drill.job import DrillJob
from portal.ops.drill.portal_checks import PortalCheckConfig
from portal.ops.drill.report import DrillReports
from portal.ops.model import VerifyLevel
from portal.ops.repository.repository import Repository
from portal.ops.repository.verifications import Verifications
from portal.ops.settings.database_url import Secret
from portal.ops.settings.file_columns import FileColumns
from tests.support import commands
from tests.support.portal import execute, succeeded
from tests.support.world import config_of

if TYPE_CHECKING:
    from portal.ops.drill.report import DrillReport
    from tests.support.portal import Portal

KEY = Secret("&91a*agLqesc*0DJ+2*bAbsUZfR*4nLw")
STORED = "AES.1:000102030405060708090a0b0c0d0e0f:86106e32af8419f87a080352248b8e2b"


def backed_up(portal: Portal, **config: Any) -> None:
    """Back up a portal with a file that a row refers to, and with a credential."""
    (portal.uploads / "uploaded_files").mkdir()
    (portal.uploads / "uploaded_files" / "a.txt").write_text("a")
    execute(
        portal.database,
        "CREATE TABLE dojo_fileupload (id int, file varchar(100) NOT NULL)",
        "INSERT INTO dojo_fileupload VALUES (1, 'uploaded_files/a.txt')",
        "CREATE TABLE dojo_cred_user (id int, password varchar(600))",
        f"INSERT INTO dojo_cred_user VALUES (1, '{STORED}')",  # noqa: S608
    )
    succeeded(portal.job(**config).backup_full())


def drilled(portal: Portal, **checks: Any) -> DrillReport:
    return DrillJob(config_of(portal), checks=PortalCheckConfig(**checks)).run()


def test_a_complete_portal(portal: Portal) -> None:
    """Everything is said to have been checked: the files that rows refer to, the key, and the portal's own command."""
    backed_up(portal, credential_key=KEY)
    script = 'psql -Atc "select file from dojo_fileupload" && cat "$PORTAL_UPLOAD_DIR/uploaded_files/a.txt"'
    path = f"PATH={portal.bin_dir}:$PATH; "
    report = drilled(portal, credential_key=KEY, command=("sh", "-ec", path + script))
    assert (report.success, report.exit_code, report.problems) == (True, 0, ())
    assert (report.command_exit_code, report.command_output) == (0, "uploaded_files/a.txt\na")
    checks = "\n".join(report.checks)
    assert "1 file referred to in dojo_fileupload.file, 0 of them missing; 4 files that no row refers to" in checks
    assert "it is the one of this backup; 1 of 1 stored credentials opened" in checks


def test_a_missing_file(portal: Portal) -> None:
    """The drill has failed and names the file; the archive is what was backed up, and not called damaged."""
    backed_up(portal)
    execute(portal.database, "INSERT INTO dojo_fileupload VALUES (2, 'uploaded_files/lost.txt')")
    succeeded(portal.job().backup_full())
    report = drilled(portal)
    assert (report.success, report.exit_code, report.damages) == (False, 1, ())
    assert "'uploaded_files/lost.txt'" in report.problems[0]
    repository = Repository(portal.archives, lock_timeout=1)
    found = Verifications(repository).of(report.backup_id)
    assert found is not None
    assert (found.level, found.intact) == (VerifyLevel.DRILL, True)
    assert DrillReports(repository).all()[0].problems == report.problems


def test_files_of_another_tree(portal: Portal) -> None:
    """Whoever says that the database refers to another tree gets no complaint."""
    backed_up(portal)
    execute(portal.database, "INSERT INTO dojo_fileupload VALUES (2, 'elsewhere.txt')")
    succeeded(portal.job().backup_full())
    assert drilled(portal, file_columns=FileColumns(checked=False)).success


def test_another_key(portal: Portal) -> None:
    """Neither the fingerprint nor the stored credential fits, and the key is shown nowhere."""
    backed_up(portal, credential_key=KEY)
    report = drilled(portal, credential_key=Secret("another key"))
    assert (report.success, len(report.problems)) == (False, 2)
    text = json.dumps(report.to_dict())
    assert KEY.reveal() not in text
    assert "another key" not in text


def test_no_key(portal: Portal) -> None:
    """It is a warning where the backup has a fingerprint, and nothing where it has none."""
    backed_up(portal, credential_key=KEY)
    report = drilled(portal)
    assert (report.success, any("is not set" in warning for warning in report.warnings)) == (True, True)


def test_the_portal_complains(portal: Portal) -> None:
    """Its exit code counts, and its output is in the report, without the password."""
    backed_up(portal)
    report = drilled(portal, command=("sh", "-c", "echo unapplied migrations; echo $DD_DATABASE_PASSWORD >&2; exit 5"))
    assert (report.success, report.exit_code, report.command_exit_code) == (False, 1, 5)
    assert report.command_output == "unapplied migrations\n********\n"


def test_a_check_that_does_not_exist(portal: Portal) -> None:
    """It is a problem, in a report that is kept."""
    backed_up(portal)
    report = drilled(portal, command=("/no/such/check",))
    assert (report.exit_code, report.problems) == (1, ("BACKUP_DRILL_COMMAND: there is no program /no/such/check",))


def test_the_command(portal: Portal) -> None:
    """`backup.sh drill` reads all of it from the environment; nothing of the scratch database is left."""
    environ = portal.environ(
        DD_CREDENTIAL_AES_256_KEY=KEY.reveal(),
        BACKUP_DRILL_COMMAND="sh -c 'test $DD_DATABASE_NAME != $LIVE && echo checked'",
        LIVE=portal.database.name,
    )
    backed_up(portal)
    result, said = commands.done("drill", environ=environ)
    assert result["command_output"] == "checked\n"
    assert "stored credentials opened" in said
