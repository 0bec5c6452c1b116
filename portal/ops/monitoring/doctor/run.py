"""Checks everything that a backup and a restore need, and says how to correct it; changes nothing.

The checks are a list, to which front ends add theirs (a broker, workers).
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from portal.ops.monitoring.doctor.check import Check, Finding, State, examine, fault, ok, warning
from portal.ops.monitoring.doctor.commands import command_checks
from portal.ops.monitoring.doctor.database import DatabaseChecks
from portal.ops.monitoring.doctor.files import FileChecks
from portal.ops.monitoring.doctor.offsite import OffsiteChecks
from portal.ops.monitoring.doctor.pitr import PitrChecks
from portal.ops.monitoring.doctor.repository import RepositoryChecks
from portal.ops.repository.repository import Repository
from portal.ops.runtime.process import ProcessRunner, SystemRunner
from portal.ops.runtime.progress import Clock, utc_now

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from portal.ops.settings.load import Settings

__all__ = ["Check", "Finding", "State", "engine_checks", "examine", "fault", "ok", "warning"]


@contextmanager
def engine_checks(
    settings: Settings, *, environ: Mapping[str, str], runner: ProcessRunner | None = None, clock: Clock = utc_now
) -> Iterator[list[Check]]:
    """The checks of repository, files and database; the last step closes their connection.

    Arguments:
        environ: the variables of this process: which secrets are set, and in which files.
        runner: starts pg_dump and pg_restore to ask for their versions.
        clock: returns the current time.
    """
    runner = runner or SystemRunner()
    data = {"the uploads": settings.upload_dir, "the audit log": settings.audit_dir}
    repository = RepositoryChecks(
        Repository(settings.local_path),
        data={what: Path(path) for what, path in data.items() if path},
        clock=clock,
        wanted_id=settings.repository_id,
    )
    files = FileChecks(
        uploads=settings.upload_dir,
        audit=settings.audit_dir,
        environ=environ,
        has_key=settings.portal.credential_key is not None,
    )
    database = DatabaseChecks(
        settings.database,
        runner=runner,
        bin_dir=settings.pg_bin_dir,
        repository=settings.local_path,
        clock=clock,
    )
    try:
        portal = command_checks(settings.portal)
        recovery = PitrChecks(settings, runner=runner)
        copies = OffsiteChecks(settings).checks()
        yield [*repository.all(), *files.all(), *database.all(), *recovery.all(), *copies, *portal]
    finally:
        database.close()
