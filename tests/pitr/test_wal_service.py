"""The WAL service goes on after every fault, and no second of the window is wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psycopg
import pytest

from portal.ops.pitr.replication import SLOT
from portal.ops.storage.age_keys import generate
from tests.support.waiting import LONG_SECONDS, wait_until
from tests.support.wal_servers import WalPortal, wal_portal
from tests.support.wal_services import numbers_at, service, start_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[WalPortal]:
    """A server of the test's own, to be hurt."""
    with wal_portal(tmp_path) as made:
        with made.postgres.connect() as connection:
            connection.execute("CREATE TABLE stamped (number int)")
        yield made


def test_slot_that_somebody_drops_is_made_again_with_a_base_backup(portal: WalPortal) -> None:
    """The service notices, says so, and the window goes on; what was lost in between would be a gap."""
    with service(portal):
        wait_until(lambda: portal.look().window is not None)
        bases = len(portal.look().bases)
        with portal.postgres.connect() as connection:
            connection.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
            wait_until(lambda: _dropped(connection))
            connection.execute("INSERT INTO stamped VALUES (1)")
        moment = datetime.now(UTC)
        wait_until(lambda: (window := portal.look().window) is not None and window.end >= moment)
        assert numbers_at(portal, moment) == {1}
        assert len(portal.look().bases) >= bases


def _dropped(connection: psycopg.Connection) -> bool:
    """Whether the slot could be dropped: it cannot while somebody reads it."""
    try:
        connection.execute("SELECT pg_drop_replication_slot(%s)", [SLOT])
    except psycopg.Error as error:
        connection.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
        return isinstance(error, psycopg.errors.UndefinedObject)
    return True


def test_lost_wal_is_a_gap_until_the_next_base_backup(tmp_path: Path) -> None:
    """While nobody receives, the server lets WAL go as it was told to; that is shown, and a base backup mends it."""
    with wal_portal(
        tmp_path, segment_mb=None, max_slot_wal_keep_size="32MB", max_wal_size="64MB", min_wal_size="32MB"
    ) as portal:
        with portal.postgres.connect() as connection:
            connection.execute("CREATE TABLE stamped (number int)")
        with portal.receiving():
            assert portal.job().backup_base().success
            portal.wait_until_covered()
        with portal.postgres.connect() as connection:
            for _ in range(12):
                connection.execute("INSERT INTO stamped SELECT generate_series(1, 1000)")
                connection.execute("SELECT pg_switch_wal()")
            connection.execute("CHECKPOINT")
        lost_at = datetime.now(UTC)
        with portal.receiving():
            wait_until(lambda: bool(portal.gaps))
            wait_until(lambda: not portal.look().state.get("problem"))
            assert portal.job().backup_base().success
            portal.wait_until_covered()
        window = portal.look().window
        assert window is not None
        assert len(window.gaps) == 1
        start, end = window.gaps[0]
        assert start <= lost_at <= end


def _is_active(portal: WalPortal) -> bool:
    with portal.postgres.connect() as connection:
        row = connection.execute("SELECT active FROM pg_replication_slots WHERE slot_name = %s", [SLOT]).fetchone()
    return row == (True,)


def test_base_backup_that_the_service_makes_is_copied_off_site(portal: WalPortal, tmp_path: Path) -> None:
    """Without a worker nobody else would copy it before the next backup, and WAL alone restores nothing."""
    disk = tmp_path / "disk"
    disk.mkdir()
    recipient = generate(tmp_path / "identity").recipient
    with service(portal, BACKUP_OFFSITE_URLS=f"file://{disk}", BACKUP_ENCRYPTION_RECIPIENTS=recipient):
        wait_until(lambda: any(disk.glob("base_*.json")))
    assert {path.stem for path in disk.glob("base_*.json")} == {base.name for base in portal.look().bases}


def test_second_service_is_refused(portal: WalPortal) -> None:
    """One repository has one service: the second one ends as busy."""
    with service(portal):
        wait_until(lambda: _is_active(portal))
        second = start_service(portal)
        try:
            assert second.wait(LONG_SECONDS) == 5
        finally:
            second.kill()
