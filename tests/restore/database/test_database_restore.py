"""Restoring real databases on a real server: what comes back, what stays, and what is refused."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest

from demo.postgres import EmbeddedPostgres
from portal.ops.errors import (
    AccessDeniedError,
    BusyError,
    OpsError,
    RestoreError,
)
from portal.ops.postgres.connection import connect
from portal.ops.restore.database.restore import RestoreMode, Role, drop_old, list_old_databases
from tests.support.database_contents import read_contents
from tests.support.database_restores import (
    IN_PLACE,
    LATER,
    SWAP,
    as_superuser,
    new_database,
    plan_of,
)
from tests.support.restoring import ask, bench, elsewhere, execute
from tests.support.sessions import session
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.settings.database_url import DatabaseTarget
    from tests.support.restoring import Bench


class TestContents:
    """What comes back is what was there, in every row and definition."""

    @pytest.mark.parametrize("mode", [SWAP, IN_PLACE])
    def test_everything_comes_back(self, rich: Bench, mode: RestoreMode) -> None:
        """A database with a bit of everything is restored to the last row, sequence, definition and right."""
        before = read_contents(rich.target)
        execute(rich.target, "DELETE FROM weakness", "SELECT nextval('ticket')", "SELECT lo_unlink(70002)")
        assert read_contents(rich.target) != before
        rich.restored(mode=mode)
        assert read_contents(rich.target) == before

    def test_a_swap_leaves_nothing_newer(self, portal: Bench) -> None:
        """After a swap over a changed and newer schema, the database is what it was."""
        before = read_contents(portal.target)
        execute(portal.target, *LATER)
        portal.restored()
        assert read_contents(portal.target) == before

    def test_in_place_leaves_newer_tables_alone(self, portal: Bench) -> None:
        """In place, the tables of the backup are what they were, and a newer one stays."""
        before = read_contents(portal.target)
        execute(portal.target, *LATER)
        portal.restored(mode=IN_PLACE)
        after = read_contents(portal.target)
        assert after.pop("rows of public.newer") == ['{"id":1}']
        assert {what: rows for what, rows in after.items() if what.startswith("rows")} == {
            what: rows for what, rows in before.items() if what.startswith("rows")
        }

    @pytest.mark.parametrize("mode", [SWAP, IN_PLACE])
    def test_a_rollback_brings_back_what_was_live(self, portal: Bench, mode: RestoreMode) -> None:
        """After a rollback, every row and definition is what it was before the restore."""
        execute(portal.target, *LATER)
        before = read_contents(portal.target)
        restore = portal.restored(mode=mode)
        assert read_contents(portal.target) != before
        restore.rollback()
        assert read_contents(portal.target) == before

    def test_statistics_are_there_at_once(self, portal: Bench) -> None:
        """The planner knows a restored table before anybody has asked for it."""
        portal.restored()
        assert ask(portal.target, "SELECT count(*) FROM pg_stats WHERE tablename = 'finding'") > 5


class TestIdentity:
    """What belongs to the database's name goes over to the new one."""

    def test_rights_and_settings_are_carried_over(self, owned: Bench, postgres: EmbeddedPostgres) -> None:
        """Owner, rights, settings, connection limit and comment are those of the old database."""
        administrator, name, role = as_superuser(owned.target, postgres), owned.target.name, owned.target.user
        execute(
            administrator,
            f"REVOKE ALL ON DATABASE {name} FROM PUBLIC",
            f"GRANT CONNECT ON DATABASE {name} TO pg_monitor WITH GRANT OPTION",
            f"""ALTER DATABASE {name} SET search_path TO "$user", public, 'Odd "name", too'""",
            f"ALTER DATABASE {name} SET app.tenant TO 'a=b, c'",
            f"ALTER DATABASE {name} SET work_mem TO '8MB'",
            f"ALTER ROLE {role} IN DATABASE {name} SET statement_timeout TO '1h'",
            f"ALTER DATABASE {name} CONNECTION LIMIT 17",
            f"COMMENT ON DATABASE {name} IS 'the portal''s own'",
        )
        before = identity(administrator)
        owned.restored(target=administrator)
        assert identity(administrator) == before

    def test_encoding_and_locale_are_those_of_the_old_one(self, postgres: EmbeddedPostgres, tmp_path: Path) -> None:
        """A database of another encoding and locale provider is replaced by one of the same."""
        target = replace(as_superuser(new_database(postgres), postgres), name=f"locale_{uuid4().hex[:8]}")
        execute(
            elsewhere(target),
            f"CREATE DATABASE {target.name} TEMPLATE template0 LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'",
        )
        query = "SELECT (datlocprovider, datlocale, encoding)::text FROM pg_database WHERE datname = current_database()"
        before = ask(target, query)
        with bench(target, postgres.bin_dir, tmp_path) as made:
            made.restored()
            assert ask(target, query) == before
        postgres.drop_database(target.name)

    def test_an_administrator_restores_for_the_portal(self, owned: Bench, postgres: EmbeddedPostgres) -> None:
        """What a superuser restores belongs to the role that owned the live tables."""
        owned.restored(target=as_superuser(owned.target, postgres))
        assert ask(owned.target, "SELECT tableowner FROM pg_tables WHERE tablename = 'finding'") == owned.target.user
        execute(owned.target, "ALTER TABLE finding ADD COLUMN more integer")

    def test_a_setting_that_may_not_be_made_is_a_warning(self, owned: Bench, postgres: EmbeddedPostgres) -> None:
        """A setting beyond the user's rights does not stop the restore: the statement is handed to a person."""
        administrator = as_superuser(owned.target, postgres)
        execute(
            administrator,
            f"ALTER ROLE {owned.target.user} CREATEDB",
            f"ALTER ROLE postgres IN DATABASE {owned.target.name} SET work_mem TO '9MB'",
        )
        restore = owned.restore()
        restore.stage(owned.source(), owned.rows)
        (warning,) = restore.apply().warnings
        assert f"""ALTER ROLE "postgres" IN DATABASE "{owned.target.name}" SET "work_mem" TO '9MB'""" in warning


