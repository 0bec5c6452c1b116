"""The watcher as a process: real files, a real Redis, and whatever can come between them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from beat.watcher.loop import Watcher
from demo.redis import EmbeddedRedis
from portal.ops.settings.load import load_settings
from tests.support.services import Sent, ServiceProcess, sent_tasks
from tests.support.waiting import LONG_SECONDS
from tests.support.workers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from worker.operations import Operation

LONG = os.environ.get("KEKKAI_LONG_TESTS") == "1"
BURST_DIRECTORIES, BURST_FILES = (1000, 20) if LONG else (100, 20)

QUICK = {"BACKUP_WATCH_QUIET": "1s", "BACKUP_WATCH_LATEST": "4s", "BACKUP_WATCH_MODE": "events"}


@pytest.fixture
def redis() -> Iterator[EmbeddedRedis]:
    """A broker of the test's own."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """The directory that is watched, with what is there before."""
    found = tmp_path / "uploads"
    for name in ("tenant-a/old.json", "tenant-a/deep/older.json", "tenant-b/oldest.json"):
        write(found / name)
    return found


@pytest.fixture
def watcher(tmp_path: Path, uploads: Path, redis: EmbeddedRedis) -> Iterator[ServiceProcess]:
    """A watcher that is ready, and has sent its first scan."""
    with ServiceProcess("beat.watcher", tmp_path, redis, **QUICK) as process:
        wait_until(lambda: scans(redis))
        yield process


