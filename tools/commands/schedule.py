"""`backup.sh schedule`: shows the next and the last run of everything scheduled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from portal.ops.units import span
from tools.terminal.output import print_result, say
from tools.terminal.run import watched_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from portal.ops.repository.access_log import AccessEntry
    from portal.ops.settings.load import Settings

_KIND: Final = 14
"""The longest name: ``offsite_verify``."""


def add_arguments(_parser: argparse.ArgumentParser, _name: str) -> None:
    """Define no arguments."""


def run(_: argparse.Namespace) -> int:
    """Show every schedule."""
    from portal.ops.runtime.progress import utc_now

    settings, _show = watched_settings()
    now = utc_now()
    lines = schedule_of(settings, now)
    for line in lines:
        say(_line(line, settings.schedules.time_zone, now))
    print_result(
        {
            "success": True,
            "repository": str(settings.local_path),
            "time_zone": settings.schedules.time_zone.key,
            "schedules": [_facts(line) for line in lines],
        }
    )
    return 0


def schedule_of(settings: Settings, now: datetime) -> list[dict[str, Any]]:
    """For each kind its expression, its next slot, its last slot if that is not done, and its last outcome.

    Raises:
        RepositoryError: the repository cannot be read.
    """
    from beat.due import due, expression_of, last_slots, next_slots
    from beat.repository_facts import logged, read_facts
    from portal.ops.repository.repository import Repository
    from worker.operations import SCHEDULED

    repository = Repository(settings.local_path)
    last = last_slots(settings.schedules, now)
    undone = {task.slot for task in due(last, read_facts(repository, SCHEDULED, settings), now, {})}
    following = {slot.operation: slot.moment for slot in next_slots(settings.schedules, now)}
    entries = dict(logged(repository))
    return [
        {
            "kind": operation.schedule.setting if operation.schedule else "",
            "expression": expression_of(operation, settings.schedules),
            "next": following.get(operation),
            "due_since": next((slot.moment for slot in last if slot.operation is operation and slot in undone), None),
            "last": _entry(entries[operation]) if operation in entries else None,
        }
        for operation in SCHEDULED
    ]


def _entry(entry: AccessEntry) -> dict[str, Any]:
    return {
        "moment": entry.moment,
        "outcome": entry.outcome.value,
        "subject": entry.subject,
        "who": entry.who,
        "error": entry.details.get("error"),
    }


def _line(line: Mapping[str, Any], zone: ZoneInfo, now: datetime) -> str:
    """One kind for a person."""
    last = line["last"]
    text = f"{line['kind']:<{_KIND}}  "
    if line["expression"] is None:
        text += f"{'off':<36}  "
    elif line["due_since"]:
        text += f"{'due since ' + _wall(line['due_since'], zone):<36}  "
    else:
        text += f"{'next ' + _wall(line['next'], zone) + ', in ' + span(line['next'] - now):<36}  "
    if last is None:
        return text + "never done"
    return text + f"last {_wall(last['moment'], zone)} {last['outcome']}: {last['error'] or last['subject']}"


def _wall(moment: datetime, zone: ZoneInfo) -> str:
    return f"{moment.astimezone(zone):%Y-%m-%d %H:%M}"


def _facts(line: Mapping[str, Any]) -> dict[str, Any]:
    """The same as types of JSON."""
    facts = dict(line)
    facts |= {name: line[name].isoformat() for name in ("next", "due_since") if line[name]}
    if line["last"]:
        facts["last"] = {**line["last"], "moment": line["last"]["moment"].isoformat()}
    return facts
