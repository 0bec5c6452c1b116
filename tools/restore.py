"""The command behind `restore.sh`: parses, shows the plan, asks, calls the engine, prints one JSON object."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import ConfigurationError, NotConfirmedError
from tools import submit as remote
from tools.submit import Remote
from tools.terminal import EXIT_CODES, print_result, run_command, say, watched_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from portal.ops.restore.job import RestoreJob, RestoreResult
    from portal.ops.restore.plan import RestorePlan
    from portal.ops.runtime.progress import Step
    from portal.ops.settings.load import Settings
    from tools.submit import RemoteTask
    from worker.arguments import Arguments, RestoreArguments
    from worker.operations import Operation

_EXAMPLES: Final = f"""examples:
  restore.sh latest --dry-run            what would be done? changes nothing
  restore.sh latest                      shows the plan, asks, restores everything
  restore.sh full_2024 --database-only   the database alone, as it was in that archive
  restore.sh latest --path 'tenant-a/*.sarif'
                                         single files of the uploads
  restore.sh latest --database-only --target-database try --create-database --force
                                         into a database beside the live one, to have a look
  restore.sh latest --media-only --media-dir /tmp/try --force
                                         the uploads into another directory
  restore.sh --at '10 minutes ago'       database and uploads as they were then
  restore.sh --rollback                  takes the last restore back
  restore.sh --rollback --list           shows what can be taken back, and what is kept for that
  restore.sh --rollback --forget restore_20240115_120000_abc123
                                         removes what is kept of that one, to make room

A restore can be started without fear: it changes nothing until the archive has been checked and everything lies ready,
and it can be taken back. The SQL in a dump runs as the user of the restore: restore only archives that you trust.
Standard output is one JSON object; everything for people goes to standard error.

{EXIT_CODES}"""


def main() -> int:
    """Run the command; the exit code."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.wait:
        if arguments.archive or arguments.rollback or arguments.no_wait:
            parser.error("--wait goes with nothing but the task's id")
        return _wait(arguments)
    if arguments.rollback:
        return _go_back(parser, arguments)
    if arguments.list or arguments.forget:
        parser.error("--list and --forget go with --rollback")
    if arguments.at and arguments.archive:
        parser.error("--at finds the archives itself: name none")
    if not (arguments.archive or arguments.at):
        parser.error("which archive? a path, an id, or 'latest'; or --at for a moment")
    if arguments.dry_run and arguments.no_wait:
        parser.error("a dry run is for somebody who waits for it")
    settings, show = watched_settings()
    person = _Person(asks=not (arguments.force or arguments.dry_run))
    if remote.is_remote(settings, arguments):
        return _restore_remotely(_Workers(settings, show, arguments), person)
    result = _restore(_job(settings, show, person, **_given(arguments)), arguments)
    person.report(result.to_dict())
    return result.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="restore.sh",
        description="Restore Kekkai Portal, or a part of it, from an archive.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("archive", nargs="?", help="a path, an id or the start of one, or 'latest'; with --rollback: a restore's id")
    add("--dry-run", action="store_true", help="check the archive, show the plan, change nothing")
    add("--at", metavar="TIME", help="restore to a moment: '2026-11-28 14:03:07+00:00', '10 minutes ago', or 'latest'")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--database-only", dest="scope", action="store_const", const="database", help="only the database")
    part.add_argument("--media-only", dest="scope", action="store_const", const="media", help="only the uploads")
    part.add_argument("--audit-only", dest="scope", action="store_const", const="audit_logs", help="only the audit log")
    add("--force", action="store_true", help=_FORCE)
    add("--mode", choices=("auto", "swap", "in-place"), default="auto", help="how the database is replaced: " + _MODES)
    add("--exact", action="store_true", help="move uploads that are not in the backup aside (never deleted)")
    add("--target-database", metavar="NAME", help="restore into this database instead of the configured one")
    add("--create-database", action="store_true", help="make the database, where there is none")
    add("--media-dir", metavar="DIR", help="put the uploads here instead of PORTAL_UPLOAD_DIR")
    add("--path", metavar="PATTERN", action="append", default=[], help="only uploads that fit; may be repeated")
    add("--jobs", metavar="N", type=int, help="how many processes work at once")
    add("--allow-unverified", action="store_true", help="take an archive that has no .sha256 file")
    add("--allow-outside-links", action="store_true", help="restore symlinks that lead out of the uploads")
    add("--rollback", action="store_true", help="take the last restore back, or the one named")
    add("--list", action="store_true", help="with --rollback: show what can be taken back")
    add("--forget", metavar="RESTORE_ID", help="with --rollback: remove what takes that restore back")
    remote.add_options(parser, with_wait=True)
    return parser


