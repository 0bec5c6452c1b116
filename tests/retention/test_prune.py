"""A prune removes what the plan says and nothing that is needed, whoever else is at work, and wherever it is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.backup.job import BackupConfig, BackupJob
from portal.ops.errors import BusyError, ConfigurationError
from portal.ops.model import BackupId, BackupType, VerifyLevel
from portal.ops.repository.access_log import AccessLog, Action, Outcome
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.locks import archive_lock, claim, locked_alone
from portal.ops.repository.pins import Pins
from portal.ops.repository.repository import Repository
from portal.ops.repository.verifications import Verifications
from portal.ops.retention.policy import RetentionPolicy, RetentionRule
from portal.ops.retention.prune import PruneJob
from tests.support import ages
from tests.support.events import Events
from tests.support.kept import finding, put_archive
from tests.support.killing import killed_at
from tests.support.portal import small_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
POLICY = RetentionPolicy(rule=RetentionRule(days=10, count=1))
FULL, MEDIA = BackupType.FULL, BackupType.MEDIA


def job(directory: Path, policy: RetentionPolicy = POLICY) -> PruneJob:
    return PruneJob(Repository(directory, lock_timeout=0.2), policy, clock=lambda: NOW, actor="ada")


def put(directory: Path, kind: BackupType, age: float, *, parent: str | None = None) -> str:
    directory.mkdir(exist_ok=True)
    return put_archive(directory, kind, NOW - timedelta(days=age), parent=parent, request=str(age))


def archives(directory: Path) -> set[str]:
    return {path.name.removesuffix(".tar.gz") for path in directory.glob("*.tar.gz")}


def assert_sound(directory: Path) -> None:
    """Every archive has its sidecar, and everything that it needs."""
    for one in Catalogue(Repository(directory)).entries():
        assert one.fault == ""
        assert one.parent is None or one.parent in archives(directory)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three full backups of which two are old, and an old chain of three beside a young one of two."""
    place = tmp_path / "repository"
    for age in (1, 20, 30):
        put(place, FULL, age)
    base = put(place, MEDIA, 60)
    middle = put(place, MEDIA, 50, parent=base)
    put(place, MEDIA, 40, parent=middle)
    young = put(place, MEDIA, 30)
    put(place, MEDIA, 2, parent=young)
    old = finding(place, base, VerifyLevel.CHECKSUM)
    Verifications(Repository(place)).record(old, NOW)
    Verifications(Repository(place)).record(finding(place, young, VerifyLevel.DRILL), NOW)
    return place


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

    def test_a_pin_without_an_archive_is_told(self, repository: Path) -> None:
        """Somebody has removed what was to be kept: that is not passed over in silence."""
        Pins(Repository(repository)).pin("full_20200101_000000_abcdef", reason="", who="ada", moment=NOW)
        assert "is pinned, but it is not there" in job(repository).run().warnings[0]


