"""Beat: what it sends to a real Redis, while that is killed, and while clocks jump; and beat as a process."""

from __future__ import annotations

import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from beat.due import Slot, last_slots
from beat.loop import Beat
from beat.repository_facts import read_facts
from beat.task_queue import QueuedWorkers
from demo.redis import EmbeddedRedis
from portal.ops.model import VerifyLevel
from portal.ops.repository.access_log import AccessLog, Action, Outcome
from portal.ops.repository.repository import Repository
from portal.ops.repository.verifications import Verification, Verifications
from portal.ops.settings.load import Settings, load_settings
from portal.ops.settings.slots import last_slot
from tests.support.services import ServiceProcess, distant_slots, sent_tasks
from tests.support.workers import WorkerProcess, wait_until
from worker.operations import BACKUP_FULL, DRILL_RESTORE, PRUNE_REPOSITORY, Requester

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.support.portal import Portal
    from worker.operations import Operation

BEFORE = datetime(2026, 11, 22, 1, 58, tzinfo=UTC)
TWO = datetime(2026, 11, 22, 2, tzinfo=UTC)
BACKUPS_ONLY = {"BACKUP_SCHEDULE_VERIFY": "off", "BACKUP_SCHEDULE_PRUNE": "off", "BACKUP_SCHEDULE_DRILL": "off"}


@pytest.fixture
def redis() -> Iterator[EmbeddedRedis]:
    """A broker of the test's own."""
    with EmbeddedRedis() as server:
        yield server


class Hands:
    """Workers that do at once what they are given: an archive is a file of its name, and no more."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.tasks: list[str] = []
        self.busy: set[str] = set()
        self.is_failing = False

    def submit(self, operation: Operation, arguments: Mapping[str, Any], task_id: str) -> None:
        """Do it, or fail."""
        self.tasks.append(task_id)
        moment = task_id.partition("-")[2]
        if self.is_failing or operation.backup_type is None:
            return
        slot = Slot(operation=operation, moment=datetime.strptime(moment, "%Y-%m-%dT%H:%M%z"))
        self.repository.mkdir(exist_ok=True)
        (self.repository / f"{slot.backup_id}.tar.gz").touch()

    def is_at_work(self, task_id: str) -> bool:
        """Whether the test says so."""
        return task_id in self.busy


class Time:
    """A clock that a test sets; the steady one goes with it, unless it jumps."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.steady = 1000.0

    def pass_by(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)
        self.steady += seconds


def settings_of(directory: Path, **environ: str) -> Settings:
    return load_settings({"BACKUP_LOCAL_PATH": str(directory / "archives"), **environ}, lambda path: "")


def beat_of(directory: Path, hands: Hands, time: Time, **environ: str) -> Beat:
    settings = settings_of(directory, **{**BACKUPS_ONLY, **environ})
    return Beat(settings, hands, clock=lambda: time.now, steady=lambda: time.steady)


def test_two_days_of_beats_make_an_archive_for_each_slot(tmp_path: Path) -> None:
    """A full one at two each day, which is the database's too, and one of the database for each other hour."""
    hands, time = Hands(tmp_path / "archives"), Time(BEFORE)
    beat = beat_of(tmp_path, hands, time)
    while time.now < BEFORE + timedelta(days=2):
        time.now = beat.look()
    assert len(hands.tasks) == len(set(hands.tasks))
    assert sum(task.startswith("full") for task in hands.tasks) == 3  # the first one at once
    assert sum(task.startswith("database") for task in hands.tasks) == 46
    assert "database-2026-11-22T02:00Z" not in hands.tasks


def test_it_looks_again_at_the_next_slot_and_every_five_minutes(tmp_path: Path) -> None:
    """Whichever is sooner."""
    time = Time(BEFORE)
    beat = beat_of(tmp_path, Hands(tmp_path / "archives"), time)
    assert beat.look() == TWO
    time.now = TWO
    assert beat.look() == TWO + timedelta(minutes=5)


def test_a_task_that_fails_is_sent_again_and_again_with_growing_pauses(tmp_path: Path) -> None:
    """Twelve times in nine hours, not a hundred times."""
    hands, time = Hands(tmp_path / "archives"), Time(TWO)
    hands.is_failing = True
    beat = beat_of(tmp_path, hands, time, BACKUP_SCHEDULE_DATABASE="off")
    while time.now < TWO + timedelta(hours=9):
        time.now = beat.look()
    assert set(hands.tasks) == {"full-2026-11-22T02:00Z"}
    assert len(hands.tasks) == 12


