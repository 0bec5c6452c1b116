"""Restoring real databases on a real server: what comes back, what stays, and what is refused."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest

from demo.postgres import EmbeddedPostgres
from portal.ops.errors import (
    AccessDeniedError,
    BusyError,
    ClientToolError,
    DatabaseAbsentError,
    LoginRefusedError,
    NotIntactError,
    OpsError,
    RestoreError,
)
from portal.ops.postgres.connection import connect
from portal.ops.postgres.pg_restore import Restorer, find_restorer
from portal.ops.restore.database.restore import DatabaseState, RestoreMode, Role, drop_old, list_old_databases
from portal.ops.settings.database_url import DatabaseTarget, Secret
from tests.support.database_contents import read_contents
from tests.support.fake_runner import FakeRunner, Script
from tests.support.restoring import ask, bench, elsewhere, execute, remove

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.runtime.process import RunningProcess, SystemRunner
    from tests.support.restoring import Bench

PASSWORD = "correct horse"
RICH_SCHEMA = Path(__file__).parents[2] / "support" / "rich_schema.sql"
SWAP, IN_PLACE = RestoreMode.SWAP, RestoreMode.IN_PLACE
LATER = (
    "DELETE FROM note",
    "UPDATE finding SET title = 'changed' WHERE id % 2 = 0",
    "ALTER TABLE product ADD COLUMN newer integer DEFAULT 1",
    "DROP TABLE finding_endpoint",
    "CREATE TABLE newer (id integer PRIMARY KEY)",
    "INSERT INTO newer VALUES (1)",
)


@pytest.fixture
def portal(portal_database: DatabaseTarget, postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Bench]:
    """A portal's database and its dump."""
    with bench(portal_database, postgres.bin_dir, tmp_path) as made:
        yield made


@pytest.fixture
def rich(postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Bench]:
    """A database that has a bit of everything, and its dump."""
    target = new_database(postgres)
    if not ask(elsewhere(target), "SELECT count(*) FROM pg_roles WHERE rolname = 'reader'"):
        postgres.create_role("reader", password=PASSWORD)
    execute(target, RICH_SCHEMA.read_text())
    with bench(target, postgres.bin_dir, tmp_path) as made:
        yield made
    postgres.drop_database(target.name)


@pytest.fixture
def owned(postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Bench]:
    """A small database that belongs to a role of its own, without any privilege."""
    role = f"app_{uuid4().hex[:8]}"
    postgres.create_role(role, password=PASSWORD)
    target = replace(new_database(postgres, owner=role), user=role, password=Secret(PASSWORD))
    execute(target, "CREATE TABLE finding AS SELECT n FROM generate_series(1, 100) AS n")
    with bench(target, postgres.bin_dir, tmp_path) as made:
        yield made
        administrator = as_superuser(target, postgres)
        remove(administrator)
    postgres.drop_database(target.name)
    execute(elsewhere(administrator), f"DROP ROLE {role}")


def new_database(postgres: EmbeddedPostgres, name: str = "", owner: str = "postgres") -> DatabaseTarget:
    name = name or f"live_{uuid4().hex[:12]}"
    postgres.create_database(name, owner=owner)
    address = postgres.superuser(name)
    password = Secret(address.password)
    return DatabaseTarget(host=address.host, port=address.port, name=name, user=address.user, password=password)


def as_superuser(target: DatabaseTarget, postgres: EmbeddedPostgres) -> DatabaseTarget:
    address = postgres.superuser()
    return replace(target, user=address.user, password=Secret(address.password))


def plan_of(made: Bench, **options: Any) -> Any:
    return made.restore(**options).plan(dump_major=17, dump_bytes=made.dump.stat().st_size, row_counts=made.rows)


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
        with connect(portal.target) as left_open:
            left_open.execute("BEGIN")
            left_open.execute("SELECT count(*) FROM finding")
            portal.restored(mode=IN_PLACE)
            with pytest.raises(psycopg.OperationalError):
                left_open.execute("SELECT 1")