class TestNames:
    """Names that need care."""

    @pytest.mark.parametrize("name", ["x" * 63, "ü" * 31, 'quoted "name"; DROP', "with space and 'quote' = 1", "-dash"])
    def test_an_odd_name(self, postgres: EmbeddedPostgres, tmp_path: Path, name: str) -> None:
        """A long, foreign or quoted name of a database is restored and rolled back."""
        target = new_database(postgres, name)
        execute(target, "CREATE TABLE mark AS SELECT 'old' AS value")
        with bench(target, postgres.bin_dir, tmp_path) as made:
            execute(target, "UPDATE mark SET value = 'new'")
            restore = made.restored()
            assert ask(target, "SELECT value FROM mark") == "old"
            restore.rollback()
            assert ask(target, "SELECT value FROM mark") == "new"
        postgres.drop_database(name)


class TestKept:
    """What a restore keeps on the server."""

    def test_the_old_database_is_kept_and_closed(self, portal: Bench) -> None:
        """After a swap the old database is there, and nobody gets into it by accident, not even a superuser."""
        restore = portal.restored()
        (old,) = list_old_databases(portal.target)
        assert (old.marked.role, old.marked.restore_id) == (Role.BEFORE, restore.restore_id)
        assert old.size_bytes is not None
        assert old.size_bytes > 1_000_000
        with pytest.raises(OpsError, match="not currently accepting connections"):
            connect(replace(portal.target, name=old.marked.name))

    def test_what_was_rolled_back_is_kept_too(self, portal: Bench) -> None:
        """A rollback keeps what the restore had made live: something may have been written to it."""
        portal.restored().rollback()
        (old,) = list_old_databases(portal.target)
        assert old.marked.role is Role.UNDONE

    def test_an_old_database_can_be_dropped(self, portal: Bench) -> None:
        """An old database is dropped by name, and a second time does no harm."""
        portal.restored()
        (old,) = list_old_databases(portal.target)
        drop_old(portal.target, old.marked.name)
        drop_old(portal.target, old.marked.name)
        assert portal.databases() == {portal.target.name}

    def test_no_other_database_can_be_dropped(self, portal: Bench) -> None:
        """A name that no restore has given is not dropped."""
        with pytest.raises(AccessDeniedError, match="not a database that a restore"):
            drop_old(portal.target, portal.target.name)

    def test_a_rollback_is_done_once(self, portal: Bench) -> None:
        """A second rollback changes nothing; one without anything to go back to is refused."""
        restore = portal.restored()
        restore.rollback()
        execute(portal.target, "CREATE TABLE written_since ()")
        restore.rollback()
        assert ask(portal.target, "SELECT to_regclass('written_since') IS NOT NULL")
        with pytest.raises(RestoreError, match="no database that"):
            portal.restore().rollback()


