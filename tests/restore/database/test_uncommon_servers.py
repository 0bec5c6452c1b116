"""Servers that are not as a restore would like them: standbys, closed doors, slots in use, places that are missing."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from demo.postgres import EmbeddedPostgres
from portal.ops.errors import AccessDeniedError, BusyError, OpsError, UnsupportedError
from portal.ops.monitoring.doctor.check import Finding, State, examine
from portal.ops.monitoring.doctor.run import engine_checks
from portal.ops.postgres.connection import connect
from portal.ops.postgres.dump import open_dump
from portal.ops.postgres.identity import read_identity
from portal.ops.postgres.server import maintenance
from portal.ops.restore.database.means import drill_obstacles, in_place_obstacles, look_at_means
from portal.ops.restore.database.plan import BackedUp
from portal.ops.restore.database.restore import RestoreMode, drop_old, list_old_databases
from portal.ops.settings.database_url import DatabaseTarget, Secret
from portal.ops.settings.load import load_settings
from tests.support.database_restores import IN_PLACE, PASSWORD, SWAP, as_superuser, new_database
from tests.support.restoring import ask, bench, elsewhere, execute
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from portal.ops.restore.database.model import DatabasePlan
    from tests.support.restoring import Bench

AUTO = RestoreMode.AUTO


@pytest.fixture(scope="module")
def logical() -> Iterator[EmbeddedPostgres]:
    """A server that others may replicate from, for the tests of this module."""
    with EmbeddedPostgres(unsafe_speed=True, settings={"wal_level": "logical", "max_wal_senders": "4"}) as server:
        yield server


@pytest.fixture
def live(logical: EmbeddedPostgres, tmp_path: Path) -> Iterator[Bench]:
    """A small database of a role that may create databases, and its dump."""
    role = f"app_{uuid4().hex[:8]}"
    logical.create_role(role, password=PASSWORD, options="CREATEDB")
    target = replace(new_database(logical, owner=role), user=role, password=Secret(PASSWORD))
    execute(target, "CREATE TABLE finding AS SELECT n FROM generate_series(1, 100) AS n")
    with bench(target, logical.bin_dir, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def standby(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A database, its dump, and a server that has become a standby since."""
    settings = {"wal_level": "replica", "max_wal_senders": "4"}
    with EmbeddedPostgres(unsafe_speed=True, settings=settings) as server:
        target = new_database(server)
        execute(target, "CREATE TABLE finding AS SELECT 1 AS n", "CREATE UNLOGGED TABLE cache AS SELECT 1 AS n")
        with bench(target, server.bin_dir, tmp_path_factory.mktemp("standby")) as made:
            data = server.directory / "data"
            (data / "standby.signal").touch()
            os.chown(data / "standby.signal", data.stat().st_uid, data.stat().st_gid)
            server.restart()
            wait_until(lambda: _answers(target))
            yield made


def plan_of(made: Bench, mode: RestoreMode = AUTO) -> DatabasePlan:
    _, contents = made.source().head()
    return made.restore(mode=mode).plan(
        dump_major=17, dump_bytes=1, row_counts=made.rows, backed_up=BackedUp(entries=contents.entries)
    )


def looked_at(target: DatabaseTarget, tmp_path: Path) -> dict[str, Finding]:
    """What the doctor finds of a server."""
    assert target.password is not None
    environ = {
        "DD_DATABASE_HOST": target.host,
        "DD_DATABASE_PORT": str(target.port),
        "DD_DATABASE_NAME": target.name,
        "DD_DATABASE_USER": target.user,
        "DD_DATABASE_PASSWORD": target.password.reveal(),
        "BACKUP_LOCAL_PATH": str(tmp_path / "archives"),
        "PORTAL_UPLOAD_DIR": str(tmp_path),
    }
    with engine_checks(load_settings(environ, lambda _: ""), environ=environ) as checks:
        return {finding.name: finding for finding in examine(checks)}


class TestStandby:
    """A server that follows another one can be backed up, and not restored to."""

    def test_it_is_refused_everywhere(self, standby: Bench, tmp_path: Path) -> None:
        """Plan, doctor and drill say that it is a standby; a restore in either mode changes nothing."""
        for mode in (AUTO, SWAP, IN_PLACE):
            plan = plan_of(standby, mode)
            assert [type(one) for one in plan.blockers] == [UnsupportedError]
            assert "is a standby" in plan.blockers[0].message
            with pytest.raises(OpsError, match=r"read-only|standby|recovery"):
                standby.restored(mode=mode)
        found = looked_at(standby.target, tmp_path)
        for name, state in (("restoring", State.FAULT), ("drill", State.WARNING)):
            assert (found[name].state, "is a standby" in found[name].what) == (state, True)
        assert ask(standby.target, "SELECT count(*) FROM finding") == 1
        assert standby.databases() == {standby.target.name}

    def test_it_is_backed_up(self, standby: Bench) -> None:
        """The dump says which rows a standby does not have."""
        with open_dump(standby.target, runner=standby.runner, bin_dir=standby.bin_dir, timeout_seconds=60) as source:
            source.stdout.read()
            assert source.finish().row_counts["public.finding"] == 1
            assert any("a standby has no rows of unlogged tables" in one for one in source.facts.warnings)