class TestRoles:
    """Users with and without privileges."""

    def test_an_owner_who_may_create_databases_swaps(self, owned: Bench, postgres: EmbeddedPostgres) -> None:
        """CREATEDB and ownership are enough for a swap and its rollback."""
        execute(as_superuser(owned.target, postgres), f"ALTER ROLE {owned.target.user} CREATEDB")
        execute(owned.target, "DELETE FROM finding")
        restore = owned.restore(mode=RestoreMode.AUTO)
        restore.stage(owned.source(), owned.rows)
        assert restore.apply().mode is SWAP
        assert ask(owned.target, "SELECT count(*) FROM finding") == 100
        restore.rollback()
        assert ask(owned.target, "SELECT count(*) FROM finding") == 0

    def test_an_owner_who_may_not_restores_in_place(self, owned: Bench) -> None:
        """Without CREATEDB the restore is in place, and the plan says why."""
        execute(owned.target, "DELETE FROM finding")
        plan = plan_of(owned, mode=RestoreMode.AUTO)
        assert plan.mode is IN_PLACE
        assert f"user {owned.target.user} may not create databases" in plan.reason
        assert plan.blockers == ()
        owned.restored(mode=RestoreMode.AUTO)
        assert ask(owned.target, "SELECT count(*) FROM finding") == 100

    def test_a_role_that_is_absent(self, portal: Bench) -> None:
        """On a new server the hint has every command: for the user, for its database, and the option instead."""
        target = replace(portal.target, user="no one", name="new portal")
        with pytest.raises(LoginRefusedError) as caught:
            plan_of(portal, target=target)
        where = f"--host=127.0.0.1 --port={target.port}"
        assert f"createuser {where} --pwprompt 'no one'" in caught.value.hint
        assert f"createdb {where} --owner='no one' 'new portal'" in caught.value.hint
        assert "--createdb as well, a restore with --create-database" in caught.value.hint

    def test_a_swap_without_the_right_to_it_is_refused(self, owned: Bench) -> None:
        """A swap that was asked for without CREATEDB names the statement that helps."""
        (blocker,) = plan_of(owned, mode=SWAP).blockers
        assert isinstance(blocker, AccessDeniedError)
        assert f'ALTER ROLE "{owned.target.user}" CREATEDB' in blocker.hint

    def test_a_rollback_that_needs_psql_is_told_beforehand(self, portal: Bench, tmp_path: Path) -> None:
        """Without psql, a restore in place that brings a table could not be taken back: the plan says so."""
        for program in ("pg_dump", "pg_restore"):
            (tmp_path / "bin" / program).parent.mkdir(exist_ok=True)
            (tmp_path / "bin" / program).symlink_to(portal.bin_dir / program)
        made = replace(portal, bin_dir=tmp_path / "bin")
        assert plan_of(made, mode=IN_PLACE).blockers == ()
        execute(portal.target, "DROP TABLE finding_endpoint")
        (blocker,) = plan_of(made, mode=IN_PLACE).blockers
        assert isinstance(blocker, ClientToolError)
        assert "psql not found" in blocker.message
        assert plan_of(made, mode=SWAP).blockers == ()

    def test_tables_of_somebody_else_are_named(self, owned: Bench, postgres: EmbeddedPostgres) -> None:
        """A restore in place over tables of another owner is refused with their names."""
        execute(as_superuser(owned.target, postgres), "ALTER TABLE finding OWNER TO postgres")
        (blocker,) = plan_of(owned, mode=IN_PLACE).blockers
        assert "does not own public.finding" in blocker.message


