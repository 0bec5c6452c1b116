"""An upgrade in two steps: workers, beat and commands of the previous release and of this one share a broker."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest

from beat.due import Slot
from demo.redis import EmbeddedRedis
from portal.ops.repository.rejected import rejected_counts
from portal.ops.settings.slots import last_slot
from portal.ops.verify.verify import Verifier
from tests.support.crashes import LONG
from tests.support.portal import portal_with_broker
from tests.support.previous_release import PreviousWorker, run_previous
from tests.support.services import ServiceProcess
from tests.support.workers import (
    MOMENT,
    WorkerProcess,
    client_of,
    queued,
    submit,
    unacknowledged,
    use_repository,
    wait_until,
)
from worker.operations import BACKUP_FULL, BACKUP_MEDIA, Queue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from demo.postgres import EmbeddedPostgres
    from tests.support.portal import Portal

TASKS = 60 if LONG else 6
Place = tuple["Portal", EmbeddedRedis]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres) -> Iterator[Place]:
    """A portal and a broker."""
    with portal_with_broker(tmp_path_factory.mktemp("upgrade"), postgres) as (found, broker):
        use_repository(broker, found.archives)
        yield found, broker


@pytest.fixture(scope="module")
def old_worker(place: Place, previous_release: Path) -> Iterator[PreviousWorker]:
    """The previous release's worker, which the upgrade has not come to."""
    with PreviousWorker(previous_release, *place, "backup", "restore") as worker:
        yield worker


@pytest.fixture(scope="module")
def worker(place: Place) -> Iterator[WorkerProcess]:
    """Today's worker, which is started after the tests of the old one alone."""
    with WorkerProcess(*place, "backup", "restore") as found:
        yield found


def archives(portal: Portal) -> set[str]:
    return {path.name for path in portal.archives.glob("*.tar.gz")}


