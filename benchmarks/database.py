"""The database that is dumped: findings on the embedded PostgreSQL, filled anew for every start."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from demo.portal import fill
from demo.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "defectdojo"


@dataclass(frozen=True, kw_only=True)
class Database:
    """A findings database of so many megabytes."""

    megabytes: int

    def scaled(self, scale: float) -> Database:
        """Return a database of `scale` times the size, one megabyte at the least."""
        return Database(megabytes=max(1, round(self.megabytes * scale)))

    def description(self) -> str:
        """Return the size in words."""
        return f"{self.megabytes} MB"


@contextmanager
def serving(database: Database) -> Iterator[dict[str, str]]:
    """Run a server with this database, and yield the words by which commands name it.

    Raises:
        ConfigurationError: the embedded PostgreSQL is not installed, or did not start.
    """
    with EmbeddedPostgres() as server:
        _fill(server, database)
        address = server.superuser(NAME)
        yield {
            "pg_bin": str(server.bin_dir),
            "host": address.host,
            "port": str(address.port),
            "name": address.database,
            "user": address.user,
            "password": address.password,
        }


def _fill(server: EmbeddedPostgres, database: Database) -> None:
    """Fill the database and leave nothing for the server to do later, such as vacuuming while a dump is measured."""
    server.create_database(NAME)
    with server.connect(NAME) as connection:
        fill(connection, megabytes=database.megabytes)
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")