class TestDoubt:
    def test_a_finding_that_cannot_be_read(self, tmp_path: Path) -> None:
        """An archive that may have failed its verification does not take the place of a good one."""
        place = tmp_path / "repository"
        good, bad = put(place, FULL, 30), put(place, FULL, 20)
        Verifications(Repository(place)).record(finding(place, bad, VerifyLevel.DUMP, damage="gone bad"), NOW)
        (place / ".verifications" / f"{bad}.json").write_bytes(b"")
        assert job(place).run().removed == ()
        assert archives(place) == {good, bad}

    @pytest.fixture
    def chain(self, tmp_path: Path) -> tuple[Path, list[str]]:
        """An old chain of four under a newer base, and the names of the chain in order."""
        place = tmp_path / "repository"
        base = put(place, MEDIA, 60)
        middle = put(place, MEDIA, 50, parent=base)
        child = put(place, MEDIA, 40, parent=middle)
        names = [base, middle, child, put(place, MEDIA, 30, parent=child)]
        put(place, MEDIA, 1)
        return place, names

    @pytest.mark.parametrize("is_known", [True, False])
    @pytest.mark.parametrize(
        "spoil",
        [
            lambda path: path.write_bytes(b"garbage"),
            lambda path: (path.unlink(), path.symlink_to("/nowhere/cold.tar.gz")),
        ],
    )
    def test_the_middle_of_a_chain_that_cannot_be_read(
        self, chain: tuple[Path, list[str]], spoil: Callable[[Path], object], is_known: bool
    ) -> None:
        """What it stands on stays, whether that was known before or not."""
        place, names = chain
        if is_known:
            ages.age(place)
        spoil(place / f"{names[1]}.tar.gz")
        result = job(place).run()
        assert result.removed == ()
        assert ("cannot be read" in "".join(result.warnings)) is not is_known

    def test_the_end_of_a_chain_that_cannot_be_read(self, chain: tuple[Path, list[str]]) -> None:
        """Nobody else says what it stands on, so all that it may be stays; what is newer may go."""
        place, names = chain
        whole = archives(place)
        newer, _ = put(place, MEDIA, 25), put(place, MEDIA, 20)
        (place / f"{names[3]}.tar.gz").write_bytes(b"garbage")
        gone = {one.entry.name for one in job(place).run().removed}
        assert newer in gone
        assert whole <= archives(place)

    def test_a_full_backup_at_the_end_that_cannot_be_read(self, chain: tuple[Path, list[str]]) -> None:
        """It may have been a link of that chain, so all that it may stand on stays."""
        place, _ = chain
        last = put(place, FULL, 20)
        put(place, FULL, 1)
        whole = archives(place)
        (place / f"{last}.tar.gz").write_bytes(b"garbage")
        result = job(place).run()
        assert (result.removed, archives(place)) == ((), whole)
        assert f"{last} cannot be read, so its needs are unknown" in "".join(result.warnings)

    def test_one_that_comes_and_cannot_be_read(self, repository: Path) -> None:
        """It may need anything, so nothing more is removed, and that is said."""

        class Late(PruneJob):
            def plan(self) -> Any:
                found = super().plan()
                (repository / "media_20260301_110000_abcdef.tar.gz").write_bytes(b"half")
                (repository / "full_20260301_110000_abcdef.tar.gz").mkdir()
                return found

        result = Late(Repository(repository), POLICY, clock=lambda: NOW).run()
        assert (result.success, result.removed, len(result.spared)) == (True, (), 5)
        assert "media_20260301_110000_abcdef has come, and cannot be read" in result.warnings[0]


