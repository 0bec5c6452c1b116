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

import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from portal.ops.errors import (
    NotConfirmedError,
    NotIntactError,
    OpsError,
    RestoreError,
)
from portal.ops.model import Component, VerifyLevel
from portal.ops.pitr.scratch import sweep_scratch
from portal.ops.repository.access_log import Action, Observer, Outcome, Witness
from portal.ops.repository.repository import Repository
from portal.ops.repository.verifications import Verification, Verifications
from portal.ops.restore.background_checksum import Checksum
from portal.ops.restore.components import DatabasePart, Part, PartMaker, short_of_room
from portal.ops.restore.config import RestoreConfig, RestoreResult, RestoreScope
from portal.ops.restore.database.model import RestoreMode
from portal.ops.restore.files.selection import choose, selected
from portal.ops.restore.history import RestoreHistory, Stuck
from portal.ops.restore.journal import RestoreRecord, RestoreRecords, RestoreState
from portal.ops.restore.moment import choose_moment
from portal.ops.restore.outcome import Draft, reported
from portal.ops.restore.plan import RestorePlan
from portal.ops.restore.select_archive import absolute, choose_archive, choose_components, name_of
from portal.ops.restore.source import RestoreSource
from portal.ops.runtime.environment import current_settings
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.process import ProcessRunner, SystemRunner
from portal.ops.runtime.progress import Clock, Meter, PathLike, Progress, available_cores, utc_now
from portal.ops.verify.verify import Expected, Verifier

if TYPE_CHECKING:
    from datetime import datetime

    from portal.ops.archive.protocol import Archive
    from portal.ops.backup.job import BackupJob
    from portal.ops.pitr.plan import RecoveryPlan

__all__ = [
    "RestoreConfig",
    "RestoreJob",
    "RestoreMode",
    "RestorePlan",
    "RestoreResult",
    "RestoreScope",
    "create_restore_job",
]

log = engine_log("portal.ops.restore")

Confirm = Callable[[RestorePlan], bool]

_SAY_YES: Final = "Start it again and answer yes, or use --force."


