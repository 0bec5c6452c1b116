"""The command behind `restore.sh`: parses, shows the plan, asks, calls the engine, prints one JSON object."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from tools.terminal import EXIT_CODES, print_result, run_command, say, say_error, watched_log

if TYPE_CHECKING:
    from portal.ops.restore import RestoreJob, RestoreResult
    from portal.ops.restore_model import RestorePlan

_EXAMPLES: Final = f"""examples:
  restore.sh latest --dry-run            what would be done? changes nothing
  restore.sh latest                      shows the plan, asks, restores everything
  restore.sh full_2024 --database-only   the database alone, as it was in that archive
  restore.sh latest --path 'tenant-a/*.sarif'
                                         single files of the uploads
  restore.sh latest --target-database try --media-dir /tmp/try --force
                                         beside what is live, to have a look
  restore.sh --rollback                  takes the last restore back
  restore.sh --rollback --list           shows what can be taken back

A restore can be started without fear: it changes nothing until the archive has been checked and everything lies ready,
and it can be taken back. The SQL in a dump runs as the user of the restore: restore only archives that you trust.
Standard output is one JSON object; everything for people goes to standard error.

{EXIT_CODES}"""


def main() -> int:
    """Run the command; the exit code."""
    arguments = _parser().parse_args()
    if arguments.rollback:
        return _list_restores() if arguments.list else _roll_back(arguments.archive, force=arguments.force)
    if not arguments.archive:
        _parser().error("which archive? a path, an id, or 'latest'")
    job = _job(arguments)
    result = _restore(job, arguments)
    _report(result)
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
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--database-only", dest="scope", action="store_const", const="database", help="only the database")
    part.add_argument("--media-only", dest="scope", action="store_const", const="media", help="only the uploads")
    part.add_argument("--audit-only", dest="scope", action="store_const", const="audit_logs", help="only the audit log")
    add("--force", action="store_true", help="do not ask")
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
    return parser


_MODES: Final = "swap (beside the live one, then exchanged), in-place (one transaction), auto (swap where it can be)"


def _restore(job: RestoreJob, arguments: argparse.Namespace) -> RestoreResult:
    scope = "media" if arguments.path and not arguments.scope else arguments.scope
    if scope == "database":
        return job.restore_database(arguments.archive)
    if scope == "media":
        return job.restore_media(arguments.archive)
    if scope == "audit_logs":
        return job.restore_audit_logs(arguments.archive)
    return job.restore_full(arguments.archive)


def _report(result: RestoreResult) -> None:
    for warning in result.warnings:
        say(f"warning: {warning}")
    if not result.success:
        say_error(result.error or "the restore failed")
    elif result.dry_run:
        say("\nThis was a dry run: nothing was changed.")
    else:
        say(f"\nrestored: {', '.join(result.components_restored)} from {result.backup_id}")
        say(f"to take it back: ./tools/restore.sh --rollback {result.restore_id}")
    print_result(result.to_dict())


def _roll_back(restore_id: str | None, *, force: bool) -> int:
    job = _job(None, confirm=None if force else _ask)
    result = job.rollback(restore_id)
    if result.success:
        say(f"taken back: {', '.join(result.components_restored)} are as they were before {result.restore_id}")
    else:
        say_error(result.error or "the rollback failed")
    print_result(result.to_dict())
    return result.exit_code


def _list_restores() -> int:
    restores = _job(None).list_restores()
    for restore in restores:
        say(f"{restore['started']}  {restore['state']:<12}  {restore['restore_id']}  from {restore['backup_id']}")
    if not restores:
        say("there is no restore that could be taken back")
    print_result({"success": True, "restores": restores})
    return 0


def _ask(plan: RestorePlan) -> bool:
    """Show the plan and ask; without a terminal nobody can answer."""
    for line in plan.lines():
        say(line)
    if not sys.stdin.isatty():
        say("\nThere is no terminal to ask on; --force does it without asking.")
        return False
    sys.stderr.write("\nDo this? Type yes to go on: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() == "yes"


def _show(plan: RestorePlan) -> bool:
    for line in plan.lines():
        say(line)
    return True


def _job(arguments: argparse.Namespace | None, **others: Any) -> RestoreJob:
    from portal.ops.backup import read_text
    from portal.ops.restore import RestoreConfig, RestoreJob
    from portal.ops.settings import load_settings

    settings = load_settings(os.environ, read_text)
    show_step = watched_log(settings.log_format)
    given: dict[str, Any] = {}
    if arguments is not None:
        others = {"confirm": _show if arguments.force or arguments.dry_run else _ask}
        names = ("dry_run", "mode", "exact", "target_database", "create_database", "allow_unverified")
        given = {name: getattr(arguments, name) for name in (*names, "allow_outside_links")}
        given["patterns"] = tuple(arguments.path)
        given |= {"jobs": arguments.jobs} if arguments.jobs else {}
        given |= {"media_path": os.path.abspath(arguments.media_dir)} if arguments.media_dir else {}
    return RestoreJob(RestoreConfig.from_settings(settings, **given), progress=show_step, **others)


if __name__ == "__main__":
    run_command(main)
