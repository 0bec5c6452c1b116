"""`backup.sh full`, `database`, `media` and `base`: makes a backup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from portal.ops.model import Loss
from tools import tasks
from tools.jobs import backup_job, known
from tools.terminal.output import print_result, say, say_error, warn
from tools.terminal.run import StoppedError, watched_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Mapping

    from portal.ops.runtime.progress import Step
    from portal.ops.settings.load import Settings


_LOSSES: Final[dict[str, tuple[str, ...]]] = {
    "full": (Loss.UPLOADS.value, Loss.AUDIT_LOG.value, Loss.REPOSITORY.value),
    "media": (Loss.UPLOADS.value, Loss.REPOSITORY.value),
    "database": (Loss.REPOSITORY.value,),
    "base": (Loss.REPOSITORY.value,),
}


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Define the commands' arguments."""
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
    losses = _LOSSES[name]
    parser.add_argument(
        "--confirm-loss",
        nargs="?",
        action="append",
        choices=losses,
        const=True,
        help=f"back up although a loss was reported ({', '.join(losses)}); without a name, whichever it is",
    )
    tasks.add_options(parser, with_wait=True)


def run(arguments: argparse.Namespace) -> int:
    """Make a backup, here or by a worker."""
    from portal.ops.settings.load import refuse_unbuilt

    settings, show = watched_settings()
    incremental = arguments.command == "media" and arguments.incremental
    complete = arguments.command == "full" and arguments.complete
    losses = getattr(arguments, "confirm_loss", None) or ()
    told: dict[str, Any] = {"confirm_loss": True in losses or tuple(dict.fromkeys(losses)) or False}
    if tasks.is_remote(settings, arguments):
        if not arguments.wait:  # the worker's environment may request less than this one
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
    told_after = list(found["warnings"])
    after: dict[str, Any] = {"offsite": [], "pruned": []}
    if result.success:
        after = _copy(settings, show, told_after) | _prune(settings, told_after)
    print_result({**found, **after, "warnings": told_after})
    return result.exit_code


def tell(result: Mapping[str, Any]) -> None:
    """Show the result of a worker's backup."""
    _say_how_it_ended(result)
    print_result({**result, "offsite": [], "pruned": []})  # with workers, beat schedules the prune


def _copy(settings: Settings, show: Callable[[Step], None], warnings: list[str]) -> dict[str, Any]:
    """Copy what is missing off-site, and show the result; return it for programs."""
    from portal.ops.backup.aftercare import copy_after_backup

    done = copy_after_backup(settings, progress=show, **known(settings), interrupt=StoppedError)
    copied = done.result.copied if done.result else ()
    if done.result and copied:
        from tools.commands.offsite import copy_lines

        for line in copy_lines(done.result.to_dict()):
            say(line)
    _warn(done.warnings, warnings)
    return {"offsite": [{"destination": place, "backup_id": name} for place, name in copied]}


def _prune(settings: Settings, warnings: list[str]) -> dict[str, Any]:
    """Prune, and show the result; return it for programs."""
    from portal.ops.backup.aftercare import clean_up_after_backup

    done = clean_up_after_backup(settings, **known(settings), interrupt=StoppedError)
    for line in done.lines():
        say(line)
    _warn(done.warnings, warnings)
    return {"pruned": list(done.names)}


def _warn(warnings: Iterable[str], told: list[str]) -> None:
    for warning in warnings:
        warn(warning)
        told.append(warning)


def _say_how_it_ended(result: Mapping[str, Any]) -> None:
    if result.get("unchanged"):
        say(f"nothing has changed since {result['path']}")
    elif result["success"]:
        from portal.ops.units import human_bytes

        say(f"backup {result['backup_id']} is complete: {human_bytes(result['size_bytes'])} in {result['path']}")
    else:
        say_error(result["error"] or "the backup failed")
