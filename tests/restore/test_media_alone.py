"""Restores of uploads, which need no server: requests that come twice, rollbacks by name, what is old."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.errors import RestoreError
from portal.ops.model import RESTORE_DIRECTORY
from portal.ops.repository.access_log import AccessLog
from portal.ops.repository.repository import Repository
from portal.ops.restore import create_restore_job
from portal.ops.restore.cleanup import CleanupJob
from portal.ops.restore.config import RestoreConfig
from portal.ops.restore.history import RestoreHistory
from portal.ops.restore.job import RestoreJob
from portal.ops.restore.journal import RestoreRecords, RestoreState
from portal.ops.restore.live_change import note_portal_health
from portal.ops.restore.outcome import ResultBuilder
from portal.ops.restore.portal_health import HealthCheck
from portal.ops.retention.policy import RetentionPolicy
from tests.support.archives import seal
from tests.support.events import Events
from tests.support.hostile import CONTENT, directory, file, write_indexed
from tests.support.restores import done, refused

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.restore.config import RestoreResult
    from portal.ops.runtime.progress import Step

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
BACKUP_ID = "full_20240115_120000_abc123"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A repository with an archive of one upload, and uploads with another."""
    (tmp_path / "archives").mkdir()
    seal(write_indexed(tmp_path / "archives", [directory("media"), directory("media/t"), file("media/t/a")]))
    (tmp_path / "uploads" / "t").mkdir(parents=True)
    (tmp_path / "uploads" / "t" / "b").write_text("live")
    return tmp_path


def config(place: Path, **changes: Any) -> RestoreConfig:
    facts: dict[str, Any] = {"local_path": place / "archives", "media_path": place / "uploads"}
    return RestoreConfig(**(facts | changes))


def job(place: Path, *, at: datetime = NOON, **options: Any) -> RestoreJob:
    told = {name: options.pop(name) for name in ("confirm", "progress", "actor") if name in options}
    return RestoreJob(config(place, **options), clock=lambda: at, **told)


def restored(place: Path, **options: Any) -> RestoreResult:
    return done(job(place, **options).restore_media(BACKUP_ID))


def is_restored(place: Path) -> bool:
    return (place / "uploads" / "t" / "a").exists()


