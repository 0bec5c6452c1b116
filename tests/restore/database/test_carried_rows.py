"""Rows that no dump has, counts and statistics, sessions in the way: parts of a restore, on small databases."""

from __future__ import annotations

import json
import threading
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from portal.ops.drill import moments
from portal.ops.drill.scratch import Scratch
from portal.ops.errors import BusyError, OpsError, RestoreError
from portal.ops.postgres.connection import connect
from portal.ops.postgres.row_counts import list_tables
from portal.ops.postgres.server import MAY_END, maintenance
from portal.ops.restore.database import blockers, settle
from portal.ops.restore.database.carry import carry_rows
from portal.ops.restore.database.object_check import SourceObjects, check_objects
from portal.ops.runtime.process import SystemRunner
from tests.support.database_restores import new_database
from tests.support.fake_runner import FakeProcess, Script
from tests.support.restoring import ask, execute
from tests.support.sessions import session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from demo.postgres import EmbeddedPostgres
    from portal.ops.settings.database_url import DatabaseTarget

ROWS = "the rows of public.mine, of extension citext, are in no dump"
ADDED = ("CREATE EXTENSION citext", "ALTER EXTENSION citext ADD TABLE mine")


@pytest.fixture
def pair(postgres: EmbeddedPostgres) -> Iterator[tuple[DatabaseTarget, DatabaseTarget]]:
    """A live database, and one that is being filled."""
    made = new_database(postgres), new_database(postgres)
    yield made
    for target in made:
        postgres.drop_database(target.name)


@pytest.fixture
def one(postgres: EmbeddedPostgres) -> Iterator[DatabaseTarget]:
    """A database alone."""
    made = new_database(postgres)
    yield made
    postgres.drop_database(made.name)