class TestAbsent:
    """A server that has no such database."""

    def test_the_command_is_named(self, portal: Bench, postgres: EmbeddedPostgres) -> None:
        """An absent database is in the way, with the command that creates it."""
        postgres.drop_database(portal.target.name)
        (blocker,) = plan_of(portal).blockers
        assert isinstance(blocker, DatabaseAbsentError)
        assert f"--owner=postgres {portal.target.name}" in blocker.hint

    @pytest.mark.parametrize("mode", [SWAP, IN_PLACE])
    def test_it_is_created_where_that_was_asked_for(
        self, portal: Bench, postgres: EmbeddedPostgres, mode: RestoreMode
    ) -> None:
        """With the permission to create it, an absent database is there with all its rows."""
        before = read_contents(portal.target)
        postgres.drop_database(portal.target.name)
        assert plan_of(portal, create_database=True, mode=mode).blockers == ()
        portal.restored(create_database=True, mode=mode)
        assert read_contents(portal.target) == before

    def test_another_database_can_be_the_target(self, portal: Bench) -> None:
        """A restore into another database leaves the configured one alone."""
        execute(portal.target, "DELETE FROM note")
        other = f"{portal.target.name}_copy"
        portal.restored(target_database=other, create_database=True)
        assert ask(replace(portal.target, name=other), "SELECT count(*) FROM note") == portal.rows["public.note"]
        assert ask(portal.target, "SELECT count(*) FROM note") == 0
        remove(replace(portal.target, name=other))
        execute(elsewhere(portal.target), f"DROP DATABASE {other}")


class TestRefused:
    """Restores that stop, and leave nothing behind."""

    def unchanged(self, made: Bench, error: type[OpsError], match: str, **options: Any) -> None:
        """Restore, and make sure that it fails, and that nothing has changed."""
        before, databases = read_contents(made.target), made.databases()
        with pytest.raises(error, match=match):
            made.restored(**options)
        assert read_contents(made.target) == before
        assert made.databases() == databases

    def test_a_wrong_number_of_rows(self, portal: Bench) -> None:
        """A dump that does not hold what the manifest says is not put in place; the table is named."""
        portal.rows["public.finding"] += 1
        self.unchanged(portal, NotIntactError, "public.finding has 400 rows, not 401")

    def test_a_table_that_is_missing(self, portal: Bench) -> None:
        """A table of the manifest that the dump lacks is named."""
        portal.rows["public.lost"] = 3
        self.unchanged(portal, NotIntactError, "public.lost has no rows, not 3")

    @pytest.mark.parametrize("mode", [SWAP, IN_PLACE])
    def test_a_file_that_is_no_dump(self, portal: Bench, mode: RestoreMode) -> None:
        """Something else in the place of the dump is refused as not intact."""
        portal.dump.write_bytes(b"DROP TABLE finding;\n")
        self.unchanged(portal, NotIntactError, "not a dump", mode=mode)

    @pytest.mark.parametrize("mode", [SWAP, IN_PLACE])
    def test_a_dump_that_ends_too_early(self, portal: Bench, mode: RestoreMode) -> None:
        """A dump that was cut restores nothing at all, in place too."""
        portal.dump.write_bytes(portal.dump.read_bytes()[:-2000])
        self.unchanged(portal, NotIntactError, "pg_restore failed", mode=mode)

    @pytest.mark.parametrize("lacks_bytes", [1, 2000, 20_000])
    def test_in_place_decodes_the_dump_before_it_touches_anything(self, portal: Bench, lacks_bytes: int) -> None:
        """A dump that was cut is refused by the stage, and no client has been in the live database."""
        portal.dump.write_bytes(portal.dump.read_bytes()[:-lacks_bytes])
        runner = Recorder(portal.runner)
        with pytest.raises(NotIntactError, match="pg_restore failed"):
            portal.restore(mode=IN_PLACE, runner=runner).stage(portal.source(), portal.rows)
        assert runner.commands
        assert not any("--dbname" in command for command in runner.commands)

    def test_in_place_that_fails_half_way(self, portal: Bench) -> None:
        """Something newer that uses what is to be replaced fails the transaction, and not a row has changed."""
        execute(portal.target, "DELETE FROM note", "CREATE VIEW newer AS SELECT title FROM finding")
        self.unchanged(portal, RestoreError, "other objects depend on it", mode=IN_PLACE)

    def test_nothing_was_staged(self, portal: Bench) -> None:
        """Without a stage there is nothing to put in place."""
        with pytest.raises(RestoreError, match="nothing is staged"):
            portal.restore().apply()

    def test_a_pg_restore_that_is_too_old(self, portal: Bench, tmp_path: Path) -> None:
        """A pg_restore older than the dump is in the way, with the package to install."""
        script = tmp_path / "pg_restore"
        script.write_text('#!/bin/sh\necho "pg_restore (PostgreSQL) 15.9"\n')
        script.chmod(0o755)
        (blocker,) = plan_of(replace(portal, bin_dir=tmp_path)).blockers
        assert isinstance(blocker, ClientToolError)
        assert "postgresql-client-17" in blocker.hint


