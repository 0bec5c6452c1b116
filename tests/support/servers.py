"""A PostgreSQL server for a module of tests, and its sessions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from demo.postgres import EmbeddedPostgres
from portal.ops.postgres.connection import connect
from portal.ops.postgres.explained import explained_errors
from portal.ops.postgres.inspection import ServerFacts, check_readable, read_facts
from tests.support.waiting import LONG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.settings.load import DatabaseTarget


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    """A server of the test's own, to be hurt."""
    with EmbeddedPostgres(unsafe_speed=True) as own:
        yield own


def inspect_server(target: DatabaseTarget) -> ServerFacts:
    """Connect to a database, make sure that all of it can be dumped, and ask for the facts."""
    with connect(target) as connection, explained_errors(target):
        check_readable(connection)
        return read_facts(connection)


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
