"""Off-site copies by workers: a queue of its own, and archives that a task names by their copies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from portal.ops.offsite.listing import list_copies
from portal.ops.storage.age_keys import generate
from portal.ops.storage.directory import DirectoryBackend
from tests.support.workers import MOMENT, WorkerProcess, run_task, wait_until
from worker.operations import BACKUP_MEDIA, OFFSITE_COPY, VERIFY_ARCHIVE

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
