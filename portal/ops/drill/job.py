"""A drill: really restores an archive next to the live data, compares it with the backup, and removes it.

    recover   remove what killed drills have left
    restore   restore to a scratch database and a scratch directory, and take the time
    compare   compare every table's rows, every index and constraint, every file's content, mode and time
    check     check the portal beyond its data: files that rows refer to, the credential key, its own command
    forget    drop and remove the scratch data in any case
    report    save the report in `.drills/`, and the result as the highest level of verification

Of the live database only encoding and locale are read; the live files are not read at all.
"""

from __future__ import annotations

import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from portal.ops.archive.damage import Damage
from portal.ops.chains.reader import open_tree
from portal.ops.drill.compare import Comparison
from portal.ops.drill.moments import Shown, drill_moments
from portal.ops.drill.portal_checks import PortalCheckConfig, PortalChecks
from portal.ops.drill.report import DIRECTORY, DrillReport, DrillReports
from portal.ops.drill.scratch import Scratch, drills_locked, throw_remains_away
from portal.ops.errors import (
    ArchiveAbsentError,
    BusyError,
    ConfigurationError,
    NotIntactError,
    OpsError,
    RepositoryError,
)
from portal.ops.hints import Advice
from portal.ops.limits import system_errors
from portal.ops.model import CHAINED_VERSION, BackupType, Component, VerifyLevel
from portal.ops.postgres.connection import connect
from portal.ops.postgres.dump_contents import SUBSCRIPTIONS
from portal.ops.postgres.pg_restore import find_restorer
from portal.ops.postgres.row_counts import partition_roots
from portal.ops.postgres.server import maintenance, restoring_errors
from portal.ops.repository.access_log import Action, Observer, Outcome, Witness
from portal.ops.repository.faults import explain_any
from portal.ops.repository.locks import archive_lock
from portal.ops.repository.repository import ArchiveFile, Repository
from portal.ops.repository.sidecar import file_digest, read_sidecar
from portal.ops.repository.verifications import Verification, Verifications
from portal.ops.restore.database.fill import filling
from portal.ops.restore.database.means import drill_obstacles, look_at_means
from portal.ops.restore.database.object_check import check_objects
from portal.ops.restore.database.settle import settle
from portal.ops.restore.dump_source import dump_of, identity_of, objects_of, rows_of
from portal.ops.restore.files.restore import FileRestore
from portal.ops.runtime.event_log import structlog
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.process import ProcessRunner, SystemRunner
from portal.ops.runtime.progress import Clock, PathLike, Progress, Step, available_cores, utc_now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.archive.protocol import Archive
    from portal.ops.manifest import Manifest
    from portal.ops.restore.config import RestoreConfig
    from portal.ops.settings.database_url import DatabaseTarget

log = engine_log("portal.ops.drill")

_LATEST: Final = "latest"
_REFUSED: Final = (2, 3, 5)
"""Exit codes of drills that were not begun: invalid request, not confirmed, locked."""

_FILES: Final = (Component.MEDIA, Component.AUDIT_LOGS)


@dataclass(kw_only=True)
class _ResultBuilder:
    """Builds a report; known facts stay in it, whatever happens next."""

    report: DrillReport
    found: Comparison = field(default_factory=Comparison)
    archive: ArchiveFile | None = None
    manifest: Manifest | None = None
    portal: PortalChecks | None = None
    moments: Shown = field(default_factory=lambda: Shown([], [], []))

    def note(self, **facts: Any) -> None:
        self.report = replace(self.report, **facts)