def write(path: Path, text: str = "{}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def change_sets(redis: EmbeddedRedis) -> list[Sent]:
    return [one for one in sent_tasks(redis) if "changed" in one.arguments]


def scans(redis: EmbeddedRedis) -> list[Sent]:
    return [one for one in sent_tasks(redis) if "changed" not in one.arguments]


def changed(redis: EmbeddedRedis) -> set[str]:
    return {path for one in change_sets(redis) for path in one.arguments["changed"]}


def settle(uploads: Path, redis: EmbeddedRedis) -> None:
    """Wait until all that has happened is sent: what happens last is, and it goes with what was before it or later."""
    last = f"tenant-b/last-{time.monotonic_ns()}.json"
    write(uploads / last)
    wait_until(lambda: last in changed(redis))


def test_it_begins_with_a_scan_of_the_whole_tree(watcher: ServiceProcess, redis: EmbeddedRedis) -> None:
    """What changed while nobody watched is found by it."""
    (scan,) = sent_tasks(redis)
    assert scan.name == "backup.media"
    assert scan.arguments.keys() == {"actor", "moment", "incremental"}
    assert scan.arguments["incremental"] is True


def test_what_is_written_is_one_task_once_it_is_quiet(
    watcher: ServiceProcess, uploads: Path, redis: EmbeddedRedis
) -> None:
    """Files of one upload go together, by their paths; nothing looks at the whole tree."""
    with watcher.held():  # so they come at once, however slow this is
        write(uploads / "tenant-a" / "new.json")
        write(uploads / "tenant-a" / "old.json", "other")
        write(uploads / "tenant-b" / os.fsdecode(b"not \xff text"))
    wait_until(lambda: change_sets(redis))
    (changes,) = change_sets(redis)
    assert changes.arguments["changed"] == ["tenant-a/new.json", "tenant-a/old.json", "tenant-b/not \udcff text"]
    assert len(scans(redis)) == 1


def test_a_file_that_is_still_written_to_is_not_sent(uploads: Path, redis: EmbeddedRedis, tmp_path: Path) -> None:
    """It is when it has been closed."""
    with ServiceProcess("beat.watcher", tmp_path, redis, **{**QUICK, "BACKUP_WATCH_LATEST": "10m"}):
        wait_until(lambda: scans(redis))
        with (uploads / "tenant-a" / "slow.json").open("w") as file:
            file.write("half")
            file.flush()
            write(uploads / "tenant-a" / "quick.json")
            wait_until(lambda: change_sets(redis))
            assert changed(redis) == {"tenant-a/quick.json"}
        wait_until(lambda: "tenant-a/slow.json" in changed(redis))


def test_renames_in_out_and_within_are_changes_of_every_name(
    watcher: ServiceProcess, uploads: Path, redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """A name that is gone matters as much as one that is new."""
    write(tmp_path / "outside.json")
    (tmp_path / "outside.json").rename(uploads / "tenant-a" / "in.json")
    (uploads / "tenant-a" / "old.json").rename(uploads / "tenant-b" / "within.json")
    (uploads / "tenant-b" / "oldest.json").rename(tmp_path / "out.json")
    expected = {"tenant-a/in.json", "tenant-a/old.json", "tenant-b/within.json", "tenant-b/oldest.json"}
    wait_until(lambda: changed(redis) >= expected)
    assert changed(redis) == expected


def test_deletions_links_and_modes_are_changes(uploads: Path, redis: EmbeddedRedis, tmp_path: Path) -> None:
    """All that a backup records of a file; a link, which nobody closes, goes when it has waited long enough."""
    with ServiceProcess("beat.watcher", tmp_path, redis, **{**QUICK, "BACKUP_WATCH_LATEST": "2s"}):
        wait_until(lambda: scans(redis))
        (uploads / "tenant-b" / "oldest.json").unlink()
        (uploads / "tenant-a" / "old.json").chmod(0o640)
        (uploads / "tenant-a" / "link").symlink_to("old.json")
        expected = {"tenant-b/oldest.json", "tenant-a/old.json", "tenant-a/link"}
        wait_until(lambda: changed(redis) >= expected)
        assert changed(redis) == expected


def test_a_directory_that_moves_in_brings_its_content_and_is_watched(
    watcher: ServiceProcess, uploads: Path, redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """Its name stands for all that is in it; what is written there later is seen."""
    for number in range(5):
        write(tmp_path / "whole" / "deep" / f"{number}.json")
    (tmp_path / "whole").rename(uploads / "tenant-c")
    wait_until(lambda: changed(redis) == {"tenant-c"})
    write(uploads / "tenant-c" / "deep" / "later.json")
    wait_until(lambda: "tenant-c/deep/later.json" in changed(redis))


def test_a_directory_that_is_renamed_or_removed_is_named(
    watcher: ServiceProcess, uploads: Path, redis: EmbeddedRedis
) -> None:
    """By its old name and its new one; what is written there later has the new one."""
    (uploads / "tenant-a").rename(uploads / "tenant-z")
    shutil.rmtree(uploads / "tenant-b")
    wait_until(lambda: changed(redis) >= {"tenant-a", "tenant-z", "tenant-b"})
    write(uploads / "tenant-z" / "deep" / "later.json")
    wait_until(lambda: "tenant-z/deep/later.json" in changed(redis))


def test_directories_that_are_made_filled_and_renamed_at_once_are_watched(
    watcher: ServiceProcess, uploads: Path, redis: EmbeddedRedis
) -> None:
    """As a program does that shows an upload when it is whole: what is written there later is seen by its new name."""
    for number in range(BURST_DIRECTORIES):
        write(uploads / f"making-{number}" / "deep" / "deeper" / "file.json")
        (uploads / f"making-{number}").rename(uploads / f"made-{number}")
    wait_until(lambda: changed(redis) >= {f"made-{number}" for number in range(BURST_DIRECTORIES)})
    settle(uploads, redis)
    for number in range(BURST_DIRECTORIES):
        write(uploads / f"made-{number}" / "deep" / "deeper" / "later.json")
    later = {f"made-{number}/deep/deeper/later.json" for number in range(BURST_DIRECTORIES)}
    wait_until(lambda: changed(redis) >= later)


def test_no_file_of_a_burst_in_new_directories_is_missed(
    watcher: ServiceProcess, uploads: Path, redis: EmbeddedRedis
) -> None:
    """Each one is named, or a directory above it, or a scan comes after; and what is written there later is seen."""
    before = len(scans(redis))
    directories = [uploads / f"tenant-{number % 7}" / f"burst-{number}" for number in range(BURST_DIRECTORIES)]
    for directory in directories:
        directory.mkdir(parents=True)
        for number in range(BURST_FILES):
            write(directory / f"{number}.json")
    wait_until(lambda: _covers(redis, [f"{d.relative_to(uploads)}/x" for d in directories], before))
    settle(uploads, redis)
    for directory in directories:
        write(directory / "later.json")
    later = {f"{directory.relative_to(uploads)}/later.json" for directory in directories}
    wait_until(lambda: changed(redis) >= later)


def _covers(redis: EmbeddedRedis, paths: list[str], scans_before: int) -> bool:
    named = changed(redis)
    above = {path: {str(parent) for parent in Path(path).parents} for path in paths}
    return len(scans(redis)) > scans_before or all(path in named or above[path] & named for path in paths)


def test_a_queue_that_overflows_is_followed_by_a_scan(
    watcher: ServiceProcess, uploads: Path, redis: EmbeddedRedis
) -> None:
    """More happens than the kernel keeps for a process that is held up; afterwards it watches as before."""
    kept = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    watcher.signal(signal.SIGSTOP)
    for number in range(kept // 3 + 100):  # made, closed and removed
        path = uploads / "tenant-a" / f"{number}.json"
        path.touch()
        path.unlink()
    watcher.signal(signal.SIGCONT)
    wait_until(lambda: len(scans(redis)) == 2)
    assert watcher.events("changes_lost")
    write(uploads / "tenant-a" / "deep" / "later.json")
    wait_until(lambda: "tenant-a/deep/later.json" in changed(redis))


def test_uploads_that_are_gone_are_waited_for_and_watched_again(
    watcher: ServiceProcess, uploads: Path, redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """It says so once; another directory in their place is looked at as a whole, and then watched."""
    uploads.rename(tmp_path / "unmounted")
    wait_until(lambda: watcher.events("uploads_missing"))
    wait_until(lambda: watcher.health()[0] == 1)
    write(uploads / "tenant-q" / "first.json")
    wait_until(lambda: len(scans(redis)) == 2)
    write(uploads / "tenant-q" / "second.json")
    wait_until(lambda: "tenant-q/second.json" in changed(redis))
    assert len(watcher.events("uploads_missing")) == 1


def test_uploads_that_are_replaced_are_noticed(
    watcher: ServiceProcess, uploads: Path, redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """The old directory still has its events, but nobody asks for them any more."""
    write(tmp_path / "other" / "tenant-q" / "first.json")
    uploads.rename(tmp_path / "old")
    (tmp_path / "other").rename(uploads)
    wait_until(lambda: len(scans(redis)) == 2)
    write(tmp_path / "old" / "tenant-a" / "nobody.json")
    write(uploads / "tenant-q" / "somebody.json")
    wait_until(lambda: changed(redis))
    assert changed(redis) == {"tenant-q/somebody.json"}


def test_repository_and_stage_inside_the_uploads_are_never_changes(
    uploads: Path, redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """Or each backup would be the cause of the next one."""
    repository = uploads / "tenant-a" / "archives"
    with ServiceProcess("beat.watcher", tmp_path, redis, BACKUP_LOCAL_PATH=str(repository), **QUICK):
        wait_until(lambda: (repository / ".watcher.json").exists() and scans(redis))
        write(repository / "full_20261122_020000_abcdef.tar.gz")
        write(uploads / ".kekkai-restore" / "one" / "stage" / "file")
        write(uploads / "tenant-b" / "new.json")
        wait_until(lambda: changed(redis))
        assert changed(redis) == {"tenant-b/new.json"}


# -- without a broker -----------------------------------------------------------------------------------------------


def test_what_cannot_be_sent_goes_out_when_the_broker_is_back(
    watcher: ServiceProcess, uploads: Path, redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """It is on the disk meanwhile, the health tells since when, and the trouble is said once."""
    kept = tmp_path / "archives" / ".watch" / "dirty.json"
    redis.stop(signal.SIGKILL)
    write(uploads / "tenant-a" / "first.json")
    wait_until(lambda: kept.exists() and "first.json" in kept.read_text())
    write(uploads / "tenant-a" / "second.json")
    wait_until(lambda: "second.json" in kept.read_text())
    code, health = watcher.health()
    assert (code, health["ready"]) == (0, True) and health["dirty_since"]
    redis.start()
    wait_until(lambda: changed(redis) == {"tenant-a/first.json", "tenant-a/second.json"})
    wait_until(lambda: not kept.exists())
    assert len(watcher.events("broker_away")) == len(watcher.events("broker_back")) == 1


def test_a_watcher_that_is_killed_while_it_is_dirty_sends_it_after_its_next_start(
    watcher: ServiceProcess, uploads: Path, redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """By name, and then a scan, for what it had not yet written down."""
    kept = tmp_path / "archives" / ".watch" / "dirty.json"
    redis.stop(signal.SIGKILL)
    write(uploads / "tenant-a" / "first.json")
    wait_until(lambda: kept.exists())
    watcher.end(signal.SIGKILL)
    redis.start()
    watcher.start()
    wait_until(lambda: len(sent_tasks(redis)) == 2)
    first, second = sent_tasks(redis)
    assert first.arguments["changed"] == ["tenant-a/first.json"]
    assert "changed" not in second.arguments
    wait_until(lambda: not kept.exists())


def test_a_record_of_what_is_dirty_that_makes_no_sense_is_said_and_passed_over(
    uploads: Path, redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """The scan at the start makes up for it."""
    write(tmp_path / "archives" / ".watch" / "dirty.json", '{"moment": 3')
    with ServiceProcess("beat.watcher", tmp_path, redis, **QUICK) as watcher:
        wait_until(lambda: scans(redis))
        assert watcher.events("unsent_changes_unreadable")


# -- polling, limits, health ----------------------------------------------------------------------------------------


class Recorder:
    """Workers that write down what they are given; `is_busy` is whether they are still at it."""

    def __init__(self) -> None:
        self.tasks: list[Mapping[str, Any]] = []
        self.is_busy = False
        self.asked = 0

    def submit(self, task: Operation, arguments: Mapping[str, Any], task_id: str) -> None:
        """Write it down."""
        self.tasks.append(arguments)

    def is_at_work(self, task_id: str) -> bool:
        """Whatever the test says."""
        self.asked += 1
        return self.is_busy


class _Over(Exception):  # noqa: N818  (no error)
    """The test is over."""


def asked_again(workers: Recorder, times: int) -> None:
    """Wait until the watcher has asked so many times more whether they are at work."""
    before = workers.asked
    wait_until(lambda: workers.asked >= before + times)


@contextmanager
def watcher_in_a_thread(tmp_path: Path, workers: Recorder, **environ: str) -> Iterator[Watcher]:
    """A watcher in this process; its thread ends with the block: the clock that it looks at again and again ends it."""
    is_over = threading.Event()

    def steady() -> float:
        if is_over.is_set():
            raise _Over
        return time.monotonic()

    def run() -> None:
        with suppress(_Over):
            looking.run()

    places = {"BACKUP_LOCAL_PATH": str(tmp_path / "archives"), "PORTAL_UPLOAD_DIR": str(tmp_path / "uploads")}
    settings = load_settings({**places, **QUICK, "BACKUP_WATCH_LATEST": "1s", **environ}, lambda path: "")
    looking = Watcher(settings, workers, steady=steady)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield looking
    finally:
        is_over.set()
        thread.join(LONG_SECONDS)
        looking._close()
    assert not thread.is_alive()


def test_polling_sends_a_scan_again_and_again_but_not_while_one_is_being_done(uploads: Path, tmp_path: Path) -> None:
    """Where nobody tells of changes, nobody waits for one; where the workers are slow, they are not given more."""
    workers = Recorder()
    with watcher_in_a_thread(tmp_path, workers, BACKUP_WATCH_MODE="polling"):
        wait_until(lambda: len(workers.tasks) == 2)
        workers.is_busy = True
        asked_again(workers, 1)
        before = len(workers.tasks)
        asked_again(workers, 2)
        assert len(workers.tasks) == before
        workers.is_busy = False
        wait_until(lambda: len(workers.tasks) > before)
    assert all("changed" not in arguments for arguments in workers.tasks)


def test_a_limit_of_the_kernel_makes_it_poll(uploads: Path, tmp_path: Path) -> None:
    """It says what to set, and nothing is missed until that is done."""
    workers = Recorder()
    with watcher_in_a_thread(tmp_path, workers) as watcher:
        wait_until(lambda: len(workers.tasks) == 1)
        watcher.limited(OSError(errno.ENOSPC, "inotify watch limit reached"))
        wait_until(lambda: len(workers.tasks) >= 3)
    assert '"mode": "polling"' in (tmp_path / "archives" / ".watcher.json").read_text()


def test_it_ends_at_once_when_it_is_asked_to(watcher: ServiceProcess) -> None:
    """With exit code 0: nothing of it has to be rolled back."""
    assert watcher.health()[0] == 0
    assert watcher.end(signal.SIGTERM) == 0


def test_a_watcher_that_never_ran_is_not_healthy(tmp_path: Path, uploads: Path, redis: EmbeddedRedis) -> None:
    """Its sign of life is missing."""
    code, health = ServiceProcess("beat.watcher", tmp_path, redis).health()
    assert (code, health["healthy"]) == (1, False)


@pytest.mark.parametrize(("name", "value"), [("PORTAL_UPLOAD_DIR", ""), ("CELERY_BROKER_URL", "")])
def test_without_uploads_or_a_broker_there_is_nothing_to_start(
    name: str, value: str, tmp_path: Path, uploads: Path, redis: EmbeddedRedis
) -> None:
    """Exit code 2, with a hint."""
    environ = ServiceProcess("beat.watcher", tmp_path, redis).environ | {name: value}
    done = subprocess.run([sys.executable, "-I", "-m", "beat.watcher"], env=environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"hint: Set {name} to " in done.stderr