class TestPlan:
    """A look that changes nothing."""

    def test_it_says_what_there_is(self, portal: Bench) -> None:
        """The plan names database, server, rows now and then, mode and reason, room, and who is connected."""
        execute(portal.target, "DELETE FROM note")
        with connect(replace(portal.target, options={"application_name": "the portal"})):
            text = "\n".join(plan_of(portal, mode=RestoreMode.AUTO).lines())
        rows = sum(portal.rows.values())
        assert f"Database {portal.target.name} on 127.0.0.1:{portal.target.port} (PostgreSQL 17.10" in text
        assert f"Now: 9 tables, {rows - portal.rows['public.note']} rows" in text
        assert f"In the backup: 9 tables, {rows} rows" in text
        assert "Mode swap: user postgres may create and rename databases" in text
        assert "MB are free" in text
        assert "(the portal, user postgres, idle)" in text

    def test_a_disk_that_cannot_be_seen_is_left_to_the_person(self, owned: Bench) -> None:
        """The server tells the portal's own user no directory, so the plan says what is needed, and who has to look."""
        plan = owned.restore(mode=IN_PLACE).plan(dump_major=17, dump_bytes=2 * 10**9, row_counts=owned.rows)
        (room,) = [line for line in plan.lines() if line.startswith("Room on the server")]
        assert "about 2600 MB" in room
        assert "cannot be seen from here: look at the server's disk before you go on" in room
        assert plan.blockers == ()

    def test_it_touches_nothing(self, portal: Bench) -> None:
        """After a plan there is no new database, and no changed row."""
        before, databases = read_contents(portal.target), portal.databases()
        plan_of(portal)
        assert (read_contents(portal.target), portal.databases()) == (before, databases)

    def test_it_warns_of_newer_tables(self, portal: Bench) -> None:
        """Tables that the backup does not know are named."""
        execute(portal.target, "CREATE TABLE newer ()")
        plan = plan_of(portal, mode=IN_PLACE)
        assert plan.newer_tables == ("public.newer",)
        assert any("stay as they are: public.newer" in warning for warning in plan.warnings)

    def test_it_names_what_earlier_restores_left(self, portal: Bench) -> None:
        """The database that an earlier restore has kept is in the plan."""
        portal.restored()
        (old,) = list_old_databases(portal.target)
        assert f"  {old.marked.name}" in plan_of(portal).lines()

    def test_a_disk_without_room_is_in_the_way(self, portal: Bench) -> None:
        """A dump for which the server has no room is refused before anything starts."""
        plan = portal.restore().plan(dump_major=17, dump_bytes=10**15, row_counts={})
        assert "a second copy takes about" in plan.blockers[0].message