class TestDoors:
    """`pg_hba.conf` names the databases that a user is let into."""

    @contextmanager
    def doors(self, server: EmbeddedPostgres, target: DatabaseTarget, databases: str) -> Iterator[None]:
        """Let a user into these databases alone."""
        file = server.directory / "data" / "pg_hba.conf"
        before = file.read_text()
        rules = ("host {} {} 127.0.0.1/32 scram-sha-256", "host all {1} 127.0.0.1/32 reject")
        closed = "".join(f"{rule.format(databases, target.user)}\n" for rule in rules)
        self._write(server, file, closed + before, target, is_open=False)
        try:
            yield
        finally:
            self._write(server, file, before, target, is_open=True)

    @staticmethod
    def _write(server: EmbeddedPostgres, file: Path, text: str, target: DatabaseTarget, *, is_open: bool) -> None:
        file.write_text(text)
        with server.connect() as connection:
            connection.execute("SELECT pg_reload_conf()")
        wait_until(lambda: _answers(replace(target, name="template1")) is is_open)

    def test_a_database_beside_the_live_one(self, live: Bench, logical: EmbeddedPostgres, tmp_path: Path) -> None:
        """Where it is closed, the restore is in place and says what to allow; drill and doctor say it too."""
        with self.doors(logical, live.target, f'"{live.target.name}",postgres'):
            plan = plan_of(live)
            assert (plan.mode, plan.blockers) == (IN_PLACE, ())
            assert "is not let into a database beside" in plan.reason
            (blocker,) = plan_of(live, SWAP).blockers
            assert isinstance(blocker, AccessDeniedError)
            assert f'"/^{live.target.name}"' in blocker.hint
            with maintenance(live.target) as connection:
                (obstacle,) = drill_obstacles(look_at_means(live.target, connection))
            assert "is not let into a database beside" in obstacle.message
            assert obstacle.hint.endswith(f'"/^{live.target.name}"')
            assert looked_at(live.target, tmp_path)["drill"].state is State.WARNING
            execute(live.target, "DELETE FROM finding")
            live.restored(mode=AUTO)
        assert ask(live.target, "SELECT count(*) FROM finding") == 100

    def test_what_the_hint_says_is_enough(self, live: Bench, logical: EmbeddedPostgres) -> None:
        """With the databases whose names begin alike allowed, a swap works."""
        with self.doors(logical, live.target, f'"/^{live.target.name}",postgres'):
            assert plan_of(live).mode is SWAP
            live.restored(mode=AUTO)
        assert ask(live.target, "SELECT count(*) FROM finding") == 100


class TestProviders:
    """What somebody else has put into the live database, as a provider of servers does."""

    def test_functions_and_schemas_are_told_beforehand(self, logical: EmbeddedPostgres, tmp_path: Path) -> None:
        """A function of theirs is in the backup: the plan of a restore in place says why it cannot be replaced."""
        logical.create_role(role := f"app_{uuid4().hex[:8]}", password=PASSWORD, options="CREATEDB")
        target = replace(new_database(logical, owner=role), user=role, password=Secret(PASSWORD))
        execute(target, "CREATE TABLE finding AS SELECT n FROM generate_series(1, 100) AS n")
        execute(
            as_superuser(target, logical),
            "CREATE SCHEMA provider",
            "GRANT USAGE ON SCHEMA provider TO PUBLIC",
            "CREATE FUNCTION provider.note(number int) RETURNS int LANGUAGE sql AS 'SELECT number'",
        )
        with bench(target, logical.bin_dir, tmp_path) as made:
            assert [blocker.message for blocker in plan_of(made, IN_PLACE).blockers] == [
                f"user {role} does not own provider.note",
                f"user {role} may not create objects in schema provider, and the backup contains some",
            ]
            assert plan_of(made, SWAP).blockers == ()

    def test_the_next_dump_is_judged_by_the_live_database(self, logical: EmbeddedPostgres) -> None:
        """Also where an extension is known of it: what is not is the rest, and all of it would be replaced."""
        logical.create_role(role := f"app_{uuid4().hex[:8]}", password=PASSWORD)
        target = replace(new_database(logical, owner=role), user=role, password=Secret(PASSWORD))
        execute(
            as_superuser(target, logical),
            "CREATE SCHEMA provider",
            "CREATE FUNCTION provider.note(number int) RETURNS int LANGUAGE sql AS 'SELECT number'",
            "CREATE SCHEMA extensions",
            "CREATE EXTENSION pageinspect SCHEMA extensions",
            "CREATE SCHEMA empty",
        )
        with maintenance(target) as connection:
            against = in_place_obstacles(look_at_means(target, connection), {}, 0)
        assert [error.message for error in against] == [
            f"user {role} does not own provider.note",
            f"user {role} may not create objects in schema provider, and the backup contains some",
        ]

    def test_what_the_server_makes_for_a_range_is_nobodys(self, logical: EmbeddedPostgres, tmp_path: Path) -> None:
        """Its functions belong to the server's first user, and come and go with the range."""
        logical.create_role(role := f"app_{uuid4().hex[:8]}", password=PASSWORD)
        target = replace(new_database(logical, owner=role), user=role, password=Secret(PASSWORD))
        execute(
            target,
            "CREATE TYPE span AS RANGE (subtype = float8)",
            "CREATE TABLE finding AS SELECT span(n, n + 1) AS lines FROM generate_series(1, 100) AS n",
        )
        with bench(target, logical.bin_dir, tmp_path) as made:
            assert plan_of(made, IN_PLACE).blockers == ()
            execute(target, "DELETE FROM finding")
            made.restored(mode=IN_PLACE)
            assert ask(target, "SELECT count(*) FROM finding WHERE lines @> 7.5::float8") == 1


