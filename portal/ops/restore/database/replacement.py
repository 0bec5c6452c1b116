"""Replaces the contents of the live database in one transaction, and rolls that back."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portal.ops.errors import ConfigurationError, OpsError
from portal.ops.postgres.dump_file import read_dump_major
from portal.ops.postgres.identity import give_identity
from portal.ops.postgres.pg_restore import find_restorer
from portal.ops.postgres.removal import disabled_subscriptions
from portal.ops.postgres.server import create_like, end_orphans, find_database, maintenance, read_me
from portal.ops.restore.database.in_place import Before, no_safety_dump, replace_contents, roll_back
from portal.ops.restore.database.means import database_absent
from portal.ops.restore.database.settle import settle
from portal.ops.restore.database.stage import check, known_owner

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from portal.ops.postgres.dump_file import Dump
    from portal.ops.postgres.identity import DatabaseIdentity
    from portal.ops.postgres.pg_restore import Restorer
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.settings.database_url import DatabaseTarget


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """The result of a replacement.

    Arguments:
        downtime_seconds: seconds during which the live database could not be used.
        warnings: warnings for the report.
    """

    downtime_seconds: float
    warnings: tuple[str, ...] = ()


class Replacement:
    """Replaces the contents of a live database for one restore.

    Arguments:
        safety_dump: the file for the previous contents.
        runner: starts pg_restore and pg_dump.
        bin_dir: the only directory to look for them in; None looks everywhere.
        jobs: the number of connections.
        create_database: create the database if there is none.
        owner: its owner if it is created.
    """

    def __init__(
        self,
        target: DatabaseTarget,
        restore_id: str,
        safety_dump: Path | None,
        *,
        runner: ProcessRunner,
        bin_dir: Path | None,
        jobs: int,
        create_database: bool,
        owner: str | None,
    ) -> None:
        self.target = target
        self.restore_id = restore_id
        self._safety_dump = safety_dump
        self._runner = runner
        self._bin_dir = bin_dir
        self._jobs = jobs
        self._create_database = create_database
        self._owner = owner

    def before(self) -> Before | None:
        """The previous contents, if they are kept."""
        return None if self._safety_dump is None else Before.load(self._safety_dump, self.restore_id)

    def restorer(self, dump_major: int | None) -> Restorer:
        """The pg_restore for this server and a dump."""
        with maintenance(self.target) as connection:
            server_major = connection.info.server_version // 10000
        return find_restorer(server_major, dump_major, runner=self._runner, bin_dir=self._bin_dir)

    def replace(self, dump: Dump, rows: Mapping[str, int], identity: DatabaseIdentity | None) -> Replaced:
        """Replace the contents with those of a dump, and keep the previous ones.

        Arguments:
            rows: rows by table in the manifest.
            identity: the manifest's facts about the database itself.

        Raises:
            OpsError: the server refused; the live database is unchanged.
        """
        if self._safety_dump is None:
            raise ConfigurationError("a restore in place needs a path for its safety dump", hint="give safety_dump")
        created = self._create_where_absent(identity)
        before = Before.save(
            self.target,
            self._safety_dump,
            rows,
            restore_id=self.restore_id,
            runner=self._runner,
            bin_dir=self._bin_dir,
        )
        started = time.monotonic()
        try:
            restorer = self.restorer(dump.major())
            replace_contents(self.target, dump.path, restorer=restorer, restore_id=self.restore_id)
        except OpsError:
            if not self._came_through(before):
                raise
        downtime = time.monotonic() - started
        differences = _differences(self.target, settle(self.target, self._jobs), rows)
        return Replaced(
            downtime_seconds=downtime, warnings=(*created, *differences, *disabled_subscriptions(self.target))
        )

    def replace_back(self) -> Replaced:
        """Restore the previous contents.

        Raises:
            RestoreError: they are not kept.
            OpsError: the server refused; the live database is unchanged.
        """
        before = self.before()
        if before is None:
            raise no_safety_dump()
        started = time.monotonic()
        restorer = self.restorer(read_dump_major(before.dump))
        roll_back(self.target, before, restorer=restorer, restore_id=self.restore_id)
        downtime = time.monotonic() - started
        settle(self.target, self._jobs)
        before.remove()
        return Replaced(downtime_seconds=downtime)

    def _came_through(self, before: Before) -> bool:
        """True if the server committed although its client failed: the connection may break between the two."""
        with suppress(OpsError):
            end_orphans(self.target, self.restore_id)
            return before.is_replaced(self.target)
        return False

    def _create_where_absent(self, identity: DatabaseIdentity | None) -> tuple[str, ...]:
        """Create the database if there is none; return warnings."""
        with maintenance(self.target) as connection:
            if find_database(connection, self.target.name) is not None:
                return ()
            if not self._create_database:
                raise database_absent(self.target)
            owner = self._owner or known_owner(connection, identity) or read_me(connection).name
            warnings = tuple(create_like(connection, self.target.name, identity, owner))
            if identity is not None:
                name = self.target.name
                warnings += tuple(give_identity(connection, identity, name, shown_as=name, owner=owner))
            return warnings


def _differences(target: DatabaseTarget, found: Mapping[str, int], rows: Mapping[str, int]) -> tuple[str, ...]:
    """Tables whose counts differ from the manifest: newer rows of the portal, or incomplete loading."""
    known = {table: count for table, count in found.items() if table in rows}
    checked = check(target, known, rows)
    return (*checked.wrong, *checked.warnings())
