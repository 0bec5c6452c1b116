"""Dumping a real database with the real pg_dump, and every way in which that can fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from portal.ops.errors import (
    AccessDeniedError,
    BusyError,
    ClientToolError,
    ConfigurationError,
    ConnectionFailedError,
    DatabaseAbsentError,
    DumpFailedError,
    SchemaChangedError,
    SourceError,
)
from portal.ops.postgres.connection import conninfo, libpq_environment
from portal.ops.postgres.dump import open_dump
from portal.ops.postgres.explained import explained_errors
from portal.ops.postgres.failures import explain_dump_failure
from portal.ops.postgres.row_counts import count_rows, list_tables
from portal.ops.runtime.process import run
from portal.ops.settings.load import DatabaseTarget, Secret
from tests.support.fake_runner import FakeRunner, Script
from tests.support.servers import inspect_server, no_session_soon
from tests.support.sessions import session
from tests.support.waiting import LONG_SECONDS, ends_soon, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from demo.postgres import EmbeddedPostgres
    from portal.ops.postgres.dump import DatabaseDump, DumpFacts
    from portal.ops.runtime.process import SystemRunner

ROOT = Path(__file__).parents[2]
PASSWORD = "correct horse"
VERSION = Script(stdout=b"pg_dump (PostgreSQL) 17.10\n")
BIG_TABLE = "CREATE TABLE big AS SELECT n, repeat(md5(n::text), 30) AS text FROM generate_series(1, 30000) AS n"


@pytest.fixture
def visitor(postgres: EmbeddedPostgres, portal_database: DatabaseTarget) -> Iterator[DatabaseTarget]:
    """The portal's database, as a role without any privilege sees it."""
    name = f"visitor_{uuid4().hex[:8]}"
    postgres.create_role(name, password=PASSWORD)
    yield replace(portal_database, user=name, password=Secret(PASSWORD))
    execute(portal_database, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def execute(target: DatabaseTarget, *statements: str) -> None:
    with session(target) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def dump(target: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner, path: Path) -> DumpFacts:
    """Write a whole dump to a file."""
    with open_dump(target, runner=runner, bin_dir=postgres.bin_dir, timeout_seconds=60) as source:
        path.write_bytes(source.stdout.read())
        return source.finish()


def restore(path: Path, target: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner) -> dict[str, int]:
    """Restore a dump into a new database, and count its rows."""
    scratch = replace(target, name=f"{target.name}_restored")
    postgres.create_database(scratch.name)
    try:
        pg_restore = str(postgres.bin_dir / "pg_restore")
        command = [pg_restore, "--exit-on-error", f"--dbname={conninfo(scratch)}", str(path)]
        finished = run(runner, command, environment=libpq_environment(scratch), timeout_seconds=60)
        assert finished.returncode == 0, finished.stderr
        with session(scratch) as connection:
            return count_rows(connection, list_tables(connection))
    finally:
        postgres.drop_database(scratch.name)


def pg_dump_pid(source: DatabaseDump) -> int:
    return source._parts.process.pid


def read_all(source: DatabaseDump) -> None:
    while source.stdout.read(1 << 20):
        pass


class TestDump:
    """A dump that succeeds."""

    def test_the_counts_are_those_of_the_restored_dump(
        self, portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner, tmp_path: Path
    ) -> None:
        """What was counted is what a restore brings back."""
        facts = dump(portal_database, postgres, runner, tmp_path / "dump")
        assert facts.row_counts == restore(tmp_path / "dump", portal_database, postgres, runner)
        assert facts.row_counts["public.finding"] == 400

    def test_the_counts_hold_while_others_write(
        self, portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner, tmp_path: Path
    ) -> None:
        """Rows that come and go during the dump are in neither the dump nor the counts."""
        execute(portal_database, BIG_TABLE)
        with writing(portal_database, "INSERT INTO note SELECT nextval('note_id_seq'), 1, 1, 'late', now()"):
            facts = dump(portal_database, postgres, runner, tmp_path / "dump")
        assert facts.row_counts == restore(tmp_path / "dump", portal_database, postgres, runner)

    def test_a_truncate_waits_for_the_dump(
        self, portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner
    ) -> None:
        """TRUNCATE would show through a snapshot, so the dump locks it out."""
        with open_dump(portal_database, runner=runner, bin_dir=postgres.bin_dir, timeout_seconds=60) as source:
            with (
                pytest.raises(BusyError, match="holds AccessShareLock on"),
                connect_explained(portal_database) as connection,
            ):
                connection.execute("SET lock_timeout = '100ms'")
                connection.execute("TRUNCATE note")
            read_all(source)
            assert source.finish().row_counts["public.note"] == 100

    def test_versions_are_reported(
        self, portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner, tmp_path: Path
    ) -> None:
        """The dump knows the versions of the server and of pg_dump."""
        facts = dump(portal_database, postgres, runner, tmp_path / "dump")
        assert (facts.server_version, facts.pg_dump_version) == ("17.10", "17.10")

    def test_an_estimate_is_there_before_the_end(
        self, portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner
    ) -> None:
        """Number of tables and size are known as soon as the dump is open."""
        with open_dump(portal_database, runner=runner, bin_dir=postgres.bin_dir, timeout_seconds=60) as source:
            assert len(source.table_names) == 9
            assert source.estimated_bytes > 500_000

    def test_an_empty_database_has_a_dump(
        self, postgres: EmbeddedPostgres, portal_database: DatabaseTarget, runner: SystemRunner, tmp_path: Path
    ) -> None:
        """A database without a table is dumped, and has no counts."""
        execute(portal_database, "DROP SCHEMA public CASCADE")
        assert dump(portal_database, postgres, runner, tmp_path / "dump").row_counts == {}

    def test_only_tables_with_dumped_rows_are_counted(
        self, portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner, tmp_path: Path
    ) -> None:
        """Partitions and unlogged tables are counted, partitioned parents and views are not, children by themselves."""
        execute(
            portal_database,
            'CREATE SCHEMA "Odd"',
            'CREATE TABLE "Odd".parent (n int) PARTITION BY RANGE (n)',
            'CREATE TABLE "Odd"."low part" PARTITION OF "Odd".parent FOR VALUES FROM (0) TO (10)',
            'INSERT INTO "Odd".parent SELECT generate_series(1, 5)',
            'CREATE UNLOGGED TABLE "Odd".unlogged AS SELECT generate_series(1, 3)',
            'CREATE TABLE "Odd".base (n int)',
            'CREATE TABLE "Odd".heir () INHERITS ("Odd".base)',
            'INSERT INTO "Odd".heir SELECT generate_series(1, 7)',
            'CREATE MATERIALIZED VIEW "Odd".seen AS SELECT 1',
        )
        facts = dump(portal_database, postgres, runner, tmp_path / "dump")
        odd = {name: count for name, count in facts.row_counts.items() if name.startswith('"Odd"')}
        assert odd == {'"Odd"."low part"': 5, '"Odd".unlogged': 3, '"Odd".base': 0, '"Odd".heir': 7}
        assert facts.row_counts == restore(tmp_path / "dump", portal_database, postgres, runner)

    def test_limits_of_the_role_do_not_end_it(
        self, visitor: DatabaseTarget, portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner
    ) -> None:
        """Time limits that were set for the role do not end the snapshot."""
        execute(
            portal_database,
            f"GRANT pg_read_all_data TO {visitor.user}",
            f"ALTER ROLE {visitor.user} SET idle_in_transaction_session_timeout = '50ms'",
            f"ALTER ROLE {visitor.user} SET statement_timeout = '50ms'",
        )
        with open_dump(visitor, runner=runner, bin_dir=postgres.bin_dir, timeout_seconds=60) as source:
            idle = (
                b"SELECT bool_or(clock_timestamp() - state_change > '200ms') FROM pg_stat_activity "
                b"WHERE usename = %s AND state = 'idle in transaction'"
            )
            with session(portal_database) as connection:
                wait_until(lambda: connection.execute(idle, [visitor.user]).fetchone() == (True,))
            read_all(source)
            assert source.finish().row_counts["public.finding"] == 400

    def test_nothing_is_left_of_it(
        self, portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner, tmp_path: Path
    ) -> None:
        """After a dump there is no session, and no thread of ours."""
        dump(portal_database, postgres, runner, tmp_path / "dump")
        assert no_session_soon(postgres, portal_database)
        assert not [thread for thread in threading.enumerate() if thread.name == "row-count"]

    def test_the_password_is_in_no_argument(self, portal_database: DatabaseTarget) -> None:
        """The password reaches pg_dump by its environment alone."""
        fake = FakeRunner({"pg_dump": [VERSION, Script()]})
        assert portal_database.password is not None
        password = portal_database.password.reveal()
        with open_dump(portal_database, runner=fake, bin_dir=Path("/fake"), timeout_seconds=60) as source:
            source.finish()
        assert password not in " ".join(fake.commands[1])
        assert fake.environments[1]["PGPASSWORD"] == password


class TestAbort:
    """A dump that is given up, or whose time is over."""

    def test_leaving_early_ends_everything(
        self, portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner
    ) -> None:
        """A reader that gives up leaves no process and no session behind."""
        execute(portal_database, BIG_TABLE)
        with open_dump(portal_database, runner=runner, bin_dir=postgres.bin_dir, timeout_seconds=60) as source:
            source.stdout.read(100)
            pid = pg_dump_pid(source)
        assert ends_soon(pid)
        assert no_session_soon(postgres, portal_database)

    def test_a_dump_that_hangs_is_stopped(
        self, portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner
    ) -> None:
        """When the time is over, pg_dump is killed, and the error says so."""
        execute(portal_database, BIG_TABLE)
        pids = []  # none where the time is over before the first byte
        with (
            pytest.raises(DumpFailedError, match=r"did not end within 0\.5 s"),
            open_dump(portal_database, runner=runner, bin_dir=postgres.bin_dir, timeout_seconds=0.5) as source,
        ):
            pids.append(pg_dump_pid(source))
            source.finish()
        assert all(map(ends_soon, pids))
        assert no_session_soon(postgres, portal_database)

    def test_a_locked_table_is_waited_for_only_so_long(
        self, portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner
    ) -> None:
        """A table that another session keeps locked ends the dump with the table's name."""
        with session(portal_database) as holder, holder.transaction():
            holder.execute("LOCK TABLE finding")
            with pytest.raises(
                DumpFailedError, match=r"process \d+ .* holds AccessExclusiveLock on public.finding since"
            ):
                open_dump(
                    portal_database,
                    runner=runner,
                    bin_dir=postgres.bin_dir,
                    timeout_seconds=60,
                    lock_timeout_seconds=0.2,
                )
        assert no_session_soon(postgres, portal_database)

    def test_nothing_survives_the_kill_of_the_parent(
        self, portal_database: DatabaseTarget, postgres: EmbeddedPostgres
    ) -> None:
        """After SIGKILL of the process that dumps, pg_dump and every session are gone."""
        execute(portal_database, BIG_TABLE)
        assert portal_database.password is not None
        program = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from portal.ops.runtime.process import SystemRunner\n"
            "from portal.ops.settings.database_url import DatabaseTarget, Secret\n"
            "from portal.ops.postgres.dump import open_dump\n"
            "host, port, name, user, bin_dir = sys.argv[1:]\n"
            "target = DatabaseTarget(host=host, port=int(port), name=name, user=user,\n"
            "    password=Secret(os.environ['TEST_PASSWORD']))\n"
            "source = open_dump(target, runner=SystemRunner(), bin_dir=Path(bin_dir), timeout_seconds=60)\n"
            "source.stdout.read(100)\n"
            "print(source._parts.process.pid, flush=True)\n"
            "source.finish()\n"
        )
        target = portal_database
        arguments = [target.host, str(target.port), target.name, target.user, str(postgres.bin_dir)]
        environment = os.environ | {"TEST_PASSWORD": portal_database.password.reveal()}
        command = [sys.executable, "-c", program, *arguments]
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            parent.kill()
        assert ends_soon(pid)
        assert no_session_soon(postgres, portal_database)


