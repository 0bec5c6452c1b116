"""Off-site copies by workers: a queue of its own, and archives that a task names by their copies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from portal.ops.model import SUFFIX
from portal.ops.offsite.listing import list_copies
from portal.ops.storage.age_keys import generate
from portal.ops.storage.directory import DirectoryBackend
from tests.support.portal import succeeded
from tests.support.workers import MOMENT, WorkerProcess, run_task, wait_until
from worker.operations import BACKUP_MEDIA, OFFSITE_COPY, OFFSITE_PRUNE, OFFSITE_VERIFY, VERIFY_ARCHIVE

if TYPE_CHECKING:
    from demo.redis import EmbeddedRedis
    from tests.support.portal import Portal


def test_a_published_archive_is_copied_by_a_task_of_its_own(portal: Portal, redis: EmbeddedRedis) -> None:
    """The backup does not wait for its copy; asked for again, nothing is missing; a copy can be named in a task."""
    disk = portal.directory / "disk"
    disk.mkdir()
    made = generate(portal.directory / "identity")
    environ = {
        "BACKUP_OFFSITE_URLS": f"file://{disk}",
        "BACKUP_ENCRYPTION_RECIPIENTS": made.recipient,
        "BACKUP_ENCRYPTION_IDENTITY_FILE": str(made.path),
    }
    with WorkerProcess(portal, redis, "backup", "offsite", "maintenance", **environ) as worker:
        backup = run_task(redis, BACKUP_MEDIA, moment=MOMENT)
        assert backup.exit_code == 0
        wait_until(lambda: list(disk.glob("*.json")))
        again = run_task(redis, OFFSITE_COPY)
        assert again.result["copied"] == []
        path = Path(backup.result["path"])
        path.unlink()
        name = list_copies(DirectoryBackend(disk)).commits[0].backup_id
        found = run_task(redis, VERIFY_ARCHIVE, archive=f"offsite:{name}", level="contents")
        assert found.result["success"]
        assert path.exists()
        secret = made.path.read_text().split()[-1]
        assert secret not in worker.text()
        assert worker.events("offsite_copied")


def test_copies_are_verified_and_pruned_by_tasks(portal: Portal, redis: EmbeddedRedis) -> None:
    """A task verifies the copies whose turn it is, and finds damage; another removes what the rules do not keep."""
    disk = portal.directory / "disk"
    disk.mkdir()
    environ = {
        "BACKUP_OFFSITE_URLS": f"file://{disk}",
        "BACKUP_OFFSITE_ENCRYPTION": "off",
        "BACKUP_OFFSITE_RETENTION_RULES": "media: count 1, days 0",
    }
    first, second = (succeeded(portal.job().backup_media()).name.removesuffix(SUFFIX) for _ in range(2))
    with WorkerProcess(portal, redis, "offsite", **environ) as worker:
        for name in (first, second):
            assert run_task(redis, OFFSITE_COPY, archive=name).exit_code == 0
        verified = run_task(redis, OFFSITE_VERIFY)
        assert (verified.exit_code, len(verified.result["copies"])) == (0, 2)
        segment = next((disk / first).iterdir())
        segment.write_bytes(segment.read_bytes()[:-1])
        damaged = run_task(redis, OFFSITE_VERIFY, archive=first)
        assert (damaged.exit_code, damaged.result["success"]) == (4, False)
        plan = run_task(redis, OFFSITE_PRUNE, dry_run=True)
        (gone,) = (one["copy"] for one in plan.result["removed"])
        assert len(list_copies(DirectoryBackend(disk)).commits) == 2
        assert run_task(redis, OFFSITE_PRUNE).exit_code == 0
        assert [commit.backup_id for commit in list_copies(DirectoryBackend(disk)).commits] == [
            *({first, second} - {gone})
        ]
        assert worker.events("offsite_copy_removed")
