"""Checks without opening archives that an archive and everything it needs are complete.

An incremental with a missing or damaged archive in its chain cannot be restored, even if it is intact itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from portal.ops.repository.entry import Entry


def own_fault(entry: Entry) -> str:
    """The fault of the archive alone; empty if none."""
    if entry.fault:
        return entry.fault
    if entry.finding and not entry.finding.intact:
        return f"its last verification failed ({entry.finding.moment:%Y-%m-%d})"
    return ""


def chain_faults(archives: Sequence[Entry]) -> dict[str, str]:
    """The faults of intact archives whose chain is incomplete.

    Arguments:
        archives: all archives of a repository; newest first is the fastest order.
    """
    complete: set[str] = set()
    doubtful: list[Entry] = []
    for entry in reversed(archives):  # parents are older, so nearly all are known before their children
        finding = entry.finding
        if not entry.fault and (finding is None or finding.intact):
            parent = entry.parent
            if parent is None or parent in complete:
                complete.add(entry.name)
            else:
                doubtful.append(entry)
    return _faults_of(doubtful, archives, complete) if doubtful else {}


def _faults_of(doubtful: Sequence[Entry], archives: Sequence[Entry], complete: set[str]) -> dict[str, str]:
    """Follow each archive's parents up to one that settles it."""
    entries = {entry.name: entry for entry in archives}
    found: dict[str, str] = {}
    for entry in doubtful:
        path: dict[str, None] = {}
        at = entry.name
        while (
            at not in complete and at not in found and at not in path and at in entries and not own_fault(entries[at])
        ):
            path[at] = None
            at = entries[at].parent or at
        fault = "" if at in complete else found.get(at) or _fault_at(at, entries.get(at), is_circle=at in path)
        for name in path:
            if fault:
                found[name] = fault
            else:
                complete.add(name)
    return found


def _fault_at(name: str, entry: Entry | None, *, is_circle: bool) -> str:
    if is_circle:
        return f"its chain goes round in a circle at {name}"
    if entry is None:
        return f"it needs {name}, which is gone"
    return f"it needs {name}, which is {'not complete' if entry.fault else 'damaged'}"
