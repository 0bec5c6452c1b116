"""Restores and rollbacks: nothing is changed without an authorization in the repository."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from portal.ops.restore.config import RestoreConfig, RestoreResult, RestoreScope
from portal.ops.restore.job import RestoreJob
from portal.ops.restore.moment_offsite import moment_at_hand
from worker.allowed_paths import check_place
from worker.arguments import RestoreArguments, RollbackArguments, word
from worker.authorization import Authorizations
from worker.execution import Outcome, TaskRequest
from worker.handlers.offsite import archive_at_hand

if TYPE_CHECKING:
    from collections.abc import Iterator


def restore(request: TaskRequest) -> Outcome:
    """Restore, or plan a restore."""
    arguments = RestoreArguments.of(request.given)
    settings, allowed = request.settings, request.settings.worker.allowed_paths
    if arguments.at is None:
        arguments = replace(arguments, archive=archive_at_hand(request, arguments, arguments.archive))
    else:
        moment_at_hand(
            settings,
            arguments.at,
            word(RestoreScope, arguments.scope),
            media_dir=arguments.media_dir,
            progress=request.progress,
            clock=arguments.when,
            **request.known(arguments),
        )
    if arguments.media_dir is not None:
        uploads = (settings.upload_dir,) if settings.upload_dir else ()
        check_place(arguments.media_dir, (*uploads, *allowed))
    job = RestoreJob(
        RestoreConfig.from_settings(settings, **_options(arguments)),
        progress=request.progress,
        **request.known(arguments),
    )
    if arguments.dry_run:
        return Outcome.of(_restore_scope(job, request, arguments))
    if done := job.earlier(moment=arguments.when(), request_id=request.task_id):
        return Outcome.of(done)
    with _authorized(request):
        return Outcome.of(_restore_scope(job, request, arguments))


def _restore_scope(job: RestoreJob, request: TaskRequest, arguments: RestoreArguments) -> RestoreResult:
    if arguments.at is not None:
        scope = word(RestoreScope, arguments.scope)
        return job.restore_at(arguments.at, scope=scope, moment=arguments.when(), request_id=request.task_id)
    run = {
        RestoreScope.FULL: job.restore_full,
        RestoreScope.DATABASE: job.restore_database,
        RestoreScope.MEDIA: job.restore_media,
        RestoreScope.AUDIT_LOGS: job.restore_audit_logs,
    }[word(RestoreScope, arguments.scope)]
    return run(arguments.archive, moment=arguments.when(), request_id=request.task_id)


def _options(arguments: RestoreArguments) -> dict[str, Any]:
    """The arguments for `RestoreConfig` from the task, besides those from the settings."""
    given: dict[str, Any] = {
        "dry_run": arguments.dry_run,
        "mode": arguments.mode,
        "exact": arguments.exact,
        "patterns": arguments.patterns,
        "target_database": arguments.target_database,
        "create_database": arguments.create_database,
        "owner": arguments.owner,
        "allow_unverified": arguments.allow_unverified,
        "allow_outside_links": arguments.allow_outside_links,
        "verify_before_restore": arguments.verify,
    }
    given |= {"media_path": arguments.media_dir} if arguments.media_dir is not None else {}
    return given | ({"jobs": arguments.jobs} if arguments.jobs is not None else {})


def roll_back(request: TaskRequest) -> Outcome:
    """Roll a restore back."""
    arguments = RollbackArguments.of(request.given)
    job = RestoreJob(
        RestoreConfig.from_settings(request.settings), progress=request.progress, **request.known(arguments)
    )
    if done := job.earlier_rollback(arguments.restore_id):
        return Outcome.of(done)
    with _authorized(request):
        return Outcome.of(job.rollback(arguments.restore_id, is_repeated=True))


@contextmanager
def _authorized(request: TaskRequest) -> Iterator[None]:
    """Require an authorization, which any end but that of the process uses up."""
    authorizations = Authorizations(request.repository)
    authorizations.take(request.operation, request.task_id, request.given)
    try:
        yield
    except (SystemExit, KeyboardInterrupt):  # it returns to the queue, and starts again with the same authorization
        raise
    except BaseException:
        authorizations.use_up(request.task_id)
        raise
    authorizations.use_up(request.task_id)
