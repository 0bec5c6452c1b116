"""A restored database has the planner's statistics: those of its source where they fit, and new ones elsewhere."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from demo.postgres import EmbeddedPostgres
from portal.ops.postgres.dump_contents import STATISTICS
from portal.ops.settings.database_url import DatabaseTarget, Secret
from tests.support.database_restores import IN_PLACE, new_database
from tests.support.majors import bin_dir_of, server_of
from tests.support.restoring import ask, bench, execute, remove
from tests.support.sessions import session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.restoring import Bench

__all__ = ["server_of"]

pytestmark = pytest.mark.xdist_group("majors")

TABLE = """
    CREATE TABLE finding (id integer PRIMARY KEY, title text, severity text);
    INSERT INTO finding SELECT n, 'title ' || n, CASE n % 10 WHEN 0 THEN 'it''s "high"' ELSE 'Löw' END
    FROM generate_series(1, 2000) AS n;
    CREATE INDEX finding_title ON finding (lower(title), id);
"""
KNOWN = (
    "SELECT tablename::text, attname::text, null_frac, n_distinct, most_common_vals::text, histogram_bounds::text "
    "FROM pg_stats WHERE schemaname = 'public' ORDER BY 1, 2"
)
ANALYZED = "SELECT string_agg(relname, ',') FROM pg_stat_user_tables WHERE last_analyze IS NOT NULL"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A server that accepts statistics, with an autovacuum that is on and never has its turn."""
    settings = {"autovacuum": "on", "autovacuum_naptime": "1d"}
    with EmbeddedPostgres(unsafe_speed=True, bin_dir=bin_dir_of(18), settings=settings) as made:
        yield made


@contextmanager
def backed_up(server: EmbeddedPostgres, directory: Path, *statements: str, **options: Any) -> Iterator[Bench]:
    """A database with one table, after further statements, and its dump."""
    target = new_database(server, **options)
    execute(target, TABLE, *statements)
    try:
        with bench(target, server.bin_dir, directory) as made:
            yield made
    finally:
        server.drop_database(target.name)


def known(target: DatabaseTarget) -> list[Any]:
    """The planner's statistics of columns and expressions."""
    with session(target) as connection:
        return connection.execute(KNOWN.encode()).fetchall()


def kinds(made: Bench) -> set[str]:
    """What the dump has."""
    _, contents = made.source().head()
    return {entry.kind for entry in contents.entries}


def test_statistics_that_fit_are_those_of_the_source(server: EmbeddedPostgres, tmp_path: Path) -> None:
    """Columns and expressions have the same ones, and nothing is analyzed."""
    with backed_up(server, tmp_path, "ANALYZE") as made:
        before = known(made.target)
        made.restored()
        assert known(made.target) == before
        assert {"finding", "finding_title"} == {table for table, *_ in before}
        assert ask(made.target, ANALYZED) is None


def test_sizes_are_those_of_the_restored_table(server: EmbeddedPostgres, tmp_path: Path) -> None:
    """The planner divides the rows by the pages: those of a source that is mostly air would mislead it."""
    grown = ["UPDATE finding SET title = title || '!'"] * 6
    with backed_up(server, tmp_path, *grown, "ANALYZE") as made:
        pages = "SELECT relpages FROM pg_class WHERE relname = 'finding'"
        bloated = ask(made.target, pages)
        made.restored()
        assert ask(made.target, ANALYZED) is None
        assert ask(made.target, pages) == ask(made.target, "SELECT pg_relation_size('finding') / 8192")
        assert ask(made.target, pages) < bloated / 3
        assert ask(made.target, "SELECT reltuples FROM pg_class WHERE relname = 'finding'") == 2000


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM finding WHERE id > 1000",
        "INSERT INTO finding SELECT n FROM generate_series(3000, 4000) AS n",
        "ALTER TABLE finding ADD COLUMN newer integer DEFAULT 1",
        "CREATE INDEX finding_newer ON finding (upper(title))",
        "CREATE STATISTICS of_both ON title, severity FROM finding; ANALYZE",
        "CREATE TABLE child () INHERITS (finding)",
    ],
)
def test_what_does_not_fit_is_analyzed(server: EmbeddedPostgres, tmp_path: Path, statement: str) -> None:
    """Statistics of another number of rows, and incomplete ones, are replaced."""
    with backed_up(server, tmp_path, "ANALYZE", statement) as made:
        made.restored()
        assert "finding" in ask(made.target, ANALYZED).split(",")
        restored = known(made.target)
        execute(made.target, "ANALYZE")
        assert [row[:2] for row in restored] == [row[:2] for row in known(made.target)]


