"""What can be rolled back, for how long, and what of it is listed, discarded and logged."""

from __future__ import annotations

import errno
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import pytest

from portal.ops.errors import RepositoryError, RestoreError
from portal.ops.model import timestamp
from portal.ops.repository.repository import Repository
from portal.ops.restore.journal import RestoreRecord, RestoreRecords, RestoreState
from tests.support.events import Events
from tests.support.restore_bench import NOW, PARTS, RESTORE_ID, Bench, Disk, FakePart, roll_back

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.restore.components import Part


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A restore of three parts that are staged."""
    return Bench(path=tmp_path)


class TestFilesAlone:
    """A restore without a database, whose parts cannot refuse before they have changed something."""

    def test_a_rollback_that_fails_is_gone_on_with(self, tmp_path: Path) -> None:
        """It does not count as applied again, although the files that failed are still the new ones."""
        bench = Bench(path=tmp_path, disk=Disk(parts=dict.fromkeys(("media", "audit_logs"), "staged")))
        record = bench.history().begin(RESTORE_ID, "media_1", "/a", {"media": {"path": "/m"}, "audit_logs": {}})
        bench.history().apply(record, [cast("Part", FakePart(name, bench.disk)) for name in ("media", "audit_logs")])
        bench.disk.failing = {"roll back media"}
        with pytest.raises(RestoreError, match="roll back media fails"):
            roll_back(bench)
        assert bench.states() == [RestoreState.ROLLING_BACK]
        bench.restart()
        (said,), stuck = bench.history().recover()
        assert (said, stuck) == (
            f"{RESTORE_ID} was being rolled back, and had been interrupted; that is finished now",
            (),
        )
        assert bench.live() == {"old"}


class TestHistory:
    """What can be rolled back, and for how long."""

    def begun(self, bench: Bench, name: str, path: str, state: RestoreState = RestoreState.APPLIED) -> RestoreRecord:
        """A restore of files."""
        history = bench.history()
        record = history.begin(name, "media_1", "/a", {"media": {"path": path}})
        return RestoreRecords(Repository(bench.path)).save(record, state=state)

    def test_restores_are_numbered(self, bench: Bench) -> None:
        """One after the other, with the moment in which each was begun."""
        records = [self.begun(bench, name, "/x") for name in ("restore_b", "restore_a")]
        assert [(one.number, one.started, one.changed) for one in records] == [
            (number, "2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z") for number in (1, 2)
        ]

    def test_the_last_that_is_applied_is_the_one(self, bench: Bench) -> None:
        """By default; one that was rolled back is passed over, and refused by its name."""
        first = self.begun(bench, "restore_1", "/x")
        self.begun(bench, "restore_2", "/y", RestoreState.ROLLED_BACK)
        history = bench.history()
        assert history.find(None) == history.find("restore_1") == history.record("restore_1") == first
        with pytest.raises(RestoreError, match="restore_2 was rolled back already"):
            history.find("restore_2")
        for look in (history.find, history.record):
            with pytest.raises(RestoreError, match="there is no restore restore_3"):
                look("restore_3")
        assert history.record("restore_2").state is RestoreState.ROLLED_BACK

    def test_without_any_there_is_none(self, bench: Bench) -> None:
        """What was never applied is none either."""
        self.begun(bench, "restore_1", "/x", RestoreState.ROLLED_BACK)
        with pytest.raises(RestoreError, match=r"^there is no restore that could be rolled back"):
            bench.history().find(None)

    @pytest.mark.parametrize(
        ("path", "state", "is_covered"),
        [
            ("/x/y", RestoreState.APPLIED, True),
            ("/x/y", RestoreState.ROLLED_BACK, False),
            ("/y", RestoreState.APPLIED, False),
        ],
    )
    def test_what_lies_under_a_newer_one(self, bench: Bench, path: str, state: RestoreState, is_covered: bool) -> None:
        """Has to wait until that is rolled back; the newer one never has to wait for the older."""
        first = self.begun(bench, "restore_1", "/x")
        newer = self.begun(bench, "restore_2", path, state)
        if is_covered:
            with pytest.raises(RestoreError, match="restore_2 was restored over restore_1") as caught:
                bench.history().find("restore_1")
            assert "restore_2" in caught.value.hint
        else:
            assert bench.history().find("restore_1") == first
        if state is RestoreState.APPLIED:
            assert bench.history().find("restore_2") == newer

    def test_what_is_kept_is_listed(self, bench: Bench) -> None:
        """Newest first, with what is kept and until when."""
        self.begun(bench, "restore_1", "/x", RestoreState.ROLLED_BACK)
        self.begun(bench, "restore_2", "/y")
        second, first = bench.history().listed()
        assert second == {
            "restore_id": "restore_2",
            "backup_id": "media_1",
            "started": "2026-01-02T03:04:05Z",
            "changed": "2026-01-02T03:04:05Z",
            "state": "applied",
            "components": ["media"],
            "targets": ["uploads in /y"],
            "can_be_taken_back": True,
            "kept": ["the old media"],
            "kept_until": "2026-01-09T03:04:05Z",
        }
        assert (first["restore_id"], first["can_be_taken_back"]) == ("restore_1", False)

    def test_what_is_old_is_discarded(self, bench: Bench) -> None:
        """To the second; not what is at work, nor the newest, however old the clock calls it."""
        records = RestoreRecords(Repository(bench.path))
        week = 7 * 86400
        ages = {"restore_old": week, "restore_young": week - 1, "restore_new": 10**8, "restore_unsettled": 10**8}
        for name, seconds in ages.items():
            state = RestoreState.UNDOING if name == "restore_unsettled" else RestoreState.APPLIED
            record = self.begun(bench, name, f"/{name}", state)
            records.save(record, changed=timestamp(NOW - timedelta(seconds=seconds)))
        said = bench.history().discard_old(bench.history().record("restore_new"))
        assert said == ("a bit of media", "restore_old is more than 7 days old and can no longer be rolled back")
        assert {record.restore_id for record in records.all()} == set(ages) - {"restore_old"}
        assert bench.disk.discarded == ["media"]

    def test_what_is_old_and_cannot_be_removed_stays(self, bench: Bench) -> None:
        """With a sentence each time, until it can."""
        record = self.begun(bench, "restore_1", "/x")
        RestoreRecords(Repository(bench.path)).save(record, changed="2025-01-01T00:00:00Z")
        bench.disk.failing = {"discard media"}
        (said,) = bench.history().discard_old()
        assert said == "restore_1 is old, but its rollback data cannot be removed: discard media fails"
        assert bench.states() == [RestoreState.APPLIED]
        bench.disk.failing = set()
        assert len(bench.history().discard_old()) == 2
        assert bench.states() == []

    @pytest.mark.parametrize("state", [RestoreState.APPLIED, RestoreState.UNDOING])
    def test_what_is_discarded_by_name(
        self, bench: Bench, state: RestoreState, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One that is not settled is undone first; what is left is told, and the record goes in any case."""
        events = Events(monkeypatch, "portal.ops.restore.history")
        bench.disk.parts["media"] = "new"
        record = self.begun(bench, "restore_1", "/x", state)
        assert bench.history().discard(record) == ("a bit of media",)
        assert bench.disk.parts["media"] == ("new" if state is RestoreState.APPLIED else "old")
        assert bench.states() == []
        assert events.all == [("info", "rollback_data_discarded", {"restore_id": "restore_1"})]
        bench.disk.failing = {"discard media"}
        (left,) = bench.history().discard(self.begun(bench, "restore_2", "/x", RestoreState.APPLIED))
        assert left == "the old media is left, to be removed by hand: discard media fails"
        assert bench.states() == []

    def test_what_is_done_is_logged(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each component, a rollback, and what was found unfinished."""
        events = Events(monkeypatch, "portal.ops.restore.history")
        record = bench.apply()
        assert [(event, facts["component"]) for _, event, facts in events.all] == [
            ("component_applied", name) for name in PARTS
        ]
        assert all(0 <= facts["seconds"] < 60 for _, _, facts in events.all)
        bench.history().roll_back(record)
        assert events.all[-1] == ("info", "restore_rolled_back", {"restore_id": RESTORE_ID})
        self.begun(bench, "restore_1", "/x", RestoreState.STAGING)
        said, _ = bench.history().recover()
        assert events.all[-1] == ("warning", "unfinished_work_found", {"detail": said[0]})
        assert said[0].endswith("had been interrupted before it changed anything; its remains are removed")
        bench.disk.failing = {"apply media", "undo database"}
        bench.disk.parts = dict.fromkeys(PARTS, "staged")
        with pytest.raises(RestoreError):
            bench.apply()
        assert events.all[-1] == (
            "error",
            "undo_failed",
            {"restore_id": RESTORE_ID, "error": events.all[-1][2]["error"]},
        )
        assert "undo database fails" in events.all[-1][2]["error"]


class TestInterrupted:
    """What was interrupted, and is found by the next process."""

    @pytest.mark.parametrize(
        ("state", "says"),
        [
            (RestoreState.STAGING, "its remains will be removed"),
            (RestoreState.APPLYING, "it will be finished, or undone where nothing was changed yet"),
            (RestoreState.UNDOING, "it will be undone"),
            (RestoreState.ROLLING_BACK, "that will be finished"),
        ],
    )
    def test_what_will_be_done_is_told(self, bench: Bench, state: RestoreState, says: str) -> None:
        """While another process is at it, only that."""
        assert bench.history().to_recover() == ()
        records = RestoreRecords(Repository(bench.path))
        records.save(bench.begin(), state=state)
        (said,) = bench.history().to_recover()
        assert (said.startswith(f"{RESTORE_ID} was "), said.endswith(says)) == (state is not RestoreState.UNDOING, True)
        with records.locked():
            assert bench.history().to_recover() == (f"{RESTORE_ID} is at work at this moment",)
        records.save(bench.history().record(RESTORE_ID), state=RestoreState.APPLIED)
        with records.locked():
            assert bench.history().to_recover() == ()

    def test_what_cannot_be_finished_is_undone(self, bench: Bench) -> None:
        """And says why."""
        RestoreRecords(Repository(bench.path)).save(bench.begin(), state=RestoreState.APPLYING)
        bench.disk.parts["database"] = "new"
        bench.disk.failing = {"apply media"}
        said, stuck = bench.history().recover()
        assert said == (
            f"{RESTORE_ID} had been interrupted half way and could not be finished (apply media fails); "
            "it is undone now",
        )
        assert (stuck, bench.live(), bench.states()) == ((), {"old"}, [RestoreState.ROLLED_BACK])

    def test_what_failed_is_undone(self, bench: Bench) -> None:
        """Each part, whatever it was."""
        RestoreRecords(Repository(bench.path)).save(bench.begin(), state=RestoreState.UNDOING)
        bench.disk.parts |= {"database": "new", "media": "new"}
        assert bench.history().recover() == (
            (f"{RESTORE_ID} had failed; it is undone now, and everything is as it was before",),
            (),
        )
        assert (bench.live(), bench.states()) == ({"old"}, [RestoreState.ROLLED_BACK])

    def test_every_part_is_undone_even_if_another_fails(self, bench: Bench) -> None:
        """The first error is told; the record stays until all are."""
        RestoreRecords(Repository(bench.path)).save(bench.begin(), state=RestoreState.UNDOING)
        bench.disk.parts = dict.fromkeys(PARTS, "new")
        bench.disk.failing = {"undo database", "undo media"}
        (said,), (stuck,) = bench.history().recover()
        assert said == f"{RESTORE_ID} was interrupted, and cannot be finished or undone now: undo database fails"
        assert stuck.error().message == (
            f"{RESTORE_ID} was interrupted and has to be finished or undone first, which fails: undo database fails"
        )
        assert bench.disk.parts == {"database": "new", "media": "new", "audit_logs": "old"}
        assert bench.states() == [RestoreState.UNDOING]

    def test_a_part_that_cannot_be_looked_at_may_be_begun(self, bench: Bench) -> None:
        """So a restore that fails then is kept as one that was live."""
        bench.disk.failing = {"apply media", "look at database"}
        with pytest.raises(RestoreError, match=r"^apply media fails"):
            bench.apply()
        assert (bench.live(), bench.states()) == ({"old"}, [RestoreState.ROLLED_BACK])

    def test_a_restore_that_fails_at_once_leaves_no_record(self, bench: Bench) -> None:
        """Nothing was live."""
        bench.disk.failing = {"apply database"}
        with pytest.raises(RestoreError, match=r"^apply database fails"):
            bench.apply()
        assert (bench.live(), bench.states()) == ({"old"}, [])

    def test_a_rollback_of_what_cannot_be_looked_at(self, bench: Bench) -> None:
        """It is gone on with, since nobody knows whether the database went back."""
        record = bench.apply()
        bench.disk.failing = {"look at database"}
        with pytest.raises(RestoreError, match="look at database fails"):
            bench.history().roll_back(record)
        assert bench.states() == [RestoreState.ROLLING_BACK]

    def test_a_refusal_of_the_system_is_brief(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """With its file, and without a hint for another situation."""
        RestoreRecords(Repository(bench.path)).save(bench.begin(), state=RestoreState.UNDOING)

        def refused(_: FakePart) -> None:
            raise OSError(errno.EIO, "Input/output error", "/place")

        monkeypatch.setattr(FakePart, "undo", refused)
        _, (stuck,) = bench.history().recover()
        assert stuck.reason.casefold() == "input/output error (/place)"


def test_records_that_cannot_be_listed_are_an_error(tmp_path: Path) -> None:
    """A file in the place of their directory is none; one that may not be read is."""
    records = RestoreRecords(Repository(tmp_path))
    (tmp_path / ".restores").symlink_to(".restores")
    with pytest.raises(RepositoryError, match=r"cannot read .*/\.restores"):
        records.all()
    (tmp_path / ".restores").unlink()
    (tmp_path / ".restores").touch()
    assert records.all() == []


def test_only_records_are_read(tmp_path: Path) -> None:
    """Whatever else lies in their directory; one that is not there is removed without complaint."""
    (tmp_path / ".restores").mkdir()
    for name in ("restore_1.json.tmp", "other.json", "restore_2", ".lock"):
        (tmp_path / ".restores" / name).write_text("x")
    records = RestoreRecords(Repository(tmp_path))
    assert records.all() == []
    record = RestoreRecord(
        restore_id="restore_1", number=1, backup_id="full_1", backup_file="/a", started="now", changed="now"
    )
    records.remove(record)
    assert [one.restore_id for one in (records.save(record), *records.all())] == ["restore_1", "restore_1"]
    assert records.directory_of("restore_1") == tmp_path / ".restores" / "restore_1"
    records.remove(record)
    assert records.all() == []
