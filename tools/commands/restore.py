"""`restore.sh ARCHIVE`: shows the plan, asks, and restores."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import ConfigurationError, NotConfirmedError
from portal.ops.model import spoken_names
from portal.ops.units import exact_duration
from tools import tasks
from tools.jobs import archive_at_hand, person, restore_job
from tools.terminal.output import ask, print_result, say, say_error, warn
from tools.terminal.run import watched_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime, tzinfo

    from portal.ops.restore.job import RestoreJob, RestoreResult
    from portal.ops.restore.plan import RestorePlan
    from portal.ops.runtime.progress import Step
    from portal.ops.settings.load import Settings
    from tools.tasks import Remote, RemoteTask
    from worker.arguments import Arguments, RestoreArguments
    from worker.operations import Operation

ONLY_RESTORE: Final = (
    "at",
    "data_dir",
    "scope",
    "mode",
    "exact",
    "target_database",
    "create_database",
    "owner",
    "media_dir",
    "path",
    "jobs",
    "allow_unverified",
    "allow_outside_links",
)
"""Arguments that are invalid for a rollback."""

NOT_CONFIRMED: Final = "Not confirmed; nothing was changed"
SAY_YES: Final = "Start it again and answer yes, or use --force."

_FORCE: Final = "do not ask; the archive is then verified while it is staged, not beforehand"
_MODES: Final = "swap (built beside the live one, then exchanged), in-place (one transaction), auto (swap if possible)"
_STATES: Final = {"applied": "can be rolled back", "rolled_back": "was rolled back"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of a restore."""
    add = parser.add_argument
    add("--dry-run", action="store_true", help="verify the archive, show the plan, change nothing")
    add("--at", metavar="TIME", help="restore to a moment: '2026-11-28 14:03:07+00:00', '10 minutes ago', or 'latest'")
    add("--data-dir", metavar="DIR", help="with --at: write the recovered database cluster here, for a new server")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--database-only", dest="scope", action="store_const", const="database", help="only the database")
    part.add_argument("--media-only", dest="scope", action="store_const", const="media", help="only the uploads")
    part.add_argument("--audit-only", dest="scope", action="store_const", const="audit_logs", help="only the audit log")
    add("--force", action="store_true", help=_FORCE)
    add("--mode", choices=("auto", "swap", "in-place"), default="auto", help="how the database is replaced: " + _MODES)
    add("--exact", action="store_true", help="move uploads that are not in the backup aside (never deleted)")
    add("--target-database", metavar="NAME", help="restore into this database instead of the configured one")
    add("--create-database", action="store_true", help="create the database if it does not exist")
    add("--owner", metavar="ROLE", help="the role that is to own the database and everything in it")
    add("--media-dir", metavar="DIR", help="restore the uploads here instead of PORTAL_UPLOAD_DIR")
    add("--path", metavar="PATTERN", action="append", default=[], help="only uploads that match; can be repeated")
    add("--jobs", metavar="N", type=int, help="how many processes work at the same time")
    add("--allow-unverified", action="store_true", help="accept an archive that has no .sha256 file")
    add("--allow-outside-links", action="store_true", help="restore symlinks that lead out of the uploads")


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse contradictory arguments."""
    if arguments.list or arguments.discard:
        parser.error("--list and --discard need --rollback")
    if arguments.at and arguments.archive:
        parser.error("--at finds the archives itself; name none")
    if arguments.data_dir and not arguments.at:
        parser.error("--data-dir needs --at")
    if arguments.data_dir and arguments.scope:
        parser.error("--data-dir delivers the database cluster as a whole, and no uploads")
    if not (arguments.archive or arguments.at):
        parser.error("which archive? give a path, an id, or 'latest'; or --at for a moment")
    if arguments.dry_run and arguments.no_wait:
        parser.error("--dry-run cannot be combined with --no-wait")


def run(arguments: argparse.Namespace) -> int:
    """Restore an archive, here or by a worker."""
    from portal.ops.runtime.progress import utc_now

    asked = utc_now()
    settings, show = watched_settings()
    if arguments.data_dir:
        moment_at_hand(settings, show, arguments, asked)
        from tools.commands.data_dir import deliver_cluster

        return deliver_cluster(settings, show, arguments, asked)
    person = Person(asks=not (arguments.force or arguments.dry_run))
    if tasks.is_remote(settings, arguments):
        return _restore_remotely(Workers(settings, show, arguments), person)
    if arguments.archive:
        arguments.archive = archive_at_hand(settings, show, arguments.archive)
    if arguments.at:
        moment_at_hand(settings, show, arguments, asked)
    result = _restore(restore_job(settings, show, person.confirm, **_given(arguments)), arguments, asked)
    person.report(result.to_dict())
    return result.exit_code


def moment_at_hand(
    settings: Settings, show: Callable[[Step], None], arguments: argparse.Namespace, asked: datetime
) -> None:
    """Fetch what is missing for a restore to a moment.

    Arguments:
        asked: the time from which ``… ago`` counts, however long fetching takes.
    """
    from portal.ops.monitoring.observer import Observers
    from portal.ops.restore import moment_offsite
    from portal.ops.restore.config import RestoreScope

    fetched = moment_offsite.moment_at_hand(
        settings,
        arguments.at,
        RestoreScope.DATABASE if arguments.data_dir else RestoreScope(arguments.scope or "full"),
        media_dir=arguments.media_dir,
        progress=show,
        actor=person(),
        observer=Observers(settings),
        clock=lambda: asked,
    )
    if fetched:
        say(f"fetched from off-site: {', '.join(fetched)}")


def wait(arguments: argparse.Namespace) -> int:
    """Wait for a restore that was queued earlier."""
    from worker.operations import RESTORE_ROLLBACK

    settings, show = watched_settings()
    tasks.is_remote(settings, arguments)
    task = Workers(settings, show, arguments).pick_up(arguments.wait)
    if task.operation.family != "restore":
        raise ConfigurationError(
            f"{arguments.wait} is not a restore", hint=f"'./tools/backup.sh --wait {arguments.wait}' waits for it."
        )
    return finish(task, Person(asks=False), arguments, is_rollback=task.operation is RESTORE_ROLLBACK)


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments for `RestoreConfig` from the command line."""
    names = ("dry_run", "mode", "exact", "target_database", "create_database", "owner", "allow_unverified")
    given = {name: getattr(arguments, name) for name in (*names, "allow_outside_links")}
    given["patterns"] = tuple(arguments.path)
    given["verify_before_restore"] = not arguments.force
    given |= {"jobs": arguments.jobs} if arguments.jobs is not None else {}
    given |= {"media_path": os.path.abspath(arguments.media_dir)} if arguments.media_dir else {}
    return given


