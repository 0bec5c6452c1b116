"""Scheduled verifications of copies: whose turn it is, and what is remembered of the others."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from portal.ops.offsite.listing import list_copies
from portal.ops.offsite.prune import OffsitePruneJob
from portal.ops.offsite.verify import OffsiteVerifyJob
from portal.ops.retention.policy import RetentionRule
from portal.ops.runtime.progress import utc_now
from tests.support.offsite import policy

if TYPE_CHECKING:
    from tests.support.offsite import Offsite


def test_new_copies_first_then_those_verified_longest_ago(offsite: Offsite) -> None:
    """Every copy is verified once when it is new; after that one in seven, and damage found before is not forgotten."""
    offsite.uploads.base()
    offsite.copied()
    ids = {commit.backup_id for commit in list_copies(offsite.backend()).commits}
    damaged = next((offsite.directory / "disk").rglob("*.age"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    first = offsite.verify().run_rotation()
    assert {one.backup_id for one in first.findings} == ids
    turns = [{one.backup_id for one in offsite.verify().run_rotation().findings} for _ in ids]
    assert [len(turn) for turn in turns] == [1, 1]
    assert set.union(*turns) == ids
    other = next(one for one in ids if one != damaged.parent.name)
    assert offsite.verify().run(other).intact
    from portal.ops.offsite.ledger import Ledger

    job = offsite.verify()
    config = offsite.config()
    proof = Ledger(job._repository, config.destinations[0]).proof()
    assert proof["verified"]["damaged"] == [damaged.parent.name]


def test_what_a_prune_elsewhere_has_removed_is_not_missing(offsite: Offsite) -> None:
    """A copy that the off-site rules do not keep may be gone; one that they keep may not."""
    offsite.uploads.base()
    offsite.copied()
    later = utc_now() + timedelta(days=40)
    rules = policy(RetentionRule(days=1, count=1))
    other = offsite.elsewhere()
    removed = OffsitePruneJob(other.config(), rules, clock=lambda: later).run().removed
    assert len(removed) == 1
    verifying = OffsiteVerifyJob(offsite.config(), rules, clock=lambda: later)
    assert verifying.run().intact
    (left,) = (offsite.directory / "disk").glob("*.json")
    left.unlink()
    assert "its commit is gone" in OffsiteVerifyJob(offsite.config(), rules, clock=lambda: later).run().message
