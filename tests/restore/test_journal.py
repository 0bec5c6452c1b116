"""What is remembered of a restore decides, whatever happened, between finishing and undoing: never a bit of both."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.errors import BusyError, RepositoryError, RestoreError
from portal.ops.model import Component
from portal.ops.repository.repository import Repository
from portal.ops.restore.journal import RestoreRecord, RestoreRecords, RestoreState
from tests.support.restore_bench import PARTS, RESTORE_ID, Bench, FakePart, Killed, roll_back

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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

    def test_the_first_restore_makes_the_repository(self, tmp_path: Path) -> None:
        """On a new machine, whose archives come from elsewhere, it has an id before anything is recorded in it."""
        repository = Repository(tmp_path / "new")
        with RestoreRecords(repository).locked():
            assert repository.id


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