_ONLY_RESTORE: Final = (
    "at",
    "scope",
    "mode",
    "exact",
    "target_database",
    "create_database",
    "media_dir",
    "path",
    "jobs",
    "allow_unverified",
    "allow_outside_links",
)
_SAY_YES: Final = "Start it again and answer yes, or use --force."
_FORCE: Final = "do not ask; the archive is then checked while it is staged, instead of beforehand"
_MODES: Final = "swap (beside the live one, then exchanged), in-place (one transaction), auto (swap where it can be)"


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `RestoreConfig` that the command line has, beside those that the environment has."""
    names = ("dry_run", "mode", "exact", "target_database", "create_database", "allow_unverified")
    given = {name: getattr(arguments, name) for name in (*names, "allow_outside_links")}
    given["patterns"] = tuple(arguments.path)
    given["verify_before_restore"] = not arguments.force
    given |= {"jobs": arguments.jobs} if arguments.jobs is not None else {}
    given |= {"media_path": os.path.abspath(arguments.media_dir)} if arguments.media_dir else {}
    return given


def _restore(job: RestoreJob, arguments: argparse.Namespace) -> RestoreResult:
    if arguments.at:
        from portal.ops.restore.config import RestoreScope

        return job.restore_at(arguments.at, scope=RestoreScope(arguments.scope or "full"))
    restore = {
        None: job.restore_full,
        "database": job.restore_database,
        "media": job.restore_media,
        "audit_logs": job.restore_audit_logs,
    }[arguments.scope]
    return restore(arguments.archive)


class _Person:
    """Who is told, and asked.

    Arguments:
        asks: whether a plan needs a yes; otherwise it is only shown.
    """

    def __init__(self, *, asks: bool) -> None:
        self._asks = asks
        self._shown: tuple[str, ...] = ()

    def confirm(self, plan: RestorePlan) -> bool:
        """Show a plan, and ask."""
        return self.agrees(plan.lines())

    def agrees(self, lines: Sequence[str]) -> bool:
        """Show a plan, and ask; without a terminal nobody can answer."""
        self._show(lines)
        if not self._asks:
            return True
        if not sys.stdin.isatty():
            say("\nThere is no terminal to ask on; --force does it without asking.")
            return False
        sys.stderr.write("\nDo this? Type yes to go on: ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() == "yes"

    def report(self, result: Mapping[str, Any], *, is_rollback: bool = False) -> None:
        """Say how it ended."""
        plan = result.get("plan", ())
        if plan and not self._shown:
            self._show(plan)
        for warning in result.get("warnings", ()):
            if f"Warning: {warning}" not in self._shown:
                say(f"warning: {warning}")
        for line in _ending(result, is_rollback=is_rollback):
            say(line)
        print_result(result)

    def _show(self, lines: Sequence[str]) -> None:
        self._shown = tuple(lines)
        for line in lines:
            say(line)


def _ending(result: Mapping[str, Any], *, is_rollback: bool) -> list[str]:
    """How it ended, for people."""
    if not result["success"]:
        return [f"error: {result['error'] or 'it failed'}"]
    if result.get("dry_run"):
        return ["\nThis was a dry run: nothing was changed."]
    components = ", ".join(result["components_restored"])
    done = [f"  {line}" for line in _done(result, is_rollback=is_rollback)]
    if not is_rollback:
        take_back = f"to take it back: ./tools/restore.sh --rollback {result['restore_id']}"
        return [f"\nrestored: {components} from {result['backup_id']}", *done, take_back]
    if components:
        return [f"taken back: {components}, as before {result['restore_id']}", *done]
    return [f"forgotten: {result['restore_id']}"]


def _done(result: Mapping[str, Any], *, is_rollback: bool) -> list[str]:
    """What was done to each component, and what is kept where, by the facts of the result."""
    from portal.ops.restore.files.report import FilesReport

    lines = []
    for component, facts in result.get("facts", {}).items():
        if component == "database":
            lines.append(_done_to_database(facts, is_rollback=is_rollback))
        else:
            lines += FilesReport.from_dict(facts).lines()
    return lines


def _done_to_database(facts: Mapping[str, Any], *, is_rollback: bool) -> str:
    name, kept = f"database {facts['database']}", facts["kept_database"]
    if not is_rollback:
        rows = f"{name}: {facts['rows']:,} rows in {facts['tables']:,} tables"
        return f"{rows}; what was live before is kept as {kept}." if kept else f"{rows}."
    if kept:
        return f"{name}: as before; what was restored, with all that was written to it since, is kept as {kept}."
    return f"{name}: as before; it was restored in place, so what was written to it since is gone."


@dataclass(frozen=True)
class _Workers:
    """Who restores, where there is a broker."""

    settings: Settings
    show: Callable[[Step], None]
    arguments: argparse.Namespace

    def hand_over(self, operation: Operation, given: Arguments, *, authorize: bool = True) -> RemoteTask:
        """Give a worker a task, with the authorization that a person gives by starting this command."""
        return self._there().hand_over(operation, given, authorize=authorize)

    def pick_up(self, task_id: str) -> RemoteTask:
        """A task that was handed over before."""
        return self._there().pick_up(task_id)

    def _there(self) -> Remote:
        return Remote(
            settings=self.settings, show=self.show, command="./tools/restore.sh", timeout=self.arguments.timeout
        )


def _restore_remotely(workers: _Workers, person: _Person) -> int:
    """Have a worker plan, ask, and have it restore; the exit code."""
    from worker.operations import RESTORE_ARCHIVE

    arguments = workers.arguments
    given = _given_remotely(arguments)
    if arguments.dry_run or not arguments.force:
        plan, exit_code = workers.hand_over(RESTORE_ARCHIVE, replace(given, dry_run=True), authorize=False).result()
        if arguments.dry_run or exit_code:
            person.report(plan)
            return exit_code
        if not person.agrees(plan["plan"]):
            raise NotConfirmedError("nobody said yes, so nothing was changed", hint=_SAY_YES)
        chosen = {"at": plan["at"]} if arguments.at else {"archive": plan["backup_file"]}
        given = replace(given, **chosen, verify=False, moment=remote.now())
    return _finish(workers.hand_over(RESTORE_ARCHIVE, given), person, arguments, is_rollback=False)


def _finish(task: RemoteTask, person: _Person, arguments: argparse.Namespace, *, is_rollback: bool) -> int:
    if arguments.no_wait:
        say(f"handed over; './tools/restore.sh --wait {task.task_id}' waits for it")
        print_result({"success": True, "task_id": task.task_id})
        return 0
    result, exit_code = task.result()
    person.report(result, is_rollback=is_rollback)
    return exit_code


def _given_remotely(arguments: argparse.Namespace) -> RestoreArguments:
    """The task's arguments that the command line has."""
    from worker.arguments import RestoreArguments

    given = _given(arguments)
    given["verify"] = given.pop("verify_before_restore")
    if "media_path" in given:
        given["media_dir"] = given.pop("media_path")
    return RestoreArguments(
        **given,
        archive="" if arguments.at else remote.absolute(arguments.archive),
        at=arguments.at,
        scope=arguments.scope or "full",
        moment=remote.now(),
    )


