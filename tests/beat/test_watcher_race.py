"""The watcher and its backups, while an attacker exchanges a directory of the uploads for a link to a private one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from demo.redis import EmbeddedRedis
from portal.ops.settings.load import DatabaseTarget, Secret
from tests.support.archives import tree_on_disk
from tests.support.crashes import LONG, rounds
from tests.support.exchanging import FILES, Ground, assert_harmless, ground
from tests.support.incrementals import tree_of_chain, without_ours
from tests.support.portal import Portal
from tests.support.services import ServiceProcess
from tests.support.workers import WorkerProcess, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ground"]

ROUNDS = rounds(2, in_long=40)
QUICK = {"BACKUP_WATCH_QUIET": "1s", "BACKUP_WATCH_LATEST": "2s", "BACKUP_WATCH_SCAN": "2s"}
NO_DATABASE = DatabaseTarget(host="/nowhere", port=5432, name="none", user="none", password=Secret("none"))


@pytest.fixture
def redis() -> Iterator[EmbeddedRedis]:
    """A broker of the test's own."""
    with EmbeddedRedis() as server:
        yield server


def archives(place: Path) -> list[Path]:
    return sorted((place / "archives").glob("*.tar.gz"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("mode", ["events", "polling"] if LONG else ["events"])
def test_the_watcher_has_nothing_from_outside_backed_up(
    ground: Ground, tmp_path: Path, redis: EmbeddedRedis, mode: str
) -> None:
    """No archive has a byte from there; once the attacker has stopped, the newest one has the uploads as they are."""
    quiet = ground.uploads / "other"  # while the link is in place, most of the uploads must still be there
    quiet.mkdir()
    for number in range(4 * FILES):
        (quiet / f"f{number}").write_bytes(b"harmless")
    portal = Portal(directory=tmp_path, database=NO_DATABASE, bin_dir=Path("/nowhere"))
    with (
        WorkerProcess(portal, redis, "backup"),
        ServiceProcess("beat.watcher", tmp_path, redis, BACKUP_WATCH_MODE=mode, **QUICK),
    ):
        wait_until(lambda: archives(tmp_path))
        with ground.attacked():
            for number in range(ROUNDS):
                before = len(archives(tmp_path))
                (quiet / f"new-{number}").write_bytes(b"harmless")
                (ground.tenant / f"new-{number}").write_bytes(b"harmless")
                wait_until(partial(has_more_than, tmp_path, before))
        (ground.tenant / "last").write_bytes(b"harmless")
        wait_until(lambda: is_current(tmp_path))
    found = archives(tmp_path)
    assert len(found) > ROUNDS
    for archive in found:
        assert_harmless(archive)


def has_more_than(place: Path, count: int) -> bool:
    return len(archives(place)) > count


def is_current(place: Path) -> bool:
    """Whether the newest archive stands for the uploads as they are."""
    return without_ours(tree_on_disk(place / "uploads")) == tree_of_chain(archives(place)[-1])
