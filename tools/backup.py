"""The command behind `backup.sh`: parses, calls the engine, prints one JSON object."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import OpsError
from tools import maintenance as keeping
from tools import monitoring as insight
from tools import schedule
from tools import submit as remote
from tools.maintenance import drill, tell_of_drill
from tools.terminal import (
    EXIT_CODES,
    Lines,
    print_listing,
    print_result,
    run_command,
    say,
    say_error,
    watched_settings,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from portal.ops.backup.job import BackupJob
    from portal.ops.restore.job import RestoreJob
    from portal.ops.runtime.progress import Step
    from portal.ops.settings.load import Settings

_EXAMPLES: Final = f"""examples:
  backup.sh                         a full backup: database, media and audit log
  backup.sh database                the database only
  backup.sh media --incremental     the uploads that have changed, on top of the newest archive that holds them
  backup.sh list                    what there is, newest first
  backup.sh verify latest           is the newest archive intact?
  backup.sh verify full_2024 --level dump
  backup.sh schedule                when does what start by itself, and how did it end last?
  backup.sh extract latest media/tenant-a/scan.sarif --output scan.sarif
  backup.sh prune --dry-run         what would be removed, and why is the rest kept?
  backup.sh pin full_2024 --reason 'before the migration'
  backup.sh drill                   restore the newest full backup for a try, compare, and throw it away
  backup.sh audit --verify          who did what with the backups?

Where from and where to is read from the environment: docs/settings.md has every variable.
Standard output is one JSON object; everything for people goes to standard error.

