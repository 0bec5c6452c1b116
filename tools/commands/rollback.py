"""`restore.sh --rollback`: rolls a restore back, lists what can be rolled back, or discards rollback data."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from portal.ops.errors import NotConfirmedError
from tools import tasks
from tools.commands.restore import NOT_CONFIRMED, ONLY_RESTORE, SAY_YES, Person, Workers, finish, restore_lines
from tools.jobs import restore_job
from tools.terminal.output import print_result, say
from tools.terminal.run import watched_settings

if TYPE_CHECKING:
    from portal.ops.restore.job import RestoreJob


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of a rollback."""
    parser.add_argument("--rollback", action="store_true", help="roll the last restore back, or the one named")
    parser.add_argument("--list", action="store_true", help="with --rollback: show what can be rolled back")
    parser.add_argument("--discard", metavar="RESTORE_ID", help="with --rollback: discard that restore's rollback data")
    parser.add_argument("--forget", dest="discard", help=argparse.SUPPRESS)  # the name in earlier releases


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse contradictory arguments."""
    if arguments.dry_run:
        parser.error(
            "a rollback has no dry run; without --force it asks, and --list lists the restores that can be rolled back"
        )
    if given := [name for name in ONLY_RESTORE if getattr(arguments, name) not in (None, False, [], "auto")]:
        option = given[0].replace("_", "-")
        parser.error(f"a rollback undoes a whole restore; --{option} cannot be combined with --rollback")


def run(arguments: argparse.Namespace) -> int:
    """Roll a restore back, here or by a worker."""
    settings, show = watched_settings()
    person = Person(asks=not arguments.force)
    job = restore_job(settings, show, person.confirm)
    if arguments.list:
        return _list(job)
    if not arguments.discard and tasks.is_remote(settings, arguments):
        from worker.arguments import RollbackArguments
        from worker.operations import RESTORE_ROLLBACK

        restore_id, plan = job.plan_rollback(arguments.archive)
        if not person.confirm(plan):
            raise NotConfirmedError(NOT_CONFIRMED, hint=SAY_YES)
        task = Workers(settings, show, arguments).hand_over(RESTORE_ROLLBACK, RollbackArguments(restore_id=restore_id))
        return finish(task, person, arguments, is_rollback=True)
    result = job.discard(arguments.discard) if arguments.discard else job.rollback(arguments.archive)
    person.report(result.to_dict(), is_rollback=True)
    return result.exit_code


def _list(job: RestoreJob) -> int:
    restores = job.list_restores()
    if not restores:
        job.repository.refuse_absent()
    for line in restore_lines(restores):
        say(line)
    if not restores:
        say("there is no restore that can be rolled back")
    print_result({"success": True, "restores": restores})
    return 0
