"""The portal is restored to a moment: the database by a swap, the uploads from the archives of that time."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from portal.ops.backup.job import BackupJob
from portal.ops.restore.config import RestoreScope
from portal.ops.restore.job import RestoreJob
from tests.support.wal_servers import WalPortal, a_moment, wal_portal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.restore.config import RestoreResult


@pytest.fixture(scope="module")
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WalPortal]:
    """A portal with a database of its own, whose WAL is received."""
    with wal_portal(tmp_path_factory.mktemp("moments")) as made:
        made.postgres.create_database("portal")
        with made.postgres.connect("portal") as connection:
            connection.execute("CREATE TABLE finding (number int PRIMARY KEY, title text)")
        with made.receiving():
            assert made.job().backup_base().success
            yield made


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """The directory of uploads."""
    directory = tmp_path / "uploads"
    directory.mkdir()
    return directory


def rows(portal: WalPortal) -> list[int]:
    with portal.postgres.connect("portal") as connection:
        return [number for (number,) in connection.execute("SELECT number FROM finding ORDER BY 1")]


def write(portal: WalPortal, statement: str) -> datetime:
    return portal.write(statement, database="portal")


def restorer(portal: WalPortal, uploads: Path | None = None, **others: Any) -> RestoreJob:
    return RestoreJob(portal.restore_config("portal", media_path=uploads, **others))


def backer(portal: WalPortal, uploads: Path) -> BackupJob:
    job = portal.job()
    return BackupJob(type(job.config)(**{**vars(job.config), "media_path": uploads}))


def restored(result: RestoreResult) -> RestoreResult:
    assert result.success, result.error
    return result


def test_accident_is_undone_and_can_be_rolled_back(portal: WalPortal, uploads: Path) -> None:
    """Rows and files are as they were a moment before; a rollback brings back what was live."""
    (uploads / "one.sarif").write_text("one")
    write(portal, "TRUNCATE finding")
    assert backer(portal, uploads).backup_media().success
    (uploads / "two.sarif").write_text("two")
    before = write(portal, "INSERT INTO finding SELECT g, 'a finding' FROM generate_series(1, 500) g")
    assert backer(portal, uploads).backup_media(incremental=True).success
    for upload in uploads.iterdir():
        upload.unlink()
    write(portal, "DELETE FROM finding WHERE number > 3")
    portal.wait_until_covered()
    job = restorer(portal, uploads)
    result = restored(job.restore_at(before.isoformat()))
    assert rows(portal) == list(range(1, 501))
    assert {path.name for path in uploads.iterdir() if path.is_file()} == {"one.sarif", "two.sarif"}
    assert result.components_restored == ("database", "media")
    assert job.rollback().success
    assert rows(portal) == [1, 2, 3]
    assert not [path for path in uploads.iterdir() if path.is_file()]


def test_database_of_another_name_is_refused_with_the_names_there_were(portal: WalPortal) -> None:
    """A new portal's database may have a new name: the error names those of the recovered server, and the option."""
    moment = write(portal, "TRUNCATE finding")
    portal.wait_until_covered()
    result = RestoreJob(portal.restore_config("dojo", create_database=True)).restore_at(
        moment.isoformat(), scope=RestoreScope.DATABASE
    )
    assert not result.success
    assert "the recovered server has no database dojo, but portal" in (result.error or "")
    assert "--target-database" in (result.error or "")


def test_dry_run_shows_the_plan_and_touches_nothing(portal: WalPortal, uploads: Path) -> None:
    """The plan names everything that leads to the moment, and what it takes; no scratch server is started."""
    (uploads / "one.sarif").write_text("one")
    media = backer(portal, uploads).backup_media()
    before = datetime.now(UTC)
    moment = write(portal, "TRUNCATE finding")
    portal.wait_until_covered()
    zone = ZoneInfo("Asia/Kolkata")
    job = restorer(portal, uploads, dry_run=True, time_zone=zone, audit_log_path=uploads / "audit")
    local = moment.astimezone(zone).replace(tzinfo=None)
    result = restored(job.restore_at(str(local)))
    plan = "\n".join(result.plan)
    for part in (
        f"The database as of {local.replace(microsecond=0)}+05:30 ({moment:%H:%M:%S} UTC)",
        "Base backup base_",
        "Recovery window: 20",
        "Room for a scratch server: about ",
        "Time: about ",
        f"Uploads: those of {media.backup_id}, complete at ",
        "The audit log stays as it is",
    ):
        assert part in plan
    last = re.search(r"Last transaction before: (\S+ \S+) \((\d\d:\d\d:\d\d) UTC\)", plan)
    assert last
    assert before.replace(microsecond=0) <= datetime.fromisoformat(last[1]) <= moment
    assert f"{datetime.fromisoformat(last[1]).astimezone(UTC):%H:%M:%S}" == last[2]
    assert not result.restore_id


def test_ago_counts_from_when_it_was_asked(portal: WalPortal) -> None:
    """A queue, a fetch or a second attempt may take long; the moment does not move meanwhile."""
    moment = write(portal, "TRUNCATE finding")
    portal.wait_until_covered()
    job, asked = restorer(portal, dry_run=True), moment + timedelta(hours=1)
    result = restored(job.restore_at("60 minutes ago", scope=RestoreScope.DATABASE, moment=asked))
    assert abs(datetime.fromisoformat(result.at) - moment) < timedelta(seconds=1)


def test_other_database_receives_it(portal: WalPortal) -> None:
    """With a target database the live one is left alone."""
    moment = write(portal, "TRUNCATE finding; INSERT INTO finding VALUES (7, 'seven')")
    write(portal, "TRUNCATE finding")
    portal.wait_until_covered()
    job = restorer(portal, target_database="looked_at", create_database=True)
    restored(job.restore_at(moment.isoformat(), scope=RestoreScope.DATABASE))
    assert rows(portal) == []
    with portal.postgres.connect("looked_at") as connection:
        assert connection.execute("SELECT number FROM finding").fetchall() == [(7,)]


def test_uploads_alone(portal: WalPortal, uploads: Path) -> None:
    """No server is needed for the uploads of a moment."""
    (uploads / "kept.json").write_text("kept")
    assert backer(portal, uploads).backup_media().success
    moment = a_moment()
    (uploads / "kept.json").unlink()
    restored(restorer(portal, uploads).restore_at(moment.isoformat(), scope=RestoreScope.MEDIA))
    assert (uploads / "kept.json").read_text() == "kept"


def test_moment_outside_the_window_is_refused(portal: WalPortal) -> None:
    """Exit code 2, and the window in the message."""
    portal.wait_until_covered()
    result = restorer(portal).restore_at("2020-01-01 00:00:00+00:00", scope=RestoreScope.DATABASE)
    assert result.exit_code == 2
    assert "outside the recovery window" in (result.error or "")
