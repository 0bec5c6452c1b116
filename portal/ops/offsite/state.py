"""How it stands with the copies of each destination, as the repository remembers, and when a target is missed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from portal.ops.model import BackupId, timestamp
from portal.ops.offsite.ledger import Ledger
from portal.ops.offsite.missing import missing_copies
from portal.ops.offsite.prune import offsite_policy
from portal.ops.units import span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from portal.ops.offsite.config import OffsiteConfig
    from portal.ops.repository.entry import Entry
    from portal.ops.repository.repository import Repository
    from portal.ops.retention.policy import RetentionPolicy


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What a verification of copies, or a drill with one, has found.

    Arguments:
        level: of the verification; ``drill`` for a drill.
        damaged: copies that were not intact; of a drill that failed, its archive.
    """

    moment: datetime
    level: str
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DestinationState:
    """The copies of one destination.

    Arguments:
        newest: the newest archive that has a copy; `moment` is when that archive was made.
        missing: archives that should have a copy and have none.
        stored_bytes: what all copies take.
        verified: the last verification.
        drilled: the last drill with a copy of here.
        recipients_proven: whether that drill succeeded with an identity of the recipients of now.
    """

    shown: str
    identifier: str
    copies: int
    newest: str | None
    moment: datetime | None
    missing: tuple[str, ...]
    oldest_missing: datetime | None
    stored_bytes: int
    verified: Proof | None
    drilled: Proof | None
    recipients_proven: bool

    def fault(self, allowed: timedelta, now: datetime) -> str:
        """How the target is missed, in words; empty where it is met.

        Arguments:
            allowed: the age that the newest archive with a copy may have.
        """
        if self.verified and self.verified.damaged:
            return f"copies in {self.shown} are damaged: {', '.join(self.verified.damaged[:3])}"
        if self.oldest_missing is not None and now - self.oldest_missing > allowed:
            return (
                f"{self.missing[-1]} has no copy in {self.shown}, although it is {span(now - self.oldest_missing)} old"
            )
        if self.moment is not None and now - self.moment > allowed:
            age = span(now - self.moment)
            return f"the newest archive with a copy in {self.shown} is {age} old, and {span(allowed)} are allowed"
        return ""

    def to_dict(self, now: datetime) -> dict[str, Any]:
        """The state in the types of JSON."""
        return {
            "destination": self.shown,
            "copies": self.copies,
            "newest": self.newest,
            "age_seconds": (now - self.moment).total_seconds() if self.moment else None,
            "missing": list(self.missing),
            "stored_bytes": self.stored_bytes,
            "verified": _proof(self.verified),
            "drilled": _proof(self.drilled),
            "recipients_proven": self.recipients_proven,
        }


def destination_states(
    config: OffsiteConfig, policy: RetentionPolicy, repository: Repository, entries: Sequence[Entry], now: datetime
) -> tuple[DestinationState, ...]:
    """The state of every destination.

    Arguments:
        policy: the repository's.
        entries: all archives.

    Raises:
        RepositoryError: the memory of copies cannot be read.
    """
    if not config.destinations:
        return ()
    rules = offsite_policy(policy, config.settings.rules)
    missing = missing_copies(config, rules, repository, entries, now)
    moments = {entry.name: entry.moment for entry in entries}
    found = []
    for destination in config.destinations:
        ledger = Ledger(repository, destination)
        copies = ledger.copies()
        ids = {stem.backup_id: BackupId.parse(stem.backup_id) for stem in copies}
        newest = max((one for one in ids.values() if one), key=lambda one: one.moment, default=None)
        proof = ledger.proof()
        drilled = proof.get("drilled", {})
        lacking = missing[destination.identifier]
        found.append(
            DestinationState(
                shown=destination.shown,
                identifier=destination.identifier,
                copies=len(copies),
                newest=str(newest) if newest else None,
                moment=newest.moment if newest else None,
                missing=lacking,
                oldest_missing=min((moments[name] for name in lacking), default=None),
                stored_bytes=sum(record.stored_bytes for record in copies.values()),
                verified=_verified(proof.get("verified")),
                drilled=_drilled(drilled),
                recipients_proven=bool(drilled.get("success"))
                and set(config.settings.recipients) <= set(drilled.get("recipients", ())),
            )
        )
    return tuple(found)


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


def _proof(proof: Proof | None) -> dict[str, Any] | None:
    if proof is None:
        return None
    return {"timestamp": timestamp(proof.moment), "level": proof.level, "damaged": list(proof.damaged)}
