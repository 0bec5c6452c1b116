"""The status: facts against targets, the outlook on space, and the command as a person or a monitor starts it."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.ops.model import BackupType, Component
from portal.ops.monitoring.facts import read_status
from portal.ops.monitoring.failures import unanswered
from portal.ops.monitoring.forecast import Forecast, Usage, forecast
from portal.ops.monitoring.model import Facts
from portal.ops.monitoring.status import evaluate
from portal.ops.monitoring.text import status_lines
from portal.ops.repository.access_log import AccessLog, Action, Outcome
from portal.ops.repository.sidecar import sidecar_of
from portal.ops.settings.load import load_settings
from portal.ops.units import span
from tests.support.commands import answer, run
from tests.support.histories import NOW, History

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.monitoring.model import Status

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def history(tmp_path: Path) -> History:
    """An empty repository."""
    return History(path=tmp_path / "archives")


def status_of(history: History, **variables: str) -> Status:
    return read_status(history.settings(**variables), NOW)


def foreseen(daily: list[int], free: int, kept_days: int | None) -> Forecast | None:
    return forecast([Usage(daily=tuple(daily), kept_days=kept_days)], free=free)


def missed(status: Status) -> set[str]:
    return {miss.target for miss in status.misses}


class TestTargets:
    """What is missed and what is not."""

    def test_all_is_well_where_everything_is_young_enough(self, history: History) -> None:
        """A verified full backup of an hour ago meets every target; a drill is not due yet."""
        history.verified(history.archive(BackupType.FULL, HOUR))
        assert status_of(history).ok

    def test_an_old_backup_misses_the_target_of_its_component(self, history: History) -> None:
        """The database may be two hours old, the uploads 26."""
        history.verified(history.archive(BackupType.FULL, 3 * HOUR))
        status = status_of(history)
        assert missed(status) == {"rpo_database"}
        assert status.misses[0].what == "the newest backup of the database is 3 h old, and 2 h are allowed"

    def test_a_backup_of_a_single_component_counts_for_that_one(self, history: History) -> None:
        """A younger one of the database is its newest, and the uploads keep theirs."""
        full = history.archive(BackupType.FULL, 3 * HOUR)
        database = history.archive(BackupType.DATABASE, HOUR)
        status = status_of(history)
        newest = {one.component: one.newest.backup_id for one in status.components if one.newest}
        assert newest == {Component.DATABASE: database, Component.MEDIA: full}

    def test_a_damaged_backup_does_not_count(self, history: History) -> None:
        """The newest whole one is an older one, and the damaged one is named."""
        history.verified(history.archive(BackupType.FULL, 5 * HOUR))
        damaged = history.archive(BackupType.FULL, HOUR)
        history.verified(damaged, intact=False)
        status = status_of(history)
        assert "rpo_database" in missed(status)
        assert status.facts.damaged == (damaged,)

    def test_a_broken_chain_is_named(self, history: History) -> None:
        """What stands on an archive that is gone, and what has no sidecar, counts for nothing; the status says why."""
        history.archive(BackupType.FULL, 30 * HOUR)
        lost = "media_20261121_100000_abcdef"
        newer, older = (history.archive(BackupType.MEDIA, age * HOUR, parent=lost) for age in (1, 2))
        alone = history.archive(BackupType.DATABASE, HOUR)
        sidecar_of(history.path / f"{alone}.tar.gz").unlink()
        status = status_of(history)
        assert {"rpo_database", "rpo_media"} <= missed(status)
        gone, no_sidecar = f"it needs {lost}, which is gone", f"there is no {alone}.tar.gz.sha256 beside it"
        found = {one["fault"]: one["archives"] for one in status.to_dict()["incomplete"]}
        assert found == {gone: [newer, older], no_sidecar: [alone]}
        text = "\n".join(status_lines(status))
        assert f"{newer} and 1 older: {gone}" in text
        assert f"{alone}: {no_sidecar}" in text

    def test_every_label_ends_before_its_text(self, history: History) -> None:
        """The longest ones too."""
        alone = history.archive(BackupType.DATABASE, HOUR)
        sidecar_of(history.path / f"{alone}.tar.gz").unlink()
        status = status_of(history)
        lines = status_lines(replace(status, facts=replace(status.facts, cut_off=("restore_a",))))
        assert [line for line in lines if line.startswith(f"incomplete  {alone}: ")]
        assert [line for line in lines if line.startswith("interrupted restore_a; ")]

    def test_a_verification_of_other_bytes_does_not_count(self, history: History) -> None:
        """What was found of a file that had another checksum says nothing of this one."""
        backup_id = history.archive(BackupType.FULL, HOUR)
        history.verified(backup_id)
        (history.path / f"{backup_id}.tar.gz.sha256").write_text(f"{'1' * 64}  {backup_id}.tar.gz\n")
        assert status_of(history).components[0].verified is None

    def test_verifications_and_drills_are_not_due_at_once(self, history: History) -> None:
        """Only when the first backup is older than the target is it missed that none was verified or drilled."""
        history.archive(BackupType.FULL, HOUR)
        assert status_of(history).ok
        history.archive(BackupType.FULL, 9 * DAY)
        assert missed(status_of(history)) == {"verified_database", "verified_media", "drill"}

    def test_a_drill_that_failed_misses_the_target(self, history: History) -> None:
        """However young it is; the RTO is that of the last one that succeeded."""
        backup_id = history.archive(BackupType.FULL, HOUR)
        history.drill(backup_id, 2 * DAY, seconds=129)
        assert status_of(history).ok
        history.drill(backup_id, DAY, error="no room\n  hint: Make some.")
        status = status_of(history)
        assert status.misses[0].what == f"the last drill, of {backup_id}, failed: no room"
        assert status.drilled is not None
        assert status.drilled.seconds == 129

    def test_an_old_drill_misses_the_target(self, history: History) -> None:
        """What could be restored ten days ago may not be so any more."""
        history.drill(history.archive(BackupType.FULL, HOUR), 10 * DAY)
        assert missed(status_of(history)) == {"drill"}

    def test_components_that_are_left_out_have_no_target(self, history: History) -> None:
        """Who has no uploads is not asked for a backup of them."""
        history.archive(BackupType.DATABASE, HOUR)
        assert [one.component for one in status_of(history, PORTAL_UPLOAD_DIR="").components] == [Component.DATABASE]

    def test_an_empty_repository_misses_every_component(self, history: History) -> None:
        """And says how to make the first backup."""
        status = status_of(history)
        assert missed(status) == {"rpo_database", "rpo_media"}
        assert status_lines(status)[0].startswith("NOT OK: there is no archive in ")

    def test_every_miss_says_what_to_do(self, history: History) -> None:
        """In a sentence with a command."""
        history.archive(BackupType.FULL, 30 * DAY)
        assert all("'./tools/backup.sh " in miss.mend for miss in status_of(history).misses)


class TestFailures:
    """What failed last, and was not answered."""

    @pytest.mark.parametrize(
        ("failed", "done", "left"),
        [
            ("database_20261122_110000_aaaaaa", "database_20261122_120000_bbbbbb", 0),
            ("database_20261122_110000_aaaaaa", "full_20261122_120000_bbbbbb", 0),
            ("full_20261122_110000_aaaaaa", "database_20261122_120000_bbbbbb", 1),
        ],
        ids=["the same type", "a full one after", "less than full after"],
    )
    def test_a_later_success_answers_a_failure(self, history: History, failed: str, done: str, left: int) -> None:
        """One of the same type does, and a full one answers all."""
        history.entry(Action.BACKUP, failed, Outcome.FAILED, age=2 * HOUR, error="no", hint="do")
        history.entry(Action.BACKUP, done, age=HOUR)
        assert len(status_of(history).facts.failures) == left

    def test_a_failure_is_shown_with_its_hint(self, history: History) -> None:
        """Reason and what to do are in the lines."""
        history.entry(Action.PRUNE, "repository", Outcome.FAILED, error="the disk is gone", hint="Mount it.")
        text = "\n".join(status_lines(status_of(history)))
        assert "prune, 0 s ago: the disk is gone\n" in text
        assert "Mount it." in text

    def test_a_dry_run_and_a_person_who_says_no_are_no_failures(self, history: History) -> None:
        """Only what nobody was there to read counts as refused."""
        history.entry(Action.RESTORE, "latest", Outcome.FAILED, dry_run=True)
        history.entry(Action.RESTORE, "latest", Outcome.REFUSED)
        history.entry(Action.BACKUP, "full_20261122_110000_aaaaaa", Outcome.REFUSED, error="busy")
        assert [one.kind for one in status_of(history).facts.failures] == ["backup full"]

    def test_damage_of_an_archive_that_is_gone_is_forgotten(self, history: History) -> None:
        """What was removed need not be mended."""
        history.entry(Action.VERIFY, "full_20261122_110000_aaaaaa", Outcome.FAILED)
        assert len(unanswered(AccessLog(history.repository).recent())) == 1
        assert status_of(history).facts.failures == ()

    @pytest.mark.parametrize(("wal", "left"), [("on", ["backup base"]), ("off", [])])
    def test_a_base_backup_is_only_missed_where_wal_is_received(
        self, history: History, wal: str, left: list[str]
    ) -> None:
        """Without WAL none is ever made, so nothing would ever answer one that was asked for by mistake."""
        history.entry(Action.BACKUP, "base_20261122_110000_aaaaaa", Outcome.REFUSED, error="BACKUP_WAL is off")
        assert [one.kind for one in status_of(history, BACKUP_WAL=wal).facts.failures] == left

    def test_a_damaged_record_of_a_restore_is_a_failure_among_others(self, history: History) -> None:
        """The rest of the status is there all the same."""
        history.archive(BackupType.FULL, HOUR)
        (history.path / ".restores").mkdir()
        (history.path / ".restores" / "restore_20261122_110000_aaaaaa.json").write_text("[]")
        status = status_of(history)
        assert "is invalid" in status.facts.failures[0].error
        assert status.ok

    def test_only_the_end_of_a_long_log_is_read(self, history: History) -> None:
        """A line that is cut by the limit is passed over."""
        for number in range(5):
            history.entry(Action.PRUNE, f"repository {number}")
        size = history.path.joinpath(".access.jsonl").stat().st_size
        assert [entry.number for entry in AccessLog(history.repository).recent(size - 10)] == [2, 3, 4, 5]


class TestSpace:
    """How long the space lasts."""

    def test_too_little_history_is_said(self, history: History) -> None:
        """Less than three whole days foretell nothing."""
        history.archive(BackupType.FULL, HOUR)
        assert "too little history" in "\n".join(status_lines(status_of(history)))

    def test_a_steady_pace_without_removals_ends_when_the_space_does(self) -> None:
        """Ten a day, and a hundred free."""
        found = foreseen([10] * 20, 100, None)
        assert found is not None
        assert (found.added_per_day, found.days_left) == (10, 10)

    def test_what_retention_removes_makes_it_last(self) -> None:
        """As much goes as comes."""
        found = foreseen([10] * 30, 100, 30)
        assert found is not None
        assert found.days_left is None

    def test_growth_ends_the_space_all_the_same(self) -> None:
        """Where each day takes more than the one that is removed, it runs out."""
        found = foreseen([100 + 10 * day for day in range(60)], 5000, 30)
        assert found is not None
        assert found.days_left is not None

    def test_one_large_day_changes_little(self) -> None:
        """An outlier in a month does not change what a usual day takes."""
        usual = foreseen([10] * 28, 1000, None)
        outlier = foreseen([10] * 20 + [10_000] + [10] * 7, 1000, None)
        assert usual == outlier

    def test_a_weekly_backup_is_a_seventh_a_day(self) -> None:
        """Days without a backup do not make the pace nothing."""
        found = foreseen([70, 0, 0, 0, 0, 0, 0] * 4, 1000, None)
        assert found is not None
        assert found.added_per_day == 10

    def test_a_full_disk_is_a_target_missed(self) -> None:
        """Also where there is no pace yet to foresee anything from."""
        targets = load_settings({}, lambda path: "").targets
        full = Facts(repository="/archives", components=(), free=1 << 20, total=1 << 30)
        (miss,) = evaluate(full, targets, NOW).misses
        assert (miss.target, miss.what) == ("space", "the disk of /archives is full: 1.0 MB are free")
        assert not evaluate(replace(full, free=1 << 29), targets, NOW).misses

    def test_little_space_is_a_target_missed(self, history: History) -> None:
        """Archives that would fill the disk within two weeks are told of."""
        free = os.statvfs(history.path.parent)
        for day in range(1, 9):
            history.archive(BackupType.FULL, day * DAY, size=free.f_bavail * free.f_frsize // 5)
        assert "space" in missed(status_of(history, BACKUP_SCHEDULE_PRUNE="off"))

    def test_each_type_is_kept_by_its_own_rule(self) -> None:
        """What one type adds without an end is not held against what leaves of another."""
        kept, leaving = Usage(daily=(10,) * 30), Usage(daily=(90,) * 30, kept_days=7)
        found = forecast([kept, leaving], free=100)
        assert found is not None
        assert (found.added_per_day, found.days_left) == (100, 10)

    @pytest.mark.parametrize(
        ("rules", "kept_days"),
        [
            ("", {28, 10}),
            ("database: days 3", {28, 3}),
            ("database: count 12; full: days 1", {1, 5}),
            ("full: count 24", {67, 10}),
        ],
        ids=["the general one", "days", "count", "a count that is not reached"],
    )
    def test_the_rules_of_types_are_looked_at(self, history: History, rules: str, kept_days: set[int]) -> None:
        """A count is as many days as so many backups take."""
        for number in range(12):
            history.archive(BackupType.FULL, 3 * number * DAY + HOUR)
            history.archive(BackupType.DATABASE, number * DAY / 2.5)
        found = status_of(history, BACKUP_RETENTION_DAYS="10", BACKUP_RETENTION_RULES=rules).facts.usages
        assert {usage.kept_days for usage in found} == kept_days

    @pytest.mark.parametrize(
        "variables",
        [{"BACKUP_SCHEDULE_PRUNE": "off"}, {"BACKUP_RETENTION_DAYS": "0", "BACKUP_RETENTION_COUNT": "0"}],
        ids=["no prune", "a policy that is refused"],
    )
    def test_where_nothing_is_removed_all_stays(self, history: History, variables: dict[str, str]) -> None:
        """Then the outlook reckons with no removal."""
        history.archive(BackupType.FULL, HOUR)
        assert [usage.kept_days for usage in status_of(history, **variables).facts.usages] == [None]

    @given(st.lists(st.integers(0, 10**12), max_size=90), st.integers(0, 10**15), st.none() | st.integers(0, 400))
    def test_any_history_has_an_outlook(self, daily: list[int], free: int, kept_days: int | None) -> None:
        """Nothing breaks it, and the days left are none or a number that is valid."""
        found = foreseen(daily, free, kept_days)
        assert (found is None) == (len(daily) < 3)
        assert found is None or found.days_left is None or 0 <= found.days_left < 3650


@pytest.mark.parametrize(
    ("time", "said"),
    [(90, "90 s"), (2700, "45 min"), (26 * 3600, "26 h"), (3 * 86400, "3 days"), (-5, "0 s")],
)
def test_a_time_is_said_in_one_unit(time: int, said: str) -> None:
    """In the unit that people would take."""
    assert span(timedelta(seconds=time)) == said


class TestCommand:
    """`backup.sh status`."""

    @staticmethod
    def environ(history: History) -> dict[str, Any]:
        """The variables of a portal without uploads."""
        return {"PATH": os.environ["PATH"], "BACKUP_LOCAL_PATH": str(history.path), "PORTAL_UPLOAD_DIR": ""}

    def test_a_missed_target_ends_with_1(self, history: History) -> None:
        """The verdict is the first line, and the JSON has the same."""
        ended = run("status", environ=self.environ(history))
        assert ended.returncode == 1
        assert ended.stderr.startswith("NOT OK: ")
        assert [miss["target"] for miss in answer(ended)["missed"]] == ["rpo_database"]

    def test_targets_that_are_met_end_with_0(self, history: History) -> None:
        """With --json nothing is said to people."""
        history.archive(BackupType.DATABASE, NOW - datetime.now(UTC) + timedelta(minutes=5))
        ended = run("status", "--json", environ=self.environ(history))
        assert (ended.returncode, ended.stderr) == (0, "")
        assert answer(ended)["success"]

    def test_a_repository_that_cannot_be_read_says_so(self, history: History) -> None:
        """Not that there are no backups, but what to look at."""
        history.path.write_text("no directory")
        ended = run("status", environ=self.environ(history))
        assert ended.returncode == 1
        assert "hint:" in answer(ended)["error"]

    def test_it_fits_on_a_screen(self, history: History) -> None:
        """Whatever there is to tell, the lines are few."""
        for number in range(30):
            history.pin(history.archive(BackupType.FULL, number * HOUR), "why not")
            history.entry(Action.VERIFY, f"full_20261122_1100{number:02d}_aaaaaa", Outcome.FAILED)
        assert len(status_lines(status_of(history))) < 40
