"""A backup of each version of PostgreSQL is restored to each newer one, with all that real portals have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.postgres.dump import open_dump
from portal.ops.runtime.process import SystemRunner
from portal.ops.settings.database_url import DatabaseTarget, Secret
from tests.support.database_contents import read_contents
from tests.support.database_restores import SWAP
from tests.support.majors import server_of
from tests.support.restoring import Bench, ask, execute, remove

if TYPE_CHECKING:
    from collections.abc import Callable

    from demo.postgres import EmbeddedPostgres

__all__ = ["server_of"]

SCHEMA = Path(__file__).parents[2] / "support" / "real_portal.sql"
PAIRS = [(15, 15), (15, 17), (15, 18), (17, 18)]


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
    bench = Bench(target=target, bin_dir=new.bin_dir, dump=dump, rows=rows, runner=runner)
    try:
        restore = bench.restore(mode=SWAP, create_database=True)
        restore.stage(bench.source(), rows, made.facts.identity)
        restore.apply()
        after = {table: found for table, found in read_contents(target).items() if table.startswith("rows of ")}
        assert after == before
        assert ask(target, "SHOW work_mem") == "5MB"
        assert (
            ask(target, "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", name) == "x"
        )
        assert bench.databases() == {name}
        restore.rollback()
        assert name not in bench.databases()
    finally:
        remove(target)
        new.drop_database(name)
