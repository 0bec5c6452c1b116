"""What stops the restore of a database, and what its plan says beforehand."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from psycopg.errors import ReadOnlySqlTransaction

from portal.ops.errors import (
    AccessDeniedError,
    ClientToolError,
    DatabaseAbsentError,
    LoginRefusedError,
    NotIntactError,
    OpsError,
    RestoreError,
)
from portal.ops.postgres.connection import connect
from portal.ops.postgres.pg_restore import find_restorer
from portal.ops.postgres.server import maintenance
from portal.ops.restore.database.fill import filling
from portal.ops.restore.database.means import drill_obstacles, look_at_means
from portal.ops.restore.database.restore import RestoreMode, list_old_databases
from tests.support.database_contents import read_contents
from tests.support.database_restores import (
    IN_PLACE,
    SWAP,
    Recorder,
    as_superuser,
    plan_of,
)
from tests.support.restoring import ask, elsewhere, execute, remove

if TYPE_CHECKING:
    from pathlib import Path

    from demo.postgres import EmbeddedPostgres
    from tests.support.restoring import Bench


PUBLIC_OF_AN_ADMINISTRATOR = (
    "ALTER SCHEMA public OWNER TO postgres",
    "GRANT ALL ON SCHEMA public TO PUBLIC",
    "COMMENT ON SCHEMA public IS 'kept'",
)
"""What every new database has on servers before version 15, but for the comment."""


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

    def test_schema_public_of_an_administrator_in_place(self, owned: Bench, postgres: EmbeddedPostgres) -> None:
        """Its comment, which every dump has, is left alone, as on servers before version 15."""
        execute(as_superuser(owned.target, postgres), *PUBLIC_OF_AN_ADMINISTRATOR)
        execute(owned.target, "DELETE FROM finding")
        restore = owned.restored(mode=IN_PLACE)
        assert ask(owned.target, "SELECT count(*) FROM finding") == 100
        restore.rollback()
        assert ask(owned.target, "SELECT count(*) FROM finding") == 0

    @pytest.mark.parametrize("by_superuser", [False, True])
    def test_schema_public_of_an_administrator_in_a_new_database(
        self, owned: Bench, postgres: EmbeddedPostgres, *, by_superuser: bool
    ) -> None:
        """Neither the owner of the tables nor an administrator who restores for that role comments on it."""
        target = replace(owned.target, name=f"{owned.target.name}_new")
        administrator = as_superuser(target, postgres)
        user = administrator if by_superuser else target
        postgres.create_database(target.name, owner=target.user)
        try:
            execute(administrator, *PUBLIC_OF_AN_ADMINISTRATOR)
            restorer = find_restorer(17, 17, runner=owned.runner, bin_dir=owned.bin_dir)
            with filling(restorer, owned.source(), user, jobs=1, role=target.user) as work:
                work.fill()
                work.finish()
            assert ask(target, "SELECT count(*) FROM finding") == 100
        finally:
            postgres.drop_database(target.name)

    @pytest.mark.parametrize("mode", [SWAP, IN_PLACE])
    def test_a_database_and_a_role_that_are_read_only(
        self, owned: Bench, postgres: EmbeddedPostgres, mode: RestoreMode
    ) -> None:
        """As before an upgrade or a restore, so that nobody writes; the setting stays."""
        user, name = owned.target.user, owned.target.name
        execute(owned.target, "DELETE FROM finding")
        execute(
            as_superuser(owned.target, postgres),
            f"ALTER ROLE {user} CREATEDB",
            f"ALTER ROLE {user} SET default_transaction_read_only = on",
            f"ALTER DATABASE {name} SET default_transaction_read_only = on",
        )
        restore = owned.restored(mode=mode)
        assert ask(owned.target, "SELECT count(*) FROM finding") == 100
        restore.rollback()
        assert ask(owned.target, "SELECT count(*) FROM finding") == 0
        with pytest.raises(ReadOnlySqlTransaction), postgres.connect(name) as connection:
            connection.execute("DELETE FROM finding")

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
        assert "--mode in-place" in blocker.hint

    def test_a_database_that_the_user_may_not_create(self, owned: Bench) -> None:
        """The plan says so itself, with an administrator's statement, whether it was to create the database or not."""
        target = replace(owned.target, name="new portal")
        (blocker,) = plan_of(owned, target=target, mode=RestoreMode.AUTO, create_database=True).blockers
        assert "may not create database new portal" in blocker.message
        assert 'CREATE DATABASE "new portal" OWNER' in blocker.hint
        (blocker,) = plan_of(owned, target=target, mode=RestoreMode.AUTO).blockers
        assert isinstance(blocker, DatabaseAbsentError)
        assert "--create-database" not in blocker.hint
        assert "createdb" in blocker.hint

    def test_a_drill_without_the_right_to_it_is_not_told_of_the_other_mode(self, owned: Bench) -> None:
        """A drill has no modes: only the statement is in its hint."""
        with maintenance(owned.target) as connection:
            (obstacle,) = drill_obstacles(look_at_means(owned.target, connection))
        assert obstacle.hint == f'as an administrator: ALTER ROLE "{owned.target.user}" CREATEDB'

    def test_a_rollback_that_needs_psql_is_told_beforehand(self, portal: Bench, tmp_path: Path) -> None:
        """Without psql, a restore in place that brings a table could not be rolled back: the plan says so."""
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

    def test_a_safety_dump_that_is_impossible_is_told_beforehand(self, portal: Bench, tmp_path: Path) -> None:
        """Without a pg_dump that fits, nothing is restored in place: the plan says so; a swap needs none."""
        (tmp_path / "bin").mkdir()
        for program in ("psql", "pg_restore"):
            (tmp_path / "bin" / program).symlink_to(portal.bin_dir / program)
        made = replace(portal, bin_dir=tmp_path / "bin")
        (blocker,) = plan_of(made, mode=IN_PLACE).blockers
        assert isinstance(blocker, ClientToolError)
        assert "pg_dump not found" in blocker.message
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
        assert re.search(r"[kMG]B are free", text)
        assert "(the portal, user postgres, idle)" in text

    def test_a_disk_that_cannot_be_seen_is_left_to_the_person(self, owned: Bench) -> None:
        """The server tells the portal's own user no directory, so the plan says what is needed, and who has to look."""
        plan = owned.restore(mode=IN_PLACE).plan(dump_major=17, dump_bytes=2 * 10**9, row_counts=owned.rows)
        (room,) = [line for line in plan.lines() if line.startswith("Room on the server")]
        assert "about 2.6 GB" in room
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
