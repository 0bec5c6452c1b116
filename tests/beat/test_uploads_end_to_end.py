"""From an upload to its archive: the real watcher, worker and Redis, killed now and then, and what is restored."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from demo.redis import EmbeddedRedis
from portal.ops.settings.load import DatabaseTarget, Secret
from tests.support.crashes import LONG, SEED, rounds
from tests.support.incrementals import Uploads
from tests.support.portal import Portal
from tests.support.services import ServiceProcess
from tests.support.workers import WorkerProcess, queued, unacknowledged, wait_until
from worker.operations import Queue

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = rounds(4, in_long=30)
BURST_DIRECTORIES, BURST_FILES = (1000, 20) if LONG else (100, 20)

QUICK = {"BACKUP_WATCH_QUIET": "1s", "BACKUP_WATCH_LATEST": "4s", "BACKUP_WATCH_MODE": "events"}
NO_DATABASE = DatabaseTarget(host="/nowhere", port=5432, name="none", user="none", password=Secret("none"))


@pytest.fixture
def redis() -> Iterator[EmbeddedRedis]:
    """A broker of the test's own, that has everything again after it was killed."""
    with EmbeddedRedis(is_persistent=True) as server:
        yield server


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    """Uploads, some of them there already."""
    found = Uploads(directory=tmp_path)
    for number in range(5):
        found.write(f"tenant-{number}/deep/{number}.json", b"old")
    return found


@pytest.fixture
def worker(uploads: Uploads, redis: EmbeddedRedis) -> Iterator[WorkerProcess]:
    """A worker that makes backups."""
    portal = Portal(directory=uploads.directory, database=NO_DATABASE, bin_dir=Path("/nowhere"))
    with WorkerProcess(portal, redis, "backup") as process:
        yield process


@pytest.fixture
def watcher(uploads: Uploads, redis: EmbeddedRedis, worker: WorkerProcess) -> Iterator[ServiceProcess]:
    """A watcher whose first scan has become the base of a chain."""
    with ServiceProcess("beat.watcher", uploads.directory, redis, **QUICK) as process:
        wait_until(lambda: archives(uploads))
        yield process


def archives(uploads: Uploads) -> list[Path]:
    """What there is, in the order in which it was made."""
    return sorted(uploads.archives.glob("*.tar.gz"), key=lambda path: path.stat().st_mtime_ns)


def newest(uploads: Uploads) -> str:
    return archives(uploads)[-1].name.removesuffix(".tar.gz")


def is_up_to_date(uploads: Uploads) -> bool:
    """Whether the newest archive gives the uploads as they are."""
    return uploads.restored(newest(uploads)) == uploads.tree()


def test_an_upload_is_in_an_archive_and_nothing_else_is(uploads: Uploads, watcher: ServiceProcess) -> None:
    """An incremental holds the file that came, and the directories that lead to it."""
    uploads.write("tenant-1/new.json")
    wait_until(lambda: len(archives(uploads)) == 2)
    assert is_up_to_date(uploads)
    assert _files_in(archives(uploads)[1]) == ["tenant-1/new.json"]


def test_every_file_of_a_burst_is_in_an_archive(
    uploads: Uploads, watcher: ServiceProcess, redis: EmbeddedRedis
) -> None:
    """Each one once: no archive holds what another one has."""
    for number in range(BURST_DIRECTORIES):
        for file in range(BURST_FILES):
            uploads.write(f"tenant-{number % 5}/burst-{number}/{file}.json")
    wait_until(lambda: is_up_to_date(uploads), 120)
    taken: list[str] = []
    for archive in archives(uploads)[1:]:
        taken += [path for path in _files_in(archive) if "/burst-" in path]
    assert len(taken) == len(set(taken)) == BURST_DIRECTORIES * BURST_FILES


def _files_in(archive: Path) -> list[str]:
    from portal.ops.archive.index import MemberType
    from tests.support.incrementals import members_of

    return [path for path, kind in members_of(archive).items() if kind is MemberType.FILE]


def test_whatever_happens_every_state_that_was_archived_can_be_restored(
    uploads: Uploads, watcher: ServiceProcess, redis: EmbeddedRedis
) -> None:
    """Random changes while watcher and Redis are killed; then each archive gives the tree of its time."""
    random = Random(SEED)
    known = {}
    for number in range(ROUNDS):
        trouble = random.choice(["none", "watcher", "redis"]) if number else "none"
        if trouble == "redis":
            redis.stop(signal.SIGKILL)
        for _ in range(random.randrange(5, 25)):
            _change(uploads, random)
        if trouble == "watcher":
            watcher.end(signal.SIGKILL)
            _change(uploads, random)
            watcher.start()
        if trouble == "redis":
            redis.start()
        wait_until(lambda: is_up_to_date(uploads), 120)
        wait_until(lambda: queued(redis, Queue.BACKUP) + unacknowledged(redis) == 0)
        known[newest(uploads)] = uploads.tree()
    for name, tree in known.items():
        assert uploads.restored(name) == tree


def _change(uploads: Uploads, random: Random) -> None:
    """One thing that a portal, or a person in a shell, may do."""
    everything = [path for path in uploads.root.rglob("*") if not path.is_symlink()]
    files, directories = [p for p in everything if p.is_file()], [p for p in everything if p.is_dir()]
    fresh = f"new-{random.randrange(10**6)}"
    place = random.choice([*directories, uploads.root])
    match random.choice(["write", "write", "write", "rewrite", "rename", "remove", "link", "mode", "tree", "move"]):
        case "rewrite" if files:
            random.choice(files).write_bytes(random.randbytes(20))
        case "rename" if files:
            random.choice(files).rename(place / fresh)
        case "remove" if files:
            random.choice(files).unlink()
        case "link":
            (place / fresh).symlink_to("anything")
        case "mode" if files:
            random.choice(files).chmod(random.choice([0o600, 0o640, 0o644]))
        case "tree" if len(directories) > 3:
            shutil.rmtree(random.choice(directories))
        case "move" if directories:
            random.choice(directories).rename(uploads.root / fresh)
        case _:
            uploads.write(f"{place.relative_to(uploads.root)}/{fresh}/{fresh}.json", random.randbytes(50))
