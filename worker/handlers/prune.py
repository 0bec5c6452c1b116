"""Pruning by the retention policy."""

from __future__ import annotations

from typing import Final

from portal.ops.backup.aftercare import cleanup_job
from worker.arguments import PruneArguments
from worker.errors import EXIT_CODE
from worker.execution import Outcome, TaskRequest

_MOST_NAMES: Final = 1000
"""The most names of removed archives in a result; the access log has all."""


def prune(request: TaskRequest) -> Outcome:
    """Prune, and discard old rollback data."""
    arguments = PruneArguments.of(request.given)
    cleaned = cleanup_job(request.settings, **request.known(arguments)).run(dry_run=arguments.dry_run)
    result = cleaned.pruned
    facts = cleaned.to_dict() | {"removed": [decision.entry.name for decision in result.removed[:_MOST_NAMES]]}
    retryable = result.fault is not None and result.fault.retryable
    return Outcome(result=facts | {EXIT_CODE: result.exit_code}, success=result.success, retryable=retryable)
