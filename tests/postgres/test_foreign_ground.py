"""What surrounds a dump: poolers, the caller's variables, functions that need a path, tables that come and go."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import PoolerError
from portal.ops.postgres import dump
from portal.ops.postgres.connection import connect
from portal.ops.postgres.dump import DatabaseDump, open_dump
from portal.ops.postgres.failures import explain_dump_failure
from portal.ops.postgres.pg_restore import explain_failure
from portal.ops.postgres.row_counts import list_tables
from portal.ops.postgres.table_names import normal_name, table_name
from portal.ops.restore.scratch_dump import ScratchDump
from tests.support.restoring import ask, execute
from tests.support.servers import no_session_soon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from demo.postgres import EmbeddedPostgres
    from portal.ops.postgres.connection import Connection
    from portal.ops.postgres.row_counts import Table
    from portal.ops.runtime.process import SystemRunner
    from portal.ops.settings.database_url import DatabaseTarget

_KEY_DATA = b"K" + struct.pack("!i", 12)


@contextmanager
def pooler(target: DatabaseTarget) -> Iterator[DatabaseTarget]:
    """Something between us and the server that has a number of its own for each client, as poolers do."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                at = data.find(_KEY_DATA)
                if at >= 0:
                    data = data[: at + 5] + struct.pack("!i", 4711) + data[at + 9 :]
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection((target.host, target.port))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=[listener], daemon=True).start()
        yield replace(target, port=listener.getsockname()[1], options={**target.options, "sslmode": "disable"})


def test_a_pooler_is_refused_before_anything_is_set(portal_database: DatabaseTarget) -> None:
    """It is told by the number of the server's process, and the hint names what to set."""
    with pooler(portal_database) as behind, pytest.raises(PoolerError) as caught:
        connect(behind)
    assert "is a connection pooler" in caught.value.message
    assert "DD_DATABASE_HOST" in caught.value.hint