class TestRequests:
    """A request that is delivered twice is done once."""

    def test_its_id_is_that_of_the_request(self, place: Path) -> None:
        """Of its moment in UTC, whatever the clock says, and of its own id."""
        moment = datetime(2026, 3, 4, 7, 6, 7, tzinfo=UTC)
        result = done(job(place).restore_media(BACKUP_ID, moment=moment, request_id="r"))
        assert result.restore_id.startswith("restore_20260304_070607_")
        assert result.plan[0] == f"Restore uploads from {BACKUP_ID}, made 2024-01-15 12:00:00 UTC."
        assert restored(place).restore_id.startswith("restore_20260102_120000_")
        one, other = restored(place), restored(place)
        assert one.restore_id != other.restore_id
        entry = list(AccessLog(Repository(place / "archives")).entries())[-1]
        assert (entry.details["scope"], entry.details["restore_id"]) == ("media", other.restore_id)
        assert (entry.action, entry.subject, entry.outcome) == ("restore", BACKUP_ID, "done")

    def test_it_has_the_result_of_the_first_time(self, place: Path) -> None:
        """And does nothing again."""
        request: dict[str, Any] = {"moment": NOON, "request_id": "r"}
        assert job(place).earlier(**request) is None
        first = done(job(place).restore_media(BACKUP_ID, **request))
        (place / "uploads" / "t" / "a").unlink()
        for second in (job(place).restore_media(BACKUP_ID, **request), job(place).earlier(**request)):
            assert second is not None
            assert (second.success, second.restore_id, second.backup_id) == (True, first.restore_id, BACKUP_ID)
            assert (second.components_restored, second.backup_file) == (("media",), first.backup_file)
        assert not is_restored(place)
        assert len(job(place).list_restores()) == 1
        assert job(place).earlier(moment=NOON, request_id="another") is None

    def test_what_was_rolled_back_is_not_done_again(self, place: Path) -> None:
        """That is an error."""
        request: dict[str, Any] = {"moment": NOON, "request_id": "r"}
        first = done(job(place).restore_media(BACKUP_ID, **request))
        (place / "uploads" / "t" / "a").write_text("changed")  # so that the rollback keeps it, and its record
        done(job(place).rollback())
        assert [one["state"] for one in job(place).list_restores()] == ["rolled_back"]
        for second in (job(place).restore_media(BACKUP_ID, **request), job(place).earlier(**request)):
            assert second is not None
            refused(second, 1, f"{first.restore_id} was rolled back already", "Start a new restore")

    def test_what_was_interrupted_has_no_result_yet(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is done once it is done."""
        request: dict[str, Any] = {"moment": NOON, "request_id": "r"}
        with monkeypatch.context() as patched:
            patched.setattr(RestoreHistory, "apply", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                job(place).restore_media(BACKUP_ID, **request)
        assert job(place).list_restores()[0]["state"] == "staging"
        assert job(place).earlier(**request) is None
        result = done(job(place).restore_media(BACKUP_ID, **request))
        assert any("its remains are removed" in warning for warning in result.warnings)

    def test_a_rollback_that_comes_twice(self, place: Path) -> None:
        """It has succeeded the second time too, if it is known to be the same request."""
        first = restored(place)
        assert job(place).earlier_rollback(first.restore_id) is None
        done(job(place).rollback(first.restore_id, is_repeated=True))
        assert not is_restored(place)
        for second in (
            job(place).rollback(first.restore_id, is_repeated=True),
            job(place).earlier_rollback(first.restore_id),
        ):
            assert second is not None
            assert (second.success, second.restore_id, second.components_restored) == (
                True,
                first.restore_id,
                ("media",),
            )
            assert (second.is_rollback, second.to_dict()["rollback"]) == (True, None)
        refused(job(place).rollback(first.restore_id), 1, "was rolled back already")
        assert job(place).earlier_rollback("restore_9") is None

    def test_only_what_was_named_can_have_been_done(self, place: Path) -> None:
        """The last one is another one each time."""
        first, second = restored(place), restored(place)
        assert done(job(place).rollback(is_repeated=True)).restore_id == second.restore_id
        assert done(job(place).rollback(is_repeated=True)).restore_id == first.restore_id


class TestStuck:
    """A restore that cannot be settled now."""

    @pytest.fixture
    def stuck(self, place: Path) -> str:
        """One whose record in the uploads was damaged while it was being rolled back."""
        restore_id = restored(place).restore_id
        records = RestoreRecords(Repository(place / "archives"))
        records.save(records.all()[0], state=RestoreState.ROLLING_BACK)
        (place / "uploads" / RESTORE_DIRECTORY / restore_id / "restore.json").write_text("{")
        return restore_id

    def test_it_is_refused_by_its_name_alone(self, place: Path, stuck: str) -> None:
        """Another one is rolled back all the same, with a warning."""
        other = restored(place, media_path=place / "elsewhere")
        assert any(stuck in warning and "cannot be finished" in warning for warning in other.warnings)
        refused(job(place).restore_media(BACKUP_ID), 1, f"{stuck} was interrupted and has to be finished or undone")
        result = done(job(place).rollback(other.restore_id))
        assert any(stuck in warning for warning in result.warnings)
        refused(job(place).rollback(stuck), 1, f"{stuck} was interrupted and has to be finished or undone first")


class TestOld:
    """Rollback data that is too old."""

    def test_it_is_discarded(self, place: Path) -> None:
        """After so many days, by whoever looks; the log has it."""
        assert job(place).discard_old() == ()
        old = restored(place).restore_id
        week = NOON + timedelta(days=7)
        assert job(place, at=week - timedelta(seconds=1)).discard_old() == ()
        (said,) = job(place, at=week, actor="ada").discard_old()
        assert said == f"{old} is more than 7 days old and can no longer be rolled back"
        assert not (place / "uploads" / RESTORE_DIRECTORY).exists()
        entry = list(AccessLog(Repository(place / "archives")).entries())[-1]
        assert (entry.action, entry.subject, entry.outcome, entry.who) == ("discard", old, "done", "ada")

    def test_a_cleanup_discards_it_too(self, place: Path) -> None:
        """Unless it only looks, or may not prune; what is kept longer by the settings stays."""
        old = restored(place).restore_id

        def cleanup(**changes: Any) -> CleanupJob:
            policy = RetentionPolicy()
            later = NOON + timedelta(days=8)
            repository = Repository(place / "archives")
            return CleanupJob(repository, policy, config(place, **changes), clock=lambda: later, actor="ada")

        assert cleanup().run(dry_run=True).discarded == ()
        assert cleanup(rollback_days=9).run().discarded == ()
        found = cleanup().run().to_dict()
        assert found["rollback_data_discarded"] == [f"{old} is more than 7 days old and can no longer be rolled back"]
        assert cleanup().run().discarded == ()
        assert list(AccessLog(Repository(place / "archives")).entries())[-2].who == "ada"

    def test_a_cleanup_meets_a_restore(self, place: Path) -> None:
        """It says that it did not look."""
        restored(place)
        repository = Repository(place / "archives")
        made = CleanupJob(repository, RetentionPolicy(), config(place), clock=lambda: NOON)
        with RestoreRecords(repository).locked():
            (said,) = made.discard_old()
        assert said.startswith("old rollback data was not looked at: another restore is running")


class TestHealth:
    """The portal is asked after a change that has succeeded."""

    def builder(self, place: Path, **changes: Any) -> ResultBuilder:
        """A result."""
        return ResultBuilder(result=replace(restored(place), warnings=(), **changes))

    @pytest.mark.parametrize(
        ("changes", "url", "is_asked"),
        [
            ({}, "http://127.0.0.1:1/", True),
            ({"success": False}, "http://127.0.0.1:1/", False),
            ({"dry_run": True}, "http://127.0.0.1:1/", False),
            ({}, None, False),
        ],
    )
    def test_when(self, place: Path, changes: dict[str, Any], url: str | None, is_asked: bool) -> None:
        """Not after a failure, nor after a dry run, nor where there is no page; whoever waits sees it."""
        steps: list[Step] = []
        made = self.builder(place, **changes)
        health = HealthCheck(url=url, timeout_seconds=0)
        note_portal_health(config(place, health=health), made, steps.append)
        assert ([step.phase for step in steps], bool(made.result.portal), len(made.result.warnings)) == (
            (["ask the portal"], True, 1) if is_asked else ([], False, 0)
        )
        note_portal_health(config(place, health=health), self.builder(place), None)


class TestReading:
    """What is read, and when somebody is asked."""

    def test_a_dry_run_with_patterns_reads_those(self, place: Path) -> None:
        """And finds what is wrong with them; the rest need not be intact."""
        bad = [directory("media"), file("media/good"), file("media/bad", sha256="0" * 64)]
        seal(write_indexed(place / "archives", bad))
        done(job(place, dry_run=True, patterns=("good",)).restore_media(BACKUP_ID))
        refused(job(place, dry_run=True, patterns=("bad",)).restore_media(BACKUP_ID), 4, "media/bad")
        refused(job(place, dry_run=True).restore_media(BACKUP_ID), 4)
        result = done(job(place, patterns=("good",)).restore_full(BACKUP_ID))
        assert (result.scope.value, (place / "uploads" / "good").read_bytes()) == ("media", CONTENT)

    @pytest.mark.parametrize("answer", [True, False])
    def test_a_dry_run_shows_its_plan(self, place: Path, answer: bool) -> None:
        """Whatever the answer is, it ends the same."""
        asked: list[str] = []

        def confirm(plan: Any) -> bool:
            asked.append(plan.backup_id)
            return answer

        done(job(place, dry_run=True, confirm=confirm).restore_media(BACKUP_ID))
        assert asked == [BACKUP_ID]
        assert not is_restored(place)

    def test_what_is_done_is_logged(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each stage, and the end."""
        events = Events(monkeypatch, "portal.ops.restore.restoration")
        result = restored(place)
        assert [(event, facts.get("component")) for _, event, facts in events.all] == [
            ("component_staged", "media"),
            ("restore_finished", None),
        ]
        assert 0 <= events.all[0][2]["seconds"] < 60
        assert events.all[-1][2] == {"restore_id": result.restore_id, "backup_id": BACKUP_ID}


def test_a_job_of_the_environment(place: Path) -> None:
    """Arguments go before it, and nothing that is not given does."""
    environ = {
        "BACKUP_LOCAL_PATH": str(place / "archives"),
        "PORTAL_UPLOAD_DIR": str(place / "uploads"),
        "DD_DATABASE_HOST": "db",
        "DD_DATABASE_NAME": "dojo",
    }
    found = create_restore_job(environ=environ).config
    assert (found.db_host, found.db_name, found.media_path, found.dry_run) == ("db", "dojo", place / "uploads", False)
    found = create_restore_job("h", "n", place, True, environ=environ, exact=True).config
    assert (found.db_host, found.db_name, found.media_path, found.dry_run, found.exact) == ("h", "n", place, True, True)
    other = RestoreJob(RestoreConfig(local_path=place), job(place))
    assert other.repository.path == place / "archives"
    assert create_restore_job(environ=environ, backup_job=job(place)).repository.path == place / "archives"


def test_a_restore_of_that_name_is_there(place: Path) -> None:
    """It is not begun twice."""
    from portal.ops.archive.open import open_archive
    from tests.support.file_restores import restore_of

    archive = place / "archives" / f"{BACKUP_ID}.tar.gz"
    restore_of(place / "uploads").stage_from(open_archive(archive), 1)
    with pytest.raises(RestoreError, match=r"there is a restore restore_1 in .* already"):
        restore_of(place / "uploads").stage_from(open_archive(archive), 1)
