"""A backup of each version of PostgreSQL is restored to that one and each newer one, with all that portals have."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import RestoreError
from portal.ops.postgres.dump import open_dump
from portal.ops.postgres.server import create_like
from portal.ops.runtime.process import SystemRunner
from portal.ops.settings.database_url import DatabaseTarget, Secret
from tests.support.database_contents import read_contents
from tests.support.database_restores import IN_PLACE, SWAP
from tests.support.majors import majors, server_of
from tests.support.restoring import Bench, ask, bench, execute, identity, planned, remove

if TYPE_CHECKING:
    from collections.abc import Callable

    from demo.postgres import EmbeddedPostgres

__all__ = ["server_of"]

pytestmark = pytest.mark.xdist_group("majors")

SCHEMA = Path(__file__).parents[2] / "support" / "real_portal.sql"
PROVIDER = "SELECT datlocprovider FROM pg_database WHERE datname = 'newer_locale'"
PAIRS = list(combinations_with_replacement(majors(), 2))


def database(server: EmbeddedPostgres, name: str) -> DatabaseTarget:
    """A database of a server, for the superuser."""
    address = server.superuser(name)
    return DatabaseTarget(
        host=address.host, port=address.port, name=name, user=address.user, password=Secret(address.password)
    )


def prepare(server: EmbeddedPostgres, name: str) -> DatabaseTarget:
    """An empty database, on a server that has the role that the schema names."""
    target = database(server, name)
    if not ask(replace(target, name="postgres"), "SELECT count(*) FROM pg_roles WHERE rolname = 'reader'"):
        server.create_role("reader", password="x")
    server.create_database(name)
    return target


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_a_dump_of_one_version_is_restored_to_another(
    server_of: Callable[[int], EmbeddedPostgres], tmp_path: Path, source: int, destination: int
) -> None:
    """Every row of every table is there, by the names that the older server knew, and so are owner and settings."""
    name = f"portal_{source}_{destination}"
    old, new = server_of(source), server_of(destination)
    live = prepare(old, name)
    execute(
        live, SCHEMA.read_text(), f"ALTER DATABASE {name} SET work_mem = '5MB'", f"COMMENT ON DATABASE {name} IS 'x'"
    )
    runner, dump = SystemRunner(), tmp_path / "database.sql"
    with open_dump(live, runner=runner, bin_dir=old.bin_dir, timeout_seconds=60) as made:
        dump.write_bytes(made.stdout.read())
        rows = made.finish().row_counts
    before = {table: found for table, found in read_contents(live).items() if table.startswith("rows of ")}
    old.drop_database(name)
    target = database(new, name)
    if not ask(replace(target, name="postgres"), "SELECT count(*) FROM pg_roles WHERE rolname = 'reader'"):
        new.create_role("reader", password="x")
    made_new = Bench(target=target, bin_dir=new.bin_dir, dump=dump, rows=rows, runner=runner)
    try:
        restore = made_new.restore(mode=SWAP, create_database=True)
        restore.stage(made_new.source(), rows, made.facts.identity)
        restore.apply()
        after = {table: found for table, found in read_contents(target).items() if table.startswith("rows of ")}
        assert after == before
        assert ask(target, "SHOW work_mem") == "5MB"
        assert (
            ask(target, "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", name) == "x"
        )
        assert made_new.databases() == {name}
        restore.rollback()
        assert name not in made_new.databases()
    finally:
        remove(target)
        new.drop_database(name)


def test_in_place_on_a_server_older_than_all_programs(
    server_of: Callable[[int], EmbeddedPostgres], tmp_path: Path
) -> None:
    """Everything or nothing, and the rollback too, although the programs make a setting that the server lacks."""
    server = server_of(15)
    target = prepare(server, "older")
    execute(
        target,
        "CREATE TABLE kept AS SELECT n, 'SET transaction_timeout = 0;' AS line FROM generate_series(1, 9) AS n",
    )
    try:
        with bench(target, server_of(18).bin_dir, tmp_path) as made:
            execute(target, "DELETE FROM kept WHERE n > 5")
            before = read_contents(target)
            restore = made.restored(mode=IN_PLACE)
            assert ask(target, "SELECT count(*) FROM kept WHERE line = 'SET transaction_timeout = 0;'") == 9
            restore.rollback()
            assert read_contents(target) == before
            execute(target, "CREATE VIEW newer AS SELECT * FROM kept")
            with pytest.raises(RestoreError, match="psql failed: cannot drop table"):
                made.restored(mode=IN_PLACE)
            assert ask(target, "SELECT count(*) FROM newer") == 5
    finally:
        server.drop_database(target.name)


def test_a_plan_names_an_older_server_only_if_the_source_was_newer(
    server_of: Callable[[int], EmbeddedPostgres], tmp_path: Path
) -> None:
    """Neither is it one where only pg_dump was newer."""
    old, new = server_of(15), server_of(17)
    there, here = prepare(old, "planned"), prepare(new, "planned")
    try:
        with bench(there, new.bin_dir, tmp_path) as made:
            assert not any("older" in warning for warning in planned(made).warnings)
        with bench(here, new.bin_dir, tmp_path) as made:
            moved = replace(made, target=there)
            (said,) = [warning for warning in planned(moved).warnings if "older" in warning]
            assert said.startswith("the backup is from PostgreSQL 17, and this server is older: 15")
    finally:
        old.drop_database("planned")
        new.drop_database("planned")


@pytest.mark.parametrize(
    "locale",
    [
        {"provider": "b", "locale": "C.UTF-8"},
        {"provider": "i", "locale": "de-DE", "icu_rules": "&V << w <<< W"},
    ],
)
def test_a_locale_that_an_older_server_does_not_know(
    server_of: Callable[[int], EmbeddedPostgres], locale: dict[str, str]
) -> None:
    """The database is there all the same, and the warning says how it orders texts."""
    server = server_of(15)
    try:
        with server.connect() as connection:
            said = create_like(connection, "newer_locale", identity(**locale), "postgres")
            (provider,) = connection.execute(PROVIDER).fetchone() or ("",)
        assert provider == "c"
        assert len(said) == 1
        assert said[0].startswith(f"this server does not have the backup's locale {locale['locale']} (option ")
    finally:
        server.drop_database("newer_locale")


def test_an_extension_whose_name_has_to_be_quoted(server_of: Callable[[int], EmbeddedPostgres], tmp_path: Path) -> None:
    """In place, the owner restores over a database with an extension that only an administrator may drop."""
    server = server_of(15)
    server.create_role("app", password="x")
    server.create_database("quoted", owner="app")
    admin = database(server, "quoted")
    execute(admin, 'CREATE EXTENSION "uuid-ossp"', "CREATE EXTENSION pg_trgm")
    target = replace(admin, user="app", password=Secret("x"))
    execute(target, "CREATE TABLE finding AS SELECT uuid_generate_v4() AS id FROM generate_series(1, 10)")
    try:
        with bench(target, server.bin_dir, tmp_path) as made:
            execute(target, "DELETE FROM finding")
            made.restored(mode=IN_PLACE)
            assert ask(target, "SELECT count(*) FROM finding") == 10
            assert ask(admin, "SELECT count(*) FROM pg_extension WHERE extname = 'uuid-ossp'") == 1
    finally:
        server.drop_database("quoted")
