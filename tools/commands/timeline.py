"""`backup.sh timeline`: shows which moments can be restored, and when many rows were removed."""

from __future__ import annotations

import argparse

from tools.terminal.output import print_result, say
from tools.terminal.run import watched_settings


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001  (what every command has)
    """Define the command's arguments."""
    moment = "such as '2026-11-28 14:00+00:00' or '2 hours ago'"
    parser.add_argument("--from", dest="start", metavar="TIME", help=f"the first moment, {moment}")
    parser.add_argument("--to", dest="end", metavar="TIME", help="the last moment (default: now)")
    parser.add_argument(
        "--rows",
        metavar="N",
        type=_positive,
        help="show transactions that removed at least N rows of a table (default: 100)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of rows")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Read archives and WAL, and show the timeline."""
    from portal.ops.pitr.moment import parse_moment
    from portal.ops.pitr.relations import by_number, read_relations
    from portal.ops.pitr.timeline import MANY_ROWS, read_timeline
    from portal.ops.repository.repository import Repository
    from portal.ops.runtime.process import SystemRunner
    from portal.ops.runtime.progress import utc_now

    settings, _ = watched_settings()
    now, zone = utc_now(), settings.schedules.time_zone
    found = read_timeline(
        Repository(settings.local_path),
        start=parse_moment(arguments.start, now, zone) if arguments.start else None,
        end=parse_moment(arguments.end, now, zone) if arguments.end else None,
        live_names=by_number(read_relations(settings.database)),
        least_rows=arguments.rows or MANY_ROWS,
        runner=SystemRunner(),
        bin_dir=settings.pg_bin_dir,
    )
    for line in found.lines():
        say(line)
    print_result({"success": True, **found.to_dict()})
    return 0
