"""A dump's table of contents, and which of the programs that restore it is to have what.

Pure: the lines of ``pg_restore --list`` in, and some of them out, as ``pg_restore --use-list`` takes them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_SHARES: Final = 4
"""So many programs read a dump at the most: each has to have it decompressed anew."""

_WORTH_MOVING: Final = 20
"""A table that is smaller than one part in this number stays where it is."""

# 3412; 0 16395 TABLE DATA public finding postgres
_ENTRY: Final = re.compile(r"(?P<number>\d+); \d+ \d+ (?P<what>.*)")
_TABLE_DATA: Final = "TABLE DATA "
_PRIVILEGES: Final = ("ACL ", "DEFAULT ACL ")
# ;	depends on: 217 219
_DEPENDS: Final = re.compile(r";\s+depends on:(?P<numbers>[ \d]*)")


@dataclass(kw_only=True)
class _Entry:
    number: str
    line: str
    what: str
    needs: frozenset[str] = frozenset()


def privileges(contents: Sequence[str]) -> list[str]:
    """The entries that grant and revoke: whoever owns a table may have no right to fill it."""
    return [entry.line for entry in _entries(contents) if entry.what.startswith(_PRIVILEGES)]


def share_out(contents: Sequence[str], weights: Mapping[str, int], jobs: int) -> list[list[str]]:
    """Share the tables out among programs that each read the whole dump, so that all have about as much to do.

    One program alone has everything where a single table is most of it. The first has whatever is not a large table. A
    table that others need, or that needs others, stays with the first as well, where the order is the dump's.

    Arguments:
        contents: the lines of ``pg_restore --list --verbose``.
        weights: how large each table's part is, by ``schema.table``, each quoted where SQL needs it.
        jobs: how many programs there may be.

    Returns:
        the lines of the entries for each program; each entry is in one of them.
    """
    entries = _entries(contents)
    total = sum(weights.values())
    large = {name: weight for name, weight in weights.items() if 0 < total <= weight * _WORTH_MOVING}
    heavy = _movable(entries, {f"{_TABLE_DATA}{_unquoted(name)} ": weight for name, weight in large.items()})
    count = min(jobs, MOST_SHARES, total // max(heavy.values(), default=total) if total else 1)
    loads = [total - sum(heavy.values()), *[0] * (count - 1)]
    shares: list[list[str]] = [[] for _ in loads]
    chosen: dict[str, int] = {}
    for number, weight in sorted(heavy.items(), key=lambda item: -item[1]):
        chosen[number] = loads.index(min(loads))
        loads[chosen[number]] += weight
    for entry in entries:
        shares[chosen.get(entry.number, 0)].append(entry.line)
    return [share for number, share in enumerate(shares) if share or not number]


def _entries(contents: Sequence[str]) -> list[_Entry]:
    found: list[_Entry] = []
    for line in contents:
        if entry := _ENTRY.match(line):
            found.append(_Entry(number=entry["number"], line=line, what=entry["what"]))
        elif found and (needs := _DEPENDS.match(line)):
            found[-1].needs = frozenset(needs["numbers"].split())
    return found


def _movable(entries: Sequence[_Entry], large: Mapping[str, int]) -> dict[str, int]:
    """The numbers of the large tables that stand by themselves, with their weights."""
    rows = {entry.number: entry for entry in entries if entry.what.startswith(_TABLE_DATA)}
    bound = {number for entry in rows.values() for number in entry.needs & rows.keys()}
    bound |= {number for number, entry in rows.items() if entry.needs & rows.keys()}
    return {
        number: weight
        for number, entry in rows.items()
        for start, weight in large.items()
        if entry.what.startswith(start) and number not in bound
    }


def _unquoted(name: str) -> str:
    """``schema table`` as the table of contents has it, of ``schema.table`` as SQL has it."""
    return name.replace('"', "").replace(".", " ", 1)
