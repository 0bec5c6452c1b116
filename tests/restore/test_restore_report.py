"""What a person reads at the end of a restore and of its rollback: what was done, what is doubtful, what is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portal.ops.restore.audit_chain import Chain, ChainReport, Continuation
from portal.ops.restore.files.record import FilesState
from portal.ops.restore.files.report import FilesReport
from tests.support.commands import RESTORE, done
from tests.support.portal import Portal, succeeded

if TYPE_CHECKING:
    from demo.postgres import EmbeddedPostgres


def restore(portal: Portal, *arguments: str) -> tuple[dict[str, Any], str]:
    """Run the command, which succeeds; its result, and what a person reads."""
    return done(*arguments, "--force", environ=portal.environ(), script=RESTORE)


def test_a_log_that_goes_on(portal: Portal) -> None:
    """An unbroken chain is told of, and is no warning."""
    succeeded(portal.job().backup_full())
    result, said = restore(portal, "latest", "--audit-only")
    assert "audit.jsonl: its hash chain is unbroken over 20 entries; the live log is the same." in said
    assert result["warnings"] == []


def test_a_live_log_that_was_tampered_with(portal: Portal) -> None:
    """A live log that is not what has become of the restored one is a warning, for a person and for a program."""
    succeeded(portal.job().backup_full())
    log = portal.audit / "audit.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:4], lines[4].replace("{", '{"forged": 1, ', 1), *lines[5:]]) + "\n")
    result, said = restore(portal, "latest")
    assert "audit.jsonl: its hash chain is unbroken over 20 entries; the live log does not continue it." in said
    (warning,) = result["warnings"]
    assert warning == "the audit log audit.jsonl, held against the restored one: the live log does not continue it"
    assert f"warning: {warning}\n" in said


def test_a_live_log_that_lacks_its_end(portal: Portal) -> None:
    """A live log from which the last entries were cut is a warning."""
    succeeded(portal.job().backup_full())
    log = portal.audit / "audit.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-3]))
    result, said = restore(portal, "latest", "--audit-only")
    assert "the live log lacks its last entries" in said
    assert any("lacks its last entries" in warning for warning in result["warnings"])


def test_a_chain_that_is_broken_in_the_backup(portal: Portal) -> None:
    """A chain that was broken when it was backed up is told with the line."""
    log = portal.audit / "audit.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:10], lines[10].replace("{", '{"forged": 1, ', 1), *lines[11:]]) + "\n")
    succeeded(portal.job().backup_full())
    result, said = restore(portal, "latest", "--audit-only")
    assert "audit.jsonl: its hash chain is broken at line 12; the live log is the same." in said
    assert result["warnings"] == [
        "the audit log audit.jsonl as it is in the backup: its hash chain is broken at line 12"
    ]


def test_what_was_done(portal: Portal) -> None:
    """The end of a full restore says how much was done to each component, and where what was live before is."""
    succeeded(portal.job().backup_full())
    upload = next(portal.uploads.rglob("*.sarif"))
    upload.unlink()
    result, said = restore(portal, "latest")
    facts = result["facts"]["database"]
    assert f"{facts['rows']:,} rows in {facts['tables']:,} tables; the previous database is kept as " in said
    assert facts["kept_database"] in said
    assert f"{portal.uploads}: 1 new, 0 replaced, " in said


def test_what_a_rollback_keeps(portal: Portal, postgres: EmbeddedPostgres) -> None:
    """What others have written since the restore is kept by its rollback, and a person is told where."""
    succeeded(portal.job().backup_full())
    tenant = next(path for path in portal.uploads.iterdir() if path.is_dir())
    shutil.rmtree(tenant)
    restore(portal, "latest")
    (tenant / "newfile").write_text("written since")
    with postgres.connect(portal.database.name) as connection:
        connection.execute("CREATE TABLE since (number integer)")
    result, said = restore(portal, "--rollback")
    kept = result["facts"]["database"]["kept_database"]
    assert f"the restored one, with everything written to it since, is kept as {kept}." in said
    with postgres.connect("postgres") as connection:
        connection.execute(f"ALTER DATABASE {kept} ALLOW_CONNECTIONS true".encode())
    with postgres.connect(kept) as connection:
        assert connection.execute("SELECT count(*) FROM since").fetchone() == (0,)
    assert f"Written by others since, and kept: {tenant.name}/newfile." in said


def test_a_rollback_in_place(portal: Portal) -> None:
    """Where a database was restored in place, its rollback says that what was written since is gone."""
    succeeded(portal.job().backup_full())
    restore(portal, "latest", "--database-only", "--mode", "in-place")
    _, said = restore(portal, "--rollback")
    assert f"database {portal.database.name}: as before; it was restored in place" in said


def test_very_many_paths() -> None:
    """A person reads some names and a number; a program gets them all."""
    kept = tuple(f"tenant-001/{number:03d}" for number in range(25))
    report = FilesReport(place=Path("/uploads"), restore_id="r", state=FilesState.ROLLED_BACK, kept=kept)
    assert len(report.lines()) == 22
    assert report.lines()[-1] == "Written by others since, and kept: 5 more."
    assert len(report.to_dict()["kept"]) == 25


def test_the_types_of_json() -> None:
    """A report comes back from JSON as it went, with its chains."""
    chain = ChainReport(name="a", chain=Chain.BROKEN, entries=3, broken_at=2, continuation=Continuation.OLDER)
    report = FilesReport(
        place=Path("/audit"), restore_id="r", state=FilesState.APPLIED, new=1, warnings=("w",), chains=(chain,)
    )
    assert FilesReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
