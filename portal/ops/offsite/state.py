"""Gathers the state of each destination from the repository's records."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from portal.ops.model import BackupId
from portal.ops.offsite.health import DestinationState, Proof, WalCopying
from portal.ops.offsite.ledger import Ledger
from portal.ops.offsite.missing import wanted_copies, without_copy
from portal.ops.offsite.prune import offsite_policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from portal.ops.offsite.config import OffsiteConfig
    from portal.ops.repository.entry import Entry
    from portal.ops.repository.repository import Repository
    from portal.ops.retention.policy import RetentionPolicy
    from portal.ops.settings.destination import Destination


def destination_states(
    config: OffsiteConfig,
    policy: RetentionPolicy,
    repository: Repository,
    entries: Sequence[Entry],
    now: datetime,
    *,
    has_wal: bool = False,
) -> tuple[DestinationState, ...]:
    """The state of every destination.

    Arguments:
        policy: the repository's retention policy.
        entries: all archives.
        has_wal: whether WAL is received, and therefore copied.

    Raises:
        RepositoryError: the record of copies cannot be read.
    """
    if not config.destinations:
        return ()
    rules = offsite_policy(policy, config.settings.rules)
    wanted = {entry.name: entry.moment for entry in wanted_copies(config, rules, entries, now)}
    return tuple(
        _state_of(Ledger(repository, destination), destination, config.settings.recipients, wanted, has_wal=has_wal)
        for destination in config.destinations
    )


def _state_of(
    ledger: Ledger,
    destination: Destination,
    recipients: Sequence[str],
    wanted: Mapping[str, datetime],
    *,
    has_wal: bool,
) -> DestinationState:
    """The state of one destination.

    Arguments:
        wanted: the archives that should have copies, with their moments.
    """
    copies = ledger.copies()
    ids = (BackupId.parse(stem.backup_id) for stem in copies)
    newest = max((one for one in ids if one), key=lambda one: one.moment, default=None)
    proof = ledger.proof()
    verified, drilled = proof.get("verified"), proof.get("drilled", {})
    lacking = without_copy(wanted, copies)
    return DestinationState(
        shown=destination.shown,
        identifier=destination.identifier,
        copies=len(copies),
        newest=str(newest) if newest else None,
        moment=newest.moment if newest else None,
        missing=lacking,
        oldest_missing=min((wanted[name] for name in lacking), default=None),
        stored_bytes=sum(record.stored_bytes for record in copies.values()),
        verified=_verified(verified),
        drilled=_drilled(drilled),
        recipients_proven=bool(drilled.get("success")) and set(recipients) <= set(drilled.get("recipients", ())),
        foreign=tuple(map(str, (verified or {}).get("foreign", ()))),
        wal=_wal(ledger.wal()) if has_wal else None,
    )


def _wal(facts: Mapping[str, Any]) -> WalCopying | None:
    try:
        return WalCopying(worked=datetime.fromisoformat(facts["worked"]), problem=str(facts["problem"]))
    except (KeyError, TypeError, ValueError):
        return None


def _verified(facts: Mapping[str, Any] | None) -> Proof | None:
    if not facts:
        return None
    try:
        moment = datetime.fromisoformat(facts["moment"])
        return Proof(moment=moment, level=str(facts["level"]), damaged=tuple(map(str, facts["damaged"])))
    except (KeyError, TypeError, ValueError):
        return None


def _drilled(facts: Mapping[str, Any]) -> Proof | None:
    try:
        damaged = () if facts["success"] else (str(facts["backup_id"]),)
        return Proof(moment=datetime.fromisoformat(facts["moment"]), level="drill", damaged=damaged)
    except (KeyError, TypeError, ValueError):
        return None
