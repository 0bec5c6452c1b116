"""A portal, its backup, and what a restore makes of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.model import RESTORE_DIRECTORY
from portal.ops.postgres.server import maintenance
from portal.ops.restore.job import RestoreConfig, RestoreJob, RestorePlan
from tests.support.portal import Portal, portal_in, succeeded
from tests.support.restoring import execute, remove

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from demo.postgres import EmbeddedPostgres
    from portal.ops.settings.load import DatabaseTarget
from typing import TYPE_CHECKING

from demo.compare import table_contents, tree_contents

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.postgres import EmbeddedPostgres

State = tuple[dict[str, tuple[int, str]], dict[str, tuple[int, int, str]]]


@dataclass(frozen=True, kw_only=True)
class World:
    """A portal that was backed up and has changed since.

    Arguments:
        archive: the backup.
        before: database and uploads as they were when it was made.
        after: and as they are now.
    """

    portal: Portal
    server: EmbeddedPostgres
    archive: Path
    before: State
    after: State

    def job(self, *, confirm: Callable[[RestorePlan], bool] | None = None, **changes: Any) -> RestoreJob:
        """A job that restores this portal; what is newer than the backup does not stay."""
        clock = changes.pop("clock", None)
        changes.setdefault("exact", not changes.get("patterns"))
        return RestoreJob(config_of(self.portal, **changes), confirm=confirm, **({"clock": clock} if clock else {}))

    def state(self, database: str | None = None) -> State:
        """Database and uploads as they are."""
        return state_of(self.portal, self.server, database)

    def databases(self) -> set[str]:
        """The names of all databases of this portal on the server."""
        name = self.portal.database.name
        with maintenance(self.portal.database) as connection:
            return {str(found) for (found,) in connection.execute("SELECT datname FROM pg_database") if name in found}

    def stages(self) -> list[str]:
        """What restores have left in the uploads and beside the audit log."""
        places = [root / RESTORE_DIRECTORY for root in (self.portal.uploads, self.portal.directory)]
        return [name for place in places if place.exists() for name in os.listdir(place)]


def config_of(portal: Portal, **changes: Any) -> RestoreConfig:
    arguments: dict[str, Any] = {
        "local_path": portal.archives,
        "db_host": portal.database.host,
        "db_port": portal.database.port,
        "db_name": portal.database.name,
        "db_user": portal.database.user,
        "db_password": portal.database.password,
        "media_path": portal.uploads,
        "audit_log_path": portal.audit,
        "pg_bin_dir": portal.bin_dir,
        "jobs": 2,
    }
    return RestoreConfig(**(arguments | changes))


@pytest.fixture
def world(tmp_path: Path, portal_database: DatabaseTarget, postgres: EmbeddedPostgres) -> Iterator[World]:
    """A portal with a backup that it differs from."""
    portal = portal_in(tmp_path, portal_database, postgres)
    execute(portal_database, "CREATE TABLE mark AS SELECT 'before' AS value")
    archive = succeeded(portal.job().backup_full())
    before = state_of(portal, postgres)
    change(portal)
    after = state_of(portal, postgres)
    yield World(portal=portal, server=postgres, archive=archive, before=before, after=after)
    remove(portal_database)


def state_of(portal: Portal, server: EmbeddedPostgres, database: str | None = None) -> State:
    with server.connect(database or portal.database.name) as connection:
        tables = table_contents(connection)
    files = tree_contents(portal.uploads)
    return tables, files


def change(portal: Portal) -> None:
    """What happens to a portal between a backup and the wish to have it back."""
    execute(
        portal.database,
        "UPDATE mark SET value = 'after'",
        "UPDATE finding SET title = 'changed' WHERE id % 2 = 0",
        "TRUNCATE note",
        "CREATE TABLE newer AS SELECT 1 AS n",
    )
    changed, removed, *_ = sorted(path for path in portal.uploads.rglob("*") if path.is_file())
    changed.write_text("changed")
    removed.unlink()
    (portal.uploads / "newer.sarif").write_text("newer")
