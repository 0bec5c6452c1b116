"""Drills of archives without a database, which need no server: what is checked, told, kept and removed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.drill.job import DrillJob
from portal.ops.drill.portal_checks import PortalCheckConfig
from portal.ops.drill.report import DIRECTORY, DrillReports
from portal.ops.drill.scratch import Scratch
from portal.ops.errors import OpsError, RepositoryError
from portal.ops.model import VerifyLevel
from portal.ops.repository.access_log import AccessLog
from portal.ops.repository.repository import Repository
from portal.ops.repository.sidecar import sidecar_of
from portal.ops.repository.verifications import Verifications
from portal.ops.restore.config import RestoreConfig
from tests.support.archives import seal
from tests.support.events import Events
from tests.support.hostile import CONTENT, directory, file, write_chained, write_indexed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.drill.report import DrillReport
    from portal.ops.runtime.progress import Step

BACKUP_ID = "full_20240115_120000_abc123"
MEDIA = [directory("media"), file("media/a"), file("media/b")]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A repository with an archive of two uploads; a drill leaves nothing in it but reports."""
    (tmp_path / "archives").mkdir()
    seal(write_indexed(tmp_path / "archives", MEDIA))
    yield tmp_path / "archives"
    left = (tmp_path / "archives" / DIRECTORY).glob("drill_*") if (tmp_path / "archives" / DIRECTORY).exists() else ()
    assert [path.name for path in left if path.is_dir()] == []


def drill(
    place: Path, archive: str = BACKUP_ID, *, checks: dict[str, Any] | None = None, **options: Any
) -> DrillReport:
    config = RestoreConfig(local_path=place, media_path=place.parent / "uploads", db_port=1)
    made = DrillJob(config, checks=PortalCheckConfig(**checks) if checks else None, actor="ada", **options)
    return made.run(archive)


def verified(place: Path) -> tuple[VerifyLevel, bool] | None:
    found = Verifications(Repository(place)).of(BACKUP_ID)
    return None if found is None else (found.level, found.intact)


