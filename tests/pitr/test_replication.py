"""The replication slot is made by whoever comes first."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import BusyError
from portal.ops.pitr import replication
from portal.ops.pitr.replication import allow_replication, ensure_slot, hba_name, position
from tests.support.wal_servers import WalPortal, wal_portal

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg


@pytest.fixture(scope="module")
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WalPortal]:
    """A server whose WAL can be received."""
    with wal_portal(tmp_path_factory.mktemp("slots")) as made:
        yield made


def test_sessions_that_create_the_slot_at_once_all_have_it(portal: WalPortal) -> None:
    """One of them creates it, and none fails."""
    with (
        portal.postgres.connect() as one,
        portal.postgres.connect() as other,
        portal.postgres.connect() as third,
        ThreadPoolExecutor(3) as pool,
    ):
        for _ in range(30):
            barrier = threading.Barrier(3)

            def race(connection: psycopg.Connection, start: threading.Barrier = barrier) -> bool:
                start.wait()
                return ensure_slot(connection, "raced")

            created = list(pool.map(race, (one, other, third)))
            assert created.count(True) == 1
            assert position(one, "raced").is_usable
            one.execute("SELECT pg_drop_replication_slot('raced')")


def test_slot_that_is_gone_by_the_time_it_is_dropped(portal: WalPortal) -> None:
    """A slot without a position is dropped and made again, even where another session does so at once."""
    with (
        portal.postgres.connect() as one,
        portal.postgres.connect() as other,
        ThreadPoolExecutor(2) as pool,
    ):
        for _ in range(30):
            one.execute("SELECT pg_create_physical_replication_slot('raced', false)")
            barrier = threading.Barrier(2)

            def race(connection: psycopg.Connection, start: threading.Barrier = barrier) -> bool:
                start.wait()
                return ensure_slot(connection, "raced")

            assert any(list(pool.map(race, (one, other))))
            assert position(one, "raced").is_usable
            one.execute("SELECT pg_drop_replication_slot('raced')")


def test_lost_slot_that_stays_in_use_is_named(portal: WalPortal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which statement ends the session that holds it."""
    monkeypatch.setattr(replication, "_DROP", "SELECT %s::text")  # a slot in use is passed over by the statement
    with portal.postgres.connect() as connection:
        connection.execute("SELECT pg_create_physical_replication_slot('held', false)")
        with pytest.raises(BusyError, match="another session holds it") as caught:
            ensure_slot(connection, "held")
        assert "pg_terminate_backend" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("role", "written"),
    [
        ("receiver", "receiver"),
        ("kekkai-wal.1", "kekkai-wal.1"),
        ("wal receiver", '"wal receiver"'),
        ("all", '"all"'),
        ("+wal", '"+wal"'),
        ('o"dd', '"o""dd"'),
    ],
)
def test_a_role_as_pg_hba_has_it(role: str, written: str) -> None:
    """A name that means something else there, or ends early, is quoted."""
    assert hba_name(role) == written


def test_the_statement_for_a_role_that_has_to_be_quoted() -> None:
    """A quote in the name does not end it."""
    assert allow_replication('o"dd') == 'ALTER ROLE "o""dd" REPLICATION;'