class TestSessions:
    """Applications that are connected."""

    def test_those_who_reconnect_see_the_old_or_the_new(self, portal: Bench) -> None:
        """Applications that connect again at once are shut out for less than half a second, and see no mixture."""
        execute(portal.target, "CREATE TABLE newer AS SELECT 1 AS one")
        restore = portal.restore()
        restore.stage(portal.source(), portal.rows)
        with reconnecting(portal.target) as seen:
            report = restore.apply()
        assert report.downtime_seconds < 0.5
        assert seen <= {(True, 400), (False, 400)}
        assert not ask(portal.target, "SELECT to_regclass('newer') IS NOT NULL")

    def test_a_session_beyond_our_rights_is_named(self, owned: Bench, postgres: EmbeddedPostgres) -> None:
        """A superuser's session, which the user may not end, stops the swap before anybody is disturbed."""
        administrator = as_superuser(owned.target, postgres)
        execute(administrator, f"ALTER ROLE {owned.target.user} CREATEDB")
        restore = owned.restore()
        restore.stage(owned.source(), owned.rows)
        with connect(replace(administrator, options={"application_name": "somebody"})) as other:
            with pytest.raises(BusyError, match="user postgres") as caught:
                restore.apply()
            assert str(other.info.backend_pid) in caught.value.message
            assert other.execute("SELECT 1").fetchone() == (1,)
            assert "somebody" in str(plan_of(owned).sessions[0]) or plan_of(owned).blockers
        restore.apply()

    def test_a_prepared_transaction_is_named(self, tmp_path: Path) -> None:
        """A prepared transaction, which nobody but a person can end, is in the way of plan and swap."""
        with EmbeddedPostgres(unsafe_speed=True, settings={"max_prepared_transactions": "1"}) as server:
            target = new_database(server, "portal")
            with bench(target, server.bin_dir, tmp_path) as made:
                execute(target, "BEGIN", "CREATE TABLE t ()", "PREPARE TRANSACTION 'left'")
                restore = made.restore()
                restore.stage(made.source(), made.rows)
                assert "ROLLBACK PREPARED 'left'" in plan_of(made).blockers[0].hint
                with pytest.raises(BusyError, match="prepared transactions: left"):
                    restore.apply()

    def test_in_place_ends_who_is_in_the_way(self, portal: Bench) -> None:
        """A session that was left open in a transaction does not hold a restore in place up for ever."""
        with session(portal.target) as left_open:
            left_open.execute("BEGIN")
            left_open.execute("SELECT count(*) FROM finding")
            portal.restored(mode=IN_PLACE)
            with pytest.raises(psycopg.OperationalError):
                left_open.execute("SELECT 1")


def identity(target: DatabaseTarget) -> dict[str, object]:
    """What the server keeps of a database beside its contents."""
    settings = """
        SELECT coalesce(array_agg((setrole::regrole, setconfig)::text ORDER BY setrole), '{}')
        FROM pg_db_role_setting AS s JOIN pg_database AS d ON d.oid = setdatabase WHERE datname = current_database()"""
    database = """
        SELECT row(datdba::regrole, datconnlimit, datistemplate, datallowconn, encoding, datcollate,
                   (SELECT array_agg(acl::text ORDER BY acl::text) FROM unnest(datacl) AS acl),
                   shobj_description(oid, 'pg_database'))::text FROM pg_database WHERE datname = current_database()"""
    return {"settings": ask(target, settings), "database": ask(target, database)}


@contextmanager
def reconnecting(target: DatabaseTarget) -> Iterator[set[tuple[bool, int]]]:
    """Applications that look into the database again and again, and connect again whenever they are thrown out.

    Yields:
        what they have seen: whether the newer table was there, and the number of findings.
    """
    seen: set[tuple[bool, int]] = set()
    looks: list[None] = []
    enough = threading.Event()
    query = b"SELECT to_regclass('newer') IS NOT NULL, (SELECT count(*) FROM finding)"

    def use() -> None:
        while not enough.is_set():
            try:
                with session(target) as connection:
                    while not enough.is_set():
                        seen.update(connection.execute(query).fetchall())
                        looks.append(None)
            except (OpsError, psycopg.Error):
                continue

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(looks) >= len(threads))
        yield seen
        before = len(looks)
        wait_until(lambda: len(looks) >= before + 2 * len(threads))
    finally:
        enough.set()
        for thread in threads:
            thread.join()