def test_a_task_that_is_queued_or_being_done_is_not_sent_again(tmp_path: Path) -> None:
    """However long it takes, up to the longest that a task may take."""
    hands, time = Hands(tmp_path / "archives"), Time(TWO)
    hands.is_failing = True
    hands.busy.add("full-2026-11-22T02:00Z")
    beat = beat_of(tmp_path, hands, time, BACKUP_SCHEDULE_DATABASE="off")
    while time.now < TWO + timedelta(hours=7):
        time.now = beat.look()
    assert len(hands.tasks) == 1


def test_a_clock_that_jumps_makes_no_slot_twice_and_misses_none_that_is_the_newest(tmp_path: Path) -> None:
    """A day ahead, back again, and an hour back."""
    hands, time = Hands(tmp_path / "archives"), Time(BEFORE)
    beat = beat_of(tmp_path, hands, time)
    for jump in (0, 86_400, -86_400, -3600, 3600, 600):
        time.now += timedelta(seconds=jump)
        for _ in range(2):  # in an empty repository the database waits for the full backup
            beat.look()
        facts = read_facts(Repository(tmp_path / "archives"), set())
        for slot in last_slots(settings_of(tmp_path, **BACKUPS_ONLY).schedules, time.now):
            assert any(slot.moment <= held.moment <= time.now for held in facts.archives)
    assert len(hands.tasks) == len(set(hands.tasks))


def test_over_the_change_from_summer_time_there_is_one_full_backup_a_night(tmp_path: Path) -> None:
    """Half past two comes twice in Berlin on that day; the database has a backup in each hour that passes."""
    time = Time(datetime(2026, 10, 24, 22, 10, tzinfo=UTC))
    hands = Hands(tmp_path / "archives")
    beat = beat_of(tmp_path, hands, time, BACKUP_TIMEZONE="Europe/Berlin", BACKUP_SCHEDULE_FULL="30 2 * * *")
    for _ in range(2):
        beat.look()
    hands.tasks.clear()
    while time.now < datetime(2026, 10, 25, 5, 50, tzinfo=UTC):
        time.now = beat.look()
    assert [task for task in hands.tasks if task.startswith("full")] == ["full-2026-10-25T00:30Z"]
    assert sum(task.startswith("database") for task in hands.tasks) == 7