class TestCarrying:
    def test_without_such_tables(self, pair: tuple[DatabaseTarget, DatabaseTarget]) -> None:
        """There is nothing to say."""
        live, scratch = pair
        execute(live, "CREATE TABLE mine AS SELECT 1 AS n")
        assert carry_rows(live, scratch, kept_as="old") == []

    def test_a_table_that_is_there(self, pair: tuple[DatabaseTarget, DatabaseTarget]) -> None:
        """It gets the rows of today, and counts on from there; equal rows are left alone."""
        live, scratch = pair
        table = "CREATE TABLE mine (id serial, name text, double int GENERATED ALWAYS AS (2) STORED)"
        for target in pair:
            execute(target, ADDED[0], table, ADDED[1])
        assert carry_rows(live, scratch, kept_as="old") == []
        execute(live, "INSERT INTO mine (name) VALUES ('a'), ('b')", "DELETE FROM mine WHERE name = 'a'")
        execute(scratch, "INSERT INTO mine (name) VALUES ('x')")
        said = carry_rows(live, scratch, kept_as="old")
        assert said == [
            "the rows of public.mine, of extension citext, are in no dump: those of today were carried over"
        ]
        assert ask(scratch, "SELECT array_agg(id || name || double) FROM mine") == ["2b2"]
        assert ask(scratch, "SELECT nextval('mine_id_seq')") == 3
        assert carry_rows(live, scratch, kept_as="old") == []

    def test_other_columns(self, pair: tuple[DatabaseTarget, DatabaseTarget]) -> None:
        """The rows stay where they are, and it is said where."""
        live, scratch = pair
        execute(live, ADDED[0], "CREATE TABLE mine AS SELECT 1 AS n", ADDED[1])
        execute(scratch, ADDED[0], "CREATE TABLE mine AS SELECT 'x' AS n", ADDED[1])
        assert carry_rows(live, scratch, kept_as="old") == [
            f"{ROWS}, and stay in database old: the restored database has other columns in it"
        ]
        assert ask(scratch, "SELECT n FROM mine") == "x"

    def test_rows_that_do_not_fit(self, pair: tuple[DatabaseTarget, DatabaseTarget]) -> None:
        """The server's reason is told, and nothing has changed."""
        live, scratch = pair
        execute(live, ADDED[0], "CREATE TABLE mine AS SELECT 1 AS n", ADDED[1])
        execute(scratch, ADDED[0], "CREATE TABLE mine (n int CHECK (n > 1))", "INSERT INTO mine VALUES (5)", ADDED[1])
        (said,) = carry_rows(live, scratch, kept_as="old")
        assert said.startswith(
            "the rows of public.mine, of extension citext, are in no dump, and stay in database old: "
        )
        assert 'violates check constraint "mine_n_check"' in said
        assert ask(scratch, "SELECT n FROM mine") == 5

    def test_a_table_that_no_script_makes(self, pair: tuple[DatabaseTarget, DatabaseTarget]) -> None:
        """It is made like the live one: defaults, collations, keys, indexes, owner, and numbers that go on."""
        live, scratch = pair
        execute(
            live,
            ADDED[0],
            "CREATE SEQUENCE shared START 50",
            "CREATE TABLE mine (id serial PRIMARY KEY, other int GENERATED BY DEFAULT AS IDENTITY, "
            "name text COLLATE \"C\" NOT NULL DEFAULT 'x', long int GENERATED ALWAYS AS (id * 2) STORED, "
            "kept int DEFAULT nextval('shared'), CHECK (id > 0))",
            "ALTER SEQUENCE shared OWNED BY mine.kept",
            "CREATE UNIQUE INDEX mine_name ON mine (name, id)",
            "INSERT INTO mine (name) VALUES ('a'), ('b')",
            ADDED[1],
        )
        execute(scratch, ADDED[0], "CREATE SEQUENCE shared START 50")
        assert carry_rows(live, scratch, kept_as="old") == [
            "public.mine, which was added to extension citext by hand, is in no dump: it was carried over as it is "
            "today"
        ]
        rows = "SELECT array_agg(t::text ORDER BY id) FROM mine AS t"
        assert ask(scratch, rows) == ask(live, rows) == ["(1,1,a,2,50)", "(2,2,b,4,51)"]
        execute(scratch, "INSERT INTO mine DEFAULT VALUES")
        assert ask(scratch, "SELECT max(t::text) FROM mine AS t") == "(3,3,x,6,52)"
        names = (
            "SELECT array_agg(c ORDER BY c) FROM (SELECT pg_get_indexdef(indexrelid) AS c FROM pg_index "
            "WHERE indrelid = 'mine'::regclass UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE conrelid = 'mine'::regclass AND contype <> 'n') AS one"
        )
        assert ask(scratch, names) == ask(live, names)
        assert ask(scratch, "SELECT pg_get_serial_sequence('mine', 'kept')") == "public.shared"
        belongs = "SELECT count(*) FROM pg_depend WHERE objid = 'mine'::regclass AND deptype = 'e'"
        assert ask(scratch, belongs) == 1
        collation = (
            "SELECT attcollation::regcollation::text FROM pg_attribute WHERE attname = 'name' "
            "AND attrelid = 'mine'::regclass"
        )
        assert ask(scratch, collation) == '"C"'

    def test_a_lock_that_is_not_given(self, pair: tuple[DatabaseTarget, DatabaseTarget]) -> None:
        """It is no reason to leave rows behind: the restore is refused."""
        live, scratch = pair
        for target in pair:
            execute(target, ADDED[0], "CREATE TABLE mine AS SELECT 1 AS n", ADDED[1])
        execute(live, "UPDATE mine SET n = 2")
        with session(live) as holder, holder.transaction():
            holder.execute("LOCK TABLE mine IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(OpsError):
                carry_rows(replace(live, lock_seconds=0.1), scratch, kept_as="old")
        assert ask(scratch, "SELECT n FROM mine") == 1


class TestSettling:
    def test_counts_of_all_tables(self, one: DatabaseTarget) -> None:
        """By any number of connections; every table has statistics afterwards."""
        target = one
        execute(
            target,
            "CREATE TABLE small AS SELECT 1 AS n",
            "CREATE TABLE large AS SELECT n FROM generate_series(1, 5000) AS n",
            "CREATE TABLE none (n int)",
        )
        for jobs in (0, 1, 3):
            assert settle.settle(target, jobs) == {"public.large": 5000, "public.small": 1, "public.none": 0}
        assert ask(target, "SELECT count(DISTINCT tablename) FROM pg_stats WHERE schemaname = 'public'") == 2
        with session(target) as connection:
            tables = settle._largest_first(connection, list_tables(connection))
        assert [table.name for table in tables] == ["public.large", "public.small", "public.none"]

    @pytest.mark.parametrize(
        ("assumed", "rows", "is_about"),
        [
            (50, 0, False),
            (0, 0, False),
            (51.1, 1, True),
            (51.2, 1, False),
            (850, 1000, True),
            (849, 1000, False),
            (1150, 1000, True),
            (1151, 1000, False),
        ],
    )
    def test_what_fits(self, assumed: float, rows: int, is_about: bool) -> None:
        """A tenth and fifty rows more or less; an empty table is analyzed."""
        assert settle._is_about(assumed, rows) is is_about

    def test_statements_that_are_refused(self, one: DatabaseTarget) -> None:
        """They are no error, unless the connection is lost."""
        with session(one) as connection:
            assert settle._executed(connection, "SELECT 1")
            assert not settle._executed(connection, "SELECT nothing")
            with pytest.raises(psycopg.Error):
                settle._executed(connection, "SELECT pg_terminate_backend(pg_backend_pid())")


class TestBlockers:
    def test_sessions_in_the_way_are_ended(self, one: DatabaseTarget, monkeypatch: pytest.MonkeyPatch) -> None:
        """Those that block the restore, and no others."""
        target = one
        monkeypatch.setattr(blockers, "_LOOK_EVERY_SECONDS", 0.01)
        execute(target, "CREATE TABLE mine (n int)", "CREATE TABLE other (n int)")
        ours = replace(target, options={**target.options, "application_name": "restore"})
        before = threading.active_count()
        with session(target) as stuck, session(target) as free:
            stuck.execute("BEGIN")
            stuck.execute("LOCK TABLE mine")
            free.execute("BEGIN")
            free.execute("LOCK TABLE other")
            with blockers.ending_blockers(target, "restore"), session(ours) as restoring:
                restoring.execute("TRUNCATE mine")
            with pytest.raises(psycopg.OperationalError):
                stuck.execute("SELECT 1")
            free.execute("SELECT 1")
        assert threading.active_count() == before

    def test_one_that_may_not_be_ended(self, one: DatabaseTarget, monkeypatch: pytest.MonkeyPatch) -> None:
        """The restore's own sessions end after the time that it may wait, and it is named."""
        target = replace(one, lock_seconds=0.05)
        monkeypatch.setattr(blockers, "_LOOK_EVERY_SECONDS", 0.01)
        monkeypatch.setattr(blockers, "_BLOCKERS", blockers._BLOCKERS.replace(MAY_END, "false"))
        execute(target, "CREATE TABLE mine (n int)")
        ours = replace(one, options={"application_name": "restore"})
        with session(target) as stuck:
            stuck.execute("BEGIN")
            stuck.execute("LOCK TABLE mine")
            with (
                pytest.raises(BusyError, match=f"process {stuck.info.backend_pid}"),
                blockers.ending_blockers(target, "restore"),
                session(ours) as restoring,
            ):
                try:
                    restoring.execute("TRUNCATE mine")
                except psycopg.Error as error:
                    raise OpsError("ended") from error
            stuck.execute("SELECT 1")

    def test_another_error(self, one: DatabaseTarget) -> None:
        """It is raised as it is."""
        with pytest.raises(OpsError, match="other"), blockers.ending_blockers(one, "restore"):
            raise OpsError("other")


DRILL = "drill_20260101_000000_aaaaaa"


class TestDrillsRemains:
    def test_database_sessions_and_directory_go(self, one: DatabaseTarget, tmp_path: Path) -> None:
        """Also while a killed drill's own program is still at work; whoever asks may name another host."""
        live = one
        scratch = Scratch(drill_id=DRILL, directory=tmp_path / "drills" / DRILL)
        scratch.make(0)
        database, said = scratch.create_database(live)
        assert said == ()
        assert database.name == f"{live.name}_drill_20260101_000000_aaaaaa"
        assert database.options["application_name"] == DRILL
        with pytest.raises(RestoreError, match=f"there is a database {database.name} already"):
            scratch.create_database(live)
        inside, beside = connect(database), connect(replace(live, options={"application_name": DRILL}))
        with inside as first, beside as second:
            scratch.throw_away(replace(live, name="another", port=1))
            for connection in (first, second):
                with pytest.raises(psycopg.OperationalError):
                    connection.execute("SELECT 1")
        with maintenance(live) as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database.name]).fetchone()
        assert found is None
        assert not scratch.directory.exists()
        scratch.throw_away(live)

    def test_a_note_of_another_database(self, one: DatabaseTarget, tmp_path: Path) -> None:
        """It is not dropped."""
        live = one
        scratch = Scratch(drill_id=DRILL, directory=tmp_path / DRILL)
        scratch.directory.mkdir()
        note = scratch.directory / "database.json"
        facts = {"database": live.name, "live": live.name, "host": live.host, "port": live.port}
        note.write_text(json.dumps(facts))
        with pytest.raises(RestoreError, match="which is no database of that drill"):
            scratch.throw_away(live)
        assert ask(live, "SELECT 1") == 1
        assert note.exists()


