"""The keys that tasks are signed with: shown and rotated by a command, while tasks are under way."""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
from celery import Celery

from demo.redis import EmbeddedRedis
from portal.ops.errors import BusyError, RepositoryError
from tests.support.commands import ROOT
from tests.support.workers import (
    MOMENT,
    WorkerProcess,
    client_of,
    result_of,
    run_task,
    submit,
    use_repository,
    wait_until,
)
from worker import keys as module
from worker.keys import LOCK, TaskKeys
from worker.operations import BACKUP_MEDIA

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.portal import Portal


def sender_of_before(redis: EmbeddedRedis) -> Celery:
    """What sends tasks without a signature, as the release before did."""
    return Celery(broker=redis.url, backend=redis.url, set_as_current=False)


def keys_command(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`tools/service.sh keys`."""
    return subprocess.run(
        [ROOT / "tools/service.sh", "keys", *arguments],
        env={"PATH": os.environ["PATH"], "BACKUP_LOCAL_PATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_shows_and_rotates(tmp_path: Path) -> None:
    """The new key is shown first, the one before with its end; no key itself is shown."""
    first = TaskKeys(tmp_path).current()
    assert keys_command(tmp_path).stdout == f"{first.name}  signs\n"
    rotated = keys_command(tmp_path, "rotate")
    new, old = rotated.stdout.splitlines()
    current = TaskKeys(tmp_path).current()
    assert new == f"{current.name}  signs"
    assert old.startswith(f"{first.name}  is accepted until ")
    assert not {key.secret.hex() for key in TaskKeys(tmp_path).all()} & set(rotated.stdout.split())
    assert keys_command(tmp_path, "forget").returncode == 2


def test_rotations_at_once_lose_no_key(tmp_path: Path) -> None:
    """What any of them has signed is still accepted."""
    TaskKeys(tmp_path).current()
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(TaskKeys(tmp_path).rotate().name)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert set(made) < {key.name for key in TaskKeys(tmp_path).all()}


def test_a_rotation_waits_only_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one that hangs is named."""
    keys = TaskKeys(tmp_path)
    keys.current()
    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.1)
    with (keys.path.parent / LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="the keys for tasks is locked by process"):
            keys.rotate()


@pytest.mark.parametrize("text", ["", "{}", '{"keys": 7}', '{"keys": [{"name": "a"}]}', '{"keys": [{}]}', "\xff"])
def test_damaged_keys_are_named(tmp_path: Path, text: str) -> None:
    """Invalid data signs nothing and accepts nothing."""
    keys = TaskKeys(tmp_path)
    keys.current()
    keys.path.write_text(text)
    for use in (keys.current, keys.all, lambda: keys.named("a")):
        with pytest.raises(RepositoryError, match=r"damaged: .*tasks.json"):
            use()


def test_tasks_go_on_through_a_rotation_and_an_upgrade(portal: Portal) -> None:
    """What was queued before a rotation is done; what the release before has queued is refused, and can be repeated."""
    with EmbeddedRedis() as redis:
        use_repository(redis, portal.archives)
        queued = submit(redis, BACKUP_MEDIA, moment=MOMENT)
        assert keys_command(portal.archives, "rotate").returncode == 0
        with WorkerProcess(portal, redis, "backup"):
            assert result_of(redis, queued).result["success"]
            unsigned = sender_of_before(redis).send_task("backup.media", kwargs={"moment": MOMENT}, queue="backup").id
            assert "not signed" in result_of(redis, unsigned).result["error"]
            (portal.uploads / "new.json").write_text("new")
            submit(redis, BACKUP_MEDIA, unsigned, moment=MOMENT)
            wait_until(lambda: client_of(redis).look(unsigned).result.get("success"))
            assert run_task(redis, BACKUP_MEDIA, moment=MOMENT).result["success"]