def test_a_source_without_statistics(server: EmbeddedPostgres, tmp_path: Path) -> None:
    """What the source did not have is gathered."""
    with backed_up(server, tmp_path) as made:
        assert known(made.target) == []
        made.restored()
        assert {table for table, *_ in known(made.target)} == {"finding", "finding_title"}


def test_a_target_of_zero_needs_no_statistics(server: EmbeddedPostgres, tmp_path: Path) -> None:
    """Columns for which nobody wants statistics do not make the table analyzed."""
    with backed_up(server, tmp_path, "ALTER TABLE finding ALTER severity SET STATISTICS 0", "ANALYZE") as made:
        made.restored()
        assert ask(made.target, ANALYZED) is None


def test_an_owner_without_privileges(server: EmbeddedPostgres, tmp_path: Path) -> None:
    """The owner may give statistics to its tables."""
    server.create_role("app", password="x")
    with backed_up(server, tmp_path, "ALTER TABLE finding OWNER TO app", "ANALYZE", owner="app") as made:
        execute(replace(made.target, name="postgres"), "ALTER ROLE app CREATEDB")
        before = known(made.target)
        made.restored(target=replace(made.target, user="app", password=Secret("x")))
        assert known(made.target) == before
        assert ask(made.target, ANALYZED) is None


def test_views_and_partitioned_tables_have_theirs(server: EmbeddedPostgres, tmp_path: Path) -> None:
    """No server analyzes a partitioned table by itself."""
    statements = (
        "CREATE TABLE event (id integer) PARTITION BY HASH (id)",
        "CREATE TABLE event_0 PARTITION OF event FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        "INSERT INTO event SELECT generate_series(1, 500)",
        "CREATE MATERIALIZED VIEW totals AS SELECT severity, count(*) FROM finding GROUP BY severity",
    )
    with backed_up(server, tmp_path, *statements, "ANALYZE") as made:
        before = known(made.target)
        made.restored()
        assert known(made.target) == before
        assert {"event", "event_0", "totals"} <= {table for table, *_ in before}


def test_without_autovacuum_everything_is_analyzed(
    server_of: Callable[[int], EmbeddedPostgres], tmp_path: Path
) -> None:
    """Nothing else would replace statistics that have aged."""
    with backed_up(server_of(18), tmp_path, "ANALYZE") as made:
        made.restored()
        assert ask(made.target, ANALYZED) == "finding"


def test_in_place_they_are_gathered_anew(server: EmbeddedPostgres, tmp_path: Path) -> None:
    """The transaction over the live tables has nothing to do with statistics."""
    with backed_up(server, tmp_path, "ANALYZE") as made:
        execute(made.target, "DELETE FROM finding WHERE id > 10", "ANALYZE")
        made.restored(mode=IN_PLACE)
        assert ask(made.target, ANALYZED) == "finding"
        assert {table for table, *_ in known(made.target)} == {"finding", "finding_title"}
        assert ask(made.target, "SELECT count(*) FROM finding") == 2000


@pytest.mark.parametrize("major", [15, 17])
def test_an_older_server_is_not_asked_to_accept_them(
    server: EmbeddedPostgres, server_of: Callable[[int], EmbeddedPostgres], tmp_path: Path, major: int
) -> None:
    """A new pg_restore would run what an old server refuses."""
    older = server_of(major)
    target = new_database(older)
    try:
        with backed_up(server, tmp_path, "ANALYZE") as made:
            assert STATISTICS in kinds(made)
            before = known(made.target)
            replace(made, target=target).restored()
            assert [row[:2] for row in known(target)] == [row[:2] for row in before]
            assert ask(target, ANALYZED) == "finding"
    finally:
        remove(target)
        older.drop_database(target.name)


@pytest.mark.parametrize("major", [15, 17])
def test_a_dump_of_an_older_server_has_none(
    server_of: Callable[[int], EmbeddedPostgres], tmp_path: Path, major: int
) -> None:
    """By hand, the new pg_restore that belongs to the dump restores it to the server that it comes from."""
    older, newer_programs = server_of(major), bin_dir_of(18)
    assert newer_programs is not None
    target = new_database(older)
    execute(target, TABLE, "ANALYZE")
    try:
        with bench(target, newer_programs, tmp_path) as made:
            assert STATISTICS not in kinds(made)
            made.restored()
            assert ask(target, ANALYZED) == "finding"
    finally:
        older.drop_database(target.name)
