"""What is remembered of a restore decides, whatever happened, between finishing and undoing: never a bit of both."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from portal.ops.errors import BusyError, RepositoryError, RestoreError
from portal.ops.model import Component, timestamp
from portal.ops.repository.repository import Repository
from portal.ops.restore.history import RestoreHistory
from portal.ops.restore.journal import RestoreRecord, RestoreRecords, RestoreState
from tests.support.events import Events

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from portal.ops.restore.components import Part

RESTORE_ID = "restore_20260102_030405_ab12cd"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PARTS = ("database", "media", "audit_logs")


class Killed(BaseException):
    """The process is gone: nothing that it would still have done happens."""


@dataclass
class Disk:
    """What outlives a process: how far each part is. A process dies, or an operation fails, at a chosen step.

    Arguments:
        deadly: the number of the step that the process does not survive; `before` or after its effect.
        failing: names of operations that fail.
    """

    parts: dict[str, str]
    deadly: int = -1
    before: bool = False
    failing: set[str] = field(default_factory=set)
    discarded: list[str] = field(default_factory=list)
    steps: int = 0
    dead: bool = False

    def step(self, name: str, effect: Callable[[], Any] = lambda: None) -> None:
        """Do something that lasts."""
        if self.dead:
            raise Killed
        self.steps += 1
        if self.steps == self.deadly:
            self.dead = True
            if not self.before:
                effect()
            raise Killed
        if name in self.failing:
            raise RestoreError(f"{name} fails")
        effect()


class FakePart:
    """A part of a restore without a restore: it only changes what the disk says of it."""

    def __init__(self, name: str, disk: Disk) -> None:
        self.component = Component(name)
        self._name = name
        self._disk = disk

    def apply(self) -> dict[str, Any]:
        """Staged becomes new."""
        if self._disk.parts[self._name] != "new":
            if self._disk.parts[self._name] != "staged":
                raise RestoreError("nothing is staged")
            self._disk.step(f"apply {self._name}", lambda: self._become("new"))
        return {"warnings": []}

    def finish(self) -> dict[str, Any]:
        """As apply."""
        return self.apply()

    def is_begun(self) -> bool:
        """Whether it is new."""
        self._disk.step(f"look at {self._name}")
        return self._disk.parts[self._name] == "new"

    def undo(self) -> None:
        """Whatever it is becomes old."""
        self._disk.step(f"undo {self._name}", lambda: self._become("old"))

    def roll_back(self) -> dict[str, Any]:
        """New becomes old."""
        if self._disk.parts[self._name] == "new":
            self._disk.step(f"roll back {self._name}", lambda: self._become("old"))
        return {}

    def record(self) -> dict[str, Any]:
        """Nothing but where it is."""
        return {"host": "h", "port": 1, "database": "d"} if self._name == "database" else {"path": f"/{self._name}"}

    def kept(self, *, rolled_back: bool) -> str:
        """What is kept."""
        return f"the old {self._name}"

    def discard(self) -> tuple[str, ...]:
        """Nothing is kept any more but what it says."""
        self._disk.step(f"discard {self._name}", lambda: self._disk.discarded.append(self._name))
        return (f"a bit of {self._name}",) if self._name == "media" else ()

    def _become(self, what: str) -> None:
        self._disk.parts[self._name] = what


class DyingRecords(RestoreRecords):
    """Records of a process that can die when it writes them."""

    def __init__(self, repository: Repository, disk: Disk) -> None:
        super().__init__(repository)
        self._disk = disk

    def save(self, record: RestoreRecord, **changes: Any) -> RestoreRecord:
        """Write, or die before or after it."""
        self._disk.step("save", lambda: RestoreRecords.save(self, record, **changes))
        return replace(record, **changes)

    def remove(self, record: RestoreRecord) -> None:
        """Remove, or die before or after it."""
        self._disk.step("remove", lambda: RestoreRecords.remove(self, record))


@dataclass
class Bench:
    """A history over parts that are staged."""

    path: Path
    disk: Disk = field(default_factory=lambda: Disk(parts=dict.fromkeys(PARTS, "staged")))

    def history(self) -> RestoreHistory:
        """The history, as a process that was started now sees it."""
        return RestoreHistory(
            DyingRecords(Repository(self.path), self.disk),
            parts_of=lambda record: [cast("Part", FakePart(name, self.disk)) for name in record.parts],
            clock=lambda: NOW,
            days=7,
        )

    def parts(self) -> list[Part]:
        """The parts of the one restore."""
        return [cast("Part", FakePart(name, self.disk)) for name in PARTS]

    def begin(self) -> RestoreRecord:
        """Write down that it is being staged."""
        (self.path / ".restores").mkdir(exist_ok=True)
        return self.history().begin(
            RESTORE_ID, "full_1", "/a", {name: FakePart(name, self.disk).record() for name in PARTS}
        )

    def apply(self) -> RestoreRecord:
        """Stage and apply."""
        record = self.begin()
        self.history().apply(record, self.parts())
        return self.history().record(RESTORE_ID)

    def restart(self, **changes: Any) -> None:
        """From now on another process."""
        fresh: dict[str, Any] = {"deadly": -1, "failing": set(), "steps": 0, "dead": False}
        self.disk = replace(self.disk, **(fresh | changes))

    def live(self) -> set[str]:
        """What is live, over all parts; staged means that the old is."""
        return {"old" if state == "staged" else state for state in self.disk.parts.values()}

    def states(self) -> list[RestoreState]:
        """The states on the disk."""
        return [record.state for record in RestoreRecords(Repository(self.path)).all()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A restore of three parts that are staged."""
    return Bench(path=tmp_path)