@pytest.mark.parametrize(
    "variables",
    [
        {"PGSERVICE": "absent"},
        {"PGOPTIONS": "-c search_path=nowhere -c statement_timeout=1"},
        {"PGREQUIREAUTH": "md5"},
        {"PGCLIENTENCODING": "LATIN1", "PGHOSTADDR": "127.0.0.9", "PGTZ": "Nowhere/Land", "PGDATESTYLE": "x"},
    ],
)
def test_the_callers_variables_do_not_count(
    portal_database: DatabaseTarget,
    postgres: EmbeddedPostgres,
    runner: SystemRunner,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
) -> None:
    """Neither the driver nor pg_dump goes to another server, or with other settings, because of them."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with open_dump(portal_database, runner=runner, bin_dir=postgres.bin_dir, timeout_seconds=60) as source:
        while source.stdout.read(1 << 16):
            pass
        assert source.finish().row_counts["public.note"] == 100


def test_a_function_that_needs_a_path_is_named(
    portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner
) -> None:
    """At backup time, with the table, the constraint, and the statement that helps."""
    execute(
        portal_database,
        "CREATE FUNCTION inner_look(x text) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT length(x)'",
        "CREATE FUNCTION look(x text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN inner_look(x); END $$",
        "CREATE TABLE named (k text CONSTRAINT looks CHECK (look(k) > 0))",
        "INSERT INTO named VALUES ('x')",
    )
    with open_dump(portal_database, runner=runner, bin_dir=postgres.bin_dir, timeout_seconds=60) as source:
        (warning,) = [one for one in source.facts.warnings if "fails in a restore" in one]
    assert "constraint looks of public.named" in warning
    assert "ALTER FUNCTION public.look(text) SET search_path" in warning


def test_a_dump_has_the_encoding_of_the_database(
    portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner, tmp_path: Path
) -> None:
    """A client encoding that is set for the database or the user, and has fewer characters, does not stop a dump."""
    execute(
        portal_database,
        "CREATE TABLE snow (man text)",
        "INSERT INTO snow VALUES ('\u2603')",
        f"ALTER DATABASE {portal_database.name} SET client_encoding = 'latin1'",
    )
    with open_dump(portal_database, runner=runner, bin_dir=postgres.bin_dir, timeout_seconds=60) as source:
        content = source.stdout.read()
        assert source.finish().row_counts["public.snow"] == 1
    with (
        ScratchDump(portal_database, 17, runner=runner, bin_dir=postgres.bin_dir) as scratch,
        scratch.dump(tmp_path / "unused", lambda _: None).open() as pieces,
    ):
        recovered = b"".join(pieces)
    for text in (content, recovered):
        assert "\u2603".encode() in text
        assert b"SET client_encoding = 'UTF8'" in text


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        (
            "CREATE INDEX named_look ON named (look(k))",
            "index public.named_look of public.named fails in a restore, so it",
        ),
        ("CREATE INDEX named_where ON named (k) WHERE look(k) > 0", "index public.named_where of public.named fails"),
        ("CREATE DOMAIN looked AS text CHECK (look(VALUE) > 0)", "constraint looked_check of domain public.looked"),
        (
            "CREATE TABLE parts (k text) PARTITION BY RANGE (look(k));"
            "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (9); INSERT INTO parts VALUES ('x')",
            "the partition key (public.parts) of public.parts_1 fails in a restore, so its rows",
        ),
    ],
)
def test_every_expression_that_needs_a_path_is_named(
    portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner, statement: str, named: str
) -> None:
    """Those of indexes, domains and partition keys fail in a restore as those of constraints do."""
    execute(
        portal_database,
        "CREATE FUNCTION inner_look(x text) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT length(x)'",
        "CREATE FUNCTION look(x text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN inner_look(x); END $$",
        "CREATE TABLE named (k text)",
        statement,
        "INSERT INTO named VALUES ('x')",
    )
    with open_dump(portal_database, runner=runner, bin_dir=postgres.bin_dir, timeout_seconds=60) as source:
        (warning,) = [one for one in source.facts.warnings if "in a restore" in one]
    assert warning.startswith(named)
    assert "ALTER FUNCTION public.look(text) SET search_path" in warning


def test_a_backup_while_tables_come_and_go(
    portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner
) -> None:
    """It is tried again by itself until it has seen them all at one time."""
    enough = threading.Event()

    def churn() -> None:
        with postgres.connect(portal_database.name) as connection:
            while not enough.is_set():
                connection.execute("CREATE TABLE IF NOT EXISTS fleeting (a int)")
                connection.execute("DROP TABLE IF EXISTS fleeting")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        with open_dump(portal_database, runner=runner, bin_dir=postgres.bin_dir, timeout_seconds=60) as source:
            while source.stdout.read(1 << 16):
                pass
            assert source.finish().row_counts["public.note"] == 100
    finally:
        enough.set()
        thread.join()
    assert ask(portal_database, "SELECT count(*) FROM note") == 100


def test_a_table_that_is_replaced_by_one_of_its_name(
    portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it was listed, and before it is locked by its name: it is tried again."""
    execute(portal_database, "CREATE TABLE fleeting (a int)")
    listed: list[int] = []

    def list_and_replace(connection: Connection) -> list[Table]:
        found = list_tables(connection)
        if not listed:
            execute(portal_database, "DROP TABLE fleeting", "CREATE TABLE fleeting (a int)")
        listed.append(len(found))
        return found

    monkeypatch.setattr(dump, "list_tables", list_and_replace)
    with open_dump(portal_database, runner=runner, bin_dir=postgres.bin_dir, timeout_seconds=60) as source:
        while source.stdout.read(1 << 16):
            pass
        assert source.finish().row_counts["public.fleeting"] == 0
    assert len(listed) == 2


def test_a_dump_that_cannot_be_begun_holds_no_lock(
    portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens when pg_dump already runs: nobody waits for a session that nobody uses."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(DatabaseDump, "__init__", fail)
    with pytest.raises(ZeroDivisionError) as caught:
        open_dump(portal_database, runner=runner, bin_dir=postgres.bin_dir, timeout_seconds=60)
    assert caught.tb is not None
    assert no_session_soon(postgres, portal_database)


def test_a_value_that_is_too_large() -> None:
    """The message is not about memory, but about the value."""
    said = 'pg_dump: error: Dumping the contents of table "t" failed\npg_dump: detail: Error message from server: '
    error = explain_dump_failure(1, f"{said}ERROR:  invalid memory alloc request size 1200000003")
    assert "more than about 500 MB" in error.hint


def test_a_foreign_server_that_is_away() -> None:
    """It is not the database's server that went away."""
    error = explain_failure(1, 'pg_restore: error: could not execute query: ERROR:  could not connect to server "far"')
    assert "foreign server" in error.hint


@pytest.mark.parametrize(
    ("quoted", "schema", "table"),
    [
        ("public.finding", "public", "finding"),
        ('public."json_table"', "public", "json_table"),
        ('"Odd Schema"."My ""Table"".x"', "Odd Schema", 'My "Table".x'),
        ('"a.b"."c"', "a.b", "c"),
    ],
)
def test_names_of_tables(quoted: str, schema: str, table: str) -> None:
    """However a server has quoted it, a name means one table."""
    assert normal_name(quoted) == table_name(schema, table)
