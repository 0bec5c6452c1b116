"""A full disk of the repository: the WAL service stops, says so, and never fills the server's disk."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import pytest

from portal.ops.pitr import receiver
from portal.ops.pitr.plan import plan_recovery, with_last_transaction
from portal.ops.pitr.replication import position
from portal.ops.runtime.process import SystemRunner
from tests.support.portal import small_disk
from tests.support.restores import mounted
from tests.support.waiting import wait_until
from tests.support.wal_servers import WalPortal, wal_portal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DISK: Final = "220m"
SEGMENT: Final = 16 << 20
KEPT_MB: Final = 48


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[WalPortal]:
    """A server that keeps little WAL for a slot; the repository has a small disk of its own."""
    kept = f"{KEPT_MB}MB"
    with (
        small_disk(tmp_path / "disk", DISK),
        wal_portal(
            tmp_path / "disk",
            segment_mb=None,
            max_slot_wal_keep_size=kept,
            max_wal_size="64MB",
            min_wal_size="32MB",
        ) as made,
    ):
        with made.postgres.connect() as connection:
            connection.execute("CREATE TABLE stamped (number int)")
        yield made


def fill(portal: WalPortal, left: int) -> Path:
    """Fill the disk up to so many bytes."""
    disk = os.statvfs(portal.repository.path)
    place = portal.repository.path.parent / "filler"
    with place.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - left)
    return place


def write_segments(portal: WalPortal, count: int) -> None:
    with portal.postgres.connect() as connection:
        for _ in range(count):
            connection.execute("INSERT INTO stamped SELECT generate_series(1, 100)")
            connection.execute("SELECT pg_switch_wal()")
        connection.execute("CHECKPOINT")


def problem(portal: WalPortal) -> str:
    return str(portal.look().state.get("problem") or "")


def wal_on_server(portal: WalPortal) -> int:
    with portal.postgres.connect() as connection:
        (size,) = connection.execute("SELECT sum(size)::bigint FROM pg_ls_waldir()").fetchone() or (0,)
    return int(size)


def is_read(portal: WalPortal) -> bool:
    with portal.postgres.connect() as connection:
        return position(connection).active


def test_server_keeps_its_disk_and_the_window_goes_on_with_room(portal: WalPortal) -> None:
    """With too little room nothing is received; the server lets WAL go, and the gap is shown and mended."""
    with portal.receiving():
        assert portal.job().backup_base().success
        portal.wait_until_covered()
        filler = fill(portal, 40 << 20)
        wait_until(lambda: "free, and receiving" in problem(portal))
        wait_until(lambda: not is_read(portal))
        write_segments(portal, 12)
        assert wal_on_server(portal) < (KEPT_MB + 64) << 20
        lost_at = datetime.now(UTC)
        filler.unlink()
        wait_until(lambda: bool(portal.gaps) and not problem(portal))
        assert portal.job().backup_base().success
        portal.wait_until_covered()
    window = portal.look().window
    assert window is not None
    assert [start <= lost_at <= end for start, end in window.gaps] == [True]


def test_disk_that_is_full_to_the_last_byte(portal: WalPortal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others fill the disk at once, pg_receivewal itself meets the end; nothing is lost once there is room."""
    monkeypatch.setattr(receiver, "_RESERVE_BYTES", -(1 << 60))
    monkeypatch.setattr(receiver, "_LONGEST_PAUSE_SECONDS", 1.0)
    with portal.receiving():
        assert portal.job().backup_base().success
        portal.wait_until_covered()
        filler = fill(portal, 1 << 20)
        write_segments(portal, 2)
        wait_until(lambda: "no space left" in problem(portal))
        assert "hint" in problem(portal)
        filler.unlink()
        wait_until(lambda: not problem(portal))
        portal.wait_until_covered()
    window = portal.look().window
    assert window is not None
    assert window.gaps == ()
    assert portal.gaps == []


def test_no_room_to_look_into_the_wal(portal: WalPortal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan of a recovery needs none: it only does not name the last transaction."""
    with portal.receiving():
        assert portal.job().backup_base().success
        write_segments(portal, 1)
        portal.wait_until_covered()
    plan = plan_recovery(portal.repository, None)
    runner = SystemRunner()
    assert with_last_transaction(plan, runner=runner, bin_dir=portal.bin_dir).last_transaction is not None
    (tmp_path / "tmp").mkdir()
    with mounted(tmp_path / "tmp"):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
        assert with_last_transaction(plan, runner=runner, bin_dir=portal.bin_dir) == plan