def _restore(job: RestoreJob, arguments: argparse.Namespace, asked: datetime) -> RestoreResult:
    if arguments.at:
        from portal.ops.restore.config import RestoreScope

        return job.restore_at(arguments.at, scope=RestoreScope(arguments.scope or "full"), moment=asked)
    restore = {
        None: job.restore_full,
        "database": job.restore_database,
        "media": job.restore_media,
        "audit_logs": job.restore_audit_logs,
    }[arguments.scope]
    return restore(arguments.archive)


# -- by a worker ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workers:
    """The workers, as this command uses them."""

    settings: Settings
    show: Callable[[Step], None]
    arguments: argparse.Namespace

    def hand_over(self, operation: Operation, given: Arguments, *, authorize: bool = True) -> RemoteTask:
        """Request a task, with the authorization that a person gives by starting this command."""
        return self._remote().hand_over(operation, given, authorize=authorize)

    def pick_up(self, task_id: str) -> RemoteTask:
        """A task that was queued earlier."""
        return self._remote().pick_up(task_id)

    def _remote(self) -> Remote:
        return tasks.Remote(
            settings=self.settings, show=self.show, command="./tools/restore.sh", timeout=self.arguments.timeout
        )


def _restore_remotely(workers: Workers, person: Person) -> int:
    """Let a worker plan, ask, then let it restore; return the exit code."""
    from worker.operations import RESTORE_ARCHIVE

    arguments = workers.arguments
    _prepare_for_fetch(workers.settings, arguments)
    given = _given_remotely(arguments, workers.settings.schedules.time_zone)
    if arguments.dry_run or not arguments.force:
        plan, exit_code = workers.hand_over(RESTORE_ARCHIVE, replace(given, dry_run=True), authorize=False).result()
        if arguments.dry_run or exit_code:
            person.report(plan)
            return exit_code
        if not person.agrees(plan["plan"]):
            raise NotConfirmedError(NOT_CONFIRMED, hint=SAY_YES)
        chosen = {"at": plan["at"]} if arguments.at else {"archive": plan["backup_file"]}
        given = replace(given, **chosen, verify=False, moment=tasks.now())
    return finish(workers.hand_over(RESTORE_ARCHIVE, given), person, arguments, is_rollback=False)


def _prepare_for_fetch(settings: Settings, arguments: argparse.Namespace) -> None:
    """Have a repository for the authorization, even on an empty machine, if the worker may fetch from off-site."""
    from portal.ops.repository.repository import Repository

    is_offsite = bool(arguments.at) or arguments.archive.startswith("offsite:")
    if is_offsite and settings.offsite.destinations() and not arguments.dry_run:
        Repository(settings.local_path).prepare_for_restore()


def finish(task: RemoteTask, person: Person, arguments: argparse.Namespace, *, is_rollback: bool) -> int:
    """Wait for a task and show its result, unless told not to wait; return the exit code."""
    if arguments.no_wait:
        say(f"queued; './tools/restore.sh --wait {task.task_id}' waits for it")
        print_result({"success": True, "task_id": task.task_id})
        return 0
    result, exit_code = task.result()
    person.report(result, is_rollback=is_rollback)
    return exit_code


