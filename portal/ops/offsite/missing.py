"""Determines from the repository alone which archives should have a copy, and which have none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from portal.ops.model import BackupId
from portal.ops.offsite.ledger import Ledger
from portal.ops.repository.entry import Entry
from portal.ops.retention.plan import plan

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence
    from datetime import datetime

    from portal.ops.offsite.config import OffsiteConfig
    from portal.ops.offsite.layout import Stem
    from portal.ops.offsite.ledger import CopyRecord
    from portal.ops.repository.repository import Repository
    from portal.ops.retention.policy import RetentionPolicy


def wanted_copies(
    config: OffsiteConfig, policy: RetentionPolicy, entries: Sequence[Entry], now: datetime
) -> list[Entry]:
    """The archives that should have copies: parents before children, newer chains before older ones.

    These are complete archives of the types that are copied, except those that the off-site rules would remove at once.

    Arguments:
        policy: the off-site rules.
        entries: all archives, newest first.
    """
    by_name = {entry.name: entry for entry in entries}
    kept = {decision.entry.name for decision in plan(entries, policy, now).decisions if decision.keep}
    chosen: dict[str, Entry] = {}
    for entry in entries:
        damaged = entry.finding is not None and not entry.finding.intact
        if config.includes(entry.type) and entry.name in kept and not entry.fault and not damaged:
            chosen |= {one.name: one for one in line_of_entry(entry, by_name, without=chosen)}
    return list(chosen.values())


def line_of_entry(
    entry: Entry, by_name: Mapping[str, Entry], *, without: Container[str] = frozenset()
) -> Iterable[Entry]:
    """An archive with everything that it needs, its base first.

    Arguments:
        without: archives that are known with everything that they need, to be left out with that.
    """
    line: dict[str, Entry] = {}
    name: str | None = entry.name
    while name is not None and name in by_name and name not in line and name not in without:
        line[name] = by_name[name]
        name = line[name].parent
    return reversed(line.values())


def unexpectedly_gone(
    known: Mapping[Stem, CopyRecord], found: Iterable[Stem], policy: RetentionPolicy, now: datetime
) -> list[Stem]:
    """Copies that are gone although the off-site rules keep them, so that no prune has removed them.

    Arguments:
        known: the copies that existed.
        found: the copies that exist.
        policy: the off-site rules.
    """
    found = list(found)
    there = {stem.backup_id for stem in found}
    gone = [stem for stem in set(known) - set(found) if stem.backup_id not in there]  # another copy may replace it
    if not gone:
        return []
    kept = {one.entry.name for one in plan(_as_entries({*known, *found}, known), policy, now).decisions if one.keep}
    return [stem for stem in gone if stem.backup_id in kept]


def _as_entries(stems: Iterable[Stem], known: Mapping[Stem, CopyRecord]) -> list[Entry]:
    """Archives as entries for the rules, from their names and the record of copies."""
    copied = {stem.backup_id: record.copied for stem, record in known.items()}
    ids = {stem.backup_id: BackupId.parse(stem.backup_id) for stem in stems}
    found = [
        Entry(name=name, type=one.type, moment=one.moment, modified=copied.get(name, one.moment), size=1)
        for name, one in ids.items()
        if one
    ]
    return sorted(found, key=lambda entry: (entry.moment, entry.modified, entry.name), reverse=True)


def is_copy_missing(
    config: OffsiteConfig, policy: RetentionPolicy, repository: Repository, entries: Sequence[Entry], now: datetime
) -> bool:
    """True if an archive has no copy in one of the destinations, as far as the repository knows.

    Raises:
        RepositoryError: the record of copies cannot be read.
    """
    wanted = [entry.name for entry in wanted_copies(config, policy, entries, now)] if config.destinations else []
    return any(without_copy(wanted, Ledger(repository, one).copies()) for one in config.destinations)


def without_copy(wanted: Iterable[str], copies: Iterable[Stem]) -> tuple[str, ...]:
    """The archives that have no copy.

    Arguments:
        copies: the copies in one destination.
    """
    there = {stem.backup_id for stem in copies}
    return tuple(name for name in wanted if name not in there)
