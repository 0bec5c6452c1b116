"""Full backups that follow another, in trouble: killed at any instant, two at once, beside a prune, a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from portal.ops.backup.strategy import ChainedFull
from portal.ops.chains.lineage import line_of
from portal.ops.errors import DiskFullError
from portal.ops.repository.repository import Repository
from portal.ops.verify.verify import Verifier
from tests.support.archives import tree_on_disk
from tests.support.crashes import LONG, SEED, rounds
from tests.support.incrementals import tree_of_chain, without_ours
from tests.support.killing import killed_at
from tests.support.portal import Portal, small_disk, succeeded
from tests.support.waiting import LONG_SECONDS

if TYPE_CHECKING:
    import pytest

    from portal.ops.backup.job import BackupResult

KILLS = rounds(2, in_long=60)
ROOT = Path(__file__).parents[2]


def chained(portal: Portal, **given: Any) -> BackupResult:
    """A full backup that follows what there is."""
    return portal.job(full_uploads="chain").backup_full(**given)


def begun(portal: Portal) -> Path:
    """A complete full backup, and an upload since."""
    base = succeeded(chained(portal))
    (portal.uploads / "new.sarif").write_text("new")
    return base


def assert_all_whole(portal: Portal) -> None:
    """Every archive that can be seen is intact, with all that it stands on."""
    for archive in Repository(portal.archives).archives():
        found = Verifier(jobs=2).verify(archive.path)
        assert found.intact, found.message


def test_a_kill_at_a_random_instant_leaves_nothing_or_all_of_it(portal: Portal) -> None:
    """And the next one goes on with the chain."""
    begun(portal)
    command = [sys.executable, "-I", "-m", "tools.backup", "full", "--local"]
    environ = portal.environ(BACKUP_FULL_UPLOADS="chain", BACKUP_SCHEDULE_COMPLETE="off", BACKUP_SCHEDULE_PRUNE="off")
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, env=environ, check=True, capture_output=True)
    usual = time.monotonic() - started
    random = Random(SEED)
    for number in range(KILLS):
        (portal.uploads / f"upload-{number}").write_text(str(number))
        process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(random.uniform(usual * 0.3, usual * 1.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert_all_whole(portal)
    last = chained(portal)
    assert last.error is None, last.error
    assert (last.parent is not None, last.warnings) == (True, ())
    assert tree_of_chain(Path(last.destination_path)) == without_ours(tree_on_disk(portal.uploads))


def test_a_kill_at_any_change_of_a_file(portal: Portal) -> None:
    """The steps at the end, from the sidecar to the cache, one after the other."""
    begun(portal)
    step, is_killed = 1, True
    while is_killed:
        (portal.uploads / "step").write_text(str(step))
        is_killed = killed_at(step, lambda: succeeded(chained(portal)))
        assert_all_whole(portal)
        step += 1 if LONG else 4
    last = chained(portal)
    assert (last.parent is not None, last.warnings) == (True, ())
    assert tree_of_chain(Path(last.destination_path)) == without_ours(tree_on_disk(portal.uploads))


def test_two_at_once_follow_one_another(portal: Portal) -> None:
    """No two archives have the same parent."""
    begun(portal)
    with ThreadPoolExecutor(3) as threads:
        results = list(threads.map(lambda _: chained(portal), range(3)))
    assert [result.error for result in results] == [None, None, None]
    parents = [result.parent for result in results]
    assert len(set(parents)) == 3
    assert None not in parents
    assert_all_whole(portal)


def test_an_upload_does_not_wait_for_the_dump(portal: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the database of a full backup is dumped, an incremental is made; the full one follows it."""
    from portal.ops.backup import collect

    begun(portal)
    dump, made = collect.Collection._dump, []

    def slow(self: collect.Collection, writer: Any) -> dict[str, Any]:
        made.append(portal.job(lock_timeout=1).backup_media(incremental=True, changed=["new.sarif"]))
        return dump(self, writer)

    monkeypatch.setattr(collect.Collection, "_dump", slow)
    result = chained(portal)
    assert made[0].error is None, made[0].error
    assert result.parent == made[0].backup_id


def test_a_prune_leaves_what_is_being_followed(portal: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent was chosen, and a policy wants it gone: it is held, and all that it needs."""
    begun(portal)
    portal.job().backup_media(incremental=True)
    for _ in range(2):
        succeeded(portal.job(full_uploads="complete").backup_full())
    reach = ChainedFull.reach_uploads
    removed: list[int] = []

    def pruned(self: ChainedFull) -> None:
        reach(self)
        removed.append(portal.job(retention_days=0, retention_count=1).cleanup_old_backups())

    monkeypatch.setattr(ChainedFull, "reach_uploads", pruned)
    result = chained(portal)
    assert result.error is None, result.error
    assert removed
    line = line_of(Path(result.destination_path))
    assert [one.name for one in line][-1] == result.backup_id
    assert_all_whole(portal)


def test_a_full_disk_leaves_nothing_of_it(portal: Portal, tmp_path: Path) -> None:
    """The chain is as it was, and the next one that fits goes on with it."""
    place = tmp_path / "small"
    with small_disk(place, "80m"):
        job = portal.job(local_path=place / "archives", full_uploads="chain")
        base = job.backup_full()
        assert base.error is None, base.error
        large = portal.uploads / "large"
        large.write_bytes(Random(SEED).randbytes(90 << 20))
        failed = job.backup_full()
        assert failed.exit_code == DiskFullError.exit_code, failed.error
        large.unlink()
        (portal.uploads / "small").write_text("small")
        result = job.backup_full()
        assert (result.error, result.parent) == (None, base.backup_id)
        assert not [name for name in os.listdir(place / "archives") if name.endswith(".partial")]


def test_a_signal_lets_the_chain_go(portal: Portal) -> None:
    """An incremental right after a full backup that was ended waits for nobody."""
    begun(portal)
    environ = portal.environ(BACKUP_FULL_UPLOADS="chain", BACKUP_SCHEDULE_COMPLETE="off")
    process = subprocess.Popen(
        [sys.executable, "-I", "-m", "tools.backup", "full", "--local"],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    timer = threading.Timer(0.5, process.send_signal, [signal.SIGTERM])
    timer.start()
    process.wait(LONG_SECONDS)
    timer.cancel()
    assert portal.job(lock_timeout=0).backup_media(incremental=True).error is None