def _given_remotely(arguments: argparse.Namespace, zone: tzinfo) -> RestoreArguments:
    """The task's arguments from the command line; a moment gets its offset here."""
    from portal.ops.pitr.moment import with_offset
    from worker.arguments import RestoreArguments

    given = _given(arguments)
    given["verify"] = given.pop("verify_before_restore")
    if "media_path" in given:
        given["media_dir"] = given.pop("media_path")
    return RestoreArguments(
        **given,
        archive="" if arguments.at else tasks.absolute(arguments.archive),
        at=with_offset(arguments.at, zone) if arguments.at else None,
        scope=arguments.scope or "full",
        moment=tasks.now(),
    )


# -- what a person is asked and told --------------------------------------------------------------------------------


class Person:
    """Shows plans and results to a person, and asks.

    Arguments:
        asks: whether a plan needs confirmation; otherwise it is only shown.
    """

    def __init__(self, *, asks: bool) -> None:
        self._asks = asks
        self._shown: tuple[str, ...] = ()

    def confirm(self, plan: RestorePlan) -> bool:
        """Show a plan and ask."""
        return self.agrees(plan.lines())

    def agrees(self, lines: Sequence[str]) -> bool:
        """Show a plan and ask; without a terminal, nobody can answer."""
        self._show(lines)
        if not self._asks:
            return True
        if not sys.stdin.isatty():
            say("\nThere is no terminal to ask on; --force restores without asking.")
            return False
        return ask("\nDo this? Type yes to continue: ").lower() == "yes"

    def report(self, result: Mapping[str, Any], *, is_rollback: bool = False) -> None:
        """Show the result."""
        plan = result.get("plan", ())
        if plan and not self._shown:
            self._show(plan)
        for warning in result.get("warnings", ()):
            if f"Warning: {warning}" not in self._shown:
                warn(warning)
        if not result["success"]:
            say_error(result["error"] or "the restore failed")
        else:
            for line in _ending(result, is_rollback=is_rollback):
                say(line)
        print_result(result)

    def _show(self, lines: Sequence[str]) -> None:
        self._shown = tuple(lines)
        for line in lines:
            say(line)


def _ending(result: Mapping[str, Any], *, is_rollback: bool) -> list[str]:
    """The result for people."""
    if result.get("dry_run"):
        return ["\nDry run: nothing was changed."]
    components = spoken_names(result["components_restored"])
    done = [f"  {line}" for line in _done(result, is_rollback=is_rollback)]
    if not is_rollback:
        roll_back = f"to roll it back: ./tools/restore.sh --rollback {result['restore_id']}"
        source = f"{'as of' if result.get('at') else 'from'} {result['backup_id']}"
        return [f"\nrestored: {components} {source}", *done, roll_back]
    if components:
        return [f"rolled back: {components}, as before {result['restore_id']}", *done]
    return [f"discarded: the rollback data of {result['restore_id']}"]


def _done(result: Mapping[str, Any], *, is_rollback: bool) -> list[str]:
    """What was changed in each component, and where its rollback data is, from the facts of the result."""
    from portal.ops.restore.files.report import FilesReport

    lines = []
    for component, facts in result.get("facts", {}).items():
        if component == "database":
            lines.append(_done_to_database(facts, is_rollback=is_rollback))
        else:
            lines += FilesReport.from_dict(facts).lines()
    if (portal := result.get("portal")) and portal["answers"]:
        lines.append(
            f"the portal answers at {portal['url']}: {portal['what']} after {exact_duration(portal['seconds'])}."
        )
    return lines


def _done_to_database(facts: Mapping[str, Any], *, is_rollback: bool) -> str:
    name, kept = f"database {facts['database']}", facts["kept_database"]
    if not is_rollback:
        rows = f"{name}: {facts['rows']:,} rows in {facts['tables']:,} tables"
        return f"{rows}; the previous database is kept as {kept}." if kept else f"{rows}."
    if kept:
        return f"{name}: as before; the restored one, with everything written to it since, is kept as {kept}."
    return f"{name}: as before; it was restored in place, so everything written to it since is lost."


def restore_lines(restores: Sequence[Mapping[str, Any]]) -> list[str]:
    """The restores for people, newest first."""
    lines = []
    for restore in restores:
        state = _STATES.get(restore["state"], "was interrupted: the next restore or rollback completes or undoes it")
        if restore["can_be_taken_back"]:
            state += f", at least until {restore['kept_until']}"
        lines.append(f"{restore['started']}  {restore['restore_id']}  of {restore['backup_id']}: {state}")
        lines += [f"    {target}" for target in restore["targets"]]
        lines += [f"    keeps {kept}" for kept in restore["kept"]]
    return lines