class TestState:
    """How far a restore is, as the server tells it."""

    def test_a_swap_from_stage_to_rollback(self, portal: Bench) -> None:
        """Each step leaves the state that the next one needs."""
        restore = portal.restore()
        states = [restore.state()]
        for step in (lambda: restore.stage(portal.source(), portal.rows), restore.apply, restore.rollback):
            step()
            states.append(restore.state())
        assert states == ["nothing", "staged", "applied", "rolled_back"]

    def test_another_process_finishes(self, portal: Bench) -> None:
        """What was staged is put in place by somebody who knows the restore's id only, and only once."""
        restore = portal.restore()
        restore.stage(portal.source(), portal.rows)
        execute(portal.target, "DELETE FROM note")
        for _ in range(2):
            portal.restore(restore_id=restore.restore_id).finish()
        assert ask(portal.target, "SELECT count(*) FROM note") == portal.rows["public.note"]

    def test_another_process_undoes(self, portal: Bench) -> None:
        """What was staged is removed by somebody who knows the restore's id only; a second time does no harm."""
        restore = portal.restore()
        restore.stage(portal.source(), portal.rows)
        for _ in range(2):
            portal.restore(restore_id=restore.restore_id).undo()
        assert portal.databases() == {portal.target.name}

    def test_in_place_is_known_by_its_safety_dump(self, portal: Bench) -> None:
        """Another process sees that a restore in place was applied, and takes it back."""
        execute(portal.target, "DELETE FROM note")
        restore = portal.restored(mode=IN_PLACE)
        other = portal.restore(restore_id=restore.restore_id, mode=IN_PLACE)
        assert other.state() is DatabaseState.APPLIED
        other.undo()
        assert ask(portal.target, "SELECT count(*) FROM note") == 0
        assert other.state() is DatabaseState.NOTHING

    def test_the_safety_dump_of_another_restore_is_not_taken(self, portal: Bench) -> None:
        """A safety dump that an earlier restore has left in the same place is replaced, not restored."""
        portal.restored(mode=IN_PLACE)
        execute(portal.target, "DELETE FROM note")
        other = portal.restore(mode=IN_PLACE)
        assert other.state() is DatabaseState.NOTHING
        other.stage(portal.source(), portal.rows)
        other.apply()
        other.rollback()
        assert ask(portal.target, "SELECT count(*) FROM note") == 0

    def test_a_table_that_the_backup_brought_goes_with_the_rollback(self, portal: Bench) -> None:
        """Rolled back in place, a table that was not there before is gone, though it refers to others."""
        execute(portal.target, "DROP TABLE finding_endpoint")
        before = read_contents(portal.target)
        portal.restored(mode=IN_PLACE).rollback()
        assert read_contents(portal.target) == before

    def test_a_rollback_that_drops_a_table_restores_everything_else(self, rich: Bench) -> None:
        """Large objects, sequences, definitions and rights come back in the transaction that drops a table."""
        execute(rich.target, "DROP TABLE session", "SELECT nextval('ticket')", "SELECT lo_put(70002, 0, 'x')")
        before = read_contents(rich.target)
        restore = rich.restored(mode=IN_PLACE)
        assert read_contents(rich.target) != before
        restore.rollback()
        assert read_contents(rich.target) == before

    def test_a_rollback_that_fails_changes_nothing(self, portal: Bench) -> None:
        """A table that the restore brought, and what was written into it, outlasts a rollback that cannot be done."""
        execute(portal.target, "DROP TABLE finding_endpoint")
        before = read_contents(portal.target)
        restore = portal.restored(mode=IN_PLACE)
        execute(portal.target, "INSERT INTO finding_endpoint VALUES (2, 1)", "CREATE VIEW v AS SELECT id FROM finding")
        live = read_contents(portal.target)
        with pytest.raises(RestoreError, match=r"table public\.finding because other objects depend") as caught:
            restore.rollback()
        assert "drop them first" in caught.value.hint
        assert read_contents(portal.target) == live
        assert restore.state() is DatabaseState.APPLIED
        execute(portal.target, "DROP VIEW v")
        restore.rollback()
        assert read_contents(portal.target) == before

    @pytest.mark.parametrize("keeps_bytes", [0, 2_000, 20_000])
    def test_a_rollback_whose_commands_are_cut_short_changes_nothing(self, portal: Bench, keeps_bytes: int) -> None:
        """Where pg_restore ends before it has written all, psql comes to the end of it and commits nothing."""
        execute(portal.target, "DROP TABLE finding_endpoint")
        restore = portal.restored(mode=IN_PLACE)
        live = read_contents(portal.target)
        runner = CuttingShort(portal.runner, keeps_bytes)
        again = portal.restore(restore_id=restore.restore_id, mode=IN_PLACE, runner=runner)
        with pytest.raises(RestoreError, match="pg_restore was ended by SIGKILL"):
            again.rollback()
        assert read_contents(portal.target) == live
        assert restore.state() is DatabaseState.APPLIED


