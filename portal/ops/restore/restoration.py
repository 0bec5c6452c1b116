"""One restore, from the first check to the report: everything or nothing, and it can be rolled back.

    recover   undo or finish an interrupted restore
    verify    check that the archive is intact
    plan      list what will be done, and obstacles
    confirm   ask a person
    stage     write everything to its disk or server next to the live data, and check it on the way
    apply     exchange the live data and the stage
    report    say what was done, and how to roll it back

Until `apply`, live data is unchanged, and the next restore undoes an interrupted one. From `apply` on, the next restore
finishes it.
"""

from __future__ import annotations

import os
import time
import uuid
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

from portal.ops.errors import NotIntactError, RestoreError
from portal.ops.model import Component, VerifyLevel
from portal.ops.pitr.scratch import sweep_scratch
from portal.ops.postgres.credential_key import key_warnings
from portal.ops.repository.access_log import Action
from portal.ops.restore.background_checksum import Checksum
from portal.ops.restore.components import short_of_room
from portal.ops.restore.config import RestoreScope
from portal.ops.restore.files.selection import choose, selected
from portal.ops.restore.journal import RestoreState, named
from portal.ops.restore.moment import choose_moment
from portal.ops.restore.outcome import reported, warnings_of
from portal.ops.restore.plan import RestorePlan
from portal.ops.restore.rollback import Rollback
from portal.ops.restore.select_archive import absolute, choose_archive, choose_components, name_of
from portal.ops.restore.source import RestoreSource
from portal.ops.runtime.event_log import structlog
from portal.ops.runtime.logs import engine_log
from portal.ops.runtime.progress import Meter, available_cores
from portal.ops.verify.job import VerifyJob

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from portal.ops.archive.protocol import Archive
    from portal.ops.restore.components import Part, PartMaker, PlannedPart
    from portal.ops.restore.config import RestoreResult
    from portal.ops.restore.context import RestoreContext
    from portal.ops.restore.history import Stuck
    from portal.ops.restore.journal import RestoreRecord
    from portal.ops.restore.outcome import ResultBuilder
    from portal.ops.runtime.progress import PathLike

log = engine_log("portal.ops.restore")


@dataclass(frozen=True, kw_only=True)
class RestoreRequest:
    """The request.

    Arguments:
        scope: the components.
        path: the archive's path or id, or ``latest``; or a moment.
        is_moment: whether `path` is a moment.
        moment: the time of the request; None for now.
        request_id: identifies the request; the same id and moment give the same restore id.
    """

    scope: RestoreScope
    path: PathLike
    is_moment: bool = False
    moment: datetime | None = None
    request_id: str | None = None