class DrillJob:
    """Runs drills.

    Arguments:
        config: the repository, and the server of the live database.
        checks: the checks of the portal beyond its data.
        runner: starts pg_restore.
        clock: returns the current time.
        progress: receives progress reports.
        actor: the requester, for report and access log; by default the user of this process.
        observer: receives the result.
    """

    def __init__(
        self,
        config: RestoreConfig,
        *,
        checks: PortalCheckConfig | None = None,
        runner: ProcessRunner | None = None,
        clock: Clock = utc_now,
        progress: Progress | None = None,
        actor: str | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.config = config
        self.repository = Repository(Path(config.local_path), lock_timeout=config.lock_timeout)
        self._checks = checks or PortalCheckConfig()
        self._runner = runner or SystemRunner()
        self._clock = clock
        self._progress = progress
        self._witness = Witness(repository=self.repository, who=actor, clock=clock, observer=observer)

    def run(self, archive: PathLike = _LATEST) -> DrillReport:
        """Run one drill from recover to report; every error becomes part of the report.

        Arguments:
            archive: a path, an id or the start of one; ``latest`` is the newest full backup.
        """
        started, moment = time.monotonic(), self._clock()
        drill_id = f"drill_{moment.astimezone(UTC):%Y%m%d_%H%M%S}_{uuid.uuid4().hex[:6]}"
        builder = _ResultBuilder(
            report=DrillReport(
                drill_id=drill_id, backup_id="", started=moment, who=self._witness.name, host=os.uname().nodename
            )
        )
        with self._witness.watching(Action.DRILL, os.fspath(archive), drill_id=drill_id) as seen:
            with structlog.contextvars.bound_contextvars(drill_id=drill_id), _reported(builder):
                self._drill(builder, archive)
            builder.note(**_figures(builder), total_seconds=time.monotonic() - started)
            seen.subject = builder.report.backup_id or seen.subject
            report = builder.report
            seen.note(
                Outcome.of(report.exit_code),
                report=self._keep(builder),
                error=report.error or "; ".join(report.damages[:3]),
            )
        if report.success:
            log.info("drill_finished", backup_id=report.backup_id, seconds=round(report.seconds, 3))
        return report

    def recover(self) -> tuple[str, ...]:
        """Remove what killed drills have left; return one sentence for each. A running drill is not affected.

        Raises:
            RepositoryError: the repository cannot be written.
        """
        if not (self.repository.path / DIRECTORY).exists():
            return ()
        try:
            with drills_locked(self.repository):
                return throw_remains_away(self.repository, self.config.database)
        except BusyError:
            return ()

    # -- one drill --------------------------------------------------------------------------------------------------

    def _drill(self, builder: _ResultBuilder, archive: PathLike) -> None:
        found = self._find(archive)
        builder.archive = found
        builder.note(backup_id=found.name)
        with drills_locked(self.repository), archive_lock(found.path, self.config.lock_timeout):
            builder.found.warnings += throw_remains_away(self.repository, self.config.database)
            with (
                ThreadPoolExecutor(1, thread_name_prefix="checksum") as thread,
                closing(open_tree(found.path)) as opened,
            ):
                hashing = thread.submit(file_digest, found.path)
                self._try_out(builder, opened)
                builder.note(checksum=hashing.result())
            expected = read_sidecar(found.path)
            if builder.report.checksum != expected:
                builder.found.damages.append(
                    Damage(what=f"its SHA-256 is {builder.report.checksum}, and should be {expected}")
                )
        self._tell("recover to moments")
        builder.moments = drill_moments(self.repository, self.config, runner=self._runner, clock=self._clock)
        problems = [*(builder.portal.problems if builder.portal else ()), *builder.moments.problems]
        builder.note(success=not builder.found.damages and not problems)
        if problems:
            builder.note(exit_code=OpsError.exit_code, error=f"the restored portal is not complete: {problems[0]}")
        if builder.found.damages:
            builder.note(exit_code=NotIntactError.exit_code)

    def _find(self, archive: PathLike) -> ArchiveFile:
        found = self.repository.find(archive, latest_of=(BackupType.FULL,))
        if os.fspath(archive) == _LATEST and (found.backup_id is None or found.backup_id.type is not BackupType.FULL):
            raise ArchiveAbsentError(
                f"there is no full backup in {self.repository.path}", hint=f"{Advice.BACK_UP_FULL} makes one."
            )
        if read_sidecar(found.path) is None:
            raise NotIntactError(
                f"{found.path.name} has no .sha256 file beside it, so it may be anything",
                hint="Copy the .sha256 file from where the archive was made.",
            )
        return found

    def _try_out(self, builder: _ResultBuilder, opened: Archive) -> None:
        """Restore, compare, and remove the restored data in any case."""
        builder.manifest = manifest = opened.manifest()
        if Component.CLUSTER in manifest.components:
            raise ConfigurationError(
                f"{manifest.backup_id} is a base backup, and no drill restores one by itself",
                hint="Drill a full backup: the database is then recovered to moments from base backups too.",
            )
        if manifest.parent and manifest.format_version != CHAINED_VERSION:
            raise ConfigurationError(
                f"{manifest.backup_id} is an incremental of {manifest.parent}, and no drill restores one by itself",
                hint="Name a full archive, or the base of the chain.",
            )
        scratch = Scratch(
            drill_id=builder.report.drill_id,
            directory=self.repository.path / DIRECTORY / builder.report.drill_id,
        )
        builder.portal = checks = PortalChecks(
            config=self._checks, manifest=manifest, live_uploads=os.fspath(self.config.media_path or "")
        )
        needed = sum(int(manifest.details.get(component.value, {}).get("bytes", 0)) for component in _FILES)
        try:
            scratch.make(needed)
            if Component.DATABASE in manifest.components:
                checks.database = self._database(builder, opened, scratch)
            for component in _FILES:
                if component in manifest.components:
                    place = self._files(builder, opened, component, scratch)
                    if component is Component.MEDIA:
                        checks.uploads = place
            self._tell("check the portal")
            checks.run(self._runner, {"KEKKAI_BACKUP_ID": manifest.backup_id, "KEKKAI_DRILL_ID": scratch.drill_id})
        finally:
            self._tell("clean up")
            self._throw_away(builder, scratch)
        builder.note(seconds=builder.report.database_seconds + builder.report.files_seconds)

    def _throw_away(self, builder: _ResultBuilder, scratch: Scratch) -> None:
        """Remove the restored data; if that fails, the next drill does it."""
        try:
            scratch.throw_away(self.config.database)
        except OpsError as error:
            builder.found.warnings.append(f"the restored data is left for the next drill to remove: {error.message}")

    def _database(self, builder: _ResultBuilder, opened: Archive, scratch: Scratch) -> DatabaseTarget:
        """Restore and compare the database; return the scratch database."""
        self._tell(Component.DATABASE.value)
        jobs = self.config.jobs or available_cores()
        assert builder.manifest is not None
        self._refuse_impossible(opened, builder.manifest, scratch)
        target, said = scratch.create_database(self.config.database, identity_of(builder.manifest))
        builder.found.warnings += said
        started = time.monotonic()
        dump = dump_of(opened, builder.manifest, scratch.directory / "database.dump", jobs=jobs)
        with maintenance(target) as connection:
            major = connection.info.server_version // 10000
            version = connection.info.parameter_status("server_version") or ""
        restorer = find_restorer(
            major,
            dump.major(),
            runner=self._runner,
            bin_dir=Path(self.config.pg_bin_dir) if self.config.pg_bin_dir else None,
        )
        # An enabled subscription would interfere with the live one at its publisher.
        with filling(restorer, dump, target, jobs=jobs, role=None, without=SUBSCRIPTIONS) as work:
            work.fill()
            rows = settle(target, jobs, work.statistics)
            work.finish()
        builder.found.warnings += work.warnings
        builder.note(database_seconds=time.monotonic() - started, server_version=version)
        with connect(target) as connection, restoring_errors(target):
            roots = partition_roots(connection)
            builder.found.rows_of_tables(rows, rows_of(builder.manifest), roots)
            builder.found.keys_of_tables(check_objects(connection, work.entries, objects_of(builder.manifest)))
        return target

    def _refuse_impossible(self, opened: Archive, manifest: Manifest, scratch: Scratch) -> None:
        """Raise an error before the drill begins if the server cannot support one."""
        database = self.config.database
        _, contents = dump_of(opened, manifest, scratch.directory / "database.dump", jobs=1).head()
        with maintenance(database) as connection:
            against = drill_obstacles(look_at_means(database, connection, contents.entries))
        if against:
            raise against[0]

    def _files(self, builder: _ResultBuilder, opened: Archive, component: Component, scratch: Scratch) -> Path:
        """Restore and compare the files of a component; return their directory."""
        self._tell(component.value)
        started = time.monotonic()
        target = scratch.directory / component.value / component.member
        is_audit = component is Component.AUDIT_LOGS  # restored next to a live one, which here is an empty directory
        (target if is_audit else target.parent).mkdir(mode=0o700, parents=True)
        restore = FileRestore(target, restore_id=scratch.drill_id, component=component, allow_outside_links=True)
        staged = restore.stage_from(opened, self.config.jobs or available_cores())
        builder.found.warnings += staged.warnings
        restore.apply()
        builder.note(files_seconds=builder.report.files_seconds + time.monotonic() - started)
        self._tell("compare")
        place = target.with_name(f"{target.name}.restored-{scratch.drill_id}") if is_audit else target
        builder.found.files_of(opened, component.member, place)
        return place

    # -- what came of it --------------------------------------------------------------------------------------------

    def _keep(self, builder: _ResultBuilder) -> str:
        """Save the report and the verification result; return the SHA-256 of the report's file.

        A drill that was refused proves nothing, and is recorded in the access log only.
        """
        report = builder.report
        if report.exit_code in _REFUSED:
            return ""
        if builder.archive and (report.success or report.problems or builder.found.damages):
            verification = Verification(
                path=builder.archive.path,
                level=VerifyLevel.DRILL,
                checksum=report.checksum or (read_sidecar(builder.archive.path) or ""),
                damages=tuple(builder.found.damages),
                manifest=builder.manifest,
                files=report.files,
                content_bytes=report.bytes,
                duration_seconds=report.total_seconds,
            )
            Verifications(self.repository).note(verification, self._clock())
        reports = DrillReports(self.repository)
        try:
            digest = reports.save(report)
        except RepositoryError as error:
            log.warning("drill_report_unwritten", error=str(error))
            return ""
        try:
            if removed := reports.remove_old(self._clock()):
                log.info("old_drill_reports_removed", count=removed)
        except RepositoryError as error:
            log.warning("old_drill_reports_kept", error=str(error))
        return digest

    def _tell(self, phase: str) -> None:
        if self._progress:
            self._progress(Step(phase=phase, done=0))


@contextmanager
def _reported(builder: _ResultBuilder) -> Iterator[None]:
    """Turn every error into a part of the report."""
    try:
        with system_errors():
            yield
    except (OpsError, OSError) as error:
        fault = error if isinstance(error, OpsError) else explain_any(error)
        log.error("drill_failed", error=str(fault))
        if isinstance(fault, NotIntactError) and builder.archive:
            builder.found.damages.append(Damage(what=fault.message))
        builder.note(success=False, error=str(fault), exit_code=fault.exit_code)


def _figures(builder: _ResultBuilder) -> dict[str, Any]:
    found = builder.found
    portal = builder.portal
    command = portal.command if portal else None
    return {
        "tables": found.tables,
        "rows": found.rows,
        "files": found.files,
        "bytes": found.bytes,
        "checks": (*found.checks, *(portal.checks if portal else ()), *builder.moments.checks),
        "problems": (*(portal.problems if portal else ()), *builder.moments.problems),
        "command_exit_code": command.exit_code if command else None,
        "command_output": command.output if command else "",
        "damages": tuple(map(str, found.damages)),
        "warnings": (*found.warnings, *(portal.warnings if portal else ()), *builder.moments.gaps),
    }