class TestFilling:
    """A dump that goes into the server without ever being on the disk."""

    def test_several_programs_fill_it(self, portal: Bench) -> None:
        """Where several tables are large, each of several programs loads its share, and all rows are there."""
        before, runner = read_contents(portal.target), Recorder(portal.runner)
        execute(portal.target, "DELETE FROM note")
        restore = portal.restore(runner=runner)
        restore.stage(portal.source(**{"public.finding": 10, "public.note": 9, "public.test": 8}), portal.rows)
        restore.apply()
        assert len([command for command in runner.commands if "--section=data" in command]) == 2
        assert read_contents(portal.target) == before

    def test_it_is_not_on_the_disk(self, portal: Bench) -> None:
        """A swap writes no dump to the place that is for it."""
        portal.restored()
        assert not portal.source().path.exists()

    def test_an_owner_without_rights_to_a_table(self, owned: Bench, postgres: EmbeddedPostgres, tmp_path: Path) -> None:
        """Rights come after the rows: a table that its owner may not write to is filled, and stays so."""
        execute(as_superuser(owned.target, postgres), f"ALTER ROLE {owned.target.user} CREATEDB")
        execute(owned.target, "REVOKE INSERT, UPDATE ON finding FROM CURRENT_USER")
        (tmp_path / "other").mkdir()
        with bench(owned.target, postgres.bin_dir, tmp_path / "other") as made:
            made.restored()
            assert ask(made.target, "SELECT count(*) FROM finding") == made.rows["public.finding"] > 0
            assert not ask(made.target, "SELECT has_table_privilege('finding', 'INSERT')")

    @pytest.mark.parametrize("weights", [{}, {"public.finding": 10, "public.note": 10}])
    def test_an_archive_that_is_damaged_further_on(self, portal: Bench, weights: dict[str, int]) -> None:
        """What is found when rows are in the server already leaves nothing there."""
        before, databases, runner = read_contents(portal.target), portal.databases(), Recorder(portal.runner)

        @contextmanager
        def content() -> Iterator[Iterator[memoryview]]:
            def pieces(opened: Iterator[memoryview]) -> Iterator[memoryview]:
                for _ in range(4):
                    yield next(opened)
                raise NotIntactError("the frame is damaged", hint="take another archive")

            with portal.source().open() as opened:
                yield pieces(opened)

        with pytest.raises(NotIntactError, match="the frame is damaged"):
            portal.restore(runner=runner).stage(replace(portal.source(**weights), open=content), portal.rows)
        assert len([command for command in runner.commands if "--section=data" in command]) == (2 if weights else 1)
        assert (read_contents(portal.target), portal.databases()) == (before, databases)

    @pytest.mark.parametrize("which", [0, 1])
    def test_one_of_several_programs_is_killed(self, portal: Bench, which: int) -> None:
        """One that ends before its time ends all of them, and leaves nothing."""
        before, databases = read_contents(portal.target), portal.databases()
        source = portal.source(**{"public.finding": 10, "public.note": 10})
        with pytest.raises(RestoreError, match="pg_restore was ended by SIGKILL"):
            portal.restore(runner=KillingOne(portal.runner, which)).stage(source, portal.rows)
        assert (read_contents(portal.target), portal.databases()) == (before, databases)