class TestObjects:
    def test_eight_are_named(self, one: DatabaseTarget) -> None:
        """More are counted."""
        target = one
        checks = ", ".join(f"ADD CONSTRAINT c{number} CHECK (true) NOT VALID" for number in range(8))
        execute(target, "CREATE TABLE mine (n int)", f"ALTER TABLE mine {checks}")
        eight = ", ".join(f"c{number} of public.mine" for number in range(8))

        def warnings() -> tuple[str, ...]:
            with session(target) as connection:
                return check_objects(connection, (), None).warnings

        assert warnings() == (f"constraints that were never validated: {eight}",)
        execute(target, *(f"ALTER TABLE mine ADD CONSTRAINT d{number} CHECK (true) NOT VALID" for number in range(2)))
        assert warnings() == (f"constraints that were never validated: {eight} and 2 more",)

    def test_numbers(self, one: DatabaseTarget) -> None:
        """One has no plural; what the source has not counted is not compared."""
        target = one
        execute(target, "CREATE TABLE mine (n int PRIMARY KEY)", "CREATE INDEX more ON mine (n)")
        with session(target) as connection:
            version = f"{connection.info.server_version // 10000}.1"
            source = SourceObjects(
                counts={"indexes": 1500, "constraints": 5, "triggers": 0, "rules": 9}, server_version=version
            )
            found = check_objects(connection, (), source)
            assert found.wrong == (
                "2 indexes, not 1,500 as in the source",
                "1 constraint, not 5 as in the source",
            )
            assert found.indexes == 2
            for other in ("", "x.1", "9.6"):
                assert check_objects(connection, (), replace(source, server_version=other)).wrong == ()


def test_dump_that_cannot_be_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of what pg_restore says is told, and the program is ended."""
    made = FakeProcess(Script(stderr="x" * 300 + "y" * 199 + "z\n", returncode=1))
    monkeypatch.setattr(moments, "find_client", lambda *_, **__: None)
    monkeypatch.setattr(moments, "start_decoding", lambda *_, **__: made)

    class Dump:
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def dump(self, *_: object) -> Any:
            """Itself."""
            return self

        def open(self) -> Any:
            """Two pieces."""
            return nullcontext([b"one", b"two"])

    monkeypatch.setattr(moments, "ScratchDump", lambda *_, **__: Dump())
    server: Any = SimpleNamespace(target=lambda name: name)
    with pytest.raises(OpsError) as caught:
        moments._decode(server, "portal", 17, SystemRunner(), None)
    assert caught.value.message == f"pg_restore cannot decode its dump: {'y' * 199}z"
    assert caught.value.hint.startswith("Look at the log of the scratch server")
