"""`backup.sh pin` and `unpin`: keeps an archive, or leaves it to the retention policy again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.jobs import person, repository
from tools.terminal.output import print_result, say

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Define the commands' arguments."""
    parser.add_argument("archive", help="a path, an id or the start of one, or 'latest'")
    if name == "pin":
        parser.add_argument("--reason", metavar="TEXT", default="", help="the reason, shown by status")


def run(arguments: argparse.Namespace) -> int:
    """Pin or unpin an archive."""
    from portal.ops.monitoring.observer import Observers
    from portal.ops.retention.pin import pin, unpin
    from portal.ops.runtime.environment import current_settings

    settings = current_settings()
    from portal.ops.codec import encode

    place, observer, name = repository(settings), Observers(settings), arguments.archive
    if arguments.command == "pin":
        found = pin(place, name, reason=arguments.reason, actor=person(), observer=observer)
        say(f"pinned: {found.backup_id}; prune keeps it")
        print_result({"success": True, **encode(found)})
        return 0
    backup_id, was_pinned = unpin(place, name, actor=person(), observer=observer)
    say(f"unpinned: {backup_id}" if was_pinned else f"{backup_id} was not pinned")
    print_result({"success": True, "backup_id": backup_id, "was_pinned": was_pinned})
    return 0