def every_death(work: Callable[[Bench], object], directory: Path) -> list[Bench]:
    """The work, killed before and after each of its steps; what each death has left."""
    found = []
    for number in range(1, 100):
        for before in (True, False):
            path = directory / f"{number}-{before}"
            path.mkdir()
            bench = Bench(path=path)
            if work is roll_back:
                bench.apply()
            bench.disk.before, bench.disk.deadly = before, bench.disk.steps + number
            try:
                work(bench)
            except Killed:
                found.append(bench)
            else:
                return found
    raise AssertionError("it never ends")


def apply(bench: Bench) -> object:
    """Stage and apply."""
    return bench.apply()


def roll_back(bench: Bench) -> object:
    """Take the applied restore back."""
    history = bench.history()
    return history.roll_back(history.record(RESTORE_ID))


class TestDeath:
    """A process that is killed at any step."""

    @pytest.mark.parametrize("work", [apply, roll_back])
    def test_the_next_process_makes_it_whole(self, tmp_path: Path, work: Callable[[Bench], object]) -> None:
        """After a death at any step the next start leaves wholly the old or wholly the new, and nothing unfinished."""
        deaths = every_death(work, tmp_path)
        assert len(deaths) > 8
        for bench in deaths:
            bench.restart()
            bench.history().recover()
            assert bench.live() in ({"old"}, {"new"})
            assert all(state.is_settled for state in bench.states())
            assert ("new" in bench.live()) == (bench.states() == [RestoreState.APPLIED])

    @pytest.mark.parametrize("work", [apply, roll_back])
    def test_the_next_process_dies_too(self, tmp_path: Path, work: Callable[[Bench], object]) -> None:
        """However often the process that goes on dies as well, one that lives makes it whole."""
        deaths = every_death(work, tmp_path)
        assert len(deaths) > 8
        for bench in deaths:
            for number in (1, 2, 3, 5):
                bench.restart(deadly=number)
                try:
                    bench.history().recover()
                except Killed:
                    continue
            bench.restart()
            bench.history().recover()
            assert bench.live() in ({"old"}, {"new"})
            assert all(state.is_settled for state in bench.states())

    def test_what_was_finished_can_be_taken_back(self, tmp_path: Path) -> None:
        """A restore that was finished after a death is rolled back like any other."""
        deaths = every_death(apply, tmp_path)
        assert len(deaths) > 8
        for bench in deaths:
            bench.restart()
            bench.history().recover()
            if bench.states() == [RestoreState.APPLIED]:
                roll_back(bench)
            assert bench.live() == {"old"}

    def test_a_dead_one_is_told_of_before_it_is_settled(self, tmp_path: Path) -> None:
        """An interrupted restore is named without being touched."""
        deaths = every_death(apply, tmp_path)
        assert len(deaths) > 8
        for bench in deaths:
            bench.restart()
            states = bench.states()
            said = bench.history().to_recover()
            assert len(said) == sum(not state.is_settled for state in states)
            assert bench.states() == states


