"""Databases as they are: what made restores of real portals fail, lose something, or wait for ever."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from portal.ops.errors import AccessDeniedError, BusyError, UnsupportedError
from portal.ops.postgres.dump import open_dump
from portal.ops.postgres.identity import read_identity
from portal.ops.postgres.locks import lock_holders
from portal.ops.postgres.server import maintenance
from portal.ops.restore.database.means import look_at_means, swap_obstacles
from portal.ops.restore.database.restore import RestoreMode, drop_old, list_old_databases
from portal.ops.settings.database_url import Secret
from tests.support.database_contents import read_contents
from tests.support.database_restores import IN_PLACE, PASSWORD, SWAP, as_superuser
from tests.support.restoring import ask, elsewhere, execute, planned

if TYPE_CHECKING:
    from demo.postgres import EmbeddedPostgres
    from tests.support.restoring import Bench


def dumped_again(made: Bench) -> tuple[Bench, Any]:
    """Dump what is in the live database now; the bench with it, and what was said beside the dump."""
    with open_dump(made.target, runner=made.runner, bin_dir=made.bin_dir, timeout_seconds=60) as source:
        made.dump.write_bytes(source.stdout.read())
        return replace(made, rows=source.finish().row_counts), source.facts


class TestSessions:
    """Our sessions change nothing, and restored triggers see none of them."""

    def test_a_trigger_on_login_sees_none_of_our_sessions(self, portal: Bench, postgres: EmbeddedPostgres) -> None:
        """Neither the backup nor the restore writes a row into the table of who came when."""
        execute(
            portal.target,
            "CREATE TABLE seen (at timestamptz DEFAULT now())",
            "CREATE FUNCTION login() RETURNS event_trigger LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO public.seen DEFAULT VALUES; END $$",
            "CREATE EVENT TRIGGER on_login ON login EXECUTE FUNCTION login()",
            "ALTER EVENT TRIGGER on_login ENABLE ALWAYS",
        )
        made, _ = dumped_again(portal)
        made.restored()
        assert ask(portal.target, "SELECT count(*) FROM seen") == 0
        postgres.connect(portal.target.name).close()
        assert ask(portal.target, "SELECT count(*) FROM seen") == 1


class TestRows:
    """Rows that are somewhere else than they were, and rows that no dump has."""

    def test_rows_that_land_in_other_partitions(self, portal: Bench) -> None:
        """A partitioned table is compared as a whole; what has moved within it is named."""
        execute(
            portal.target,
            "CREATE TABLE entry (n integer) PARTITION BY LIST (n)",
            "CREATE TABLE entry_1 PARTITION OF entry FOR VALUES IN (1)",
            "CREATE TABLE entry_2 PARTITION OF entry FOR VALUES IN (2)",
            "INSERT INTO entry VALUES (1), (1), (2)",
        )
        made, _ = dumped_again(portal)
        moved = made.rows | {"public.entry_1": 1, "public.entry_2": 2}
        restore = made.restore()
        restore.stage(made.source(), moved)
        assert any("public.entry are in other partitions" in warning for warning in restore.apply().warnings)

    def test_a_table_that_was_added_to_an_extension(self, portal: Bench) -> None:
        """It is named by backup and plan, and a swap carries it over with rows, keys and indexes."""
        execute(
            portal.target,
            "CREATE EXTENSION citext",
            "CREATE TABLE mine (id serial PRIMARY KEY, name text NOT NULL DEFAULT 'x')",
            "CREATE INDEX mine_name ON mine (name)",
            "INSERT INTO mine (name) SELECT 'n' || n FROM generate_series(1, 50) AS n",
            "ALTER EXTENSION citext ADD TABLE mine",
        )
        made, facts = dumped_again(portal)
        assert any("public.mine are in no dump" in warning for warning in facts.warnings)
        assert any("public.mine" in warning for warning in planned(made).warnings)
        report = made.restored().apply()
        assert ask(portal.target, "SELECT count(*) FROM mine") == 50
        assert ask(portal.target, "SELECT count(*) FROM pg_indexes WHERE tablename = 'mine'") == 2
        assert report.kept_database

    def test_a_view_over_a_server_that_is_away(self, portal: Bench) -> None:
        """The view is there and empty, and the message names it and its reason; everything else is restored."""
        execute(
            portal.target,
            "CREATE EXTENSION postgres_fdw",
            "CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1')",
            "CREATE USER MAPPING FOR PUBLIC SERVER far OPTIONS (user 'x', password 'x')",
            "CREATE FOREIGN TABLE remote (n integer) SERVER far",
            "CREATE TABLE near (n integer)",
            "CREATE MATERIALIZED VIEW both_sides AS SELECT n FROM near WHERE n < 0",
        )
        execute(portal.target, "INSERT INTO near VALUES (1)")
        execute(
            portal.target,
            "CREATE MATERIALIZED VIEW far_side AS SELECT n FROM remote WITH NO DATA",
            "UPDATE pg_class SET relispopulated = true WHERE relname = 'far_side'",
        )
        made, _ = dumped_again(portal)
        restore = made.restore()
        restore.stage(made.source(), made.rows)
        (warning,) = [one for one in restore.apply().warnings if "far_side" in one]
        assert "could not connect to server" in warning
        assert "REFRESH MATERIALIZED VIEW public.far_side" in warning
        assert ask(portal.target, "SELECT count(*) FROM near") == 1


class TestAround:
    """The database around the tables."""

    def test_a_new_server_gets_all_of_it_back(self, owned: Bench, postgres: EmbeddedPostgres) -> None:
        """Owner, settings, privileges and comment are as they were; the objects belong to that owner."""
        name, role = owned.target.name, owned.target.user
        execute(
            replace(as_superuser(owned.target, postgres), name="postgres"),
            f"ALTER DATABASE {name} SET search_path = app, public",
            f"ALTER ROLE {role} IN DATABASE {name} SET statement_timeout = '5s'",
            f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC",
            f"COMMENT ON DATABASE {name} IS 'production'",
            f"ALTER DATABASE {name} CONNECTION LIMIT 7",
        )
        with maintenance(owned.target) as connection:
            before = read_identity(connection, name)
        postgres.drop_database(name)
        admin = replace(owned, target=as_superuser(owned.target, postgres))
        restore = admin.restore(create_database=True)
        restore.stage(admin.source(), admin.rows, before)
        restore.apply()
        with maintenance(owned.target) as connection:
            assert read_identity(connection, name) == before
        assert ask(admin.target, "SELECT tableowner FROM pg_tables WHERE tablename = 'finding'") == role
        assert ask(owned.target, "SELECT count(*) FROM finding") == 100

    def test_another_owner_can_be_named(self, owned: Bench, postgres: EmbeddedPostgres) -> None:
        """Everything belongs to the role that was asked for."""
        name, role = owned.target.name, owned.target.user
        postgres.drop_database(name)
        admin = replace(owned, target=as_superuser(owned.target, postgres))
        restore = admin.restore(create_database=True, owner=role)
        restore.stage(admin.source(), admin.rows)
        restore.apply()
        assert ask(admin.target, "SELECT tableowner FROM pg_tables WHERE tablename = 'finding'") == role

    def test_a_role_that_is_missing(self, portal: Bench, postgres: EmbeddedPostgres) -> None:
        """What is granted to it is left out, and named with the statement that creates it."""
        role = f"gone_{portal.target.name}"
        postgres.create_role(role, password=PASSWORD)
        execute(portal.target, f"GRANT SELECT ON finding TO {role}", "GRANT SELECT ON finding TO PUBLIC")
        made, _ = dumped_again(portal)
        execute(portal.target, f"REVOKE ALL ON finding FROM {role}", f"DROP ROLE {role}")
        (warning,) = [one for one in planned(made).warnings if role in one]
        assert f'CREATE ROLE "{role}"' in warning
        made.restored()
        granted = ask(portal.target, "SELECT relacl::text FROM pg_class WHERE relname = 'finding'")
        assert "=r/" in granted
        assert role not in granted


class TestMeans:
    """What a restore can do is found before it begins, and the way that works is taken."""

    def test_a_superuser_restores_an_extension_of_an_administrator(
        self, owned: Bench, postgres: EmbeddedPostgres
    ) -> None:
        """The extension is the administrator's, everything else belongs to the portal."""
        admin = replace(owned, target=as_superuser(owned.target, postgres))
        execute(admin.target, "CREATE EXTENSION pageinspect", "COMMENT ON EXTENSION pageinspect IS 'ours'")
        made, _ = dumped_again(admin)
        made.restored()
        assert ask(admin.target, "SELECT count(*) FROM pg_extension WHERE extname = 'pageinspect'") == 1
        assert ask(admin.target, "SELECT tableowner FROM pg_tables WHERE tablename = 'finding'") == owned.target.user

    def test_where_a_swap_cannot_be_it_is_done_in_place(self, owned: Bench, postgres: EmbeddedPostgres) -> None:
        """An owner cannot create that extension in a new database, so the restore is in place, and says why."""
        execute(as_superuser(owned.target, postgres), "CREATE EXTENSION pageinspect")
        execute(
            replace(as_superuser(owned.target, postgres), name="postgres"), f"ALTER ROLE {owned.target.user} CREATEDB"
        )
        made, _ = dumped_again(owned)
        plan = planned(made, mode=RestoreMode.AUTO)
        assert plan.mode is IN_PLACE
        assert "extension pageinspect" in plan.reason
        assert plan.blockers == ()
        execute(owned.target, "DELETE FROM finding")
        made.restored(mode=RestoreMode.AUTO)
        assert ask(owned.target, "SELECT count(*) FROM finding") == 100

    def test_the_means_for_a_restore_to_a_moment_are_those_of_the_live_database(
        self, owned: Bench, postgres: EmbeddedPostgres
    ) -> None:
        """The dump does not exist yet, but it needs what the live database has: the plan takes the way that works."""
        execute(as_superuser(owned.target, postgres), "CREATE EXTENSION pageinspect")
        execute(
            replace(as_superuser(owned.target, postgres), name="postgres"), f"ALTER ROLE {owned.target.user} CREATEDB"
        )
        plan = owned.restore(mode=RestoreMode.AUTO).plan(dump_major=17, dump_bytes=1, row_counts={})
        assert plan.mode is IN_PLACE
        assert "extension pageinspect" in plan.reason

    def test_a_role_that_may_only_read(self, owned: Bench, postgres: EmbeddedPostgres) -> None:
        """The least that makes it one that restores: a privilege, and membership; the owner stays."""
        postgres.create_role(f"reads_{owned.target.user}", password=PASSWORD)
        reader = replace(owned.target, user=f"reads_{owned.target.user}", password=Secret(PASSWORD))
        admin = replace(as_superuser(owned.target, postgres), name="postgres")
        execute(admin, f"GRANT pg_read_all_data TO {reader.user}")
        try:
            with maintenance(reader) as connection:
                first, second = swap_obstacles(look_at_means(reader, connection))
            assert isinstance(first, AccessDeniedError)
            assert f'ALTER ROLE "{reader.user}" CREATEDB' in first.hint
            assert f'GRANT "{owned.target.user}" TO "{reader.user}"' in second.hint
            assert "OWNER TO" not in f"{first.hint}{second.hint}"
        finally:
            execute(admin, f"DROP ROLE {reader.user}")

    def test_too_many_large_objects_for_one_transaction(self, portal: Bench) -> None:
        """A restore in place would need a lock for each: the plan says so, and what to do."""
        plan = planned(portal, mode=IN_PLACE, backed_up={"large_objects": 20_000})
        (blocker,) = plan.blockers
        assert isinstance(blocker, UnsupportedError)
        assert "--mode swap, or set max_locks_per_transaction = " in blocker.hint
        assert planned(portal, mode=RestoreMode.AUTO, backed_up={"large_objects": 20_000}).mode is SWAP

    def test_nobody_lets_us_into_another_database(self, owned: Bench, postgres: EmbeddedPostgres) -> None:
        """Without the maintenance database there is no renaming; in place it works, and the plan says why."""
        admin = replace(as_superuser(owned.target, postgres), name="postgres")
        both = ("postgres", "template1")
        execute(admin, f"ALTER ROLE {owned.target.user} CREATEDB")
        execute(admin, *(f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC" for name in both))
        try:
            plan = planned(owned, mode=RestoreMode.AUTO)
            assert plan.mode is IN_PLACE
            assert "a database is renamed from another one" in plan.reason
            owned.restored(mode=RestoreMode.AUTO)
        finally:
            execute(admin, *(f"GRANT CONNECT ON DATABASE {name} TO PUBLIC" for name in both))


class TestLocks:
    """Every wait for a lock has a limit, and names who has it."""

    @pytest.mark.parametrize("mode", [SWAP, IN_PLACE])
    def test_a_locked_table_does_not_hold_up_the_plan(self, portal: Bench, mode: RestoreMode) -> None:
        """The rows are estimated, and the warning names session, lock, table and time."""
        with psycopg.connect(**_of(portal)) as holder:
            holder.execute("LOCK TABLE finding IN ACCESS EXCLUSIVE MODE")
            pid = holder.info.backend_pid
            (warning,) = [one for one in planned(portal, mode=mode).warnings if "are locked" in one]
        assert f"process {pid}" in warning
        assert "holds AccessExclusiveLock on public.finding since 20" in warning

    def test_a_swap_ends_whoever_has_a_lock(self, portal: Bench) -> None:
        """A stuck migration does not keep the portal from its backup."""
        holder = psycopg.connect(**_of(portal))
        holder.execute("LOCK TABLE finding IN ACCESS EXCLUSIVE MODE")
        portal.restored(mode=SWAP)
        assert ask(portal.target, "SELECT count(*) FROM finding") == portal.rows["public.finding"]
        holder.close()

    def test_in_place_names_whoever_may_not_be_ended(self, owned: Bench, postgres: EmbeddedPostgres) -> None:
        """An administrator's lock ends the restore in time, with nothing done."""
        before = read_contents(owned.target)
        with postgres.connect(owned.target.name) as holder, holder.transaction():
            holder.execute("LOCK TABLE finding IN ACCESS SHARE MODE")  # the safety dump can be made beside it
            impatient = replace(owned.target, lock_seconds=1.0)
            with pytest.raises(BusyError) as caught:
                owned.restored(mode=IN_PLACE, target=impatient)
            assert f"process {holder.info.backend_pid}" in caught.value.message
            assert "on public.finding" in caught.value.message
            assert [one.pid for one in lock_holders(holder)] == []
        assert read_contents(owned.target) == before


def test_a_dump_in_a_file_is_restored_as_one_through_a_pipe(rich: Bench) -> None:
    """Where there is room, rows are loaded while indexes are built; what is restored is the same."""
    before = read_contents(rich.target)
    restore = rich.restore(mode=SWAP)
    source = rich.source(size=rich.dump.stat().st_size)
    assert source.fits()
    restore.stage(source, rich.rows)
    restore.apply()
    assert read_contents(rich.target) == before
    assert not source.path.exists()


class TestRemoval:
    """What a restore has kept can be dropped, whatever ties it to other servers."""

    def test_a_database_with_a_subscription(self, portal: Bench) -> None:
        """It is dropped with its subscription; what the restore has disabled is named with what enables it."""
        execute(
            portal.target,
            "CREATE SUBSCRIPTION from_there CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect = false)",
        )
        made, _ = dumped_again(portal)
        assert any("subscriptions are restored disabled: from_there" in one for one in planned(made).warnings)
        restore = made.restore()
        restore.stage(made.source(), made.rows)
        assert any('ALTER SUBSCRIPTION "from_there" ENABLE' in one for one in restore.apply().warnings)
        (old,) = list_old_databases(portal.target)
        drop_old(portal.target, old.marked.name)
        assert list_old_databases(portal.target) == []
        execute(portal.target, "ALTER SUBSCRIPTION from_there SET (slot_name = NONE)", "DROP SUBSCRIPTION from_there")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JP", "WIN1252", "MULE_INTERNAL"])
def test_encodings_of_servers(portal: Bench, encoding: str) -> None:
    """A database of any encoding is dumped and restored, with names that are not ASCII where it has them."""
    name = f"encoded_{encoding.lower()}"
    execute(elsewhere(portal.target), f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
    made = replace(portal, target=replace(portal.target, name=name))
    table = "plain" if encoding in ("SQL_ASCII", "MULE_INTERNAL", "EUC_JP") else "größe"
    try:
        execute(made.target, f'CREATE TABLE "{table}" AS SELECT 1 AS a')
        made, _ = dumped_again(made)
        assert made.restore().plan(dump_major=17, dump_bytes=1, row_counts=made.rows).blockers == ()
        made.restored()
        assert ask(made.target, f'TABLE "{table}"') == 1
    finally:
        with maintenance(portal.target) as connection:
            for old in [*(old.marked.name for old in list_old_databases(made.target)), name]:
                connection.execute(f"DROP DATABASE IF EXISTS {old} WITH (FORCE)".encode())


def _of(made: Bench) -> dict[str, Any]:
    target = made.target
    assert target.password is not None
    return {
        "host": target.host,
        "port": target.port,
        "dbname": target.name,
        "user": target.user,
        "password": target.password.reveal(),
    }
