"""Beat's promises kept by `celery beat` as a process: missed slots, a broker that is away, two beats, summer time."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest

from beat.due import Slot
from beat.scheduler import CronSlots
from demo.redis import EmbeddedRedis
from portal.ops.settings.slots import last_slot
from tests.support.services import ServiceProcess, distant_slots, sent_tasks
from tests.support.workers import wait_until
from worker.operations import BACKUP_DATABASE, BACKUP_FULL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.operations import Operation

OTHERS_OFF = {f"BACKUP_SCHEDULE_{name}": "off" for name in ("VERIFY", "PRUNE", "DRILL")}
UTC_ZONE = ZoneInfo("UTC")


class CeleryBeat(ServiceProcess):
    """`celery -A worker.app beat`."""

    def __init__(self, directory: Path, redis: EmbeddedRedis, **environ: str) -> None:
        super().__init__("beat", directory, redis, **{**environ, **OTHERS_OFF})

    def command(self) -> list[str]:
        """What is started."""
        return [str(Path(sys.executable).with_name("celery")), "-A", "worker.app", "beat"]


@dataclass(frozen=True)
class Schedules:
    """When backups are due: in no test, so that it need not be quick."""

    given: dict[str, str]

    @property
    def daily(self) -> str:
        """That of full backups."""
        return self.given["BACKUP_SCHEDULE_FULL"]

    @property
    def hourly(self) -> str:
        """That of the database's own."""
        return self.given["BACKUP_SCHEDULE_DATABASE"]

    def environ(self, **changes: str) -> dict[str, str]:
        """As settings."""
        return {**self.given, **changes}


@pytest.fixture
def schedules() -> Schedules:
    return Schedules(distant_slots())


@pytest.fixture
def redis() -> Iterator[EmbeddedRedis]:
    """A broker of the test's own."""
    with EmbeddedRedis() as server:
        yield server


def slot_of(operation: Operation, expression: str, *, before: timedelta = timedelta()) -> Slot:
    moment = last_slot(expression, UTC_ZONE, datetime.now(UTC) - before)
    assert moment is not None
    return Slot(operation=operation, moment=moment)


def archived(directory: Path, slot: Slot) -> None:
    """Have the repository hold the archive of a slot."""
    (directory / "archives").mkdir(mode=0o700, exist_ok=True)
    (directory / "archives" / f"{slot.backup_id}.tar.gz").touch()


def test_of_the_slots_that_were_missed_the_newest_is_made_up_for(
    tmp_path: Path, redis: EmbeddedRedis, schedules: Schedules
) -> None:
    """Three nights and more hours have passed without a beat: one full backup, which is the database's too."""
    archived(tmp_path, slot_of(BACKUP_FULL, schedules.daily, before=timedelta(days=4)))
    with CeleryBeat(tmp_path, redis, **schedules.environ(BACKUP_SCHEDULE_DATABASE="off")):
        wait_until(lambda: sent_tasks(redis))
    newest = slot_of(BACKUP_FULL, schedules.daily)
    assert [(task.name, task.task_id) for task in sent_tasks(redis)] == [("backup.full", newest.task_id)]


def test_what_is_done_is_not_sent(tmp_path: Path, redis: EmbeddedRedis, schedules: Schedules) -> None:
    """The repository has the full backup of the night: only the database of this hour is due."""
    archived(tmp_path, slot_of(BACKUP_FULL, schedules.daily))
    hourly = slot_of(BACKUP_DATABASE, schedules.hourly)
    with CeleryBeat(tmp_path, redis, **schedules.environ()) as beat:
        wait_until(lambda: (tmp_path / "archives" / ".beat.json").exists())
        wait_until(lambda: sent_tasks(redis))
        assert beat.end(signal.SIGTERM) == 0
    assert {task.task_id for task in sent_tasks(redis)} == {hourly.task_id}


def test_a_broker_that_is_away_gets_the_task_when_it_is_back(
    tmp_path: Path, redis: EmbeddedRedis, schedules: Schedules
) -> None:
    """It is away when beat starts and the slot is due; beat goes on, says so once, and sends the task once."""
    redis.stop(signal.SIGKILL)
    with CeleryBeat(tmp_path, redis, **schedules.environ(BACKUP_SCHEDULE_DATABASE="off")) as beat:
        wait_until(lambda: beat.events("broker_away"))
        redis.start()
        wait_until(lambda: sent_tasks(redis))
        wait_until(lambda: beat.events("broker_back"))
        assert beat.end(signal.SIGTERM) == 0
    assert len(beat.events("broker_away")) == 1
    assert [task.task_id for task in sent_tasks(redis)] == [slot_of(BACKUP_FULL, schedules.daily).task_id]


def test_two_beats_send_the_same_task(tmp_path: Path, redis: EmbeddedRedis, schedules: Schedules) -> None:
    """One name for one slot: the worker makes one archive of it, and does the second delivery not again."""
    with (
        CeleryBeat(tmp_path, redis, **schedules.environ()) as first,
        CeleryBeat(tmp_path, redis, **schedules.environ()) as second,
    ):
        wait_until(lambda: first.events("task_sent") or second.events("task_sent"))
        wait_until(lambda: (tmp_path / "archives" / ".beat.json").exists())
        assert (first.end(signal.SIGTERM), second.end(signal.SIGTERM)) == (0, 0)
    assert {task.task_id for task in sent_tasks(redis)} == {slot_of(BACKUP_FULL, schedules.daily).task_id}


def test_an_entry_of_the_night_when_summer_time_ends_is_due_once() -> None:
    """Half past two comes twice in Berlin on that day; Celery's question to the entry has one answer."""
    berlin = ZoneInfo("Europe/Berlin")
    slots = CronSlots("30 2 * * *", berlin)
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert last_slot(slots.expression, berlin, datetime(2026, 10, 25, 5, tzinfo=UTC)) == first
    assert first + slots.remaining_estimate(first) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)