class TestPrograms:
    """pg_restore, and how it is called."""

    def test_the_password_is_in_no_argument(self, portal: Bench) -> None:
        """The password reaches the programs by their environment alone."""
        runner = Recorder(portal.runner)
        portal.restored(runner=runner)
        assert portal.target.password is not None
        password = portal.target.password.reveal()
        assert any("--clean --if-exists --no-owner --exit-on-error" in command for command in runner.commands)
        assert not any(password in command for command in runner.commands)

    @pytest.mark.parametrize(("errors", "accepted"), [([], True), (["ERROR:  relation does not exist"], False)])
    def test_an_older_server_may_lack_one_setting(self, portal: Bench, errors: list[str], accepted: bool) -> None:
        """That an older server does not know a setting of pg_restore 17 is no failure; anything else is."""
        errors = ['ERROR:  unrecognized configuration parameter "transaction_timeout"', *errors]
        words = "".join(f"pg_restore: error: could not execute query: {error}\n" for error in errors)
        words += f"pg_restore: warning: errors ignored on restore: {len(errors)}\n"
        version = Script(stdout=b"pg_restore (PostgreSQL) 17.10\n")
        fake = FakeRunner({"pg_restore": [version, Script(stderr=words, returncode=1)]})
        restorer = find_restorer(16, 17, runner=fake, bin_dir=Path("/fake"))
        assert fills(restorer, portal) is accepted
        assert "--exit-on-error" not in fake.commands[1]


def fills(restorer: Restorer, made: Bench) -> bool:
    try:
        restorer.stage(made.target, [], made.dump)
    except RestoreError:
        return False
    return True


class Recorder:
    """A runner that remembers what it was asked to start."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.commands: list[str] = []

    def start(self, argv: Any, **options: Any) -> RunningProcess:
        """Note the command, and start it."""
        self.commands.append(" ".join(map(str, argv)))
        process: RunningProcess = self._runner.start(argv, **options)
        return process


class KillingOne:
    """A runner that has one of the programs that load rows killed as soon as it reads."""

    def __init__(self, runner: Any, which: int) -> None:
        self._runner: SystemRunner = runner
        self._left = which

    def start(self, argv: Any, **options: Any) -> RunningProcess:
        """Start a program."""
        if "--section=data" in argv:
            self._left -= 1
            if self._left == -1:
                argv = ["/bin/sh", "-c", "head -c 1000 >/dev/null; kill -KILL $$"]
        return self._runner.start(argv, **options)


class CuttingShort:
    """A runner whose pg_restore is killed when it has written so many bytes of its commands."""

    def __init__(self, runner: Any, keeps_bytes: int) -> None:
        self._runner: SystemRunner = runner
        self._shell = ["/bin/sh", "-c", f'"$@" 2>/dev/null | head -c {keeps_bytes}; kill -KILL $$', "sh"]

    def start(self, argv: Any, **options: Any) -> RunningProcess:
        """Start a program."""
        writes_commands = "--file=-" in argv and "--single-transaction" in argv
        return self._runner.start([*self._shell, *argv] if writes_commands else argv, **options)


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
    enough = threading.Event()
    query = b"SELECT to_regclass('newer') IS NOT NULL, (SELECT count(*) FROM finding)"

    def use() -> None:
        while not enough.is_set():
            try:
                with connect(target) as connection:
                    while not enough.is_set():
                        seen.update(connection.execute(query).fetchall())
            except (OpsError, psycopg.Error):
                continue

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.2)
        yield seen
        time.sleep(0.1)
    finally:
        enough.set()
        for thread in threads:
            thread.join()
