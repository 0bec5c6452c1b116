"""Databases to restore: the portal's, one with a bit of everything, and one with an owner of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from portal.ops.restore.database.restore import RestoreMode
from portal.ops.settings.database_url import DatabaseTarget, Secret
from tests.support.restoring import ask, bench, elsewhere, execute, remove

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.postgres import EmbeddedPostgres
    from portal.ops.runtime.process import RunningProcess
    from tests.support.restoring import Bench


PASSWORD = "correct horse"
RICH_SCHEMA = Path(__file__).with_name("rich_schema.sql")
SWAP, IN_PLACE = RestoreMode.SWAP, RestoreMode.IN_PLACE
LATER = (
    "DELETE FROM note",
    "UPDATE finding SET title = 'changed' WHERE id % 2 = 0",
    "ALTER TABLE product ADD COLUMN newer integer DEFAULT 1",
    "DROP TABLE finding_endpoint",
    "CREATE TABLE newer (id integer PRIMARY KEY)",
    "INSERT INTO newer VALUES (1)",
)


@pytest.fixture
def portal(portal_database: DatabaseTarget, postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Bench]:
    """A portal's database and its dump."""
    with bench(portal_database, postgres.bin_dir, tmp_path) as made:
        yield made


@pytest.fixture
def rich(postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Bench]:
    """A database that has a bit of everything, and its dump."""
    target = new_database(postgres)
    if not ask(elsewhere(target), "SELECT count(*) FROM pg_roles WHERE rolname = 'reader'"):
        postgres.create_role("reader", password=PASSWORD)
    execute(target, RICH_SCHEMA.read_text())
    with bench(target, postgres.bin_dir, tmp_path) as made:
        yield made
    postgres.drop_database(target.name)


@pytest.fixture
def owned(postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Bench]:
    """A small database that belongs to a role of its own, without any privilege."""
    role = f"app_{uuid4().hex[:8]}"
    postgres.create_role(role, password=PASSWORD)
    target = replace(new_database(postgres, owner=role), user=role, password=Secret(PASSWORD))
    execute(target, "CREATE TABLE finding AS SELECT n FROM generate_series(1, 100) AS n")
    with bench(target, postgres.bin_dir, tmp_path) as made:
        yield made
        administrator = as_superuser(target, postgres)
        remove(administrator)
    postgres.drop_database(target.name)
    execute(elsewhere(administrator), f"DROP ROLE {role}")


def new_database(postgres: EmbeddedPostgres, name: str = "", owner: str = "postgres") -> DatabaseTarget:
    name = name or f"live_{uuid4().hex[:12]}"
    postgres.create_database(name, owner=owner)
    address = postgres.superuser(name)
    password = Secret(address.password)
    return DatabaseTarget(host=address.host, port=address.port, name=name, user=address.user, password=password)


def as_superuser(target: DatabaseTarget, postgres: EmbeddedPostgres) -> DatabaseTarget:
    address = postgres.superuser()
    return replace(target, user=address.user, password=Secret(address.password))


def plan_of(made: Bench, **options: Any) -> Any:
    return made.restore(**options).plan(dump_major=17, dump_bytes=made.dump.stat().st_size, row_counts=made.rows)


class Recorder:
    """A runner that remembers what it was asked to start."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.commands: list[str] = []

    def start(self, argv: Any, **options: Any) -> RunningProcess:
        """Note the command, and start it."""
        self.commands.append(" ".join(map(str, argv)))
        process: RunningProcess = self._runner.start(argv, **options)
        return process
