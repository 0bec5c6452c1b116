"""The keys that tasks are signed with: shown and rotated by a command, while tasks are under way."""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from celery import Celery

from demo.redis import EmbeddedRedis
from portal.ops.errors import BusyError, RepositoryError
from portal.ops.repository.durable import write_durably
from portal.ops.repository.repository import Repository
from tests.support.commands import ROOT
from tests.support.repositories import as_nobody
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


@pytest.mark.parametrize(
    "text", ["", "{}", '{"keys": []}', '{"keys": 7}', '{"keys": [{"name": "a"}]}', '{"keys": [{}]}', "\xff"]
)
def test_damaged_keys_are_named(tmp_path: Path, text: str) -> None:
    """Invalid data signs nothing and accepts nothing."""
    keys = TaskKeys(tmp_path)
    keys.current()
    keys.path.write_text(text)
    for use in (keys.current, keys.all, lambda: keys.named("a")):
        with pytest.raises(RepositoryError, match=r"damaged: .*tasks.json"):
            use()


def test_a_key_stays_valid_for_eight_days_after_its_last_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the rotation that has retired it, not from the last one."""
    now = [1_000_000.0]
    monkeypatch.setattr("worker.keys.time.time", lambda: now[0])
    keys = TaskKeys(tmp_path)
    first = keys.current()
    second = keys.rotate()
    retired = 1_000_000.0
    now[0] += 8 * 86_400
    keys.rotate()
    assert [key.retired for key in keys.all()] == [None, now[0], retired]
    assert [key.name for key in keys.all()][1:] == [second.name, first.name]
    now[0] += 1
    keys.rotate()
    assert first.name not in {key.name for key in keys.all()}
    assert second.secret in {key.secret for key in keys.all()}
    assert keys.named(first.name) is None
    found = keys.named(second.name)
    assert found is not None and found.secret == second.secret


def test_before_the_first_task_there_is_no_key(tmp_path: Path) -> None:
    """Asking for one by its name creates none; a key has as many bits as its signature."""
    keys = TaskKeys(tmp_path / "repository")
    assert keys.all() == ()
    assert keys.named("one") is None
    assert not (tmp_path / "repository").exists()
    assert len(keys.current().secret) == 32
    assert [path.name for path in (tmp_path / "repository" / ".keys").iterdir()] == ["tasks.json"]
    assert keys.path.read_bytes().endswith(b"\n")


def test_the_first_of_two_new_keys_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that find none create one each; both then sign with the same, and the other leaves nothing."""
    keys, others = TaskKeys(tmp_path), list[str]()

    def writing(path: Path, data: bytes) -> None:
        write_durably(path, data)
        if not others:
            others.append("other")
            others.append(TaskKeys(tmp_path).current().name)

    monkeypatch.setattr(module, "write_durably", writing)
    assert keys.current().name == others[1]
    assert [path.name for path in keys.path.parent.iterdir()] == ["tasks.json"]


@pytest.mark.parametrize("use", ["current", "all", "rotate", "named"])
def test_who_may_not_read_the_keys_is_told_what_to_do(tmp_path: Path, use: str) -> None:
    """Neither may they be replaced."""
    keys = TaskKeys(tmp_path)
    keys.current()
    expected = r"(?s)cannot use the key that signs tasks, .*tasks\.json: .*--local"
    with as_nobody(), pytest.raises(RepositoryError, match=expected):
        getattr(TaskKeys(tmp_path), use)(*(["one"] if use == "named" else []))


def test_a_repository_that_is_away_gets_no_keys(tmp_path: Path) -> None:
    """A mount that is missing would otherwise have keys that no worker knows; a new repository may have them."""
    Repository(tmp_path / "archives").prepare()
    (tmp_path / "archives").rename(tmp_path / "away")
    keys = TaskKeys(tmp_path / "archives")
    for use in (keys.current, keys.rotate):
        with pytest.raises(RepositoryError):
            use()
    assert not (tmp_path / "archives").exists()
    assert keys.current(may_be_new=True).name == keys.current().name


def test_the_command_names_a_fault_and_ends_with_its_code(tmp_path: Path) -> None:
    """Without a traceback; nothing is created by looking."""
    assert keys_command(tmp_path).stdout == ""
    TaskKeys(tmp_path).current()
    TaskKeys(tmp_path).path.write_text("damaged")
    failed = keys_command(tmp_path)
    assert failed.returncode == RepositoryError("", hint="").exit_code
    assert failed.stderr.startswith("error: the keys for tasks are damaged")


def test_the_end_of_a_key_is_shown(tmp_path: Path) -> None:
    """Eight days after it was retired."""
    keys = TaskKeys(tmp_path)
    keys.current()
    before = time.time()
    keys.rotate()
    retired = keys.all()[1].retired
    assert retired is not None and before <= retired <= time.time()
    until = datetime.fromtimestamp(retired + 8 * 86400, UTC)
    assert keys_command(tmp_path).stdout.splitlines()[1].endswith(f"is accepted until {until:%Y-%m-%d %H:%M} UTC")


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