def _wait(arguments: argparse.Namespace) -> int:
    from worker.operations import RESTORE_ROLLBACK

    settings, show = watched_settings()
    remote.is_remote(settings, arguments)
    task = _Workers(settings, show, arguments).pick_up(arguments.wait)
    if task.operation.family != "restore":
        raise ConfigurationError(
            f"{arguments.wait} is no restore", hint=f"'./tools/backup.sh --wait {arguments.wait}' waits for it."
        )
    return _finish(task, _Person(asks=False), arguments, is_rollback=task.operation is RESTORE_ROLLBACK)


def _go_back(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.dry_run:
        parser.error("a rollback has no dry run; without --force it asks, and --list shows what there is")
    if given := [name for name in _ONLY_RESTORE if getattr(arguments, name) not in (None, False, [], "auto")]:
        parser.error(f"a rollback takes all of a restore back; --{given[0].replace('_', '-')} makes no sense with it")
    settings, show = watched_settings()
    person = _Person(asks=not arguments.force)
    job = _job(settings, show, person)
    if arguments.list:
        return _list_restores(job)
    if not arguments.forget and remote.is_remote(settings, arguments):
        from worker.arguments import RollbackArguments
        from worker.operations import RESTORE_ROLLBACK

        restore_id, plan = job.plan_rollback(arguments.archive)
        if not person.confirm(plan):
            raise NotConfirmedError("nobody said yes, so nothing was changed", hint=_SAY_YES)
        task = _Workers(settings, show, arguments).hand_over(RESTORE_ROLLBACK, RollbackArguments(restore_id=restore_id))
        return _finish(task, person, arguments, is_rollback=True)
    result = job.forget(arguments.forget) if arguments.forget else job.rollback(arguments.archive)
    person.report(result.to_dict(), is_rollback=True)
    return result.exit_code


def _list_restores(job: RestoreJob) -> int:
    restores = job.list_restores()
    for line in restore_lines(restores):
        say(line)
    if not restores:
        say("there is no restore that could be taken back")
    print_result({"success": True, "restores": restores})
    return 0


def restore_lines(restores: Sequence[Mapping[str, Any]]) -> list[str]:
    """The restores that were made, for people; the last one first."""
    lines = []
    for restore in restores:
        state = _STATES.get(restore["state"], "was cut off: the next restore or rollback finishes or undoes it")
        lines.append(f"{restore['started']}  {restore['restore_id']}  of {restore['backup_id']}: {state}")
        lines += [f"    keeps {kept}" for kept in restore["kept"]]
    return lines


_STATES: Final = {"applied": "can be taken back", "rolled_back": "was taken back"}


def _job(settings: Settings, show: Callable[[Step], None], person: _Person, **given: Any) -> RestoreJob:
    from portal.ops.monitoring.observer import Aftermath
    from portal.ops.repository.access_log import sudo_user
    from portal.ops.restore.job import RestoreConfig, RestoreJob

    return RestoreJob(
        RestoreConfig.from_settings(settings, **given),
        confirm=person.confirm,
        progress=show,
        actor=sudo_user(),
        observer=Aftermath(settings),
    )


if __name__ == "__main__":
    run_command(main)