class TestFailure:
    """A dump that fails half way."""

    def test_a_server_that_stops_is_named(self, server: EmbeddedPostgres, runner: SystemRunner) -> None:
        """When the server is shut down half way, the dump fails, and a retry can help."""
        server.create_database("portal")
        address = server.superuser("portal")
        password = Secret(address.password)
        target = DatabaseTarget(
            host=address.host, port=address.port, name="portal", user=address.user, password=password
        )
        execute(target, BIG_TABLE)
        with open_dump(target, runner=runner, bin_dir=server.bin_dir, timeout_seconds=60) as source:
            source.stdout.read(100)
            server.stop()
            read_all(source)
            with pytest.raises(SourceError) as caught:
                source.finish()
        assert caught.value.retryable
        assert "server" in caught.value.hint

    def test_a_pg_dump_that_is_killed_is_named(
        self, portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner
    ) -> None:
        """A pg_dump that somebody killed is not a whole dump."""
        execute(portal_database, BIG_TABLE)
        with open_dump(portal_database, runner=runner, bin_dir=postgres.bin_dir, timeout_seconds=60) as source:
            source.stdout.read(100)
            os.kill(pg_dump_pid(source), signal.SIGKILL)
            with pytest.raises(DumpFailedError, match="ended by SIGKILL"):
                source.finish()

    @pytest.mark.parametrize(
        ("words", "error", "hint"),
        [
            ("ERROR:  permission denied for table finding", AccessDeniedError, "pg_read_all_data"),
            ("ERROR:  query would be affected by row-level security policy", AccessDeniedError, "BYPASSRLS"),
            ("aborting because of server version mismatch", ClientToolError, "major version"),
            ("canceling statement due to lock timeout", SchemaChangedError, "migration"),
            ("ERROR:  out of shared memory", DumpFailedError, "max_locks_per_transaction"),
            ("ERROR:  invalid page in block 7 of relation base/5/1", DumpFailedError, "damaged"),
            ("server closed the connection unexpectedly", DumpFailedError, "went away"),
            ('ERROR:  relation "finding" does not exist', SchemaChangedError, "try again"),
            ("something new", DumpFailedError, "own words"),
        ],
    )
    def test_last_words_are_understood(self, words: str, error: type[SourceError], hint: str) -> None:
        """What pg_dump says last decides the error and its hint."""
        failure = explain_dump_failure(1, f"pg_dump: error: {words}\n")
        assert type(failure) is error
        assert words in failure.message
        assert hint in failure.hint

    def test_a_pg_dump_that_is_too_old_is_refused(
        self, portal_database: DatabaseTarget, runner: SystemRunner, tmp_path: Path
    ) -> None:
        """A pg_dump older than the server is refused, with the package to install."""
        script = tmp_path / "pg_dump"
        script.write_text('#!/bin/sh\necho "pg_dump (PostgreSQL) 15.9"\n')
        script.chmod(0o755)
        with pytest.raises(ClientToolError, match="pg_dump 15 cannot dump a version 17 server"):
            open_dump(portal_database, runner=runner, bin_dir=tmp_path, timeout_seconds=60)


