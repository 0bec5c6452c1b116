"""`backup.sh drill`: restores an archive to a scratch place, compares everything, and removes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tools import tasks
from tools.jobs import known, person
from tools.terminal.output import print_result, say, say_error
from tools.terminal.run import watched_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping


def add_arguments(parser: argparse.ArgumentParser, _name: str) -> None:
    """Define the command's arguments."""
    parser.add_argument(
        "archive", nargs="?", default="latest", help="which one (default: the newest full one); also 'offsite:ID'"
    )
    tasks.add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run a drill, here or by a worker."""
    from portal.ops.drill.job import DrillJob
    from portal.ops.drill.portal_checks import PortalCheckConfig
    from portal.ops.monitoring.observer import Observers
    from portal.ops.restore.config import RestoreConfig

    settings, show = watched_settings()
    if tasks.is_remote(settings, arguments):
        from worker.arguments import DrillArguments
        from worker.operations import DRILL_RESTORE

        given = DrillArguments(archive=tasks.absolute(arguments.archive))
        return tasks.do_remotely(settings, show, arguments, DRILL_RESTORE, given)
    from portal.ops.offsite.local import copy_for_drill, note_drill

    copy = copy_for_drill(settings, arguments.archive, progress=show, **known(settings))
    archive = str(copy.path) if copy else arguments.archive
    config, observer = RestoreConfig.from_settings(settings), Observers(settings)
    checks = PortalCheckConfig.from_settings(settings)
    report = DrillJob(config, checks=checks, progress=show, actor=person(), observer=observer).run(archive)
    if copy:
        note_drill(settings, copy, success=report.is_as_backed_up)
    tell(report.to_dict())
    return report.exit_code


def tell(result: Mapping[str, Any]) -> None:
    """Show the result of a drill."""
    from portal.ops.drill.report import DrillReport

    if "drill_id" in result:
        for line in DrillReport.from_dict(result).lines():
            say(line)
    if result["error"]:
        say_error(result["error"])
    print_result(result)
