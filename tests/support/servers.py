"""A PostgreSQL server for a module of tests, and its sessions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from demo.postgres import EmbeddedPostgres
from tests.support.waiting import LONG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.settings.load import DatabaseTarget


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    """A server of the test's own, to be hurt."""
    with EmbeddedPostgres(unsafe_speed=True) as own:
        yield own


def no_session_soon(postgres: EmbeddedPostgres, target: DatabaseTarget) -> bool:
    """Wait until nobody is in a database."""
    deadline = time.monotonic() + LONG_SECONDS
    while sessions(postgres, target):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def sessions(postgres: EmbeddedPostgres, target: DatabaseTarget) -> int:
    """Count the sessions in a database."""
    with postgres.connect() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        row = connection.execute(query, [target.name]).fetchone()
    assert row is not None
    return int(row[0])