{EXIT_CODES}"""


def main() -> int:
    """Run one command; the exit code."""
    arguments = _parser().parse_args(["full", *sys.argv[1:]] if not _names_command(sys.argv) else sys.argv[1:])
    command: Callable[[argparse.Namespace], int] = arguments.run
    return command(arguments)


def _names_command(argv: list[str]) -> bool:
    return len(argv) > 1 and (not argv[1].startswith("-") or argv[1] in ("-h", "--help"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="backup.sh",
        description="Back up Kekkai Portal, and look after the archives.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, meaning in (
        ("full", "back up database, media and audit log (the default)"),
        ("database", "back up the database only"),
        ("base", "back up the whole database cluster, for recoveries to any later moment"),
    ):
        command = commands.add_parser(name, help=meaning)
        remote.add_options(command, with_wait=True)
        command.set_defaults(run=_back_up, type=name)
    media = commands.add_parser("media", help="back up the uploads only")
    media.add_argument(
        "--incremental", action="store_true", help="only what differs from the newest archive that holds the uploads"
    )
    remote.add_options(media, with_wait=True)
    media.set_defaults(run=_back_up, type="media")
    commands.add_parser("list", help="list the archives, newest first").set_defaults(run=_list)
    verify = commands.add_parser("verify", help="check that an archive is intact")
    verify.add_argument("archive", help="a path, an id or the start of one, or 'latest'")
    verify.add_argument("--level", choices=("checksum", "contents", "dump", "drill"), default="contents", help=_LEVELS)
    remote.add_options(verify)
    verify.set_defaults(run=_verify)
    extract = commands.add_parser("extract", help="take one file out of an archive")
    extract.add_argument("archive", help="a path, an id or the start of one, or 'latest': of those with such files")
    extract.add_argument("member", help="the file's path in the archive, such as media/tenant-a/scan.sarif")
    extract.add_argument("--output", metavar="FILE", help="where to put it (default: its name, in this directory)")
    extract.set_defaults(run=_extract)
    for others in (keeping, insight, schedule):
        others.add_commands(commands)
    return parser


_LEVELS: Final = (
    "checksum: the file as a whole; contents (default): every file in it; dump: the database's dump as well; "
    "drill: restored for a try, and compared"
)


_DAMAGED_HINT: Final = (
    "If it was copied here, copy it and its .sha256 file again; if not, look at the disk, and take another archive: "
    "'backup.sh list' shows them."
)


def _back_up(arguments: argparse.Namespace) -> int:
    from portal.ops.settings.load import refuse_unbuilt

    settings, show = watched_settings()
    incremental = arguments.type == "media" and arguments.incremental
    if remote.is_remote(settings, arguments):
        if not arguments.wait:  # a worker's environment may ask for less than this one
            refuse_unbuilt(settings.unbuilt)
        from worker.arguments import BackupArguments, MediaArguments
        from worker.operations import OPERATIONS

        operation = OPERATIONS[f"backup.{arguments.type}"]
        given = BackupArguments(moment=remote.now())
        if incremental:
            given = MediaArguments(moment=given.moment, incremental=True)
        return remote.do_remotely(settings, show, arguments, operation, given, _TELLERS)
    job = _job(settings, show)
    if incremental:
        result = job.backup_media(incremental=True)
    else:
        makers = {"database": job.backup_database, "media": job.backup_media, "base": job.backup_base}
        result = makers.get(arguments.type, job.backup_full)()
    found = result.to_dict()
    _say_how_it_ended(found)
    print_result({**found, **(_prune(settings, found) if result.success else {"pruned": []})})
    return result.exit_code


def _prune(settings: Settings, result: Mapping[str, Any]) -> dict[str, Any]:
    """Let old archives go, and tell people; what programs are told of it."""
    from tools.pruning import prune_after_backup

    pruned = prune_after_backup(settings)
    for line in pruned.lines():
        say(line)
    return {"warnings": [*result["warnings"], *pruned.warnings], "pruned": list(pruned.names)}


def _tell_of_backup(result: Mapping[str, Any]) -> None:
    _say_how_it_ended(result)
    print_result({**result, "pruned": []})  # beat has workers prune, and not after each backup


def _say_how_it_ended(result: Mapping[str, Any]) -> None:
    if result.get("unchanged"):
        say(f"nothing has changed since {result['path']}")
    elif result["success"]:
        from portal.ops.units import human_bytes

        say(f"backup {result['backup_id']} is whole: {human_bytes(result['size_bytes'])} in {result['path']}")
    else:
        say_error(result["error"] or "the backup failed")


def _list(_: argparse.Namespace) -> int:
    from portal.ops.restore.job import create_restore_job
    from tools.restore import restore_lines

    gc.disable()  # there may be very many archives, and none of what is made for them is garbage
    job = _job(*watched_settings())
    found = job.iterate_backups()
    restores, trouble = _restores(create_restore_job(backup_job=job))
    with Lines() as lines:
        backups = (lines.passed(_backup_line(backup), backup) for backup in found)
        others = {"success": True, "repository": str(job.repository.path), "restores": restores}
        if not print_listing("backups", backups, **others):
            say(f"there is no archive in {job.repository.path}; 'backup.sh full' makes the first one")
    for line in ["", "Restores that were made:", *restore_lines(restores)] if restores else []:
        say(line)
    if trouble:
        say(f"warning: {trouble}")
    return 0


def _restores(job: RestoreJob) -> tuple[list[dict[str, Any]], str]:
    """The restores that were made; where they cannot be read that is told, and hides no archive."""
    try:
        return job.list_restores(), ""
    except OpsError as error:
        return [], str(error)


def _backup_line(backup: dict[str, Any]) -> str:
    from portal.ops.units import human_bytes

    verified = backup["verified"]
    marks = []
    if verified:
        marks.append(f"verified: {verified['level']}" if verified["intact"] else "DAMAGED")
    if backup["pinned"]:
        marks.append("pinned")
    if backup["fault"]:
        marks.append(f"NOT WHOLE: {backup['fault']}")
    if backup["parent"]:
        marks.append(f"on {backup['parent']}")
    size, kind = human_bytes(backup["size_bytes"]), backup["type"] or "?"
    shown = f"+ {kind}" if backup["parent"] else kind
    return f"{backup['timestamp']}  {shown:<10}  {size:>8}  {backup['backup_id']}  {'  '.join(marks)}".rstrip()


def _verify(arguments: argparse.Namespace) -> int:
    from portal.ops.model import VerifyLevel

    if arguments.level == VerifyLevel.DRILL:
        return drill(arguments)
    settings, show = watched_settings()
    if remote.is_remote(settings, arguments):
        from worker.arguments import VerifyArguments
        from worker.operations import VERIFY_ARCHIVE

        given = VerifyArguments(archive=remote.absolute(arguments.archive), level=arguments.level)
        return remote.do_remotely(settings, show, arguments, VERIFY_ARCHIVE, given, _TELLERS)
    found = _job(settings, show).verify(arguments.archive, VerifyLevel(arguments.level))
    _tell_of_verification(found.to_dict())
    return 0 if found.intact else 4


def _tell_of_verification(found: Mapping[str, Any]) -> None:
    if found["success"]:
        say(found["message"])
    elif "damages" not in found:
        say_error(found["error"])
    else:
        say_error(f"{os.path.basename(found['path'])} is not intact")
        for damage in found["damages"]:
            say(f"  damage: {damage}")
        say(f"  hint: {_DAMAGED_HINT}")
    for note in found.get("notes", ()):
        say(f"note: {note}")
    print_result(found)


_TELLERS: Final = {"backup": _tell_of_backup, "verify": _tell_of_verification, "drill": tell_of_drill}


def _extract(arguments: argparse.Namespace) -> int:
    from tools.extract import extract

    print_result(extract(_archive_path(arguments.archive, arguments.member), arguments.member, arguments.output))
    return 0


def _archive_path(archive: str, member: str) -> Path:
    """The archive's file; settings are read only where it is not given by its path, which keeps the command quick."""
    if archive != "latest" and os.path.isfile(archive):
        return Path(archive)
    from portal.ops.model import BackupType, Component

    top = member.partition("/")[0]
    own = [BackupType(component.value) for component in Component if component.member == top]
    kinds = [BackupType.FULL, *own] if own else list(BackupType)
    return _job(*watched_settings()).repository.find(archive, latest_of=kinds).path


def _job(settings: Settings, show: Callable[[Step], None]) -> BackupJob:
    from portal.ops.backup.job import BackupConfig, BackupJob
    from portal.ops.monitoring.observer import Aftermath
    from portal.ops.repository.access_log import sudo_user

    config, observer = BackupConfig.from_settings(settings), Aftermath(settings)
    return BackupJob(config, progress=show, actor=sudo_user(), observer=observer)


if __name__ == "__main__":
    run_command(main)