class TestBesideOthers:
    def test_what_is_held_is_passed_over(self, repository: Path) -> None:
        """An archive that somebody reads stays, with all that it needs, and goes the next time."""
        tip = next(one for one in archives(repository) if "20260120" in one)
        with archive_lock(repository / f"{tip}.tar.gz", 1):
            result = job(repository).run()
        assert result.success
        assert len(result.spared) == 3
        assert tip in archives(repository)
        assert_sound(repository)
        assert len(job(repository).run().removed) == 3

    def test_a_long_backup_is_no_hindrance(self, repository: Path) -> None:
        """A prune does not wait for a backup, nor keep one waiting."""
        with Repository(repository).shared():
            assert len(job(repository).run().removed) == 5

    def test_two_prunes_at_once(self, repository: Path) -> None:
        """The second one is refused at once."""
        other = os.open(repository, os.O_RDONLY)
        import fcntl

        fcntl.flock(other, fcntl.LOCK_EX)
        result = job(repository).run()
        os.close(other)
        assert isinstance(result.fault, BusyError)
        assert (result.exit_code, len(archives(repository))) == (5, 8)

    def test_what_comes_after_the_plan_keeps_what_it_needs(self, repository: Path) -> None:
        """An incremental that was made meanwhile, and a pin that was set, count."""
        tip = next(one for one in archives(repository) if "20260120" in one)
        old = next(one for one in archives(repository) if one.startswith("full_20260130"))

        class Late(PruneJob):
            def plan(self) -> Any:
                found = super().plan()
                put(repository, MEDIA, 0.5, parent=tip)
                Pins(self.repository).pin(old, reason="", who="ada", moment=NOW)
                return found

        result = Late(Repository(repository), POLICY, clock=lambda: NOW).run()
        assert result.success
        assert {tip, old} <= archives(repository)
        assert len(result.removed) == 1
        assert_sound(repository)

    def test_a_backup_that_is_made_again(self, repository: Path) -> None:
        """What belongs to an archive that has come again under the same name stays, with the archive."""
        (old,) = (name for name in archives(repository) if name.startswith("full_20260130"))

        class Overtaken(PruneJob):
            def _tidy(self, gone: Any) -> None:
                put(repository, FULL, 30)
                super()._tidy(gone)

        assert Overtaken(Repository(repository), POLICY, clock=lambda: NOW).run().success
        assert old in archives(repository)
        assert_sound(repository)

    def test_a_backup_that_is_being_made_again(self, repository: Path) -> None:
        """A sidecar that waits for its archive is not taken for that of the one that is gone."""
        backup_id = BackupId.of(FULL, NOW - timedelta(days=30), "30")
        sidecar = repository / f"{backup_id}.tar.gz.sha256"
        assert sidecar.exists()

        class Overtaken(PruneJob):
            def _tidy(self, gone: Any) -> None:
                with Repository(repository).pending(backup_id) as draft:
                    assert draft
                    super()._tidy(gone)
                    assert sidecar.exists()
                    draft.discard()

        assert Overtaken(Repository(repository), POLICY, clock=lambda: NOW).run().success
        assert not sidecar.exists()

    def test_a_reader_waits_for_a_claim(self, repository: Path) -> None:
        """Whoever comes while a prune looks at an archive waits, and then reads it or is told that it is gone."""
        path = next(repository.glob("*.tar.gz"))
        held = threading.Event()

        def read() -> None:
            with archive_lock(path, 5):
                held.set()

        with claim(path) as is_free:
            assert is_free
            reader = threading.Thread(target=read)
            reader.start()
            assert not held.wait(0.1)
        reader.join()
        assert held.is_set()

    def test_one_that_cannot_be_opened(self, repository: Path) -> None:
        """It is passed over with a warning, with what it needs, and the others go."""
        doomed = next(one for one in archives(repository) if "20260120" in one)

        class Late(PruneJob):
            def plan(self) -> Any:
                found = super().plan()
                path = repository / f"{doomed}.tar.gz"
                path.unlink()
                path.symlink_to(path)
                return found

        result = Late(Repository(repository), POLICY, clock=lambda: NOW).run()
        assert (result.success, len(result.removed), len(result.spared)) == (True, 2, 3)
        assert f"{doomed} is passed over: cannot read" in result.warnings[0]


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

    def test_small_files_of_killed_writes(self, repository: Path) -> None:
        """They are swept a day later; one that may be on its way is left alone, like what only looks like one."""
        Pins(Repository(repository)).pin("latest", reason="", who="ada", moment=NOW)
        old = (NOW - timedelta(days=1, hours=1)).timestamp()
        dead = [repository / ".pins" / ".x.json.77.tmp", repository / "..access.head.7.tmp"]
        others = [repository / ".verifications" / ".x.json.78.tmp", repository / "notes.7.tmp"]
        for path in (*dead, *others):
            path.write_text("half")
            os.utime(path, (old, old))
        os.utime(others[0], (NOW.timestamp(), NOW.timestamp()))
        assert set(job(repository).run().swept) == {path.name for path in dead}
        assert [path.exists() for path in (*dead, *others)] == [False, False, True, True]

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
