"""`backup.sh full`, `database`, `media` and `base`: make a backup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import OpsError
from tools import tasks
from tools.jobs import backup_job
from tools.terminal.output import print_result, say, say_error, warn
from tools.terminal.run import StoppedError, watched_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from portal.ops.runtime.progress import Step
    from portal.ops.settings.load import Settings


_STOPPED: Final = "the off-site copy after this backup was stopped; the next one goes on with it"


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add what the command takes."""
    if name == "media":
        parser.add_argument(
            "--incremental",
            action="store_true",
            help="only what differs from the newest archive that contains the uploads",
        )
    if name == "full":
        parser.add_argument(
            "--complete",
            action="store_true",
            help="all uploads, even if BACKUP_FULL_UPLOADS is chain",
        )
    if name in ("full", "media"):
        parser.add_argument(
            "--confirm-loss",
            action="store_true",
            help="back up what has lost nearly everything since the last backup, or to another repository than then",
        )
    else:
        parser.add_argument(
            "--confirm-loss", action="store_true", help="back up to another repository than the last backup"
        )
    tasks.add_options(parser, with_wait=True)


def run(arguments: argparse.Namespace) -> int:
    """Make a backup, or have a worker make it."""
    from portal.ops.settings.load import refuse_unbuilt

    settings, show = watched_settings()
    incremental = arguments.command == "media" and arguments.incremental
    complete = arguments.command == "full" and arguments.complete
    told: dict[str, Any] = {"confirm_loss": getattr(arguments, "confirm_loss", False)}
    if tasks.is_remote(settings, arguments):
        if not arguments.wait:  # a worker's environment may ask for less than this one
            refuse_unbuilt(settings.unbuilt)
        from worker.arguments import BackupArguments, FullArguments, MediaArguments
        from worker.operations import OPERATIONS

        operation = OPERATIONS[f"backup.{arguments.command}"]
        moment = tasks.now()
        given = BackupArguments(moment=moment, **told)
        if complete:
            given = FullArguments(moment=moment, complete=True, **told)
        elif incremental:
            given = MediaArguments(moment=moment, incremental=True, **told)
        return tasks.do_remotely(settings, show, arguments, operation, given)
    job = backup_job(settings, show, **told)
    if arguments.command == "media":
        result = job.backup_media(incremental=incremental)
    elif arguments.command == "full":
        result = job.backup_full(complete=complete)
    else:
        makers = {"database": job.backup_database, "base": job.backup_base}
        result = makers[arguments.command]()
    found = result.to_dict()
    _say_how_it_ended(found)
    found |= _copy(settings, show, found) if result.success else {"offsite": []}
    print_result({**found, **(_prune(settings, found) if result.success else {"pruned": []})})
    return result.exit_code


def tell(result: Mapping[str, Any]) -> None:
    """Tell how a worker's backup ended, for people and programs."""
    _say_how_it_ended(result)
    print_result({**result, "offsite": [], "pruned": []})  # beat has workers prune, and not after each backup


def _copy(settings: Settings, show: Callable[[Step], None], result: Mapping[str, Any]) -> dict[str, Any]:
    """Copy off-site what is missing there; a failure is a warning, for the backup is made."""
    if not settings.offsite.destinations():
        return {"offsite": []}
    from tools.commands.offsite import copy_lines, copy_missing

    try:
        done = copy_missing(settings, show)
    except (OpsError, OSError) as error:
        warn(failed := f"off-site copies were not made: {error}")
        return {"offsite": [], "warnings": [*result["warnings"], failed]}
    except StoppedError:
        warn(_STOPPED)
        return {"offsite": [], "warnings": [*result["warnings"], _STOPPED]}
    for line in copy_lines(done.to_dict()) if done.copied else ():
        say(line)
    failures = [f"off-site copies were not made: {fault}" for fault in dict.fromkeys(map(str, done.faults))]
    for warning in (*done.warnings, *failures):
        warn(warning)
    copied = [{"destination": place, "backup_id": name} for place, name in done.copied]
    return {"offsite": copied, "warnings": [*result["warnings"], *done.warnings, *failures]}


def _prune(settings: Settings, result: Mapping[str, Any]) -> dict[str, Any]:
    """Remove old archives, and tell people; what programs are told of it."""
    from tools.commands.prune_after_backup import prune_after_backup

    pruned = prune_after_backup(settings)
    for line in pruned.lines():
        say(line)
    for warning in pruned.warnings:
        warn(warning)
    return {"warnings": [*result["warnings"], *pruned.warnings], "pruned": list(pruned.names)}


def _say_how_it_ended(result: Mapping[str, Any]) -> None:
    if result.get("unchanged"):
        say(f"nothing has changed since {result['path']}")
    elif result["success"]:
        from portal.ops.units import human_bytes

        say(f"backup {result['backup_id']} is complete: {human_bytes(result['size_bytes'])} in {result['path']}")
    else:
        say_error(result["error"] or "the backup failed")
