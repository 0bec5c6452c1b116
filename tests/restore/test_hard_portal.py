"""A portal with everything that has made backups or restores fail, all at once, on PostgreSQL 15 and newer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from demo.compare import tree_contents
from portal.ops.drill.job import DrillJob
from portal.ops.drill.portal_checks import PortalCheckConfig
from portal.ops.postgres.identity import DatabaseIdentity, read_identity
from portal.ops.postgres.server import maintenance
from portal.ops.restore.job import RestoreJob
from portal.ops.settings.database_url import DatabaseTarget, Secret
from tests.support.database_contents import Contents, read_contents
from tests.support.majors import majors, server_of
from tests.support.portal import Portal, portal_in, succeeded
from tests.support.restores import done
from tests.support.restoring import ask, elsewhere, execute
from tests.support.world import config_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from demo.postgres import EmbeddedPostgres
    from portal.ops.backup.job import BackupResult

__all__ = ["server_of"]

pytestmark = pytest.mark.xdist_group("majors")  # one process starts the servers, for all tests of versions

SUPPORT = Path(__file__).parents[1] / "support"
KEY = Secret("&91a*agLqesc*0DJ+2*bAbsUZfR*4nLw")
UNFINISHED = "never_finished"
MOVING = re.compile(r"by_severity_\d")


@dataclass(frozen=True, kw_only=True)
class HardPortal:
    """The portal, its backup, and what it was when that was made."""

    portal: Portal
    backup: BackupResult
    contents: Contents
    identity: DatabaseIdentity
    files: dict[str, tuple[int, int, str]]

    def expect_unchanged(self) -> None:
        """The portal is what it was: every row, definition and file, and the database around them."""
        now = comparable(self.portal.database)
        assert {what: lines for what, lines in now.items() if lines != self.contents[what]} == {}
        assert now.keys() == self.contents.keys()
        assert identity_of(self.portal.database) == self.identity
        assert tree_contents(self.portal.uploads) == self.files


def comparable(target: DatabaseTarget) -> Contents:
    """The contents, without the index that no dump has, and with partitions as the table that they are parts of."""
    found: Contents = {}
    for what, lines in read_contents(target).items():
        kept = [line for line in lines if UNFINISHED not in line]
        found.setdefault(MOVING.sub("by_severity", what) if what.startswith("rows of ") else what, []).extend(kept)
    return {what: sorted(lines) for what, lines in found.items()}


def identity_of(target: DatabaseTarget) -> DatabaseIdentity:
    with maintenance(target) as connection:
        found = read_identity(connection, target.name)
    assert found is not None
    return found


@pytest.fixture(scope="module", params=[major for major in majors() if major >= 15])
def hard(
    request: pytest.FixtureRequest,
    server_of: Callable[[int], EmbeddedPostgres],
    tmp_path_factory: pytest.TempPathFactory,
) -> HardPortal:
    """The portal on a server of one version, backed up."""
    server, name = server_of(request.param), "hard_portal"
    address = server.superuser(name)
    password = Secret(address.password)
    target = DatabaseTarget(host=address.host, port=address.port, name=name, user=address.user, password=password)
    for role in ("reader", "dojo"):
        if not ask(elsewhere(target), "SELECT count(*) FROM pg_roles WHERE rolname = %s", role):
            server.create_role(role, password="x")
    server.create_database(name, owner="dojo")
    portal = portal_in(tmp_path_factory.mktemp("hard"), target, server)
    (portal.uploads / "uploaded_files").mkdir()
    for letter in "ab":
        (portal.uploads / "uploaded_files" / f"{letter}.txt").write_text(letter)
    schemas = [(SUPPORT / file).read_text() for file in ("real_portal.sql", "hard_portal.sql")]
    execute(
        target,
        *schemas,
        f"ALTER DATABASE {name} SET work_mem = '5MB'",
        f"ALTER ROLE reader IN DATABASE {name} SET statement_timeout = '5s'",
        f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC",
        f"GRANT CONNECT ON DATABASE {name} TO reader",
        f"COMMENT ON DATABASE {name} IS 'production'",
        f"ALTER DATABASE {name} CONNECTION LIMIT 40",
    )
    contents = comparable(target)
    backup = portal.job(credential_key=KEY).backup_full()
    succeeded(backup)
    return HardPortal(
        portal=portal,
        backup=backup,
        contents=contents,
        identity=identity_of(target),
        files=tree_contents(portal.uploads),
    )


def change(portal: Portal) -> None:
    """What happens to the portal after its backup."""
    execute(
        portal.database,
        "DELETE FROM dojo_finding WHERE id % 2 = 0",
        "DROP TABLE merge_action",
        'UPDATE "order" SET id = id + 10',
        "UPDATE ranked SET level = 'changed'",
        "TRUNCATE by_severity",
        "DROP EVENT TRIGGER note_definition",
        "SELECT lo_unlink(70001)",
        "DROP PUBLICATION of_a_schema",
    )
    (portal.uploads / "uploaded_files" / "a.txt").write_text("changed")
    (portal.uploads / "newer.txt").write_text("newer")


def test_a_backup_changes_nothing_and_names_what_it_lacks(hard: HardPortal) -> None:
    """The rows of an extension's table and the index that is not valid are warnings; nothing else is wrong."""
    extension, index = hard.backup.warnings
    assert "the rows of public.kept_by_extension are in no dump" in extension
    assert "public.never_finished" in index
    hard.expect_unchanged()


@pytest.mark.parametrize("mode", ["swap", "in-place"])
def test_a_restore_brings_all_of_it_back(hard: HardPortal, mode: str) -> None:
    """Nothing differs from what was backed up, and what somebody has to do is said."""
    change(hard.portal)
    result = done(RestoreJob(config_of(hard.portal, mode=mode, exact=True, credential_key=KEY)).restore_full("latest"))
    hard.expect_unchanged()
    said = "\n".join(result.warnings)
    assert "rows of public.by_severity are in other partitions than they were; none is missing" in said
    assert 'ALTER SUBSCRIPTION "from_elsewhere" ENABLE' in said
    assert "changes, of_a_schema" in said
    inserted = ask(hard.portal.database, "INSERT INTO kept_by_extension (note) VALUES ('more') RETURNING id")
    execute(hard.portal.database, f"DELETE FROM kept_by_extension WHERE id = {inserted}")  # noqa: S608
    execute(hard.portal.database, "SELECT setval('kept_by_extension_id_seq', 30)")


def test_a_drill_finds_a_complete_portal(hard: HardPortal) -> None:
    """Rows, objects, files, the references between them and the key are looked at, and nothing is left behind."""
    report = DrillJob(config_of(hard.portal), checks=PortalCheckConfig(credential_key=KEY)).run()
    assert (report.success, report.damages, report.problems, report.error) == (True, (), (), None)
    checks = "\n".join(report.checks)
    assert "2 files referred to in dojo_fileupload.file, 0 of them missing" in checks
    assert "1 of 1 stored credentials opened" in checks
    left = "SELECT count(*) FROM pg_database WHERE datname ~ 'drill'"
    assert ask(elsewhere(hard.portal.database), left) == 0
    hard.expect_unchanged()
