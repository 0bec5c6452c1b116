"""A prune removes what the plan says and nothing that is needed, whoever else is at work, and wherever it is killed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.errors import BusyError, ConfigurationError
from portal.ops.model import VerifyLevel
from portal.ops.repository.access_log import AccessLog, Action, Outcome
from portal.ops.repository.locks import archive_lock, locked_alone
from portal.ops.repository.pins import Pins
from portal.ops.repository.repository import Repository
from portal.ops.repository.verifications import Verifications
from portal.ops.retention.policy import RetentionPolicy, RetentionRule
from tests.support.events import Events
from tests.support.kept import finding
from tests.support.killing import killed_at
from tests.support.portal import small_disk
from tests.support.pruning import FULL, NOW, archives, assert_sound, job, put

if TYPE_CHECKING:
    from collections.abc import Iterator


ROOT = Path(__file__).resolve().parents[2]


class TestRemoving:
    def test_what_the_plan_removes_is_gone(self, repository: Path) -> None:
        """Archives, sidecars and findings go together; the rest is as it was."""
        planned = job(repository).plan()
        result = job(repository).run()
        assert result.success
        assert {one.entry.name for one in result.removed} == {one.entry.name for one in planned.removals}
        assert archives(repository) == {one.entry.name for one in planned.decisions if one.keep}
        assert len(list(repository.glob("*.sha256"))) == len(archives(repository)) == 3
        assert set(Verifications(Repository(repository)).names()) <= archives(repository)
        assert_sound(repository)

    def test_each_removal_is_logged(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With its size and the reason, then their sum; a failure and a doubt as well."""
        events = Events(monkeypatch, "portal.ops.retention.prune")
        Pins(Repository(repository)).pin("full_20000101_000000_abcdef", reason="", who="ada", moment=NOW)
        result = job(repository).run()
        doubt, *removed, finished = events.all
        assert doubt[:2] == ("warning", "prune_doubtful")
        assert [facts["backup_id"] for _, _, facts in removed] == [one.entry.name for one in result.removed]
        assert {(level, event) for level, event, _ in removed} == {("info", "archive_removed")}
        assert all(facts["bytes"] > 0 and facts["reason"] for _, _, facts in removed)
        total = sum(facts["bytes"] for _, _, facts in removed)
        assert finished == ("info", "prune_finished", {"removed": 5, "bytes": total})
        assert total == result.freed_bytes
        with locked_alone(repository, "another prune is running"):
            assert not job(repository).run().success
        assert events.all[-1] == ("error", "prune_failed", {"error": str(events.all[-1][2]["error"])})
        assert "is running" in events.all[-1][2]["error"]

    def test_a_dry_run_changes_nothing(self, repository: Path) -> None:
        """It says what a prune would do, and does none of it."""
        before = sorted(os.listdir(repository))
        result = job(repository).run(dry_run=True)
        assert (len(result.removed), result.success, result.freed_bytes > 0) == (5, True, True)
        assert (result.wal_bytes, result.spared, result.swept, result.warnings) == (0, (), (), ())
        assert set(os.listdir(repository)) - {".cache"} == set(before)

    def test_a_pin_is_told_of_in_a_dry_run_too(self, repository: Path) -> None:
        """What is doubtful can be seen before; a dry run needs neither the lock nor a place in the log."""
        Pins(Repository(repository)).pin("full_20200101_000000_abcdef", reason="", who="ada", moment=NOW)
        with locked_alone(repository, "another prune is running"):
            result = job(repository).run(dry_run=True)
        assert (result.success, result.dry_run, len(result.removed)) == (True, True, 5)
        assert "is pinned, but it is not there" in result.warnings[0]
        assert list(AccessLog(Repository(repository)).entries()) == []

    def test_the_whole_result_as_json(self, repository: Path) -> None:
        """Every field is there, also of a prune that was refused."""
        (repository / "full_20260101_000000_abcdef.tar.gz.sha256").write_text("x")
        tip = next(one for one in archives(repository) if "20260120" in one)
        started = time.monotonic()
        with archive_lock(repository / f"{tip}.tar.gz", 1):
            result = job(repository).run()
        assert 0 <= result.duration_seconds <= time.monotonic() - started
        assert result.raise_error() is result
        assert (result.error, result.exit_code) == (None, 0)
        assert result.to_dict() == {
            "success": True,
            "dry_run": False,
            "removed": [one.entry.name for one in result.removed],
            "freed_bytes": sum(one.entry.size for one in result.removed),
            "wal_bytes": 0,
            "kept": 6,
            "spared": list(result.spared),
            "swept": ["full_20260101_000000_abcdef.tar.gz.sha256"],
            "warnings": [],
            "error": None,
            "duration_seconds": round(result.duration_seconds, 3),
            "format_version": 1,
        }
        with locked_alone(repository, "another prune is running"):
            refused = job(repository).run()
        assert (refused.plan, refused.success, refused.to_dict()["kept"]) == (None, False, 0)
        assert refused.to_dict()["error"] == refused.error == str(refused.fault)
        with pytest.raises(BusyError):
            refused.raise_error()

    def test_a_repository_that_is_none(self, tmp_path: Path) -> None:
        """Where the system refuses, the reason is told with a hint, and that it failed is in the log."""
        (tmp_path / "file").touch()
        result = job(tmp_path / "file").run()
        assert (result.success, result.exit_code) == (False, 1)
        assert "The archives that are left are complete" in str(result.error)

    def test_a_prune_that_another_one_is_in_the_way_of(self, repository: Path) -> None:
        """Can be asked before, which changes nothing."""
        with locked_alone(repository, "another prune is running"), pytest.raises(BusyError, match="is running"):
            job(repository).raise_if_busy()
        job(repository).raise_if_busy()
        assert len(archives(repository)) == 8

    def test_a_second_prune_has_nothing_to_do(self, repository: Path) -> None:
        """A prune leaves nothing for the next one."""
        job(repository).run()
        assert job(repository).run().removed == ()

    def test_a_repository_that_is_not_there(self, tmp_path: Path) -> None:
        """Before the first backup there is nothing to remove, and nothing is made."""
        assert job(tmp_path / "absent").run().success
        assert not (tmp_path / "absent").exists()

    def test_the_guides_function(self, repository: Path) -> None:
        """The job of a backup removes what is old, and says how many archives that were."""
        config = BackupConfig(local_path=repository, retention_days=10, retention_count=1)
        assert BackupJob(config, clock=lambda: NOW).cleanup_old_backups() == 5
        nonsense = BackupConfig(local_path=repository, retention_days=0, retention_count=0)
        with pytest.raises(ConfigurationError):
            BackupJob(nonsense, clock=lambda: NOW).cleanup_old_backups()

    def test_the_result_is_json(self, repository: Path) -> None:
        """A task can hand it on."""
        result = json.loads(json.dumps(job(repository).run().to_dict()))
        assert (len(result["removed"]), result["kept"], result["success"]) == (5, 3, True)

    def test_it_is_written_down(self, repository: Path) -> None:
        """The access log says who has removed what."""
        job(repository).run()
        log = AccessLog(Repository(repository))
        details, end = log.entries()
        assert (details.action, details.who, len(details.details["archives"])) == (Action.PRUNE, "ada", 5)
        assert (end.outcome, end.details["removed"]) == (Outcome.DONE, 5)

    def test_what_was_removed_before_a_failure_is_written_down(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The end has how many went, and their bytes, and why the rest did not."""

        def refuse(*_: Any) -> int:
            raise OSError(errno.EIO, "Input/output error", "/the/wal")

        monkeypatch.setattr("portal.ops.retention.prune.prune_wal", refuse)
        result = job(repository).run()
        assert (result.success, len(result.removed)) == (False, 5)
        assert "The archives that are left are complete" in str(result.error)
        end = list(AccessLog(Repository(repository)).entries())[-1]
        assert (end.outcome, end.subject) == (Outcome.FAILED, str(repository))
        assert (end.details["removed"], end.details["bytes"]) == (5, result.freed_bytes)

    def test_where_nothing_goes_the_log_has_the_end_alone(self, repository: Path) -> None:
        """Removals that did not take place are not in it."""
        job(repository).run()
        before = len(list(AccessLog(Repository(repository)).entries()))
        assert job(repository).run().success
        held = put(repository, FULL, 15)
        with archive_lock(repository / f"{held}.tar.gz", 1):
            assert job(repository).run().spared == (held,)
        added = list(AccessLog(Repository(repository)).entries())[before:]
        assert [(one.details["removed"], one.details["bytes"]) for one in added] == [(0, 0), (0, 0)]

    def test_a_pin_without_an_archive_is_told(self, repository: Path) -> None:
        """Somebody has removed what was to be kept: that is not passed over in silence."""
        Pins(Repository(repository)).pin("full_20200101_000000_abcdef", reason="", who="ada", moment=NOW)
        assert "is pinned, but it is not there" in job(repository).run().warnings[0]


class TestCutOff:
    def test_killed_at_any_change(self, repository: Path, tmp_path: Path) -> None:
        """Wherever it is killed, what is there is sound; the next prune does the rest and leaves no remains."""
        shutil.copytree(repository, tmp_path / "whole")
        job(tmp_path / "whole").run()
        wanted = archives(tmp_path / "whole")
        step, was_killed = 0, True
        while was_killed:
            step += 1
            place = tmp_path / f"killed-{step}"
            shutil.copytree(repository, place)
            was_killed = killed_at(step, lambda place=place: job(place).run())  # type: ignore[misc]
            assert_sound(place)
            assert job(place).run().success
            assert archives(place) == wanted
            assert len(list(place.glob("*.sha256"))) == len(wanted)
            assert set(Verifications(Repository(place)).names()) <= wanted
            assert AccessLog(Repository(place)).verify().intact
        assert step > 15

    def test_a_sidecar_that_waits_for_its_archive_stays(self, repository: Path) -> None:
        """While a backup is at work, a sidecar without an archive may be one that is just coming."""
        sidecar = repository / "full_20260301_115959_abcdef.tar.gz.sha256"
        sidecar.write_text("x")
        with Repository(repository).shared():
            job(repository).run()
        assert sidecar.exists()
        assert job(repository).run().swept == (sidecar.name,)
        assert not sidecar.exists()

    def test_strange_sidecars_stay_and_a_sweep_that_cannot_be_is_postponed(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is beside a file that is none of ours is not ours either."""
        job(repository).run()
        other = repository / "notes.tar.gz.sha256"
        other.write_text("x")
        name = next(iter(archives(repository)))
        (repository / ".verifications" / "full_20200101_000000_abcdef.json").write_text("{}")
        events = Events(monkeypatch, "portal.ops.retention.prune")
        with Repository(repository).shared():
            assert job(repository).run().swept == ()
        assert events.all[0][:2] == ("debug", "sweep_postponed")
        assert "is locked by process" in events.all[0][2]["detail"]
        assert Verifications(Repository(repository)).names() != []
        Verifications(Repository(repository)).record(finding(repository, name, VerifyLevel.CHECKSUM), NOW)
        assert job(repository).run().swept == ()
        assert other.exists()
        assert name in Verifications(Repository(repository)).names()
        assert "full_20200101_000000_abcdef" not in Verifications(Repository(repository)).names()

    def test_when_a_killed_write_is_given_up(self, repository: Path) -> None:
        """After a day and not before; what a link leads to elsewhere is left alone."""
        elsewhere = repository.parent / "elsewhere"
        elsewhere.mkdir()
        (repository / ".linked").symlink_to(elsewhere)
        (repository / "seen").mkdir()
        day = NOW.timestamp() - 86_400
        ages = {
            repository / ".a.7.tmp": day - 1,
            repository / ".b.7.tmp": day,
            elsewhere / ".c.7.tmp": day - 100,
            repository / "seen" / ".d.7.tmp": day - 100,
        }
        for path, seconds in ages.items():
            path.write_text("half")
            os.utime(path, (seconds, seconds))
        assert job(repository).run().swept == (".a.7.tmp",)
        assert [path.exists() for path in ages] == [False, True, True, True]

    def test_small_files_of_killed_writes(self, repository: Path) -> None:
        """They are swept a day later; one that may be on its way is left alone, like what only looks like one."""
        Pins(Repository(repository)).pin("latest", reason="", who="ada", moment=NOW)
        old = (NOW - timedelta(days=1, hours=1)).timestamp()
        dead = [repository / ".pins" / ".x.json.77.tmp", repository / "..access.head.7.tmp"]
        dead += [
            repository / ".offsite" / "nas" / ".copies.jsonl.5.tmp",
            repository / "wal" / "7" / ".state.json.5.tmp",
        ]
        dead += [repository / ".offsite" / "nas" / "pending" / ".x.json.5.tmp", repository / "wal" / ".c.json.5.tmp"]
        others = [repository / ".verifications" / ".x.json.78.tmp", repository / "notes.7.tmp"]
        others += [repository / ".drills" / "one" / ".restored.5.tmp"]
        for path in (*dead, *others):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("half")
            os.utime(path, (old, old))
        os.utime(others[0], (NOW.timestamp(), NOW.timestamp()))
        assert set(job(repository).run().swept) == {path.name for path in dead}
        assert [path for path in dead if path.exists()] == []
        assert all(path.exists() for path in others)

    def test_a_full_disk(self, tmp_path: Path) -> None:
        """It is what a prune is for: nothing that it needs has to be written."""
        place = tmp_path / "small"
        with small_disk(place, "2m"):
            place.chmod(0o700)
            for age in (1, 20, 30):
                put(place, FULL, age)
            with suppress_full(), (place / "filler").open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
            assert os.statvfs(place).f_bavail == 0
            result = job(place).run()
            assert (result.success, len(result.removed)) == (True, 2)
            assert_sound(place)
            assert os.statvfs(place).f_bavail > 0


@contextmanager
def suppress_full() -> Iterator[None]:
    """Write until nothing goes any more."""
    try:
        yield
    except OSError as error:
        assert error.errno == 28


class TestCommands:
    def run(self, directory: Path, *arguments: str, code: int = 0, **environ: str) -> tuple[dict[str, Any], str]:
        """Run a command; its result, and what it says."""
        ended = subprocess.run(
            [sys.executable, "-m", "tools.backup", *arguments],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "BACKUP_LOCAL_PATH": str(directory), **environ},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == code, ended.stderr
        answer: dict[str, Any] = json.loads(ended.stdout)
        return answer, ended.stderr

    def test_prune_pin_and_audit(self, repository: Path) -> None:
        """A person sees the plan with its reasons, pins what it would remove, prunes, and finds it all in the log."""
        short: Any = {"BACKUP_RETENTION_DAYS": "1", "BACKUP_RETENTION_COUNT": "1", "SUDO_USER": "ada"}
        plan, said = self.run(repository, "prune", "--dry-run", **short)
        assert len(plan["plan"]) == 8
        assert "it is the newest full backup" in said
        doomed = plan["removed"][0]
        pinned, _ = self.run(repository, "pin", doomed, "--reason", "for the auditors", **short)
        assert (pinned["backup_id"], pinned["who"], pinned["reason"]) == (doomed, "ada", "for the auditors")
        pruned, said = self.run(repository, "prune", **short)
        assert doomed not in pruned["removed"]
        assert f"keep    {doomed}: it is pinned" in said
        listed, said = self.run(repository, "list")
        assert [one["backup_id"] for one in listed["backups"] if one["pinned"]] == [doomed]
        self.run(repository, "unpin", doomed)
        audit, said = self.run(repository, "audit", "--verify", "--last", "2")
        assert [entry["action"] for entry in audit["entries"]] == ["prune", "unpin"]
        assert "the log is unbroken" in said

    def test_a_policy_without_sense_is_refused(self, repository: Path) -> None:
        """Nothing is removed by a rule that keeps nothing."""
        answer, _ = self.run(repository, "prune", code=2, BACKUP_RETENTION_DAYS="0", BACKUP_RETENTION_COUNT="0")
        assert "hint" in answer["error"]
        assert len(archives(repository)) == 8

    def test_a_log_that_was_tampered_with(self, repository: Path) -> None:
        """The command says so, and ends with the code for what is not intact."""
        self.run(repository, "pin", "latest")
        (repository / ".access.jsonl").write_text("")
        answer, said = self.run(repository, "audit", "--verify", code=4)
        assert not answer["success"]
        assert "the log is truncated: entry 1 is missing" in said


@pytest.mark.parametrize(("age", "expected"), [(-1, True), (0, False), (9, False), (10, False), (11, True), (60, True)])
def test_whether_a_prune_is_worth_its_while(tmp_path: Path, age: float, expected: bool) -> None:
    """It is where an archive is older than every rule's days, or from the future."""
    put(tmp_path, FULL, age)
    assert job(tmp_path).may_remove() is expected


@pytest.mark.parametrize(
    ("name", "age", "expected"),
    [
        ("base_20260220_120000_abcdef", 9, True),
        ("base_20260226_120000_abcdef", 3, False),
        ("base_20260224_120000_abcdef", 5, False),
        ("media_20260220_120000_abcdef", 9, False),
        ("media_20260210_120000_abcdef", 9, True),
        ("copy", 4, False),
        ("copy", 6, True),
    ],
)
def test_what_a_name_says_of_the_rule(tmp_path: Path, name: str, age: float, expected: bool) -> None:
    """A base backup has its own days; what has no type is looked at after the fewest days that there are."""
    path = tmp_path / f"{name}.tar.gz"
    path.touch()
    written = (NOW - timedelta(days=age)).timestamp()
    os.utime(path, (written, written))
    policy = RetentionPolicy(rule=RetentionRule(days=10, count=1), pitr_days=5)
    assert job(tmp_path, policy).may_remove() is expected
