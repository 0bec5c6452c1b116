"""The database part of a restore to a moment: recovered on a scratch server, and restored from there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import ConfigurationError, DatabaseAbsentError
from portal.ops.pitr.recovery import recovered
from portal.ops.pitr.scratch import scratch_parent, server_owner
from portal.ops.postgres.connection import connect
from portal.ops.restore.components import DatabasePart, PlannedPart
from portal.ops.restore.database.model import RestoreMode
from portal.ops.restore.database.plan import UNKNOWN_ROWS
from portal.ops.restore.scratch_dump import RowCounts, ScratchDump

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.archive.protocol import Archive
    from portal.ops.errors import OpsError
    from portal.ops.manifest import Manifest
    from portal.ops.pitr.plan import RecoveryPlan
    from portal.ops.pitr.scratch_server import ScratchServer
    from portal.ops.repository.repository import Repository
    from portal.ops.restore.database.restore import DatabaseRestore
    from portal.ops.restore.plan import PartPlan
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.runtime.progress import Advance
    from portal.ops.settings.load import DatabaseTarget

_DATABASES: Final = "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres' ORDER BY 1"


@dataclass(frozen=True, kw_only=True)
class _RecoveredPlan:
    """The plan for the database, and where it is recovered from."""

    database: PartPlan
    recovery: RecoveryPlan

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings."""
        return tuple(warning for warning in self.database.warnings if warning != UNKNOWN_ROWS)

    @property
    def blockers(self) -> tuple[OpsError, ...]:
        """The errors that make it impossible."""
        return self.database.blockers

    def lines(self) -> list[str]:
        """The plan in plain words."""
        rows = "The rows of every table are counted in the scratch server, and after the restore"
        lines = (rows if line.startswith("In the backup:") else line for line in self.database.lines())
        return [*self.recovery.lines(with_dump=True), *lines]


class RecoveredDatabasePart(DatabasePart):
    """The database at a moment: recovered on a scratch server, and restored from there.

    Arguments:
        recovery: how to recover to the moment.
        source: the name of the database in the cluster.
    """

    def __init__(
        self,
        restore: DatabaseRestore,
        directory: Path,
        *,
        recovery: RecoveryPlan,
        source: str,
        repository: Repository,
        runner: ProcessRunner,
        bin_dir: Path | None,
        lock_timeout: float,
        **others: Any,
    ) -> None:
        super().__init__(restore, directory, **others)
        self._recovery = recovery
        self._source = source
        self._repository = repository
        self._runner = runner
        self._bin_dir = bin_dir
        self._lock_timeout = lock_timeout

    def plan(self, archive: Archive, manifest: Manifest) -> PlannedPart:  # noqa: ARG002  (the database is in none)
        """The plan for the database.

        Room is needed for the scratch server; in place, also for the dump and a safety dump of the live database.
        """
        size = self._recovery.cluster_bytes
        plan = self._restore.plan(dump_major=self._recovery.major, dump_bytes=size, row_counts={})
        is_in_place = plan.mode is RestoreMode.IN_PLACE
        return PlannedPart(
            part=self,
            plan=_RecoveredPlan(database=plan, recovery=self._recovery),
            manifest=manifest,
            stage_place=self._directory if is_in_place else scratch_parent(self._repository.path, server_owner()),
            stage_bytes=2 * size if is_in_place else self._recovery.needed_bytes,
            content_bytes=2 * size,  # the cluster, and about the same again for the dump
            record={**self.record(), "mode": plan.mode.value},
        )

    def stage(self, planned: PlannedPart, archive: Archive, advance: Advance) -> None:  # noqa: ARG002
        """Recover the cluster, then fill and check a database next to the live one."""
        self._make_directory()
        recovering = recovered(
            self._repository,
            self._recovery,
            runner=self._runner,
            bin_dir=self._bin_dir,
            jobs=self._jobs,
            lock_timeout=self._lock_timeout,
            advance=advance,
        )
        with recovering as server:
            target = server.target(self._source)
            _must_be_there(target, server)
            rows = RowCounts(target)
            with ScratchDump(target, self._recovery.major, runner=self._runner, bin_dir=self._bin_dir) as scratch:
                self._restore.stage(scratch.dump(self._dump, advance), rows)


def _must_be_there(target: DatabaseTarget, server: ScratchServer) -> None:
    """Refuse a name that no recovered database has, such as that of a new portal's database."""
    try:
        connect(target).close()
    except DatabaseAbsentError as error:
        with connect(server.target("postgres")) as connection:
            names = ", ".join(name for (name,) in connection.execute(_DATABASES))
        raise ConfigurationError(
            f"the recovered server has no database {target.name}, but {names}",
            hint="Set DD_DATABASE_NAME to the name that it had; --target-database names the one that is restored to.",
        ) from error
