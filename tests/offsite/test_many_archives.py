"""What is fine with ten archives and has to be with ten thousand."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from portal.ops.model import BackupId, BackupType
from portal.ops.offsite.config import OffsiteConfig
from portal.ops.offsite.missing import line_of_entry, wanted_copies
from portal.ops.repository.entry import Entry
from portal.ops.retention.policy import RetentionPolicy, RetentionRule
from portal.ops.settings.load import OffsiteSettings

NOON: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)
CONFIG: Final = OffsiteConfig(local_path=Path("/nonexistent"), destinations=(), settings=OffsiteSettings())
KEEP_ALL: Final = RetentionPolicy(rule=RetentionRule(days=1000, count=1))


def chains(count: int, length: int) -> list[Entry]:
    """Archives of the uploads, newest first, in chains of a length."""
    entries: list[Entry] = []
    for number in range(count):
        moment = NOON - timedelta(minutes=count - number)
        parent = entries[-1].name if number % length else None
        name = str(BackupId.of(BackupType.MEDIA, moment, str(number)))
        entries.append(Entry(name=name, type=BackupType.MEDIA, moment=moment, modified=moment, size=1, parent=parent))
    return entries[::-1]


def test_long_chains_are_chosen_in_one_pass() -> None:
    """Each archive once, parents before children, newer chains first; in a second, not in hours."""
    entries = chains(20_000, 2_500)
    started = time.process_time()
    wanted = wanted_copies(CONFIG, KEEP_ALL, entries, NOON)
    assert time.process_time() - started < 10
    oldest_first = entries[::-1]
    assert wanted == [
        entry for chain in range(7, -1, -1) for entry in oldest_first[2_500 * chain : 2_500 * (chain + 1)]
    ]


def test_line_of_an_archive_ends_where_its_parent_is_unknown_or_comes_again() -> None:
    """A chain that goes round in a circle has each of its archives once."""
    entries = chains(4, 4)
    by_name = {entry.name: entry for entry in entries}
    assert list(line_of_entry(entries[0], by_name)) == entries[::-1]
    by_name[entries[3].name] = entries[3]._replace(parent=entries[1].name)
    assert [one.name for one in line_of_entry(entries[0], by_name)] == [one.name for one in entries[::-1]]
    del by_name[entries[2].name]
    assert list(line_of_entry(entries[0], by_name)) == [entries[1], entries[0]]
