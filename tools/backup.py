"""The command behind `backup.sh`: parses, calls the engine, prints one JSON object."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tools.keeping import add_commands, drill, person
from tools.terminal import (
    EXIT_CODES,
    Lines,
    print_listing,
    print_result,
    run_command,
    say,
    say_error,
    watched_log,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from portal.ops.backup import BackupJob

_EXAMPLES: Final = f"""examples:
  backup.sh                         a full backup: database, media and audit log
  backup.sh database                the database only
  backup.sh list                    what there is, newest first
  backup.sh verify latest           is the newest archive intact?
  backup.sh verify full_2024 --level dump
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
    return any(not word.startswith("-") or word in ("-h", "--help") for word in argv[1:])


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
        ("media", "back up the uploads only"),
    ):
        commands.add_parser(name, help=meaning).set_defaults(run=_back_up, type=name)
    commands.add_parser("list", help="list the archives, newest first").set_defaults(run=_list)
    verify = commands.add_parser("verify", help="check that an archive is intact")
    verify.add_argument("archive", help="a path, an id or the start of one, or 'latest'")
    verify.add_argument("--level", choices=("checksum", "contents", "dump", "drill"), default="contents", help=_LEVELS)
    verify.set_defaults(run=_verify)
    extract = commands.add_parser("extract", help="take one file out of an archive")
    extract.add_argument("archive", help="a path, an id or the start of one, or 'latest'")
    extract.add_argument("member", help="the file's path in the archive, such as media/tenant-a/scan.sarif")
    extract.add_argument("--output", metavar="FILE", help="where to put it (default: its name, in this directory)")
    extract.set_defaults(run=_extract)
    add_commands(commands)
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
    job = _job()
    result = {"full": job.backup_full, "database": job.backup_database, "media": job.backup_media}[arguments.type]()
    if result.success:
        from portal.ops.logs import human_bytes

        say(f"backup {result.backup_id} is whole: {human_bytes(result.size_bytes)} in {result.destination_path}")
    else:
        say_error(result.error or "the backup failed")
    print_result(result.to_dict())
    return result.exit_code


def _list(_: argparse.Namespace) -> int:
    from portal.ops.restore import create_restore_job
    from tools.restore import restore_lines

    gc.disable()  # there may be very many archives, and none of what is made for them is garbage
    job = _job()
    found = job.iterate_backups()
    restores = create_restore_job(backup_job=job).list_restores()
    with Lines() as lines:
        backups = (lines.passed(_backup_line(backup), backup) for backup in found)
        others = {"success": True, "repository": str(job.repository.path), "restores": restores}
        if not print_listing("backups", backups, **others):
            say(f"there is no archive in {job.repository.path}; 'backup.sh full' makes the first one")
    for line in ["", "Restores that were made:", *restore_lines(restores)] if restores else []:
        say(line)
    return 0


def _backup_line(backup: dict[str, Any]) -> str:
    from portal.ops.logs import human_bytes

    verified = backup["verified"]
    known = f"verified: {verified['level']}" if verified and verified["intact"] else ""
    marks = (
        "DAMAGED" if verified and not verified["intact"] else known,
        "pinned" if backup["pinned"] else "",
        f"NOT WHOLE: {backup['fault']}" if backup["fault"] else "",
        f"after {backup['parent']}" if backup["parent"] else "",
    )
    size = human_bytes(backup["size_bytes"])
    said = "  ".join(mark for mark in marks if mark)
    line = f"{backup['timestamp']}  {backup['type'] or '?':<10}  {size:>8}  {backup['backup_id']}  {said}"
    return line.rstrip()


def _verify(arguments: argparse.Namespace) -> int:
    from portal.ops.model import VerifyLevel

    if arguments.level == VerifyLevel.DRILL:
        return drill(arguments)
    found = _job().verify(arguments.archive, VerifyLevel(arguments.level))
    if found.intact:
        say(found.message)
    else:
        say_error(f"{found.path.name} is not intact")
        for damage in found.damages:
            say(f"  damage: {damage}")
        say(f"  hint: {_DAMAGED_HINT}")
    for note in found.notes:
        say(f"note: {note}")
    print_result(found.to_dict())
    return 0 if found.intact else 4


def _extract(arguments: argparse.Namespace) -> int:
    from tools.extract import extract

    print_result(extract(_archive_path(arguments.archive), arguments.member, arguments.output))
    return 0


def _archive_path(archive: str) -> Path:
    """The archive's file; settings are read only where it is not given by its path, which keeps the command quick."""
    given = archive != "latest" and os.path.isfile(archive)
    return Path(archive) if given else _job().repository.find(archive).path


def _job() -> BackupJob:
    """A job as the environment describes it, which shows people how far it is."""
    from portal.ops.backup import BackupConfig, BackupJob
    from portal.ops.job import read_text
    from portal.ops.settings import load_settings

    settings = load_settings(os.environ, read_text)
    return BackupJob(BackupConfig.from_settings(settings), progress=watched_log(settings.log_format), actor=person())


if __name__ == "__main__":
    run_command(main)
