"""Two users: what root makes in somebody else's repository belongs to that user, who works on with it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from beat.watcher.outbox import Outbox
from portal.ops.drill.job import DrillJob
from portal.ops.errors import ConnectionFailedError
from portal.ops.monitoring.alerts import AlertSender
from portal.ops.repository.durable import make_directories
from portal.ops.repository.pins import Pins
from portal.ops.repository.repository import Repository
from portal.ops.restore.database.model import RestoreMode
from portal.ops.restore.job import RestoreJob
from portal.ops.retention.prune import PruneJob
from tests.support.portal import succeeded
from tests.support.repositories import NOBODY
from tests.support.restoring import remove
from tests.support.world import config_of
from worker.authorization import Authorizations
from worker.delivery import sole_delivery
from worker.operations import RESTORE_ARCHIVE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from tests.support.portal import Portal
    from worker.operations import Operation

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what belongs to somebody else")

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Nobody:
    """Workers that are away."""

    def submit(self, operation: Operation, arguments: Mapping[str, Any], task_id: str) -> None:
        """Refuse."""
        raise ConnectionFailedError("away")

    def is_at_work(self, task_id: str) -> bool:
        """Refuse."""
        raise ConnectionFailedError("away")


def strangers(directory: Path) -> set[str]:
    """What is in a directory, at whatever depth, and belongs to somebody else than the directory."""
    found = (path for path in directory.rglob("*") if path.lstat().st_uid != directory.stat().st_uid)
    return {str(path.relative_to(directory)) for path in found}


@pytest.fixture
def archives(portal: Portal) -> Path:
    """An empty repository of another user."""
    portal.archives.mkdir(mode=0o700)
    os.chown(portal.archives, NOBODY, NOBODY)
    return portal.archives


def test_what_jobs_make_is_the_owners(portal: Portal, archives: Path) -> None:
    """Backups, a drill, a restore with a safety dump, pins and a prune by root lock the owner out of nothing."""
    job = portal.job()
    name = succeeded(job.backup_full()).name.removesuffix(".tar.gz")
    (portal.uploads / "new.json").write_text("new")
    succeeded(job.backup_media(incremental=True))
    assert job.verify_backup("latest")[0]
    Pins(job.repository).pin(name, reason="", who="root", moment=NOON)
    assert DrillJob(config_of(portal)).run(name).success
    assert RestoreJob(config_of(portal, mode=RestoreMode.IN_PLACE)).restore_full(name).success
    assert PruneJob(Repository(archives), job.config.retention).run().success
    remove(portal.database)
    made = {path.name for path in archives.iterdir()}
    assert {
        ".lock",
        ".chain.lock",
        ".cache",
        ".verifications",
        ".pins",
        ".drills",
        ".restores",
        ".access.jsonl",
    } <= made
    assert list(archives.glob(".restores/restore_*/before.dump"))
    assert strangers(archives) == set()


def test_what_the_services_make_is_the_owners(tmp_path: Path) -> None:
    """Deliveries, permits, what the watcher could not send and what people were told of belong to the owner."""
    archives = tmp_path / "archives"
    archives.mkdir(mode=0o700)
    os.chown(archives, NOBODY, NOBODY)
    with sole_delivery(archives, "one", 1):
        assert strangers(archives) == set()
    Authorizations(archives).grant(RESTORE_ARCHIVE, "two", {})
    outbox = Outbox(archives, Nobody(), lambda: NOON, lambda: 0.0)
    outbox.put(frozenset(["a.json"]))
    outbox.post()
    AlertSender(archives, host="h", tell=lambda *_: True, clock=lambda: NOON).after(None, [])
    assert {path.name for path in archives.iterdir()} == {".deliveries", ".authorizations", ".watch", ".notices.lock"}
    assert (archives / ".watch" / "dirty.json").exists()
    assert strangers(archives) == set()


def test_a_repository_that_root_makes_is_the_owners_of_the_directory(tmp_path: Path) -> None:
    """Each directory that is made on the way belongs to whom the one above it belongs."""
    os.chown(tmp_path, NOBODY, NOBODY)
    make_directories(tmp_path / "deep" / "archives")
    assert strangers(tmp_path) == set()


def test_a_link_in_the_place_of_a_directory_gives_nothing_away(tmp_path: Path) -> None:
    """Root does not give what a link names to whoever put the link there."""
    secret, archives = tmp_path / "secret", tmp_path / "archives"
    secret.mkdir()
    archives.mkdir()
    os.chown(archives, NOBODY, NOBODY)
    (archives / ".restores").symlink_to(secret)
    make_directories(archives / ".restores" / "one")
    assert secret.stat().st_uid == 0
