"""The owner of a database may define what he likes in it. A backup by an administrator runs nothing of that."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from portal.ops.postgres.connection import connect
from portal.ops.postgres.dump import open_dump
from portal.ops.settings.load import DatabaseTarget, Secret
from portal.ops.settings.parsers import MOST
from tests.support.restoring import execute

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.postgres import EmbeddedPostgres
    from portal.ops.postgres.dump import DatabaseDump
    from portal.ops.runtime.process import SystemRunner

_RAISES = "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'code of the owner ran as %', current_user; END $$"
_IMMUTABLE = _RAISES.replace("LANGUAGE plpgsql", "LANGUAGE plpgsql IMMUTABLE")


@pytest.fixture
def owned(postgres: EmbeddedPostgres) -> Iterator[DatabaseTarget]:
    """A database of a role that is no administrator, as this owner sees it."""
    name = f"owned_{uuid4().hex[:12]}"
    postgres.create_role(name, password="secret")
    postgres.create_database(name, owner=name)
    yield DatabaseTarget(host="127.0.0.1", port=postgres.port, name=name, user=name, password=Secret("secret"))
    postgres.drop_database(name)
    with postgres.connect() as connection:
        connection.execute(f"DROP ROLE {name}".encode())


def as_administrator(target: DatabaseTarget, postgres: EmbeddedPostgres) -> DatabaseTarget:
    """The same database, as the superuser sees it."""
    address = postgres.superuser(target.name)
    return replace(target, user=address.user, password=Secret(address.password))


@contextmanager
def dumped(
    target: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner, seconds: float = 60.0
) -> Iterator[DatabaseDump]:
    """A dump that was read to its end, and succeeded."""
    with open_dump(
        target, runner=runner, bin_dir=postgres.bin_dir, timeout_seconds=60, lock_timeout_seconds=seconds
    ) as dump:
        while dump.stdout.read(1 << 16):
            pass
        dump.finish()
        yield dump


def test_functions_in_front_of_the_systems_are_not_called(
    owned: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner
) -> None:
    """A search path with the owner's schema before `pg_catalog` is not that of our sessions."""
    with postgres.connect(owned.name) as connection:
        functions = connection.execute(
            "SELECT DISTINCT p.proname::text, pg_get_function_identity_arguments(p.oid), "
            "pg_get_function_result(p.oid) FROM pg_proc AS p WHERE prokind = 'f' AND proname IN ("
            "'pg_backend_pid', 'set_config', 'current_setting', 'pg_get_userbyid', 'pg_get_expr', 'format_type', "
            "'has_table_privilege', 'has_schema_privilege', 'pg_database_size', 'pg_relation_size', 'unnest', 'now', "
            "'pg_is_in_recovery', 'pg_export_snapshot', 'pg_has_role', 'texteq', 'nameeq', 'oideq')"
        ).fetchall()
    assert len(functions) > 20
    with postgres.connect(owned.name) as connection:
        connection.execute(f"SET ROLE {owned.user}; CREATE SCHEMA before".encode())
        for name, arguments, result in functions:
            if "any" not in arguments:  # the owner may not use such types
                connection.execute(f"CREATE FUNCTION before.{name}({arguments}) RETURNS {result} {_RAISES}".encode())
        for left, right in (("name", "name"), ("oid", "oid"), ("text", "text")):
            connection.execute(
                f"CREATE FUNCTION before.same({left}, {right}) RETURNS boolean {_RAISES};"
                f"CREATE OPERATOR before.= (LEFTARG = {left}, RIGHTARG = {right}, PROCEDURE = before.same)".encode()
            )
        connection.execute(f"ALTER DATABASE {owned.name} SET search_path = before, pg_catalog, public".encode())
        connection.execute("CREATE TABLE public.note AS SELECT 1 AS n")
    with dumped(as_administrator(owned, postgres), postgres, runner) as dump:
        assert dump.table_names == ("public.note",)
        assert dump.facts.warnings == ()


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("CREATE TABLE named (k text CONSTRAINT looks CHECK (look(k) > 0))", "constraint looks of public.named"),
        ("CREATE TABLE named (k text); CREATE INDEX named_look ON named (look(k))", "index public.named_look of"),
        (
            "CREATE DOMAIN looked AS text CONSTRAINT looks CHECK (look(VALUE) > 0)",
            "constraint looks of domain public.looked",
        ),
    ],
)
def test_functions_of_an_owner_are_not_tried_by_an_administrator(
    owned: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner, statement: str, named: str
) -> None:
    """They would run with his rights; what was not tried for that reason is named. The owner tries his own."""
    execute(owned, f"CREATE FUNCTION look(x text) RETURNS int {_IMMUTABLE}", statement)
    with dumped(as_administrator(owned, postgres), postgres, runner) as dump:
        (warning,) = dump.facts.warnings
    assert warning.startswith(f"whether {named}")
    assert f"was not tried: role {owned.user} could have its own code run" in warning
    assert "ALTER FUNCTION public.look(text) SET search_path = public" in warning
    with dumped(owned, postgres, runner) as dump:
        assert dump.facts.warnings == ()


def test_a_function_of_somebody_else_on_ones_own_table(
    owned: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner
) -> None:
    """Its owner is the one to be trusted, who can replace its code at any time."""
    execute(owned, f"CREATE FUNCTION public.look(x text) RETURNS int {_IMMUTABLE}")
    administrator = as_administrator(owned, postgres)
    execute(administrator, "CREATE TABLE public.named (k text)", "CREATE INDEX named_look ON public.named (look(k))")
    with dumped(administrator, postgres, runner) as dump:
        (warning,) = dump.facts.warnings
    assert f"index public.named_look of public.named can be restored was not tried: role {owned.user}" in warning


def test_forms_that_a_database_sets_are_not_those_of_our_sessions(
    owned: DatabaseTarget, postgres: EmbeddedPostgres
) -> None:
    """Times, numbers and names come as they are read here."""
    for setting in (
        "datestyle = 'SQL, DMY'",
        "extra_float_digits = -15",
        "intervalstyle = iso_8601",
        "bytea_output = escape",
        "quote_all_identifiers = on",
        "array_nulls = off",
    ):
        execute(owned, f"ALTER DATABASE {owned.name} SET {setting}")
    with connect(owned) as connection:
        row = connection.execute(
            "SELECT '2026-11-30 02:00+00'::timestamptz AT TIME ZONE 'UTC', 1796000400.25::float8::text, "
            "'1 day'::interval::text, '\\x01'::bytea::text, quote_ident('note'), '{NULL}'::text[]"
        ).fetchone()
    assert row is not None
    assert row[0].isoformat() == "2026-11-30T02:00:00"
    assert row[1:] == ("1796000400.25", "1 day", r"\x01", "note", [None])


@pytest.mark.parametrize("seconds", [0, 0.001, MOST])
def test_the_shortest_and_the_longest_wait_for_a_lock(
    portal_database: DatabaseTarget, postgres: EmbeddedPostgres, runner: SystemRunner, seconds: float
) -> None:
    """Nobody holds one: a dump succeeds, however long it might wait."""
    target = replace(portal_database, lock_seconds=seconds)
    with dumped(target, postgres, runner, seconds) as dump:
        assert "public.note" in dump.table_names