class TestConnection:
    """A server that does not let us in."""

    def refused(self, target: DatabaseTarget, error: type[Exception]) -> str:
        """Connect, and return the message and hint of the refusal, which must not hold the password."""
        with pytest.raises(error) as caught:
            inspect_server(target)
        text = str(caught.value)
        assert target.password is None or target.password.reveal() not in text
        return text

    def test_the_facts(self, portal_database: DatabaseTarget) -> None:
        """A server that lets us in tells its version and size."""
        facts = inspect_server(portal_database)
        assert (facts.version, facts.major, facts.in_recovery) == ("17.10", 17, False)
        assert facts.size_bytes > 1_000_000

    def test_a_closed_port(self, portal_database: DatabaseTarget) -> None:
        """A port without a server names host and port."""
        text = self.refused(replace(portal_database, port=1), ConnectionFailedError)
        assert "no PostgreSQL server answers at 127.0.0.1:1: Connection refused" in text
        assert "DD_DATABASE_PORT" in text

    def test_an_unknown_host(self, portal_database: DatabaseTarget) -> None:
        """A name that does not resolve is named."""
        text = self.refused(replace(portal_database, host="nowhere.invalid"), ConnectionFailedError)
        assert "nowhere.invalid" in text

    def test_a_wrong_password(self, portal_database: DatabaseTarget) -> None:
        """A wrong password says where passwords come from."""
        text = self.refused(replace(portal_database, password=Secret("wr0ng-secret")), AccessDeniedError)
        assert "refused the password of user postgres" in text
        assert "DD_DATABASE_PASSWORD_FILE" in text

    def test_no_password(self, portal_database: DatabaseTarget, monkeypatch: pytest.MonkeyPatch) -> None:
        """A missing password says where one can be put."""
        monkeypatch.setenv("PGPASSFILE", "/nonexistent")
        text = self.refused(replace(portal_database, password=None), AccessDeniedError)
        assert "wants a password of user postgres" in text
        assert "~/.pgpass" in text

    def test_an_absent_role(self, portal_database: DatabaseTarget) -> None:
        """A role that does not exist looks like a wrong password to the server, and the hint says so."""
        text = self.refused(replace(portal_database, user="nobody_here"), AccessDeniedError)
        assert "DD_DATABASE_USER" in text
        assert f"createuser --host=127.0.0.1 --port={portal_database.port} --pwprompt nobody_here" in text

    def test_an_absent_database(self, portal_database: DatabaseTarget) -> None:
        """An absent database comes with the command that creates it."""
        text = self.refused(replace(portal_database, name="my db"), DatabaseAbsentError)
        port = portal_database.port
        assert f"createdb --host=127.0.0.1 --port={port} --owner=postgres 'my db'" in text

    def test_no_free_connection(self, visitor: DatabaseTarget, portal_database: DatabaseTarget) -> None:
        """A limit of connections says that a retry can help."""
        execute(portal_database, f"ALTER ROLE {visitor.user} CONNECTION LIMIT 0")
        assert "has no free connection" in self.refused(visitor, ConnectionFailedError)

    def test_encryption_that_the_server_lacks(self, portal_database: DatabaseTarget) -> None:
        """A demand for encryption that the server cannot meet is a matter of configuration."""
        target = replace(portal_database, options={"sslmode": "require"})
        assert "has no encryption" in self.refused(target, ConfigurationError)

    def test_an_unknown_option(self, portal_database: DatabaseTarget) -> None:
        """An option that libpq does not know is a matter of configuration."""
        target = replace(portal_database, options={"no_such_option": "1"})
        assert "no_such_option" in self.refused(target, ConfigurationError)

    def test_a_table_that_may_not_be_read(self, visitor: DatabaseTarget) -> None:
        """Missing privileges name a few tables, and the statement that helps."""
        text = self.refused(visitor, AccessDeniedError)
        assert "may not read public.auth_user, public.auth_user_id_seq" in text
        assert f'GRANT pg_read_all_data TO "{visitor.user}"' in text

    def test_a_sequence_that_may_not_be_read(self, visitor: DatabaseTarget, portal_database: DatabaseTarget) -> None:
        """Sequences are read too."""
        execute(portal_database, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {visitor.user}")
        assert "may not read public.auth_user_id_seq" in self.refused(visitor, AccessDeniedError)

    def test_rows_that_a_policy_hides(self, visitor: DatabaseTarget, portal_database: DatabaseTarget) -> None:
        """Row security would make a dump incomplete, so it is refused before it starts."""
        execute(
            portal_database,
            f"GRANT pg_read_all_data TO {visitor.user}",
            "ALTER TABLE finding ENABLE ROW LEVEL SECURITY",
        )
        text = self.refused(visitor, AccessDeniedError)
        assert "hides rows" in text
        assert "BYPASSRLS" in text

    def test_a_role_that_the_session_is_given(self, visitor: DatabaseTarget, portal_database: DatabaseTarget) -> None:
        """The role whose privileges count is named, and is the one that needs them."""
        execute(
            portal_database,
            f"GRANT pg_read_all_data TO {visitor.user}",
            f"GRANT pg_monitor TO {visitor.user}",
            f"ALTER ROLE {visitor.user} IN DATABASE {visitor.name} SET role = pg_monitor",
        )
        text = self.refused(visitor, AccessDeniedError)
        assert f"user {visitor.user}, who acts as role pg_monitor, may not read" in text
        assert 'GRANT pg_read_all_data TO "pg_monitor"' in text

    def test_a_reader_of_all_data_is_enough(self, visitor: DatabaseTarget, portal_database: DatabaseTarget) -> None:
        """The privilege that the hint names is enough."""
        execute(portal_database, f"GRANT pg_read_all_data TO {visitor.user}")
        assert inspect_server(visitor).major == 17


@contextmanager
def connect_explained(target: DatabaseTarget) -> Iterator[psycopg.Connection]:
    with explained_errors(target), session(target) as connection:
        yield connection


@contextmanager
def writing(target: DatabaseTarget, statement: str) -> Iterator[None]:
    """Run a statement again and again while the context lasts, and at least once in it."""
    started, enough = threading.Event(), threading.Event()

    def write() -> None:
        with session(target) as connection:
            while not enough.is_set():
                connection.execute(statement.encode())
                started.set()

    thread = threading.Thread(target=write)
    thread.start()
    started.wait(LONG_SECONDS)
    try:
        yield
    finally:
        enough.set()
        thread.join()
