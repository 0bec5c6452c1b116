"""`backup.sh audit`: shows who did what with the backups."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from tools.jobs import repository
from tools.terminal.output import Lines, print_listing, say

if TYPE_CHECKING:
    import argparse

    from portal.ops.repository.access_log import AccessEntry


def add_arguments(parser: argparse.ArgumentParser, _name: str) -> None:
    """Define the command's arguments."""
    parser.add_argument("--verify", action="store_true", help="check that no line was changed, removed or inserted")
    parser.add_argument(
        "--last", metavar="N", type=int, default=50, help="how many entries to show (default: 50; 0: all)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Show the last entries, and verify the log if requested; exit code 4 if it was changed."""
    from portal.ops.drill.report import DIRECTORY as DRILLS
    from portal.ops.drill.report import DrillReports
    from portal.ops.repository.access_log import AccessLog
    from portal.ops.runtime.environment import current_settings

    place = repository(current_settings())
    log = AccessLog(place)
    entries = deque(log.entries(), maxlen=arguments.last if arguments.last > 0 else None)
    with Lines() as lines:
        for entry in entries:
            lines.say(_entry_line(entry))
    if not entries:
        place.refuse_absent()
        say(f"{log.path} has no entries yet")
    facts: dict[str, Any] = {"success": True}
    if arguments.verify:
        report = log.verify()
        reports = DrillReports(place)
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
            say(f"fault: the report of {drill_id} was changed after it was written")
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

    facts = "  ".join(_fact(name, value) for name, value in entry.details.items() if not isinstance(value, list))
    line = (
        f"{timestamp(entry.moment)}  {entry.who}@{entry.host}  {entry.action:<8}  {entry.outcome:<7}  {entry.subject}"
    )
    return f"{line}  {facts}".rstrip()


def _fact(name: str, value: object) -> str:
    """A detail of an entry, as people read it."""
    from portal.ops.model import Component
    from portal.ops.restore.config import RestoreScope
    from portal.ops.units import exact_duration, human_bytes

    if name == "bytes" and isinstance(value, int):
        return human_bytes(value)
    if name == "seconds" and isinstance(value, int | float):
        return exact_duration(value)
    if name == "scope" and value == RestoreScope.FULL:
        return "scope everything"
    if name == "scope" and str(value) in set(Component):
        return f"scope {Component(str(value)).spoken}"
    return f"{name} {value}"