def test_a_repository_that_cannot_be_read_is_said_once_and_tried_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It may be a volume that is not mounted yet."""
    (tmp_path / "archives").write_text("not a directory")
    hands, time = Hands(tmp_path / "archives"), Time(TWO)
    beat = beat_of(tmp_path, hands, time)
    for _ in range(3):
        time.now = beat.look()
    assert not hands.tasks
    (tmp_path / "archives").unlink()
    beat.look()
    assert hands.tasks == ["full-2026-11-22T02:00Z"]


# -- what the repository says of verifications, prunes and drills ---------------------------------------------------


def test_prune_and_drill_are_done_by_what_the_access_log_says(tmp_path: Path) -> None:
    """Lines on the way of a prune, failures and refusals are no end of one; a drill that failed has been a drill."""
    repository = Repository(tmp_path / "archives")
    repository.prepare()
    log = AccessLog(repository)
    lines: list[tuple[Action, Outcome, dict[str, Any]]] = [
        (Action.PRUNE, Outcome.DONE, {"removed": 3}),
        (Action.DRILL, Outcome.FAILED, {}),
        (Action.PRUNE, Outcome.DONE, {"archives": ["x"]}),
        (Action.PRUNE, Outcome.FAILED, {}),
        (Action.DRILL, Outcome.REFUSED, {}),
        (Action.BACKUP, Outcome.DONE, {}),
    ]
    for number, (action, outcome, details) in enumerate(lines):
        moment = TWO + timedelta(minutes=number)
        log.append(action, "it", outcome, who="beat", host="here", moment=moment, **details)
    facts = read_facts(repository, {PRUNE_REPOSITORY, DRILL_RESTORE})
    assert facts.ended == {PRUNE_REPOSITORY: TWO, DRILL_RESTORE: TWO + timedelta(minutes=1)}


def test_each_archive_is_verified_once_for_a_slot(tmp_path: Path) -> None:
    """By what the verifications have found; a new one waits for the next slot."""
    hands, time = Hands(tmp_path / "archives"), Time(TWO)
    verify = {"BACKUP_SCHEDULE_VERIFY": "0 4 * * *", "BACKUP_SCHEDULE_DATABASE": "off"}
    beat = beat_of(tmp_path, hands, time, **verify)
    beat.look()
    (archive,) = (tmp_path / "archives").glob("*.tar.gz")
    name = archive.name.removesuffix(".tar.gz")
    time.now = TWO + timedelta(hours=2)
    beat.look()
    assert hands.tasks[1:] == [f"verify-2026-11-22T04:00Z-{name}"]
    repository = Repository(tmp_path / "archives")
    found = Verification(path=archive, level=VerifyLevel.CONTENTS, checksum="", duration_seconds=1.0)
    Verifications(repository).record(found, time.now + timedelta(minutes=1))
    time.now += timedelta(hours=3)
    beat.look()
    assert len(hands.tasks) == 2


# -- with a real broker ---------------------------------------------------------------------------------------------


def test_a_broker_that_is_gone_over_the_due_time_gets_the_task_when_it_is_back(
    tmp_path: Path, redis: EmbeddedRedis
) -> None:
    """Once; it was tried after 1 second, 2 and 4, whatever the schedule says."""
    settings = settings_of(tmp_path, CELERY_BROKER_URL=redis.url, **BACKUPS_ONLY, BACKUP_SCHEDULE_DATABASE="off")
    yesterday = Slot(operation=BACKUP_FULL, moment=TWO - timedelta(days=1))
    Hands(settings.local_path).submit(yesterday.operation, {}, yesterday.task_id)
    time = Time(BEFORE)
    beat = Beat(settings, QueuedWorkers(settings, Requester.BEAT), clock=lambda: time.now, steady=lambda: time.steady)
    beat.look()
    assert not sent_tasks(redis)
    redis.stop(signal.SIGKILL)
    time.pass_by(120)
    pauses = []
    for _ in range(3):
        again = beat.look()
        pauses.append((again - time.now).total_seconds())
        time.pass_by(pauses[-1])
    assert pauses == [1, 2, 4]
    redis.start()
    assert beat.look() > time.now + timedelta(minutes=2)
    assert [(task.name, task.task_id) for task in sent_tasks(redis)] == [("backup.full", "full-2026-11-22T02:00Z")]


def test_two_beats_and_a_worker_make_one_archive_of_the_slots_name(portal: Portal, redis: EmbeddedRedis) -> None:
    """Each beat sends the same task; the archive is the one that both expect, and nothing is due afterwards."""
    settings = replace(
        settings_of(portal.directory, CELERY_BROKER_URL=redis.url, **BACKUPS_ONLY), local_path=portal.archives
    )
    slot = last_slot("0 2 * * *", ZoneInfo("UTC"), datetime.now(UTC))  # a worker refuses an older one
    assert slot is not None
    time = Time(slot + timedelta(minutes=10))
    beats = [
        Beat(settings, QueuedWorkers(settings, Requester.BEAT), clock=lambda: time.now, steady=lambda: time.steady)
        for _ in range(2)
    ]
    for beat in beats:
        beat.look()
    assert [task.task_id for task in sent_tasks(redis)] == [f"full-{slot:%Y-%m-%dT%H:%MZ}"] * 2
    with WorkerProcess(portal, redis, "backup"):
        wait_until(lambda: not sent_tasks(redis) and list(portal.archives.glob("*.tar.gz")))
    (archive,) = portal.archives.glob("*.tar.gz")
    assert archive.name == f"{Slot(operation=BACKUP_FULL, moment=slot).backup_id}.tar.gz"
    time.pass_by(2000)
    for beat in beats:
        beat.look()
    assert not sent_tasks(redis)


def test_beat_as_a_process_sends_shows_its_life_and_ends_at_once(tmp_path: Path, redis: EmbeddedRedis) -> None:
    """Killed and started again it sends the same task, if it sends it at all."""
    with ServiceProcess("beat", tmp_path, redis, **distant_slots()) as beat:
        wait_until(lambda: sent_tasks(redis))
        code, health = beat.health()
        assert (code, health["healthy"]) == (0, True)
        assert set(health["next"]) == {"full", "database", "verify", "prune", "drill"}
        assert beat.end(signal.SIGTERM) == 0
        beat.start()
        wait_until(lambda: len(sent_tasks(redis)) == 2)
    first, second = sent_tasks(redis)
    assert first == second
    assert first.name == "backup.full"


def test_a_beat_that_has_stopped_is_not_healthy(tmp_path: Path, redis: EmbeddedRedis) -> None:
    """Its last sign of life is too old."""
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / ".beat.json").write_text('{"pid": 1, "moment": "2026-11-22T02:00:00Z"}')
    code, health = ServiceProcess("beat", tmp_path, redis).health()
    assert (code, health["healthy"]) == (1, False)
    assert "2026-11-22 02:00" in health["message"]
