"""Restoring the portal, or a part of it: all of it or nothing, and it can be taken back.

    recover   a restore that was cut off is undone, or finished
    verify    the archive is intact
    plan      what will be done, and what is in the way
    confirm   somebody says yes
    stage     everything goes to the disk and the server that it is for, beside what is live; checked on the way
    apply     what is live steps aside, and the stage takes its place
    report    what was done, and how to take it back

Until `apply` nothing live is touched, and a crash is undone by the next restore; from `apply` on it is finished by it.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from portal.ops.backup import BackupJob, Clock, PathLike, Progress, Step, read_text, utc_now
from portal.ops.errors import ConfigurationError, NotConfirmedError, NotIntactError, OpsError, RestoreError
from portal.ops.model import Component, VerifyLevel, timestamp
from portal.ops.process import ProcessRunner, SystemRunner
from portal.ops.repository import ArchiveFile, Repository, read_sidecar
from portal.ops.restore_model import RestoreConfig, RestorePlan, RestoreResult, RestoreScope
from portal.ops.restore_parts import Archive, Part, PartMaker
from portal.ops.restore_record import RestoreRecord, RestoreRecords, RestoreState
from portal.ops.settings import load_settings
from portal.ops.targets.database import RestoreMode
from portal.ops.verify import Verifier, open_archive

if TYPE_CHECKING:
    from portal.ops.manifest import Manifest

__all__ = [
    "RestoreConfig",
    "RestoreJob",
    "RestoreMode",
    "RestorePlan",
    "RestoreResult",
    "RestoreScope",
    "create_restore_job",
]

log = structlog.get_logger("portal.ops.restore")

Confirm = Callable[[RestorePlan], bool]

_CAN_BE_TAKEN_BACK: Final = (RestoreState.APPLIED, RestoreState.ROLLING_BACK)


class RestoreJob:
    """Restores, and takes restores back.

    Arguments:
        config: where to, and how.
        backup_job: whose repository archives are looked for in; by default that of `config`.
        confirm: shown the plan before anything is touched, and says whether to go on; without it nobody is asked.
        runner: what starts pg_restore.
        clock: what time it is.
        progress: told how far a restore is.
    """

    def __init__(
        self,
        config: RestoreConfig,
        backup_job: BackupJob | None = None,
        *,
        confirm: Confirm | None = None,
        runner: ProcessRunner | None = None,
        clock: Clock = utc_now,
        progress: Progress | None = None,
    ) -> None:
        self.config = config
        path = Path(config.local_path) if backup_job is None else backup_job.repository.path
        self.repository = Repository(path, lock_timeout=config.lock_timeout)
        self._records = RestoreRecords(self.repository)
        self._confirm = confirm
        self._runner = runner or SystemRunner()
        self._clock = clock
        self._progress = progress

    def restore_full(self, path: PathLike) -> RestoreResult:
        """Restore everything that an archive holds and this configuration has a place for.

        Arguments:
            path: the archive's path, its id or the start of one, or ``latest``.
        """
        return self._run(RestoreScope.FULL, path)

    def restore_database(self, path: PathLike) -> RestoreResult:
        """Restore the database alone; see `restore_full`."""
        return self._run(RestoreScope.DATABASE, path)

    def restore_media(self, path: PathLike) -> RestoreResult:
        """Restore the uploads alone; see `restore_full`."""
        return self._run(RestoreScope.MEDIA, path)

    def restore_audit_logs(self, path: PathLike) -> RestoreResult:
        """Restore the audit log alone, beside the live one; see `restore_full`."""
        return self._run(RestoreScope.AUDIT_LOGS, path)

    def validate_backup(self, path: PathLike) -> tuple[bool, dict[str, Any]]:
        """Whether an archive could be restored as far as it goes by itself, and what was found in it."""
        try:
            archive = self.repository.find(path)
            found = self._verifier().verify(archive.path, VerifyLevel.CONTENTS)
        except OpsError as error:
            return False, {"error": str(error), "components": []}
        components = [component.value for component in found.manifest.components] if found.manifest else []
        return found.intact, {**found.to_dict(), "components": components}

    def rollback(self, restore_id: str | None = None) -> RestoreResult:
        """Take a restore back.

        Arguments:
            restore_id: which one; the last one by default.
        """
        started, moment = time.monotonic(), self._clock()
        result = RestoreResult(success=False, backup_id="", scope=RestoreScope.FULL, timestamp=moment)
        try:
            with self._records.locked():
                warnings = self._recover()
                record = self._record_to_take_back(restore_id)
                result = replace(result, backup_id=record.backup_id, backup_file=record.backup_file, warnings=warnings)
                if self._confirm and not self._confirm(self._rollback_plan(record)):
                    raise NotConfirmedError("nobody said yes, so nothing was changed", hint=_SAY_YES)
                facts = self._roll_back(record)
            result = replace(
                result,
                success=True,
                restore_id=record.restore_id,
                components_restored=tuple(record.parts),
                facts=facts,
            )
        except OpsError as error:
            result = replace(result, error=str(error), exit_code=error.exit_code)
        return replace(result, duration_seconds=time.monotonic() - started)

    def list_restores(self) -> list[dict[str, Any]]:
        """The restores that can be taken back, newest first."""
        return [
            {
                "restore_id": record.restore_id,
                "backup_id": record.backup_id,
                "started": record.started,
                "state": record.state.value,
                "components": list(record.parts),
            }
            for record in self._records.all()
            if record.state in _CAN_BE_TAKEN_BACK
        ]

    # -- one restore ------------------------------------------------------------------------------------------------

    def _run(self, scope: RestoreScope, path: PathLike) -> RestoreResult:
        """One restore from recover to report; every fault becomes a result."""
        started, moment = time.monotonic(), self._clock()
        result = RestoreResult(
            success=False,
            backup_id="",
            scope=scope,
            timestamp=moment,
            backup_file=os.fspath(path),
            dry_run=self.config.dry_run,
        )
        try:
            archive = self.repository.find(path)
            result = replace(result, backup_id=archive.name, backup_file=str(archive.path))
            if self.config.dry_run:
                result = self._dry_run(archive, scope, result)
            else:
                with self._records.locked(), self.repository.shared():
                    result = self._restore(archive, scope, result)
        except OpsError as error:
            log.error("restore_failed", error=str(error))
            result = replace(result, error=str(error), exit_code=error.exit_code)
        except OSError as error:
            explained = _explain(error)
            result = replace(result, error=str(explained), exit_code=explained.exit_code)
        return replace(result, duration_seconds=time.monotonic() - started)

    def _dry_run(self, archive: ArchiveFile, scope: RestoreScope, result: RestoreResult) -> RestoreResult:
        self._verify(archive, scope, thorough=True)
        with closing(open_archive(archive.path)) as opened:
            plan, _ = self._plan(archive, opened, scope, _new_restore_id(result.timestamp))
        if self._confirm:
            self._confirm(plan)
        result = replace(result, plan=tuple(plan.lines()), warnings=plan.warnings)
        if plan.blockers:
            raise plan.blockers[0]
        return replace(result, success=True, components_restored=())

    def _restore(self, archive: ArchiveFile, scope: RestoreScope, result: RestoreResult) -> RestoreResult:
        warnings = self._recover()
        self._verify(archive, scope, thorough=self.config.verify_before_restore)
        restore_id = _new_restore_id(result.timestamp)
        with closing(open_archive(archive.path)) as opened:
            plan, parts = self._plan(archive, opened, scope, restore_id)
            if plan.blockers:
                raise plan.blockers[0]
            if self._confirm and not self._confirm(plan):
                raise NotConfirmedError("nobody said yes, so nothing was changed", hint=_SAY_YES)
            record = self._records.save(
                RestoreRecord(
                    restore_id=restore_id,
                    backup_id=archive.name,
                    backup_file=str(archive.path),
                    started=timestamp(result.timestamp),
                    parts={part.component.value: part.record() for part in parts},
                )
            )
            self._stage(record, parts, opened)
        facts = self._apply(record, parts)
        return replace(
            result,
            success=True,
            components_restored=tuple(part.component.value for part in parts),
            warnings=(*warnings, *plan.warnings, *_warnings(facts)),
            restore_id=restore_id,
            plan=tuple(plan.lines()),
            facts=facts,
        )

    def _verify(self, archive: ArchiveFile, scope: RestoreScope, *, thorough: bool) -> None:
        """Look at the archive: all of it, or its checksum alone where everything is checked while it is staged."""
        if read_sidecar(archive.path) is None and not self.config.allow_unverified:
            raise NotIntactError(
                f"{archive.path.name} has no .sha256 file beside it, so it may be anything",
                hint="Copy the .sha256 file from where the archive was made; --allow-unverified does without.",
            )
        if self.config.patterns and not thorough:
            return
        level = VerifyLevel.CHECKSUM
        if thorough:
            with_dump = scope in (RestoreScope.FULL, RestoreScope.DATABASE)
            level = VerifyLevel.DUMP if with_dump else VerifyLevel.CONTENTS
        found = self._verifier().verify(archive.path, level)
        found.raise_damage()
        log.info("archive_verified", verify_level=found.level.value, seconds=round(found.duration_seconds, 3))

    def _plan(
        self, archive: ArchiveFile, opened: Archive, scope: RestoreScope, restore_id: str
    ) -> tuple[RestorePlan, list[Part]]:
        manifest = opened.manifest()
        components, left_out = self._components(scope, manifest)
        parts = self._maker(restore_id).parts(components)
        plans = {part.component: part.plan(opened, manifest) for part in parts}
        notes = [f"the backup itself says: {warning}" for warning in manifest.warnings]
        return RestorePlan(
            backup_id=archive.name,
            backup_file=archive.path,
            timestamp=manifest.timestamp,
            components=components,
            parts=plans,
            warnings=(*left_out, *notes, *(warning for plan in plans.values() for warning in plan.warnings)),
            blockers=tuple(blocker for plan in plans.values() for blocker in plan.blockers),
        ), parts

    def _components(self, scope: RestoreScope, manifest: Manifest) -> tuple[tuple[Component, ...], list[str]]:
        """What is restored, and what is not although it is there."""
        places = {
            Component.DATABASE: True,
            Component.MEDIA: self.config.media_path is not None,
            Component.AUDIT_LOGS: self.config.audit_log_path is not None,
        }
        if scope is RestoreScope.FULL:
            left_out = [
                f"the backup holds {component.value}, but no place for them is configured; they are left out"
                for component in manifest.components
                if not places[component]
            ]
            return tuple(component for component in manifest.components if places[component]), left_out
        component = Component(scope.value)
        if component not in manifest.components:
            held = ", ".join(manifest.components) or "nothing"
            raise ConfigurationError(
                f"{manifest.backup_id} holds {held}, and no {component.value}",
                hint="Take another archive: './tools/backup.sh list' shows them.",
            )
        if not places[component]:
            raise ConfigurationError(
                f"there is no place configured for {component.value}",
                hint="Set PORTAL_UPLOAD_DIR or give --media-dir." if component is Component.MEDIA else _SET_AUDIT,
            )
        return (component,), []

    def _stage(self, record: RestoreRecord, parts: Sequence[Part], opened: Archive) -> None:
        """Put every part beside what is live, or none of them."""
        try:
            manifest = opened.manifest()
            for part in parts:
                started = time.monotonic()
                self._tell(part.component.value)
                part.stage(opened, manifest)
                log.info("component_staged", component=part.component.value, seconds=_since(started))
        except BaseException:
            self._undo(record, parts)
            raise

    def _apply(self, record: RestoreRecord, parts: Sequence[Part]) -> dict[str, Any]:
        """Put every part in its place; what fails here before anything was put there is undone."""
        record = self._records.save(record, state=RestoreState.APPLYING)
        facts: dict[str, Any] = {}
        for part in parts:
            started = time.monotonic()
            try:
                facts[part.component.value] = part.apply()
            except OpsError:
                self._take_back(record, parts, applied=list(facts))
                raise
            log.info("component_applied", component=part.component.value, seconds=_since(started))
        self._records.save(record, state=RestoreState.APPLIED)
        log.info("restore_finished", restore_id=record.restore_id, backup_id=record.backup_id)
        return facts

    def _take_back(self, record: RestoreRecord, parts: Sequence[Part], applied: Sequence[str]) -> None:
        """One part could not be applied: the ones before it go back, and the others are undone."""
        for part in reversed(parts):
            if part.component.value in applied:
                part.roll_back()
            else:
                part.undo()
        self._records.forget(record)

    def _undo(self, record: RestoreRecord, parts: Sequence[Part]) -> None:
        for part in parts:
            part.undo()
        self._records.forget(record)

    # -- going on, and going back -----------------------------------------------------------------------------------

    def _recover(self) -> tuple[str, ...]:
        """Undo or finish what a killed restore has left; what was done, in words."""
        said = []
        for record in self._records.all():
            if record.state is RestoreState.STAGING:
                self._undo(record, self._parts_of(record))
                said.append(f"{record.restore_id} had been cut off before it changed anything; its remains are removed")
            elif record.state is RestoreState.APPLYING:
                said.append(self._finish_or_undo(record))
            elif record.state is RestoreState.ROLLING_BACK:
                self._roll_back(record)
                said.append(f"taking back {record.restore_id} had been cut off; it is done now")
        for sentence in said:
            log.warning("remains_recovered", detail=sentence)
        return tuple(said)

    def _finish_or_undo(self, record: RestoreRecord) -> str:
        parts = self._parts_of(record)
        if not any(part.is_begun() for part in parts):
            self._undo(record, parts)
            return f"{record.restore_id} had been cut off before it changed anything; its remains are removed"
        for part in parts:
            part.apply()
        self._records.save(record, state=RestoreState.APPLIED)
        return f"{record.restore_id} had been cut off half way; it is finished now"

    def _roll_back(self, record: RestoreRecord) -> dict[str, Any]:
        record = self._records.save(record, state=RestoreState.ROLLING_BACK)
        facts = {part.component.value: part.roll_back() for part in reversed(self._parts_of(record))}
        self._records.save(record, state=RestoreState.ROLLED_BACK)
        log.info("restore_taken_back", restore_id=record.restore_id)
        return facts

    def _record_to_take_back(self, restore_id: str | None) -> RestoreRecord:
        able = [record for record in self._records.all() if record.state in _CAN_BE_TAKEN_BACK]
        if restore_id is None and able:
            return able[0]
        for record in able:
            if record.restore_id == restore_id:
                return record
        what = f"there is no restore {restore_id!r}" if restore_id else "there is no restore"
        raise RestoreError(
            f"{what} that could be taken back", hint="'./tools/restore.sh --rollback --list' shows them."
        )

    def _rollback_plan(self, record: RestoreRecord) -> RestorePlan:
        return RestorePlan(
            backup_id=record.backup_id,
            backup_file=Path(record.backup_file),
            timestamp="",
            components=tuple(Component(name) for name in record.parts),
            takes_back=record.restore_id,
        )

    def _parts_of(self, record: RestoreRecord) -> list[Part]:
        return self._maker(record.restore_id).from_record(record.parts)

    # -- small things -----------------------------------------------------------------------------------------------

    def _maker(self, restore_id: str) -> PartMaker:
        return PartMaker(
            config=self.config,
            runner=self._runner,
            restore_id=restore_id,
            directory=self._records.directory / restore_id,
            repository=self.repository.path,
        )

    def _verifier(self) -> Verifier:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if self._progress:
                self._progress(Step(phase="verify", done=done))

        verifier = Verifier(
            runner=self._runner, pg_bin_dir=Path(self.config.pg_bin_dir) if self.config.pg_bin_dir else None
        )
        return replace(verifier, jobs=self.config.jobs or verifier.jobs, advance=advance)

    def _tell(self, phase: str) -> None:
        if self._progress:
            self._progress(Step(phase=phase, done=0))


_SAY_YES: Final = "Start it again and answer yes, or use --force."
_SET_AUDIT: Final = "Set PORTAL_AUDIT_DIR to the live audit log: what is restored is put beside it."


def create_restore_job(
    db_host: str | None = None,
    db_name: str | None = None,
    media_path: PathLike | None = None,
    dry_run: bool = False,
    backup_job: BackupJob | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    **others: Any,
) -> RestoreJob:
    """A job as the environment describes it; what is given here wins over the environment.

    Arguments:
        environ: the variables to read instead of the process's own.
        others: any other argument of `RestoreConfig`.

    Raises:
        ConfigurationError: the environment or an argument makes no sense.
    """
    config = RestoreConfig.from_settings(load_settings(os.environ if environ is None else environ, read_text))
    given = {"db_host": db_host, "db_name": db_name, "media_path": media_path, **others}
    chosen = {name: value for name, value in given.items() if value is not None}
    return RestoreJob(replace(config, dry_run=dry_run, **chosen), backup_job)


def _new_restore_id(moment: datetime) -> str:
    return f"restore_{moment.astimezone(UTC):%Y%m%d_%H%M%S}_{uuid.uuid4().hex[:6]}"


def _warnings(facts: Mapping[str, Any]) -> list[str]:
    return [str(warning) for fact in facts.values() for warning in fact.get("warnings", ())]


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


def _explain(error: OSError) -> OpsError:
    place = f" ({error.filename})" if error.filename else ""
    return RestoreError(
        f"the operating system refused: {error.strerror}{place}",
        hint="Look at the disk and the permissions there, then start it again: it goes on, or undoes what was begun.",
    )