class Restoration:
    """Runs one restore.

    Arguments:
        context: the configuration, the repository and the requester.
    """

    def __init__(self, context: RestoreContext) -> None:
        self._context = context
        self._config = context.config
        self._repository = context.repository
        self._records = context.records
        self._history = context.history

    def run(self, request: RestoreRequest) -> RestoreResult:
        """Run one restore from recover to report; every error becomes a result."""
        subject, is_dry_run = os.fspath(request.path), self._config.dry_run
        scope = request.scope
        if scope is RestoreScope.FULL and self._config.patterns:
            scope = RestoreScope.MEDIA
        builder = self._context.result(scope, backup_file=subject, dry_run=is_dry_run)
        if is_dry_run:
            with reported(builder):
                self._dry_run(request, builder)
            return builder.result
        restore_id = id_of(request.moment or builder.result.timestamp, request.request_id or uuid.uuid4().hex)
        witnessed = self._context.witnessed(Action.RESTORE, builder, subject)
        with witnessed, reported(builder), self._records.locked():
            self._restore(request, builder, restore_id)
        self._context.note_portal_health(builder)
        return builder.result

    def earlier(self, *, moment: datetime, request_id: str) -> RestoreResult | None:
        """The result of the same request, if an earlier delivery has finished its restore; otherwise None.

        Raises:
            OpsError: the records cannot be read.
        """
        return self._settled(id_of(moment, request_id))

    # -- the phases -------------------------------------------------------------------------------------------------

    def _dry_run(self, request: RestoreRequest, builder: ResultBuilder) -> None:
        """Everything up to the confirmation; changes nothing."""
        builder.warn(self._history.to_recover())
        source = self._choose(request, builder)
        self._verify(source, builder.result.scope, is_thorough=True)
        with closing(source.open()) as opened:
            if self._config.patterns:
                self._read_selected(opened, builder.result.scope)
            maker = self._context.maker(id_of(builder.result.timestamp, ""), source)
            plan, _ = self._plan(source, opened, builder, maker)
        if self._context.confirm:
            self._context.confirm(plan)
        if plan.blockers:
            raise plan.blockers[0]
        builder.note(success=True)

    def _restore(self, request: RestoreRequest, builder: ResultBuilder, restore_id: str) -> None:
        said, stuck = self._history.recover()
        if done := self._settled(restore_id):  # the same request, interrupted before its report
            builder.result = done
        builder.warn(said)
        if done:
            return
        sweep_scratch(self._repository)
        source = self._choose(request, builder)
        locked = source.lock(self._config.lock_timeout)
        with self._repository.shared(), locked, structlog.contextvars.bound_contextvars(restore_id=restore_id):
            self._verify(source, builder.result.scope, is_thorough=self._config.verify_before_restore)
            with closing(source.open()) as opened, self._checksum(source) as checksum:
                plan, planned = self._plan(source, opened, builder, self._context.maker(restore_id, source), stuck)
                if plan.blockers:
                    raise plan.blockers[0]
                self._context.ask(plan)
                records = {one.component.value: one.record for one in planned}
                record = self._history.begin(restore_id, plan.backup_id, str(plan.backup_file), records)
                self._stage(record, planned, opened, checksum)
                give_up = partial(self._history.give_up, record, parts_of(planned))
                with self._context.live_change("restore", record, builder, give_up=give_up):
                    facts = self._history.apply(record, parts_of(planned))
        builder.note(success=True, components_restored=plan.components, restore_id=restore_id, facts=facts)
        builder.warn(warnings_of(facts))
        builder.warn(Rollback(self._context).discard_older(record))
        log.info("restore_finished", restore_id=restore_id, backup_id=plan.backup_id)

    def _settled(self, restore_id: str) -> RestoreResult | None:
        record = next((one for one in self._records.all() if one.restore_id == restore_id), None)
        if record is None or not record.state.is_settled:
            return None
        builder = self._context.result(RestoreScope.FULL)
        builder.note(**named(record))
        if record.state is RestoreState.APPLIED:
            builder.note(success=True, components_restored=tuple(record.parts))
        else:
            builder.fail(RestoreError(f"{restore_id} was rolled back already", hint="Start a new restore."))
        return builder.result

    def _choose(self, request: RestoreRequest, builder: ResultBuilder) -> RestoreSource:
        """Find what is restored, and note it in the result."""
        if not request.is_moment:
            with_uploads = builder.result.scope in (RestoreScope.FULL, RestoreScope.MEDIA)
            chosen = choose_archive(self._repository, builder, request.path)
            return RestoreSource(archive=chosen, with_uploads=with_uploads)
        text = os.fspath(request.path)
        context = self._context
        asked = request.moment or context.clock()  # waiting does not move it
        choice = choose_moment(self._repository, self._config, builder.result.scope, text, asked, context.runner)
        archive = self._repository.find(choice.needed[0])
        builder.note(backup_id=choice.name, backup_file=str(absolute(archive.path)), at=choice.moment.isoformat())
        return RestoreSource(archive=archive, choice=choice)

    def _verify(self, source: RestoreSource, scope: RestoreScope, *, is_thorough: bool) -> None:
        """Verify the whole archive, unless only single files are wanted: these are checked when they are read."""
        if (unchecked := source.unchecked()) and not self._config.allow_unverified:
            raise NotIntactError(
                f"{unchecked[0].name} has no .sha256 file beside it, so it may be anything",
                hint="Copy the .sha256 file from where the archive was made; --allow-unverified does without.",
            )
        if self._config.patterns or not is_thorough:
            return
        with_dump = scope in (RestoreScope.FULL, RestoreScope.DATABASE)
        *older, last = source.needed()
        looks = [(older, VerifyLevel.CONTENTS), ([last], VerifyLevel.DUMP if with_dump else VerifyLevel.CONTENTS)]
        for paths, level in looks:
            for found in verify_job(self._context).examine(paths, level, is_alone=True):
                found.raise_damage()

    def _checksum(self, source: RestoreSource) -> Checksum:
        """Hash archives without a verification while they are staged; for single files this would read too much."""
        needless = self._config.verify_before_restore or self._config.patterns
        expected = {} if needless else source.needed()
        return Checksum({path: sha256 for path, sha256 in expected.items() if sha256 is not None})

    def _read_selected(self, opened: Archive, scope: RestoreScope) -> None:
        prefix = Component(scope.value).member
        choice = choose(opened, prefix, self._config.patterns)
        for _, content in selected(opened, choice, self._config.jobs or available_cores()):
            for _ in content:
                pass

    def _plan(
        self,
        source: RestoreSource,
        opened: Archive,
        builder: ResultBuilder,
        maker: PartMaker,
        stuck: Sequence[Stuck] = (),
    ) -> tuple[RestorePlan, list[PlannedPart]]:
        manifest = opened.manifest()
        components, left_out = choose_components(self._config, builder.result.scope, manifest)
        planned = [part.plan(opened, manifest) for part in maker.parts(components)]
        plans = {one.component: one.plan for one in planned}
        records = {one.component.value: one.record for one in planned}
        in_the_way = [one.error() for one in stuck if one.record.overlaps(records)]
        notes = [f"the backup itself says: {warning}" for warning in manifest.warnings]
        if Component.DATABASE in components:
            notes += key_warnings(manifest, self._config.credential_key)
        plan = RestorePlan(
            backup_id=name_of(source.archive, manifest),
            backup_file=absolute(source.archive.path),
            timestamp=manifest.timestamp,
            components=components,
            parts=plans,
            sources=tuple(source.choice.lines()) if source.choice else (),
            is_moment=source.choice is not None,
            warnings=(
                *builder.result.warnings,
                *left_out,
                *notes,
                *(warning for plan in plans.values() for warning in plan.warnings),
            ),
            blockers=(
                *in_the_way,
                *(blocker for plan in plans.values() for blocker in plan.blockers),
                *short_of_room(planned),
            ),
        )
        builder.note(backup_id=plan.backup_id, plan=tuple(plan.lines()), warnings=plan.warnings)
        return plan, planned

    def _stage(
        self, record: RestoreRecord, planned: Sequence[PlannedPart], opened: Archive, checksum: Checksum
    ) -> None:
        """Stage every part, or none."""
        meter = Meter(self._context.progress)
        meter.expect = lambda: sum(one.content_bytes for one in planned)
        try:
            for one in planned:
                started = time.monotonic()
                meter.phase = one.component.value
                meter.advance(0)
                one.part.stage(one, opened, meter.advance)
                seconds = round(time.monotonic() - started, 3)
                log.info("component_staged", component=one.component.value, seconds=seconds)
            checksum.check()
        except BaseException as error:
            self._history.give_up(record, parts_of(planned), error)
            raise


def parts_of(planned: Sequence[PlannedPart]) -> list[Part]:
    """The planned parts."""
    return [one.part for one in planned]


def id_of(moment: datetime, request_id: str) -> str:
    """The id of the restore, computed from the request like a backup id."""
    return f"restore_{moment.astimezone(UTC):%Y%m%d_%H%M%S}_{sha256(request_id.encode()).hexdigest()[:6]}"


def verify_job(context: RestoreContext) -> VerifyJob:
    """The job that verifies archives for a restore; it records results, except in a dry run."""
    config = context.config
    return VerifyJob(
        repository=context.repository,
        witness=context.witness,
        runner=context.runner,
        pg_bin_dir=config.pg_bin_dir,
        jobs=config.jobs,
        lock_timeout=config.lock_timeout,
        is_recorded=not config.dry_run,
        clock=context.clock,
        progress=context.progress,
    )
