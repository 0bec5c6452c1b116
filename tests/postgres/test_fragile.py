"""The look at expressions that would fail in a restore, where the server ends the session meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from portal.ops.postgres.connection import connect
from portal.ops.postgres.fragile import fragile_expressions

if TYPE_CHECKING:
    from demo.postgres import EmbeddedPostgres
    from portal.ops.settings.load import DatabaseTarget


class Ended:
    """A session that a restore's swap ends as soon as the last query of the look is answered."""

    def __init__(self, real: Any, server: EmbeddedPostgres) -> None:
        self._real = real
        self._server = server
        self._queries = 0

    def transaction(self, **options: Any) -> Any:
        """A transaction of the session."""
        return self._real.transaction(**options)

    def execute(self, query: Any) -> Any:
        """Send a query."""
        found = self._real.execute(query)
        self._queries += 1
        if self._queries == 3:
            with self._server.connect() as other:
                row = other.execute("SELECT pg_terminate_backend(%s, 60000)", [self._real.info.backend_pid]).fetchone()
            assert row == (True,)
        return found


def test_session_that_ends_is_an_error_of_the_server(
    portal_database: DatabaseTarget, postgres: EmbeddedPostgres
) -> None:
    """Not an exception of our own; the next query says what happened."""
    with connect(portal_database) as connection:
        assert fragile_expressions(Ended(connection, postgres)) == []  # type: ignore[arg-type]
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_path_is_unchanged_after_it(portal_database: DatabaseTarget) -> None:
    """What follows in the session finds tables as before."""
    with connect(portal_database) as connection, connection.transaction():
        before = connection.execute("SHOW search_path").fetchone()
        assert fragile_expressions(connection) == []
        assert connection.execute("SHOW search_path").fetchone() == before