def test_a_good_archive(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is restored, compared and removed; how long it took is the restore's time, in all the rest as well."""
    events, steps = Events(monkeypatch, "portal.ops.drill.job"), list["Step"]()
    report = drill(place, progress=steps.append)
    assert (report.success, report.exit_code, report.error, report.damages) == (True, 0, None, ())
    assert (report.files, report.bytes, report.tables) == (2, 2 * len(CONTENT), 0)
    assert report.checks == (f"uploads: 2 files with {2 * len(CONTENT)} bytes",)
    assert 0 < report.seconds == report.files_seconds <= report.total_seconds
    assert report.database_seconds == 0
    assert (report.backup_id, report.who, report.host) == (BACKUP_ID, "ada", os.uname().nodename)
    assert verified(place) == (VerifyLevel.DRILL, True)
    assert report.checksum in sidecar_of(place / f"{BACKUP_ID}.tar.gz").read_text()
    assert [step.phase for step in steps] == ["media", "compare", "check the portal", "clean up", "recover to moments"]
    assert [event for _, event, _ in events.all] == ["drill_finished"]
    assert events.all[0][2] == {"backup_id": BACKUP_ID, "seconds": round(report.seconds, 3)}
    (kept,) = DrillReports(Repository(place)).all()
    assert kept.drill_id == report.drill_id


def test_uploads_and_a_log(place: Path) -> None:
    """The log is restored beside where the live one would be, and compared there."""
    pieces = [*MEDIA, directory("audit"), file("audit/log")]
    write_chained(place, BACKUP_ID, pieces, changes={"components": ["media", "audit_logs"], "type": "full"})
    report = drill(place)
    assert (report.success, report.files) == (True, 3)
    assert report.checks[1].startswith("audit log: 1 file with ")


class TestDamage:
    """What is wrong with the archive."""

    def test_a_digest_that_is_another(self, place: Path) -> None:
        """Everything in it may be well all the same; it is a damage, with code 4."""
        sidecar = sidecar_of(place / f"{BACKUP_ID}.tar.gz")
        sidecar.write_text(f"{'0' * 64}  {BACKUP_ID}.tar.gz\n")
        report = drill(place)
        assert (report.success, report.exit_code) == (False, 4)
        assert report.damages == (f"its SHA-256 is {report.checksum}, and should be {'0' * 64}",)
        assert verified(place) == (VerifyLevel.DRILL, False)
        assert list(AccessLog(Repository(place)).entries())[-1].details["error"] == report.damages[0]

    def test_content_that_is_damaged(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is found while it is restored, and what was restored is removed."""
        events = Events(monkeypatch, "portal.ops.drill.job")
        seal(write_indexed(place, [*MEDIA, file("media/bad", sha256="0" * 64)]))
        report = drill(place)
        assert (report.success, report.exit_code, len(report.damages)) == (False, 4, 1)
        assert "media/bad" in report.damages[0]
        assert verified(place) == (VerifyLevel.DRILL, False)
        assert [(level, event) for level, event, _ in events.all] == [("error", "drill_failed")]

    def test_without_a_sidecar(self, place: Path) -> None:
        """Nothing is restored, and nothing recorded against it but the error."""
        sidecar_of(place / f"{BACKUP_ID}.tar.gz").unlink()
        report = drill(place)
        assert (report.exit_code, "no .sha256 file beside it" in (report.error or "")) == (4, True)


class TestRefused:
    """Drills that were not begun."""

    def test_there_is_no_full_one(self, tmp_path: Path) -> None:
        """The latest has to be one; any can be named."""
        tmp_path.joinpath("archives").mkdir()
        name = "media_20240115_120000_abc123"
        write_chained(tmp_path / "archives", name, MEDIA)
        report = drill(tmp_path / "archives", "latest")
        assert (report.exit_code, "there is no full backup" in (report.error or "")) == (2, True)
        assert DrillReports(Repository(tmp_path / "archives")).all() == []
        assert drill(tmp_path / "archives", name).success

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"components": ["cluster"], "format_version": 3}, "is a base backup"),
            ({}, "is an incremental of"),
        ],
    )
    def test_one_that_is_no_portal(self, place: Path, changes: dict[str, Any], says: str) -> None:
        """No drill restores one by itself."""
        name = "media_20240116_120000_abc123"
        parent = None if changes else place / f"{BACKUP_ID}.tar.gz"
        if parent:
            write_chained(place, BACKUP_ID, MEDIA)
        write_chained(
            place, name, [file("media/c")], parent=parent, base=BACKUP_ID if parent else None, changes=changes
        )
        report = drill(place, name)
        assert (report.exit_code, says in (report.error or "")) == (2, True), report.error

    def test_no_room(self, place: Path) -> None:
        """As much as the manifest says is needed."""
        changes = {"details": {"media": {"bytes": 1 << 60, "files": 2}}}
        write_chained(place, BACKUP_ID, MEDIA, changes=changes)
        report = drill(place)
        assert (report.exit_code, "a drill needs about" in (report.error or "")) == (1, True)
        assert verified(place) is None


def test_what_cannot_be_removed_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The drill has shown what it has shown; the next one removes it."""
    real = Scratch.throw_away

    def fails(scratch: Scratch, live: Any) -> None:
        monkeypatch.setattr(Scratch, "throw_away", real)
        raise OpsError("not now", hint="x")

    monkeypatch.setattr(Scratch, "throw_away", fails)
    report = drill(place)
    assert (report.success, report.warnings) == (
        True,
        ("the restored data is left for the next drill to remove: not now",),
    )
    second = drill(place)
    assert second.warnings == (f"{report.drill_id} had been interrupted; its restored data has been removed",)


def test_a_report_that_cannot_be_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told all the same, and the log has no digest."""
    events = Events(monkeypatch, "portal.ops.drill.job")

    def fails(*_: object) -> str:
        raise RepositoryError("no room", hint="x")

    monkeypatch.setattr(DrillReports, "save", fails)
    assert drill(place).success
    assert next((level, event) for level, event, _ in events.all) == ("warning", "drill_report_unwritten")
    assert not list(AccessLog(Repository(place)).entries())[-1].details.get("report")


@pytest.mark.parametrize("code", [0, 3])
def test_the_portals_own_check(place: Path, code: int) -> None:
    """It sees the uploads; if it fails the drill has failed, and the archive is intact."""
    script = f'cat "$PORTAL_UPLOAD_DIR/a"; echo $KEKKAI_BACKUP_ID; exit {code}'
    report = drill(place, checks={"command": ("sh", "-c", script)})
    assert report.command_output == f"{CONTENT.decode()}{BACKUP_ID}\n"
    assert (report.success, report.exit_code, report.command_exit_code) == (code == 0, int(code != 0), code)
    assert verified(place) == (VerifyLevel.DRILL, True)
    assert len(report.problems) == (code != 0)
    assert ("the restored portal is not complete: BACKUP_DRILL_COMMAND ended with 3" in (report.error or "")) is bool(
        code
    )
