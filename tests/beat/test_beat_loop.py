"""Beat, one look after the other: what it sends, what it says of its life, and when it looks again."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from beat import loop as module
from beat.due import Slot
from beat.loop import Beat
from beat.repository_facts import read_facts
from portal.ops.model import BackupType
from portal.ops.repository.access_log import AccessLog, Action, Outcome
from portal.ops.repository.repository import Repository
from portal.ops.settings.load import load_settings
from tests.support.kept import put_archive
from worker.errors import BrokerAwayError
from worker.operations import BACKUP_FULL, OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from worker.operations import Operation

TWO = datetime(2026, 11, 22, 2, tzinfo=UTC)
OFF = {f"BACKUP_SCHEDULE_{name}": "off" for name in ("DATABASE", "VERIFY", "PRUNE", "DRILL")}
FULL = "full-2026-11-22T02:00Z"


class Site:
    """A repository, workers that note what they get, and clocks that a test sets."""

    def __init__(self, directory: Path) -> None:
        self.archives = directory / "archives"
        self.now = TWO
        self.steady = 1000.0
        self.sent: list[str] = []
        self.arguments: list[Mapping[str, Any]] = []
        self.busy: set[str] = set()
        self.asked: list[str] = []
        self.away_after = 1000
        self.looks = 0

    def submit(self, operation: Operation, arguments: Mapping[str, Any], task_id: str) -> None:
        """Note a task, or be away."""
        assert OPERATIONS[operation.name] is operation
        if len(self.sent) >= self.away_after:
            raise BrokerAwayError("the broker does not answer", hint="none")
        self.sent.append(task_id)
        self.arguments.append(arguments)

    def is_at_work(self, task_id: str) -> bool:
        """Whatever the test says."""
        self.asked.append(task_id)
        return task_id in self.busy

    def beat(self, **environ: str) -> Beat:
        """A beat of this site; but for the full backup each schedule is off unless a test turns it on."""
        settings = load_settings({"BACKUP_LOCAL_PATH": str(self.archives), **OFF, **environ}, lambda path: "")
        return Beat(
            settings, self, clock=lambda: self.now, steady=lambda: self.steady, after_look=lambda: self._looked()
        )

    def _looked(self) -> None:
        self.looks += 1

    def life(self) -> dict[str, Any]:
        """The last sign of life."""
        found: dict[str, Any] = json.loads((self.archives / ".beat.json").read_text())
        return found

    def make(self, slot: Slot) -> None:
        """Have the archive of a slot."""
        (self.archives / f"{slot.backup_id}.tar.gz").touch()


@pytest.fixture
def site(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Site:
    caplog.set_level("INFO")
    return Site(tmp_path)


def test_it_says_what_comes_next(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """When it starts, and with each sign of life."""
    beat = site.beat(BACKUP_SCHEDULE_PRUNE="30 3 * * *")
    beat.start()
    expected = {"full": "2026-11-23T02:00:00Z", "prune": "2026-11-22T03:30:00Z"}
    assert f"next={expected}" in caplog.text
    beat.look()
    assert {name: site.life()[name] for name in ("next", "broker_away", "asked")} == {
        "next": expected,
        "broker_away": False,
        "asked": {},
    }
    assert caplog.text.count("task_sent") == 1
    assert f"task='backup.full' task_id='{FULL}'" in caplog.text


def test_a_tick_looks_when_it_is_time(site: Site) -> None:
    """Otherwise it shows life; it is called again after twenty seconds at the most, and a moment after a slot."""
    beat = site.beat()
    assert beat.tick() == 20.05
    assert (site.looks, site.sent) == (1, [FULL])
    site.make(Slot(operation=BACKUP_FULL, moment=TWO))
    for seconds, pause, looks in ((20, 20.05, 1), (265, 15.05, 1), (14.9, 0.15, 1), (0.1, 20.05, 2), (300, 20.05, 3)):
        site.now += timedelta(seconds=seconds)
        assert beat.tick() == pytest.approx(pause)
        assert site.looks == looks
        assert site.life()["moment"] == f"{site.now:%Y-%m-%dT%H:%M:%SZ}"
    site.now -= timedelta(days=1)
    beat.tick()
    assert site.looks == 4


def test_a_look_that_takes_longer_than_the_pause_is_followed_by_another_at_once(site: Site) -> None:
    """A negative pause would be an error."""
    beat = site.beat()
    beat.look = lambda: site.now - timedelta(seconds=60)  # type: ignore[method-assign]
    assert beat.tick() == 0.05


def test_it_runs_from_tick_to_tick(site: Site) -> None:
    """With the pauses that these say."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        site.now += timedelta(seconds=seconds)
        if len(pauses) == 20:
            raise KeyboardInterrupt

    beat = site.beat()
    beat._sleep = sleep
    with pytest.raises(KeyboardInterrupt):
        beat.run()
    assert site.looks == 2
    assert max(pauses) == 20.05


