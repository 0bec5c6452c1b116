"""The commands of `backup.sh` that look after archives: prune, pin, unpin, drill, audit."""

from __future__ import annotations

import gc
import os
from collections import deque
from typing import TYPE_CHECKING, Any

from tools import submit as remote
from tools.terminal import Lines, print_listing, print_result, say, say_error, watched_log, watched_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from portal.ops.repository.access_log import AccessEntry
    from portal.ops.repository.repository import Repository
    from portal.ops.retention.prune import PruneJob, PruneResult
    from portal.ops.settings.load import Settings


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser of `backup.sh`."""
    prune = commands.add_parser("prune", help="remove old archives as the policy of retention says")
    prune.add_argument("--dry-run", action="store_true", help="show the plan with its reasons, and remove nothing")
    prune.set_defaults(run=_prune)
    pin = commands.add_parser("pin", help="keep an archive until it is unpinned")
    pin.add_argument("archive", help="a path, an id or the start of one, or 'latest'")
    pin.add_argument("--reason", metavar="TEXT", default="", help="why, for those who come later")
    pin.set_defaults(run=_pin)
    unpin = commands.add_parser("unpin", help="let an archive go when it is old")
    unpin.add_argument("archive", help="an id or the start of one, or 'latest'")
    unpin.set_defaults(run=_unpin)
    drill_command = commands.add_parser("drill", help="restore an archive for a try, compare everything, throw it away")
    drill_command.add_argument("archive", nargs="?", default="latest", help="which one (default: the newest full one)")
    remote.add_options(drill_command)
    drill_command.set_defaults(run=drill)
    audit = commands.add_parser("audit", help="who did what with the backups")
    audit.add_argument("--verify", action="store_true", help="check that no line was changed, removed or put in")
    audit.add_argument("--last", metavar="N", type=int, default=50, help="so many entries (default: 50; 0: all)")
    audit.set_defaults(run=_audit)


def person() -> str | None:
    """Who is at the keyboard, where that is another one than the user of this process."""
    from portal.ops.repository.access_log import sudo_user

    return sudo_user()


def _settings() -> Settings:
    from portal.ops.runtime.environment import current_settings

    return current_settings()


def _repository(settings: Settings) -> Repository:
    from portal.ops.repository.repository import Repository

    return Repository(settings.local_path, lock_timeout=settings.lock_timeout)


# -- prune ----------------------------------------------------------------------------------------------------------


def _prune(arguments: argparse.Namespace) -> int:
    from portal.ops.backup.job import BackupConfig
    from portal.ops.monitoring.observer import Aftermath
    from portal.ops.retention.prune import PruneJob

    gc.disable()  # there may be very many archives, and none of what is made for them is garbage
    settings = _settings()
    watched_log(settings.log_format)
    config = BackupConfig.from_settings(settings)
    observer = Aftermath(settings)
    job = PruneJob(_repository(settings), config.retention, actor=person(), observer=observer)
    result = job.run(dry_run=arguments.dry_run)
    forgotten = [] if arguments.dry_run or not result.success else forget_restores(settings)
    _tell_prune(job, result)
    for line in forgotten:
        say(line)
    facts = {**result.to_dict(), "restores_forgotten": forgotten}
    plan = result.plan.decisions if result.plan else ()
    print_listing("plan", (decision.to_dict() for decision in plan), **facts)
    return result.exit_code


def forget_restores(settings: Settings) -> list[str]:
    """Remove what takes old restores back; what was done, in words. A failure of that is only told."""
    from portal.ops.errors import OpsError
    from portal.ops.restore.journal import DIRECTORY

    if not os.path.exists(settings.local_path / DIRECTORY):  # most often so; what follows takes a while to import
        return []
    from portal.ops.monitoring.observer import Aftermath
    from portal.ops.restore.job import RestoreConfig, RestoreJob

    try:
        config, observer = RestoreConfig.from_settings(settings), Aftermath(settings)
        return list(RestoreJob(config, actor=person(), observer=observer).discard_old())
    except OpsError as error:
        return [f"what takes old restores back was not looked at: {error}"]


def _tell_prune(job: PruneJob, result: PruneResult) -> None:
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
        say(f"warning: {warning}")
    if result.error:
        say_error(result.error)
    count = len(result.removed)
    what = f"{count:,} archive{'' if count == 1 else 's'}, {human_bytes(result.freed_bytes)}"
    if result.dry_run:
        say(f"would be removed: {what} in {job.repository.path}; nothing was")
    else:
        say(f"removed: {what} in {job.repository.path}")


# -- pins -----------------------------------------------------------------------------------------------------------


def _pin(arguments: argparse.Namespace) -> int:
    from portal.ops.monitoring.observer import Aftermath
    from portal.ops.retention.pin import pin

    settings = _settings()
    observer = Aftermath(settings)
    found = pin(_repository(settings), arguments.archive, reason=arguments.reason, actor=person(), observer=observer)
    say(f"pinned: {found.backup_id}; no prune removes it")
    print_result({"success": True, **found.to_dict()})
    return 0


def _unpin(arguments: argparse.Namespace) -> int:
    from portal.ops.monitoring.observer import Aftermath
    from portal.ops.retention.pin import unpin

    settings = _settings()
    name, was_pinned = unpin(_repository(settings), arguments.archive, actor=person(), observer=Aftermath(settings))
    say(f"unpinned: {name}" if was_pinned else f"{name} was not pinned")
    print_result({"success": True, "backup_id": name, "was_pinned": was_pinned})
    return 0


# -- drill ----------------------------------------------------------------------------------------------------------


def drill(arguments: argparse.Namespace) -> int:
    """Run a drill, and tell what came of it."""
    from portal.ops.drill.job import DrillJob
    from portal.ops.monitoring.observer import Aftermath
    from portal.ops.restore.config import RestoreConfig

    settings, show = watched_settings()
    if remote.is_remote(settings, arguments):
        from worker.arguments import DrillArguments
        from worker.operations import DRILL_RESTORE

        given = DrillArguments(archive=remote.absolute(arguments.archive))
        return remote.do_remotely(settings, show, arguments, DRILL_RESTORE, given, {"drill": tell_of_drill})
    config, observer = RestoreConfig.from_settings(settings), Aftermath(settings)
    report = DrillJob(config, progress=show, actor=person(), observer=observer).run(arguments.archive)
    tell_of_drill(report.to_dict())
    return report.exit_code


def tell_of_drill(result: Mapping[str, Any]) -> None:
    """Tell how a drill ended, for people and programs."""
    from portal.ops.drill.report import DrillReport

    if "drill_id" in result:
        for line in DrillReport.from_dict(result).lines():
            say(line)
    if result["error"]:
        say_error(result["error"])
    print_result(result)


# -- the access log -------------------------------------------------------------------------------------------------


def _audit(arguments: argparse.Namespace) -> int:
    from portal.ops.drill.report import DIRECTORY as DRILLS
    from portal.ops.drill.report import DrillReports
    from portal.ops.repository.access_log import AccessLog

    repository = _repository(_settings())
    log = AccessLog(repository)
    entries = deque(log.entries(), maxlen=arguments.last if arguments.last > 0 else None)
    with Lines() as lines:
        for entry in entries:
            lines.say(_entry_line(entry))
    if not entries:
        say(f"nothing is written in {log.path} yet")
    facts: dict[str, Any] = {"success": True}
    if arguments.verify:
        report = log.verify()
        reports = DrillReports(repository)
        altered, unlogged = reports.altered(log.entries()), reports.unlogged(log.entries())
        facts = {
            "success": report.intact and not altered and not unlogged,
            "verification": report.to_dict(),
            "altered_drills": altered,
            "unlogged_drills": unlogged,
        }
        for fault in report.faults:
            say(f"fault: {fault}")
        for drill_id in altered:
            say(f"fault: the report of {drill_id} is not what was written when it ended")
        for drill_id in unlogged:
            say(f"fault: the log has no drill for the report {drill_id}: it was put in, or the drill was killed")
        for drill_id in (*altered, *unlogged):
            say(f"  hint: Move {DRILLS}/{drill_id}.json away from the repository, then: './tools/backup.sh drill'.")
        for note in report.notes:
            say(f"note: {note}")
        number, last = report.last
        state = "is unbroken" if report.intact else "is BROKEN"
        say(f"the log {state}: {report.entries:,} entries, the last one is number {number} with the hash {last}")
    print_listing("entries", (entry.to_dict() for entry in entries), **facts)
    return 0 if facts["success"] else 4


def _entry_line(entry: AccessEntry) -> str:
    from portal.ops.model import timestamp

    facts = "  ".join(f"{name} {value}" for name, value in entry.details.items() if not isinstance(value, list))
    line = (
        f"{timestamp(entry.moment)}  {entry.who}@{entry.host}  {entry.action:<8}  {entry.outcome:<7}  {entry.subject}"
    )
    return f"{line}  {facts}".rstrip()
