"""`backup.sh prune`: removes archives that the retention policy does not keep."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from tools.jobs import known
from tools.terminal.output import Lines, print_listing, say, say_error, warn
from tools.terminal.run import watched_log

if TYPE_CHECKING:
    import argparse

    from portal.ops.retention.prune import PruneJob, PruneResult


def add_arguments(parser: argparse.ArgumentParser, _name: str) -> None:
    """Define the command's arguments."""
    parser.add_argument("--dry-run", action="store_true", help="show the plan with its reasons, and remove nothing")


def run(arguments: argparse.Namespace) -> int:
    """Remove old archives, or show which would be removed."""
    from portal.ops.backup.aftercare import cleanup_job
    from portal.ops.runtime.environment import current_settings

    gc.disable()  # there may be very many archives, without garbage to collect
    settings = current_settings()
    watched_log(settings.log_format)
    job = cleanup_job(settings, **known(settings))
    cleaned = job.run(dry_run=arguments.dry_run)
    result = cleaned.pruned
    _tell(job.prune, result)
    for line in cleaned.discarded:
        say(line)
    plan = result.plan.decisions if result.plan else ()
    print_listing("plan", (decision.to_dict() for decision in plan), **cleaned.to_dict())
    return result.exit_code


def _tell(job: PruneJob, result: PruneResult) -> None:
    from portal.ops.units import human_bytes

    if result.plan:
        with Lines() as lines:
            for decision in result.plan.decisions:
                lines.say(decision.line())
    for name in result.spared:
        say(f"spared: {name} is in use, or needed by now; the next prune looks again")
    for name in result.swept:
        say(f"swept: {name}")
    for warning in result.warnings:
        warn(warning)
    if result.error:
        say_error(result.error)
    count = len(result.removed)
    what = f"{count:,} archive{'' if count == 1 else 's'}, {human_bytes(result.freed_bytes)}"
    if result.dry_run:
        say(f"would be removed: {what} in {job.repository.path}; a dry run removes nothing")
    else:
        say(f"removed: {what} in {job.repository.path}")