class TestFailure:
    """A part that cannot do what it should."""

    @pytest.mark.parametrize("name", PARTS)
    def test_a_part_that_cannot_be_applied(self, bench: Bench, name: str) -> None:
        """The ones before it go back, and the error is the part's."""
        bench.disk.failing = {f"apply {name}"}
        with pytest.raises(RestoreError, match=f"^apply {name} fails"):
            bench.apply()
        assert bench.live() == {"old"}

    def test_nor_taken_back(self, bench: Bench) -> None:
        """Where taking back fails too, the error says both, and the next start goes on with it."""
        bench.disk.failing = {"apply media", "undo database"}
        with pytest.raises(
            RestoreError, match="apply media fails; and the begun changes could not be undone: undo data"
        ):
            bench.apply()
        assert bench.states() == [RestoreState.UNDOING]
        bench.restart()
        said, stuck = bench.history().recover()
        assert bench.live() == {"old"}
        assert bench.states() == [RestoreState.ROLLED_BACK]
        assert ("it is undone now" in said[0], stuck) == (True, ())

    def test_as_long_as_it_lasts(self, bench: Bench) -> None:
        """As long as it cannot be undone the record stays, and says what is wrong and how to give it up."""
        bench.disk.failing = {"apply media", "undo database"}
        with pytest.raises(RestoreError):
            bench.apply()
        _, (stuck,) = bench.history().recover()
        assert "undo database fails" in str(stuck.error())
        assert f"--discard {RESTORE_ID}" in stuck.error().hint
        assert bench.states() == [RestoreState.UNDOING]

    def test_a_server_that_cannot_be_asked(self, bench: Bench) -> None:
        """While it is not known whether something was applied, nothing is decided."""
        bench.disk.deadly = 3
        with pytest.raises(Killed):
            bench.apply()
        bench.restart(failing={"look at database"})
        _, stuck = bench.history().recover()
        assert len(stuck) == 1
        assert bench.states() == [RestoreState.APPLYING]

    def test_the_rollback_of_the_database(self, bench: Bench) -> None:
        """A rollback that the database refuses has changed nothing, and nobody goes on with it by himself."""
        record = bench.apply()
        bench.disk.failing = {"roll back database"}
        with pytest.raises(RestoreError, match="roll back database fails"):
            bench.history().roll_back(record)
        assert bench.live() == {"new"}
        assert bench.states() == [RestoreState.APPLIED]

    def test_the_rollback_of_the_files(self, bench: Bench) -> None:
        """A rollback that the files refuse after the database has gone back is gone on with."""
        record = bench.apply()
        bench.disk.failing = {"roll back media"}
        with pytest.raises(RestoreError, match="roll back media fails"):
            bench.history().roll_back(record)
        bench.restart()
        bench.history().recover()
        assert bench.live() == {"old"}

    def test_a_rollback_that_is_interrupted(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Somebody who asks the process to end does not get half a rollback."""
        record = bench.apply()
        real = FakePart.roll_back

        def interrupted(part: FakePart) -> dict[str, Any]:
            if part.component is Component.MEDIA:
                monkeypatch.undo()
                raise KeyboardInterrupt
            return real(part)

        monkeypatch.setattr(FakePart, "roll_back", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bench.history().roll_back(record)
        assert bench.live() == {"old"}
        assert bench.states() == [RestoreState.ROLLED_BACK]

    def test_what_is_gone(self, bench: Bench) -> None:
        """What a rollback needs is looked for before anything is rolled back."""
        record = bench.apply()
        bench.disk.parts["media"] = "old"
        with pytest.raises(RestoreError, match="this is gone: the old media"):
            bench.history().check(record)


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


class TestRecords:
    """The files."""

    def test_they_come_newest_first(self, tmp_path: Path) -> None:
        """The order is that of the restores, also of two in one second, and whatever their ids are."""
        records = RestoreRecords(Repository(tmp_path))
        for number, restore_id in enumerate(("restore_c", "restore_a", "restore_b"), start=1):
            records.save(record_of(number, restore_id))
        assert [record.restore_id for record in records.all()] == ["restore_b", "restore_a", "restore_c"]

    def test_they_are_read_as_they_were_written(self, tmp_path: Path) -> None:
        """Nothing of a record is lost on the disk."""
        records = RestoreRecords(Repository(tmp_path))
        saved = records.save(record_of(1, RESTORE_ID), state=RestoreState.APPLYING)
        assert records.all() == [saved]

    def test_they_are_private(self, tmp_path: Path) -> None:
        """Nobody else can read them."""
        RestoreRecords(Repository(tmp_path)).save(record_of(1, RESTORE_ID))
        assert (tmp_path / ".restores").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / ".restores" / f"{RESTORE_ID}.json").stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "dancing"}', '{"state": "applied", "surprise": 1}'])
    def test_one_that_makes_no_sense(self, tmp_path: Path, text: str) -> None:
        """A record that was damaged is named, with what can be done."""
        (tmp_path / ".restores").mkdir()
        (tmp_path / ".restores" / f"{RESTORE_ID}.json").write_text(text)
        with pytest.raises(RestoreError, match="is invalid") as caught:
            RestoreRecords(Repository(tmp_path)).all()
        assert "move it away" in caught.value.hint

    def test_one_that_cannot_be_read(self, tmp_path: Path) -> None:
        """A record that cannot be read is an error, not a restore less."""
        (tmp_path / ".restores" / f"{RESTORE_ID}.json").mkdir(parents=True)
        with pytest.raises(RepositoryError, match="is a directory"):
            RestoreRecords(Repository(tmp_path)).all()

    def test_without_a_repository_there_are_none(self, tmp_path: Path) -> None:
        """Looking for records makes no directory."""
        records = RestoreRecords(Repository(tmp_path / "absent"))
        assert (records.all(), records.are_locked()) == ([], False)
        assert not (tmp_path / "absent").exists()

    def test_the_lock(self, tmp_path: Path) -> None:
        """One restore holds off the others, at once, and it can be seen from outside."""
        records = RestoreRecords(Repository(tmp_path))
        with records.locked():
            assert records.are_locked()
            with pytest.raises(BusyError, match="another restore is running"), records.locked():
                pass
        assert not records.are_locked()


class TestOverlaps:
    """Which restores lie on one another."""

    @pytest.mark.parametrize(
        ("parts", "expected"),
        [
            ({"database": {"host": "h", "port": 1, "database": "d"}}, True),
            ({"database": {"host": "h", "port": 2, "database": "d"}}, False),
            ({"database": {"host": "h", "port": 1, "database": "e"}}, False),
            ({"media": {"path": "/up/load"}}, True),
            ({"media": {"path": "/up"}}, True),
            ({"media": {"path": "/up/load/tenant"}}, True),
            ({"media": {"path": "/up/loads"}}, False),
            ({"audit_logs": {"path": "/up/load"}}, False),
            ({}, False),
        ],
    )
    def test_by_place(self, parts: dict[str, dict[str, Any]], expected: bool) -> None:
        """Two restores overlap where they go to the same database, or to one tree or a tree in it."""
        record = replace(
            record_of(1, RESTORE_ID),
            parts={"database": {"host": "h", "port": 1, "database": "d"}, "media": {"path": "/up/load"}},
        )
        assert record.overlaps(parts) is expected


def record_of(number: int, restore_id: str) -> RestoreRecord:
    """A record."""
    now = "2026-01-02T03:04:05Z"
    return RestoreRecord(
        restore_id=restore_id, number=number, backup_id="full_1", backup_file="/a", started=now, changed=now
    )
