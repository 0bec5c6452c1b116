"""The services on a root file system that is read-only, as in their containers; the kernel sees to it."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from demo.redis import EmbeddedRedis
from tests.support.compose_file import ROOT, image_environment
from tests.support.workers import wait_until
from worker.operations import Queue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.portal import Portal

UNSHARE = ("/usr/bin/unshare", "--mount")
Ended = subprocess.CompletedProcess[str]

SHUT = """
root=$1
shift
while [ "$1" != -- ]; do mount --bind "$1" "$1" && shift; done
shift
mount --bind "$root" "$root" && mount -o remount,bind,ro "$root"
mount -o remount,bind,ro /
cd "$root"
exec "$@"
"""
"""In a mount namespace of its own: nothing is writable but the directories that are named."""


class Container:
    """A portal, and a way to run things that can write to its volumes and nowhere else."""

    def __init__(self, portal: Portal, redis: EmbeddedRedis, *volumes: str) -> None:
        self.directory = portal.directory
        writable = [self.directory / name for name in (*volumes, "tmp")]
        for volume in writable:
            volume.mkdir(exist_ok=True)
        self._prefix = [*UNSHARE, "sh", "-ec", SHUT, "sh", str(ROOT), *map(str, writable), "--"]
        self._environment = portal.environ(
            **image_environment(),
            HOME="/nonexistent",
            TMPDIR=str(self.directory / "tmp"),
            CELERY_BROKER_URL=redis.url,
            BACKUP_FLOWER_PASSWORD="a password",
            FLOWER_PORT="0",
            FLOWER_DB=str(self.directory / "flower" / "history"),
            PORTAL_AUDIT_DIR="",
        )

    def run(self, *command: str) -> Ended:
        """Run something to its end."""
        return subprocess.run(
            [*self._prefix, *command], env=self._environment, capture_output=True, text=True, check=False
        )

    def done(self, *command: str) -> Ended:
        """Run something that has to succeed."""
        ended = self.run(*command)
        assert ended.returncode == 0, ended.stderr
        return ended

    @contextmanager
    def running(self, module: str) -> Iterator[Path]:
        """Have a service run; gives the file of its log."""
        log = self.directory / f"{module}.log"
        with (
            log.open("wb") as stream,
            subprocess.Popen(
                [*self._prefix, sys.executable, "-m", module], env=self._environment, stderr=stream
            ) as process,
        ):
            try:
                yield log
            finally:
                process.terminate()


@pytest.fixture
def redis() -> Iterator[EmbeddedRedis]:
    """A broker of the test's own, where mounts can be made."""
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"this user may not mount: {tried.stderr.strip()}")
    with EmbeddedRedis() as server:
        yield server


def test_it_is_read_only(portal: Portal, redis: EmbeddedRedis) -> None:
    """Code and directories above the volumes cannot be written: the other tests mean something."""
    container = Container(portal, redis)
    for place in (ROOT / "worker", ROOT / ".venv", container.directory, "/var/tmp"):
        assert "Read-only file system" in container.run("touch", f"{place}/file").stderr


def test_everything_works_on_it(portal: Portal, redis: EmbeddedRedis) -> None:
    """Worker, Flower, a backup, a restore of the uploads and the health check need no place but their volumes."""
    container = Container(portal, redis, "archives", "uploads", "flower")
    with container.running("worker") as log, container.running("worker.flower") as web:
        wait_until(lambda: log.read_text().count('"worker_ready"') == len(Queue) and "flower_ready" in web.read_text())
        made = container.done(str(ROOT / "scripts" / "backup.sh"), "full")
        archive = json.loads(made.stdout)["backup_id"]
        container.done(str(ROOT / "scripts" / "restore.sh"), archive, "--force", "--media-only")
        container.done(sys.executable, "-m", "worker.health")
    report = json.loads(container.done(str(ROOT / "scripts" / "backup.sh"), "report").stdout)["path"]
    assert report == str(portal.archives / "kekkai-backup-report.html")
    assert any((container.directory / "flower").iterdir())
    assert not any((container.directory / "tmp").iterdir())
    assert "Read-only" not in log.read_text() + web.read_text()


def test_uploads_are_watched_without_writing_to_them(portal: Portal, redis: EmbeddedRedis) -> None:
    """Beat and watcher write to the repository alone."""
    container = Container(portal, redis, "archives")
    with container.running("beat") as log, container.running("beat.watcher") as seen:
        wait_until(lambda: _is_well(container, "beat"))
        wait_until(lambda: _is_well(container, "beat.watcher"))
    assert "Read-only" not in log.read_text() + seen.read_text()


def _is_well(container: Container, module: str) -> bool:
    return container.run(sys.executable, "-m", module, "--health").returncode == 0
