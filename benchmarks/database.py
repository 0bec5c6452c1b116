"""The databases to dump, on the embedded PostgreSQL, filled for each run of the benchmark."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path  # noqa: TC003  (a field of a dataclass)
from typing import TYPE_CHECKING

from benchmarks.measure import Command, run
from benchmarks.portal_schema import enlarge
from demo.portal import fill
from demo.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "defectdojo"
_OF_FINDINGS = 0.45
"""The share of findings in a portal's database; their history takes as much again."""


class Shape(StrEnum):
    """The structure of a database."""

    FINDINGS = "findings"
    """Nine tables, most of it findings."""

    PORTAL = "portal"
    """Two hundred tables with the indexes, constraints and triggers of a real portal."""


@dataclass(frozen=True, kw_only=True)
class Database:
    """A database of a given size, or one loaded from a dump.

    Arguments:
        megabytes: the size of an uncompressed dump.
        shape: its structure.
        dump: a file of `pg_dump -Fc` to load instead.
        bin_dir: the programs of the PostgreSQL to use; None for the embedded one.
    """

    megabytes: int = 1
    shape: Shape = Shape.FINDINGS
    dump: Path | None = None
    bin_dir: Path | None = None

    def scaled(self, scale: float) -> Database:
        """Return a database of `scale` times the size, at least one megabyte; a dump's size is fixed."""
        return replace(self, megabytes=max(1, round(self.megabytes * scale)))

    def description(self) -> str:
        """Return shape and size in words."""
        if self.dump:
            return f"the database of {self.dump.name}"
        return f"a {self.shape.value} database of {self.megabytes} MB"


@contextmanager
def serving(database: Database) -> Iterator[dict[str, str]]:
    """Run a server with this database, and yield the placeholders for commands.

    Raises:
        ConfigurationError: the embedded PostgreSQL is not installed, or did not start.
        CommandFailedError: the dump could not be loaded.
    """
    with EmbeddedPostgres(bin_dir=database.bin_dir) as server:
        address = server.superuser(NAME)
        words = {
            "pg_bin": str(server.bin_dir),
            "host": address.host,
            "port": str(address.port),
            "name": address.database,
            "user": address.user,
            "password": address.password,
        }
        _fill(server, database, words)
        yield words


def _fill(server: EmbeddedPostgres, database: Database, words: dict[str, str]) -> None:
    """Fill the database, and let the server finish its own work, such as vacuuming, before anything is measured."""
    server.create_database(NAME)
    if database.dump:
        run(_load(database.dump).filled(words))
    with server.connect(NAME) as connection:
        if not database.dump:
            is_portal = database.shape is Shape.PORTAL
            part = _OF_FINDINGS if is_portal else 1
            fill(connection, megabytes=max(1, round(database.megabytes * part)))
            if is_portal:
                enlarge(connection)
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")


def _load(dump: Path) -> Command:
    connection = ("--host", "{host}", "--port", "{port}", "--username", "{user}", "--dbname", "{name}")
    options = ("--no-owner", "--no-privileges", "--exit-on-error", str(dump).replace("{", "{{").replace("}", "}}"))
    return Command(argv=("{pg_bin}/pg_restore", *connection, *options), env={"PGPASSWORD": "{password}"})