class RestoreJob:
    """Restores, and takes restores back.

    Arguments:
        config: where to, and how.
        backup_job: whose repository archives are looked for in; by default that of `config`.
        confirm: shown the plan before anything is touched, and says whether to go on; without it nobody is asked.
        runner: what starts pg_restore.
        clock: what time it is.
        progress: told how far a restore is.
        actor: who asked for it, for the access log; the user of this process by default.
        observer: told of everything that was done, once it has ended.
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
        actor: str | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.config = config
        path = Path(config.local_path) if backup_job is None else backup_job.repository.path
        self.repository = Repository(path, lock_timeout=config.lock_timeout)
        self._records = RestoreRecords(self.repository)
        self._history = RestoreHistory(self._records, parts_of=self._parts_of, clock=clock, days=config.rollback_days)
        self._witness = Witness(repository=self.repository, who=actor, clock=clock, observer=observer)
        self._confirm = confirm
        self._runner = runner or SystemRunner()
        self._clock = clock
        self._progress = progress

    def restore_full(
        self, path: PathLike, *, moment: datetime | None = None, request_id: str | None = None
    ) -> RestoreResult:
        """Restore everything that an archive holds and this configuration has a place for.

        Arguments:
            path: the archive's path, its id or the start of one, or ``latest``.
            moment: when it was asked for; now by default.
            request_id: what asked for it; the restore's id is made of this and the moment.
        """
        return self._run(RestoreScope.FULL, path, moment, request_id)

    def restore_database(
        self, path: PathLike, *, moment: datetime | None = None, request_id: str | None = None
    ) -> RestoreResult:
        """Restore the database alone; see `restore_full`."""
        return self._run(RestoreScope.DATABASE, path, moment, request_id)

    def restore_media(
        self, path: PathLike, *, moment: datetime | None = None, request_id: str | None = None
    ) -> RestoreResult:
        """Restore the uploads alone; see `restore_full`."""
        return self._run(RestoreScope.MEDIA, path, moment, request_id)

    def restore_audit_logs(
        self, path: PathLike, *, moment: datetime | None = None, request_id: str | None = None
    ) -> RestoreResult:
        """Restore the audit log alone, beside the live one; see `restore_full`."""
        return self._run(RestoreScope.AUDIT_LOGS, path, moment, request_id)

    def restore_at(
        self,
        at: str,
        *,
        scope: RestoreScope = RestoreScope.FULL,
        moment: datetime | None = None,
        request_id: str | None = None,
    ) -> RestoreResult:
        """Restore the database and the uploads as they were at a moment.

        Arguments:
            at: the moment, such as ``2026-11-28 14:03:07+00:00``, ``10 minutes ago`` or ``latest``.
            scope: both, or one of them alone.
            moment: when it was asked for; with `request_id` as for `restore_full`.
        """
        return self._run(scope, at, moment, request_id, is_moment=True)

    def validate_backup(self, path: PathLike) -> tuple[bool, dict[str, Any]]:
        """Whether an archive could be restored as far as it goes by itself, and what was found in it.

        Returns:
            the manifest's keys beside those of a verification; an ``error`` where it is not intact.
        """
        try:
            archive = self.repository.find(path)
            found = self._look_at(archive.path, VerifyLevel.CONTENTS, self._verify_meter([archive.path]))
        except OpsError as error:
            return False, {"error": str(error), "components": []}
        manifest = json.loads(found.manifest.encode()) if found.manifest else {"components": []}
        named = {"backup_id": name_of(archive, found.manifest)} if found.manifest else {}
        fault = {} if found.intact else {"error": found.message}
        return found.intact, {**manifest, **found.to_dict(), **named, **fault}

    def earlier(self, *, moment: datetime, request_id: str) -> RestoreResult | None:
        """What became of a request that was made before: the result of its restore, if that was finished.

        Raises:
            OpsError: the records of restores cannot be read.
        """
        return self._settled(_restore_id(moment, request_id))

    def _settled(self, restore_id: str) -> RestoreResult | None:
        record = next((one for one in self._records.all() if one.restore_id == restore_id), None)
        if record is None or not record.state.is_settled:
            return None
        draft = self._draft(RestoreScope.FULL)
        draft.note(**_named(record))
        if record.state is RestoreState.APPLIED:
            draft.note(success=True, components_restored=tuple(record.parts))
        else:
            draft.fail(RestoreError(f"{restore_id} was taken back already", hint="Start a new restore."))
        return draft.result

    def earlier_rollback(self, restore_id: str) -> RestoreResult | None:
        """The result of a rollback that was made before, if that restore was taken back.

        Raises:
            OpsError: the records of restores cannot be read.
        """
        draft = self._draft(RestoreScope.FULL, is_rollback=True)
        known = {record.restore_id for record in self._records.all()}
        return draft.result if restore_id in known and self._is_taken_back(restore_id, draft) else None

    def recover(self) -> tuple[str, ...]:
        """Finish or undo the restores that were cut off; what was done, in words.

        Raises:
            BusyError: a restore is running.
            OpsError: the records of restores cannot be read.
        """
        if not self._history.to_recover():
            return ()
        with self._records.locked():
            return self._history.recover()[0]

    def plan_rollback(self, restore_id: str | None = None) -> tuple[str, RestorePlan]:
        """Which restore would be taken back, by default the last one, and the plan for a person; touches nothing.

        Raises:
            RestoreError: there is none, or it cannot be taken back.
        """
        record = self._history.find(restore_id)
        return record.restore_id, replace(_plan_for(record), takes_back=record.restore_id)

    def rollback(self, restore_id: str | None = None, *, is_repeated: bool = False) -> RestoreResult:
        """Take a restore back.

        Arguments:
            restore_id: which one; the last one by default.
            is_repeated: the same was asked for before and was cut off, so it may have been done.
        """
        draft = self._draft(RestoreScope.FULL, is_rollback=True)
        seen = self._witnessed(Action.ROLLBACK, draft, restore_id or "the last restore")
        with seen, reported(draft), self._records.locked():
            said, stuck = self._history.recover()
            draft.warn(said)
            for one in stuck:
                if one.record.restore_id == restore_id:
                    raise one.error()
            if is_repeated and restore_id is not None and self._is_taken_back(restore_id, draft):
                return draft.result
            record = self._history.find(restore_id)
            draft.note(**_named(record))
            self._history.check(record)
            self._ask(replace(_plan_for(record), takes_back=record.restore_id))
            facts = self._history.roll_back(record)
            draft.note(success=True, components_restored=tuple(record.parts), facts=facts)
            draft.warn(_warnings(facts))
        return draft.result

    def _is_taken_back(self, restore_id: str, draft: Draft) -> bool:
        record = self._history.record(restore_id)
        if record.state is not RestoreState.ROLLED_BACK:
            return False
        draft.note(success=True, components_restored=tuple(record.parts), **_named(record))
        return True

    def forget(self, restore_id: str) -> RestoreResult:
        """Remove what takes a restore back: the old database, the old files, and the record of it.

        A restore that was cut off, and cannot be finished, is given up: what can be undone of it is undone.
        """
        draft = self._draft(RestoreScope.FULL, is_rollback=True)
        seen = self._witnessed(Action.FORGET, draft, restore_id)
        with seen, reported(draft), self._records.locked():
            record = self._history.record(restore_id)
            draft.note(**_named(record))
            self._ask(replace(_plan_for(record), forgets=record.restore_id, kept=self._history.kept(record)))
            draft.warn(self._history.forget(record))
            draft.note(success=True)
        return draft.result

    def forget_old(self) -> tuple[str, ...]:
        """Remove what takes restores back that are older than `rollback_days`; what was done, in words.

        Raises:
            OpsError: a restore is running, or the records cannot be read.
        """
        if not self._records.all():
            return ()
        with self._records.locked():
            return self._forget_old()

    def _forget_old(self, newest: RestoreRecord | None = None) -> tuple[str, ...]:
        """Forget old restores, each with a line in the access log; what was done, in words."""
        before = self._records.all()
        said = self._history.prune(newest)
        left = {record.restore_id for record in self._records.all()}
        for record in before:
            if record.restore_id not in left:
                self._witness.saw(Action.FORGET, record.restore_id, Outcome.DONE)
        return said

    def list_restores(self) -> list[dict[str, Any]]:
        """Every restore that something is kept of, also one that was cut off, newest first; no server is asked.

        Raises:
            RestoreError: the record of one makes no sense.
            RepositoryError: they cannot be read.
        """
        return self._history.listed()

    # -- one restore ------------------------------------------------------------------------------------------------

    def _run(
        self,
        scope: RestoreScope,
        path: PathLike,
        moment: datetime | None,
        request_id: str | None,
        *,
        is_moment: bool = False,
    ) -> RestoreResult:
        """One restore from recover to report; every fault becomes a result.

        Arguments:
            path: the archive; or a moment, where `is_moment` says so.
        """
        if scope is RestoreScope.FULL and self.config.patterns:
            scope = RestoreScope.MEDIA
        draft = self._draft(scope, backup_file=os.fspath(path), dry_run=self.config.dry_run)
        if self.config.dry_run:
            with reported(draft):
                self._dry_run(draft, path, is_moment=is_moment)
        else:
            restore_id = _restore_id(moment or draft.result.timestamp, request_id or uuid.uuid4().hex)
            seen = self._witnessed(Action.RESTORE, draft, os.fspath(path))
            with seen, reported(draft), self._records.locked():
                self._restore(draft, path, restore_id, is_moment=is_moment)
        return draft.result

    def _dry_run(self, draft: Draft, path: PathLike, *, is_moment: bool) -> None:
        """All of it up to the question; nothing is touched."""
        draft.warn(self._history.to_recover())
        source = self._choose(draft, path, is_moment=is_moment)
        self._verify(source, draft.result.scope, thorough=True)
        with closing(source.open()) as opened:
            if self.config.patterns:
                self._read_selected(opened, draft.result.scope)
            maker = self._maker(_restore_id(draft.result.timestamp, ""), source)
            plan, _ = self._plan(source, opened, draft, maker)
        if self._confirm:
            self._confirm(plan)
        if plan.blockers:
            raise plan.blockers[0]
        draft.note(success=True)

    def _choose(self, draft: Draft, path: PathLike, *, is_moment: bool) -> RestoreSource:
        """Find what is restored, and tell the draft."""
        if not is_moment:
            return RestoreSource(archive=choose_archive(self.repository, draft, path))
        choice = choose_moment(self.repository, self.config, draft.result.scope, os.fspath(path), self._clock())
        archive = self.repository.find(choice.needed[0])
        draft.note(backup_id=choice.name, backup_file=str(absolute(archive.path)), at=choice.moment.isoformat())
        return RestoreSource(archive=archive, choice=choice)

    def _restore(self, draft: Draft, path: PathLike, restore_id: str, *, is_moment: bool) -> None:
        said, stuck = self._history.recover()
        if done := self._settled(restore_id):  # the same request, cut off before it could say so
            draft.result = done
        draft.warn(said)
        if done:
            return
        sweep_scratch(self.repository)
        source = self._choose(draft, path, is_moment=is_moment)
        locked = source.lock(self.config.lock_timeout)
        with self.repository.shared(), locked, structlog.contextvars.bound_contextvars(restore_id=restore_id):
            self._verify(source, draft.result.scope, thorough=self.config.verify_before_restore)
            with closing(source.open()) as opened, self._checksum(source) as checksum:
                plan, parts = self._plan(source, opened, draft, self._maker(restore_id, source), stuck)
                if plan.blockers:
                    raise plan.blockers[0]
                self._ask(plan)
                record = self._history.begin(restore_id, plan.backup_id, str(plan.backup_file), parts)
                self._stage(record, parts, opened, checksum)
                facts = self._history.apply(record, parts)
        draft.note(
            success=True,
            components_restored=tuple(part.component.value for part in parts),
            restore_id=restore_id,
            facts=facts,
        )
        draft.warn(_warnings(facts))
        draft.warn(self._forget_old(record))
        log.info("restore_finished", restore_id=restore_id, backup_id=plan.backup_id)

    def _verify(self, source: RestoreSource, scope: RestoreScope, *, thorough: bool) -> None:
        """Look at the whole archive; not where single files are asked for, which are checked when they are read."""
        if (unchecked := source.unchecked()) and not self.config.allow_unverified:
            raise NotIntactError(
                f"{unchecked[0].name} has no .sha256 file beside it, so it may be anything",
                hint="Copy the .sha256 file from where the archive was made; --allow-unverified does without.",
            )
        if self.config.patterns or not thorough:
            return
        with_dump = scope in (RestoreScope.FULL, RestoreScope.DATABASE)
        level = VerifyLevel.DUMP if with_dump else VerifyLevel.CONTENTS
        started = time.monotonic()
        needed = source.needed()
        meter = self._verify_meter(needed)
        for path in needed:
            self._look_at(path, level, meter, alone=True).raise_damage()
        log.info("archive_verified", verify_level=level.value, seconds=_since(started))

    def _checksum(self, source: RestoreSource) -> Checksum:
        """What was not looked at before is hashed while it is staged; single files are not a reason to read it all."""
        needless = self.config.verify_before_restore or self.config.patterns
        expected = {} if needless else source.needed()
        return Checksum({path: sha256 for path, sha256 in expected.items() if sha256 is not None})

    def _read_selected(self, opened: Archive, scope: RestoreScope) -> None:
        prefix = Component(scope.value).member
        choice = choose(opened, prefix, self.config.patterns)
        for _, content in selected(opened, choice, self.config.jobs or available_cores()):
            for _ in content:
                pass

    def _plan(
        self, source: RestoreSource, opened: Archive, draft: Draft, maker: PartMaker, stuck: Sequence[Stuck] = ()
    ) -> tuple[RestorePlan, list[Part]]:
        manifest = opened.manifest()
        components, left_out = choose_components(self.config, draft.result.scope, manifest)
        parts = maker.parts(components)
        plans = {part.component: part.plan(opened, manifest) for part in parts}
        records = {part.component.value: part.record() for part in parts}
        in_the_way = [one.error() for one in stuck if one.record.overlaps(records)]
        notes = [f"the backup itself says: {warning}" for warning in manifest.warnings]
        plan = RestorePlan(
            backup_id=name_of(source.archive, manifest),
            backup_file=absolute(source.archive.path),
            timestamp=manifest.timestamp,
            components=components,
            parts=plans,
            warnings=(
                *draft.result.warnings,
                *left_out,
                *notes,
                *(warning for plan in plans.values() for warning in plan.warnings),
            ),
            blockers=(
                *in_the_way,
                *(blocker for plan in plans.values() for blocker in plan.blockers),
                *short_of_room(parts),
            ),
        )
        draft.note(backup_id=plan.backup_id, plan=tuple(plan.lines()), warnings=plan.warnings)
        return plan, parts

    def _stage(self, record: RestoreRecord, parts: Sequence[Part], opened: Archive, checksum: Checksum) -> None:
        """Put every part beside what is live, or none of them."""
        meter = Meter(self._progress)
        meter.expect = lambda: sum(part.content_bytes() for part in parts)
        try:
            manifest = opened.manifest()
            for part in parts:
                started = time.monotonic()
                meter.phase = part.component.value
                meter.advance(0)
                part.stage(opened, manifest, meter.advance)
                log.info("component_staged", component=part.component.value, seconds=_since(started))
            checksum.check()
        except BaseException as error:
            self._history.give_up(record, parts, error)
            raise

    def _ask(self, plan: RestorePlan) -> None:
        if self._confirm and not self._confirm(plan):
            raise NotConfirmedError("Not confirmed; nothing was changed", hint=_SAY_YES)

    # -- small things -----------------------------------------------------------------------------------------------

    def _draft(self, scope: RestoreScope, **facts: Any) -> Draft:
        return Draft(result=RestoreResult(success=False, backup_id="", scope=scope, timestamp=self._clock(), **facts))

    def _parts_of(self, record: RestoreRecord) -> list[Part]:
        return self._maker(record.restore_id).from_record(record.parts)

    def _maker(self, restore_id: str, source: RestoreSource | None = None) -> PartMaker:
        return PartMaker(
            config=self.config,
            runner=self._runner,
            restore_id=restore_id,
            directory=self._records.directory_of(restore_id),
            repository=self.repository.path,
            database_part=self._recovered_part(source.recovery) if source and source.recovery else DatabasePart,
        )

    def _recovered_part(self, recovery: RecoveryPlan) -> Callable[..., DatabasePart]:
        from portal.ops.restore.recovered_database import RecoveredDatabasePart  # late: it brings the database driver

        return partial(
            RecoveredDatabasePart,
            recovery=recovery,
            source=self.config.db_name,
            repository=self.repository,
            runner=self._runner,
            bin_dir=Path(self.config.pg_bin_dir) if self.config.pg_bin_dir else None,
            lock_timeout=self.config.lock_timeout,
        )

    def _look_at(self, path: Path, level: VerifyLevel, meter: Meter, *, alone: bool = False) -> Verification:
        """Verify an archive, and keep what was found, unless nothing is to be changed.

        Arguments:
            meter: told how far it is.
            alone: what it stands on is looked at by itself.
        """
        verifier = self._verifier(meter)
        found = verifier.verify_alone(path, level) if alone else verifier.verify(path, level)
        if not self.config.dry_run:
            Verifications(self.repository).note(found, self._clock())
        return found

    @contextmanager
    def _witnessed(self, action: Action, draft: Draft, subject: str) -> Iterator[None]:
        """Write down in the access log how it ends, whatever happens."""
        with self._witness.watching(action, subject) as seen:
            yield
            result = draft.result
            named = result.backup_id if action is Action.RESTORE else result.restore_id
            seen.subject = named or subject
            seen.note(
                Outcome.of(result.exit_code),
                scope=result.scope.value if action is Action.RESTORE else None,
                restore_id=result.restore_id if action is Action.RESTORE else None,
                error=result.error,
            )

    def _verifier(self, meter: Meter) -> Verifier:
        bin_dir = self.config.pg_bin_dir
        return Verifier(
            runner=self._runner,
            pg_bin_dir=Path(bin_dir) if bin_dir else None,
            jobs=self.config.jobs or available_cores(),
            advance=meter.advance,
        )

    def _verify_meter(self, paths: Iterable[Path]) -> Meter:
        """What tells how far the verification of some archives is."""
        meter = Meter(self._progress)
        meter.phase = "verify"
        meter.expect = Expected(paths)
        return meter


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
    config = RestoreConfig.from_settings(current_settings(environ))
    given = {"db_host": db_host, "db_name": db_name, "media_path": media_path, **others}
    chosen = {name: value for name, value in given.items() if value is not None}
    return RestoreJob(replace(config, dry_run=dry_run, **chosen), backup_job)


def _named(record: RestoreRecord) -> dict[str, Any]:
    return {"restore_id": record.restore_id, "backup_id": record.backup_id, "backup_file": record.backup_file}


def _plan_for(record: RestoreRecord) -> RestorePlan:
    """What is to be done with a restore that was made."""
    return RestorePlan(
        backup_id=record.backup_id,
        backup_file=Path(record.backup_file),
        timestamp="",
        components=tuple(Component(name) for name in record.parts),
    )


def _restore_id(moment: datetime, request_id: str) -> str:
    """The id of a restore: a function of the request, as a backup's is."""
    return f"restore_{moment.astimezone(UTC):%Y%m%d_%H%M%S}_{sha256(request_id.encode()).hexdigest()[:6]}"


def _warnings(facts: Mapping[str, Any]) -> list[str]:
    return [str(warning) for fact in facts.values() for warning in fact.get("warnings", ())]


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)
