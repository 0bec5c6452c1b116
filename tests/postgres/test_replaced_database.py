"""Reading a database at the very instant at which another one takes its name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from psycopg.sql import SQL, Identifier

from portal.ops.errors import DatabaseAbsentError, SessionEndedError
from portal.ops.postgres.connection import connect
from portal.ops.postgres.dump import open_dump
from portal.ops.postgres.failures import explain_dump_failure
from tests.support.servers import inspect_server
from tests.support.sessions import session
from tests.support.waiting import LONG_SECONDS, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.postgres import EmbeddedPostgres
    from portal.ops.postgres.connection import Connection
    from portal.ops.runtime.process import SystemRunner
    from portal.ops.settings.load import DatabaseTarget


@contextmanager
def swap_under_way(admin: Connection, live: str) -> Iterator[str]:
    """A transaction has put a copy in a database's place; leaving the context commits it. Gives the old one's name."""
    copy, kept = f"{live}_copy", f"{live}_kept"
    rename = SQL("ALTER DATABASE {} RENAME TO {}")
    admin.execute(SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(copy), Identifier(live)))
    try:
        with admin.transaction():
            admin.execute(rename.format(Identifier(live), Identifier(kept)))
            admin.execute(rename.format(Identifier(copy), Identifier(live)))
            yield kept
    finally:
        for name in (copy, kept):
            admin.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))


def waiting(observer: Connection, kind: str) -> list[int]:
    """The server processes that wait for a lock of a kind."""
    return [pid for (pid,) in observer.execute("SELECT pid FROM pg_locks WHERE NOT granted AND locktype = %s", [kind])]


def test_whoever_waits_for_a_swap_reaches_the_new_database(
    portal_database: DatabaseTarget, postgres: EmbeddedPostgres
) -> None:
    """The server refuses a session that has waited for the swap: as if there were no such database."""
    with ThreadPoolExecutor() as pool, closing(postgres.connect()) as admin, closing(postgres.connect()) as observer:
        with swap_under_way(admin, portal_database.name) as kept:
            counted = pool.submit(inspect_server, portal_database)
            wait_until(lambda: waiting(observer, "object"))
        assert counted.result(LONG_SECONDS).major
        assert kept.startswith(portal_database.name)


def test_a_database_that_is_dropped_meanwhile_is_absent(
    portal_database: DatabaseTarget, postgres: EmbeddedPostgres
) -> None:
    """The next session learns that nothing has the name now."""
    gone = replace(portal_database, name=f"{portal_database.name}_gone")
    name = Identifier(gone.name)
    with ThreadPoolExecutor() as pool, closing(postgres.connect()) as admin, closing(postgres.connect()) as observer:
        admin.execute(SQL("CREATE DATABASE {}").format(name))
        with admin.transaction():
            admin.execute(SQL("ALTER DATABASE {} RENAME TO {}").format(name, Identifier(f"{gone.name}_2")))
            opened = pool.submit(connect, gone)
            wait_until(lambda: waiting(observer, "object"))
        admin.execute(SQL("DROP DATABASE {}").format(Identifier(f"{gone.name}_2")))
        with pytest.raises(DatabaseAbsentError, match="has no database"):
            opened.result(LONG_SECONDS)


def test_a_dump_whose_session_is_ended_before_it_begins_starts_again(
    portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner
) -> None:
    """A swap ends the sessions of the old database; nothing is dumped yet, so the new one is dumped from the start."""
    with ThreadPoolExecutor() as pool, closing(session(portal_database)) as holder:
        with holder.transaction():
            holder.execute("CREATE TABLE wanted AS SELECT 1 AS n")

        def dump() -> dict[str, int]:
            with open_dump(portal_database, runner=runner, bin_dir=postgres.bin_dir, timeout_seconds=60) as source:
                source.stdout.read()
                return source.finish().row_counts

        with holder.transaction():
            holder.execute("LOCK TABLE wanted IN ACCESS EXCLUSIVE MODE")
            counts = pool.submit(dump)
            with closing(postgres.connect()) as observer:
                wait_until(lambda: waiting(observer, "relation"))
                for pid in waiting(observer, "relation"):
                    observer.execute("SELECT pg_terminate_backend(%s)", [pid])
                wait_until(lambda: not waiting(observer, "relation") or counts.done())
        assert counts.result(LONG_SECONDS)["public.wanted"] == 1


@pytest.mark.parametrize(
    "words",
    [
        "query failed: FATAL:  terminating connection due to administrator command",
        'query failed: ERROR:  invalid snapshot identifier: "00000003-0000001B-1"',
        'query failed: ERROR:  snapshot "00000003-0000001B-1" does not exist',
        "query failed: ERROR:  cannot import a snapshot from a different database",
        'connection to server failed: FATAL:  database "dojo" does not exist\n'
        "DETAIL:  It seems to have just been dropped or renamed.",
    ],
)
def test_what_pg_dump_says_of_a_swap_is_understood(words: str) -> None:
    """Each of these is an end of the session, which the next attempt does not meet."""
    assert type(explain_dump_failure(1, f"pg_dump: error: {words}\n")) is SessionEndedError