class TestSlots:
    """Replication slots that others have in the live database."""

    def test_they_are_named_to_the_end(self, live: Bench, logical: EmbeddedPostgres) -> None:
        """The plan names a slot; one that is read from keeps rollback data, and the message says by whom."""
        admin = as_superuser(live.target, logical)
        slot = f"reader_{live.target.name}"
        execute(admin, f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')", "CREATE PUBLICATION p")
        assert any(f"stay with the old database: {slot}" in one for one in plan_of(live).warnings)
        live.restored(mode=SWAP)
        (old,) = list_old_databases(admin)
        name = old.marked.name
        execute(elsewhere(admin), f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        with self._reader(logical, name, slot):
            wait_until(lambda: ask(admin, "SELECT count(*) FROM pg_replication_slots WHERE active"))
            with pytest.raises(BusyError, match=f"in use: {slot} .process"):
                drop_old(admin, name)
        wait_until(lambda: not ask(admin, "SELECT count(*) FROM pg_replication_slots WHERE active"))
        assert drop_old(admin, name) == (f"replication slot {slot} was in database {name}, and is gone with it",)

    @contextmanager
    def _reader(self, server: EmbeddedPostgres, database: str, slot: str) -> Iterator[None]:
        address = server.superuser(database)
        where = f"host={address.host} port={address.port} dbname={database} user={address.user}"
        options = ("--start", "-f", "-", "-o", "proto_version=1", "-o", "publication_names=p")
        reading = subprocess.Popen(
            [server.bin_dir / "pg_recvlogical", "-d", where, "--slot", slot, *options],
            env={"PATH": os.environ["PATH"], "PGPASSWORD": address.password},
            stdout=subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            reading.terminate()
            reading.wait()


class TestPlaces:
    """What the source's server had and the other one lacks."""

    def test_a_tablespace(self, live: Bench, logical: EmbeddedPostgres) -> None:
        """What was in it goes to the default one, and plan and report say so."""
        admin = as_superuser(live.target, logical)
        space, place = f"fast_{live.target.name}", logical.directory / f"space_{live.target.name}"
        place.mkdir()
        os.chown(place, logical.directory.stat().st_uid, logical.directory.stat().st_gid)
        execute(elsewhere(admin), f"CREATE TABLESPACE {space} LOCATION '{place}'")
        execute(admin, f"CREATE TABLE fast TABLESPACE {space} AS SELECT 1 AS n", "CREATE TABLE slow AS SELECT 1 AS n")
        execute(admin, f"ALTER TABLE fast OWNER TO {live.target.user}", f"ALTER TABLE slow OWNER TO {live.target.user}")
        made = dumped(live)
        execute(admin, "DROP TABLE fast")
        execute(elsewhere(admin), f"DROP TABLESPACE {space}")
        assert any(f"{space}: no such tablespace" in one for one in plan_of(made).warnings)
        restore = made.restore(mode=SWAP)
        restore.stage(made.source(), made.rows)
        assert any(f"{space}: no such tablespace" in one for one in restore.apply().warnings)
        assert ask(made.target, "SELECT count(*) FROM fast") == 1

    def test_a_locale(self, live: Bench, logical: EmbeddedPostgres) -> None:
        """The database is created with the locale C, and the report says what that means."""
        with maintenance(live.target) as connection:
            identity = read_identity(connection, live.target.name)
        assert identity is not None
        logical.drop_database(live.target.name)
        restore = live.restore(create_database=True)
        restore.stage(live.source(), live.rows, replace(identity, collate="xx_XX.utf8", ctype="xx_XX.utf8"))
        warnings = restore.apply().warnings
        assert any("does not have the backup's locale xx_XX.utf8" in one for one in warnings)
        assert ask(live.target, "SELECT count(*) FROM finding") == 100


def dumped(made: Bench) -> Bench:
    """The bench with a dump of what is live now."""
    with open_dump(made.target, runner=made.runner, bin_dir=made.bin_dir, timeout_seconds=60) as source:
        made.dump.write_bytes(source.stdout.read())
        return replace(made, rows=source.finish().row_counts)


def _answers(target: DatabaseTarget) -> bool:
    try:
        connect(target).close()
    except OpsError:
        return False
    return True