def test_an_outage_of_the_broker_is_said_once_with_its_end(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """It is tried again after a second, whatever the schedule says, and seen in the sign of life."""
    beat = site.beat()
    site.away_after = 0
    assert beat.look() == TWO + timedelta(seconds=1)
    assert site.life()["broker_away"] is True
    site.now, site.steady = TWO + timedelta(seconds=1), 1001.5
    assert beat.look() == site.now + timedelta(seconds=2)
    site.steady = 1010.04
    site.away_after = 1000
    assert beat.look() == TWO + timedelta(minutes=5, seconds=1)
    assert site.sent == [FULL]
    assert site.life()["broker_away"] is False
    assert caplog.text.count("broker_away") == caplog.text.count("broker_back") == 1
    assert "seconds=10.0\n" in caplog.text


def test_an_attempt_that_is_late_is_made_at_once(site: Site) -> None:
    """The look itself may take longer than the pause."""
    beat = site.beat()
    site.away_after = 0
    readings = iter([1000.0, 1100.0])
    beat._steady = lambda: next(readings)
    assert beat.look() == TWO


def test_a_task_is_not_sent_again_while_it_is_at_work(site: Site) -> None:
    """Longer than a task may take, it counts as lost; where its pause is not over, nobody is asked."""
    beat = site.beat(BACKUP_TASK_TIMEOUT="7200", BACKUP_SCHEDULE_FULL="0 2 * * 0")
    beat.look()
    site.busy.add(FULL)
    site.now = TWO + timedelta(minutes=4, seconds=59)
    beat.look()
    assert (site.sent, site.asked) == ([FULL], [])
    site.now = TWO + timedelta(minutes=5)
    beat.look()
    assert (site.sent, site.asked) == ([FULL], [FULL])
    site.now = TWO + timedelta(hours=2)
    beat.look()
    assert site.sent == [FULL]
    site.now += timedelta(seconds=1)
    beat.look()
    assert site.sent == [FULL, FULL]
    site.busy.clear()
    site.now += timedelta(minutes=10)
    beat.look()
    assert site.sent == [FULL] * 3
    assert site.life()["asked"][FULL]["times"] == 3
    again = site.beat(BACKUP_TASK_TIMEOUT="7200", BACKUP_SCHEDULE_FULL="0 2 * * 0")
    site.now += timedelta(minutes=19)
    again.look()
    assert site.sent == [FULL] * 3
    site.now += timedelta(minutes=1)
    again.look()
    assert site.sent == [FULL] * 4


def test_no_more_than_a_hundred_tasks_are_sent_at_once(site: Site) -> None:
    """The others at the next look."""
    Repository(site.archives).prepare()
    for number in range(103):
        put_archive(site.archives, BackupType.DATABASE, TWO - timedelta(days=9, minutes=number))
    beat = site.beat(BACKUP_SCHEDULE_FULL="off", BACKUP_SCHEDULE_VERIFY="0 1 * * *")
    beat.look()
    assert len(site.sent) == 100
    site.now += timedelta(minutes=5)
    site.busy.update(site.sent)
    beat.look()
    assert len(set(site.sent)) == len(site.sent) == 103


@pytest.mark.parametrize("is_done", [True, False])
def test_what_is_done_is_not_looked_for_again(site: Site, monkeypatch: pytest.MonkeyPatch, is_done: bool) -> None:
    """Until its next slot: the access log may be long. Where there is no archive yet, it is."""
    repository = Repository(site.archives)
    repository.prepare()
    if is_done:
        put_archive(site.archives, BackupType.FULL, TWO - timedelta(days=9))
    moment = TWO - timedelta(minutes=30)
    AccessLog(repository).append(Action.PRUNE, "it", Outcome.DONE, who="ann", host="here", moment=moment)
    asked = list[set[str]]()

    def reading(repository: Repository, operations: set[Operation], settings: Any, *, since: datetime) -> Any:
        asked.append({operation.name for operation in operations})
        assert since.time() == moment.time()
        return read_facts(repository, operations, settings, since=since)

    monkeypatch.setattr(module, "read_facts", reading)
    beat = site.beat(BACKUP_SCHEDULE_FULL="off", BACKUP_SCHEDULE_OFFSITE="off", BACKUP_SCHEDULE_PRUNE="30 1 * * *")
    for _ in range(2):
        beat.look()
    prune = [names for names in asked if "prune.repository" in names]
    assert len(prune) == (1 if is_done else 2)
    assert site.sent == []
    site.now += timedelta(days=1)
    beat.look()
    assert len([names for names in asked if "prune.repository" in names]) == len(prune) + 1
    assert site.sent == (["prune-2026-11-23T01:30Z"] if is_done else [])


def test_a_task_that_is_due_no_longer_is_forgotten(site: Site) -> None:
    """What failed a day ago has nothing to do with today's."""
    beat = site.beat()
    for minutes in (0, 5, 15):
        site.now = TWO + timedelta(minutes=minutes)
        beat.look()
    assert site.life()["asked"][FULL]["times"] == 3
    site.make(Slot(operation=BACKUP_FULL, moment=TWO))
    beat.look()
    assert site.life()["asked"] == {}


def test_trouble_with_the_repository_is_said_once_until_it_is_over(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Reading it and writing to it are two things."""
    beat, away = site.beat(), site.archives.with_name("away")
    for number in (1, 2):
        site.archives.write_text("in the way")
        for _ in range(3):
            assert beat.look() == TWO + timedelta(minutes=5)
        assert caplog.text.count("repository_unreadable") == number
        assert caplog.text.count("heartbeat_unwritten") == number
        site.archives.unlink()
        if number == 2:
            away.rename(site.archives)
        beat.look()
        assert site.life()["pid"]
        site.archives.rename(away)
    assert site.sent == [FULL]