def run_today(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of today's to its end: a module and its arguments."""
    portal, redis = place
    return subprocess.run(
        [sys.executable, "-I", "-m", *arguments],
        cwd="/",
        env=portal.environ(CELERY_BROKER_URL=redis.url),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_backup_by_an_old_worker_is_there_and_not_believed(place: Place, old_worker: PreviousWorker) -> None:
    """The command ends with 1 and says why and what to look at; the archive is complete, and there is one."""
    done = run_today(place, "tools.backup", "media")
    assert done.returncode == 1, done.stdout
    assert "no worker of this repository has signed" in done.stderr
    assert "a worker of an older release has done the task" in done.stderr
    (name,) = archives(place[0])
    assert Verifier().verify(place[0].archives / name).intact


def test_a_slot_done_by_an_old_worker_is_done(place: Place, old_worker: PreviousWorker) -> None:
    """The archive has the name that today's beat looks for, so it requests no other one."""
    portal, redis = place
    moment = last_slot("0 2 * * *", ZoneInfo("UTC"), datetime.now(UTC))
    assert moment is not None
    slot = Slot(operation=BACKUP_FULL, moment=moment)
    submit(redis, BACKUP_FULL, slot.task_id, moment=moment.isoformat())
    wait_until(lambda: client_of(redis).look(slot.task_id).is_ended)
    assert f"{slot.backup_id}.tar.gz" in archives(portal)


def test_a_restore_on_an_old_worker_changes_nothing(place: Place, old_worker: PreviousWorker) -> None:
    """It looks for the authorization where its release kept it, and refuses; the command says which worker did."""
    portal, _ = place
    upload = next(iter(sorted(portal.uploads.rglob("*.sarif"))))
    upload.write_text("changed")
    done = run_today(place, "tools.restore", "latest", "--media-only", "--force")
    assert (done.returncode, upload.read_text()) == (2, "changed")
    assert "the refusal is not signed: look for a worker of an older release" in done.stderr


def test_workers_of_both_releases_share_a_queue(
    place: Place, old_worker: PreviousWorker, worker: WorkerProcess
) -> None:
    """Each task is done once, by whichever took it, although each is sent twice; no message is left."""
    portal, redis = place
    before = archives(portal)
    moment = datetime.fromisoformat(MOMENT)
    tasks = {f"shared-{number}": (moment - timedelta(seconds=number)).isoformat() for number in range(TASKS)}
    for task_id, at in [*tasks.items(), *tasks.items()]:
        submit(redis, BACKUP_MEDIA, task_id, moment=at)
    wait_until(lambda: all(client_of(redis).look(task_id).is_ended for task_id in tasks))
    wait_until(lambda: queued(redis, Queue.BACKUP) + unacknowledged(redis) == 0)
    made = archives(portal) - before
    assert len(made) == len(tasks)
    assert all(Verifier().verify(portal.archives / name).intact for name in made)
    workers = [{event.get("task_id") for event in one.events("task_ended")} for one in (old_worker, worker)]
    assert workers[0] | workers[1] >= set(tasks)


@pytest.fixture(scope="module")
def upgraded(place: Place, old_worker: PreviousWorker, worker: WorkerProcess) -> Place:
    """The same, after the old worker was stopped."""
    assert old_worker.terminate() == 0
    return place


def test_an_old_command_is_refused_by_a_new_worker(upgraded: Place, previous_release: Path) -> None:
    """It ends with 2 and says how to request the task; nothing is made, and the refusal is counted."""
    portal, redis = upgraded
    before, counted = archives(portal), unsigned(portal)
    done = run_previous(previous_release, portal, redis, "tools.backup", "media")
    assert done.returncode == 2
    assert "the task is not signed\n  hint: Request tasks with backup.sh" in done.stderr
    assert (archives(portal), unsigned(portal)) == (before, counted + 1)


def test_an_old_restore_is_refused_by_a_new_worker(upgraded: Place, previous_release: Path) -> None:
    """Its authorization is one of the old form, and its task has no signature: live data stays as it is."""
    portal, redis = upgraded
    upload = next(iter(sorted(portal.uploads.rglob("*.sarif"))))
    upload.write_text("changed again")
    done = run_previous(previous_release, portal, redis, "tools.restore", "latest", "--media-only", "--force")
    assert (done.returncode, upload.read_text()) == (2, "changed again")
    assert "the task is not signed" in done.stderr


def test_what_an_old_beat_requested_is_requested_again(
    upgraded: Place, worker: WorkerProcess, previous_release: Path
) -> None:
    """Its unsigned request of a slot is refused; today's beat sends the same one, and it is done once."""
    portal, redis = upgraded
    for archive in portal.archives.glob("full_*"):  # the slot was done by the old worker
        archive.unlink()
    with PreviousBeat(previous_release, portal, redis):
        wait_until(lambda: [one for one in worker.events("message_rejected") if one["task"] == BACKUP_FULL.name])
    assert not list(portal.archives.glob("full_*.tar.gz"))
    with ServiceProcess("beat", portal.directory, redis, **portal.environ(), **BACKUPS_ONLY):
        wait_until(lambda: list(portal.archives.glob("full_*.tar.gz")))
    (archive,) = portal.archives.glob("full_*.tar.gz")
    assert Verifier().verify(archive).intact


BACKUPS_ONLY = {f"BACKUP_SCHEDULE_{name}": "off" for name in ("DATABASE", "VERIFY", "PRUNE", "DRILL")}


class PreviousBeat(ServiceProcess):
    """Beat of the previous release."""

    def __init__(self, code: Path, portal: Portal, redis: EmbeddedRedis) -> None:
        super().__init__("beat", portal.directory, redis, **portal.environ(PYTHONPATH=str(code)), **BACKUPS_ONLY)

    def command(self) -> list[str]:
        """What is started."""
        return [sys.executable, "-m", "beat"]


def unsigned(portal: Portal) -> int:
    """The number of messages that were rejected for want of a signature."""
    return rejected_counts(portal.archives).get("unsigned", 0)
