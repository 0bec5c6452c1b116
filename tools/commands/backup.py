"""`backup.sh full`, `database`, `media` and `base`: make a backup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tools import tasks
from tools.jobs import backup_job
from tools.terminal.output import print_result, say, say_error, warn
from tools.terminal.run import watched_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from portal.ops.settings.load import Settings


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add what the command takes."""
    if name == "media":
        parser.add_argument(
            "--incremental",
            action="store_true",
            help="only what differs from the newest archive that contains the uploads",
        )
    tasks.add_options(parser, with_wait=True)


def run(arguments: argparse.Namespace) -> int:
    """Make a backup, or have a worker make it."""
    from portal.ops.settings.load import refuse_unbuilt

    settings, show = watched_settings()
    incremental = arguments.command == "media" and arguments.incremental
    if tasks.is_remote(settings, arguments):
        if not arguments.wait:  # a worker's environment may ask for less than this one
            refuse_unbuilt(settings.unbuilt)
        from worker.arguments import BackupArguments, MediaArguments
        from worker.operations import OPERATIONS

        operation = OPERATIONS[f"backup.{arguments.command}"]
        moment = tasks.now()
        given = MediaArguments(moment=moment, incremental=True) if incremental else BackupArguments(moment=moment)
        return tasks.do_remotely(settings, show, arguments, operation, given)
    job = backup_job(settings, show)
    if arguments.command == "media":
        result = job.backup_media(incremental=incremental)
    else:
        makers = {"full": job.backup_full, "database": job.backup_database, "base": job.backup_base}
        result = makers[arguments.command]()
    found = result.to_dict()
    _say_how_it_ended(found)
    print_result({**found, **(_prune(settings, found) if result.success else {"pruned": []})})
    return result.exit_code


def tell(result: Mapping[str, Any]) -> None:
    """Tell how a worker's backup ended, for people and programs."""
    _say_how_it_ended(result)
    print_result({**result, "pruned": []})  # beat has workers prune, and not after each backup


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
