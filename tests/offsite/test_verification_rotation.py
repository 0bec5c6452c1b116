"""Scheduled verifications of copies: whose turn it is, and what is remembered of the others."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.errors import DiskFullError, StorageError
from portal.ops.model import VerifyLevel
from portal.ops.offsite.ledger import Ledger
from portal.ops.offsite.listing import list_copies
from portal.ops.offsite.missing import unexpectedly_gone
from portal.ops.offsite.place import own_place
from portal.ops.offsite.prune import OffsitePruneJob
from portal.ops.offsite.verify import OffsiteVerifyJob
from portal.ops.repository.repository import Repository
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
    assert proof_of(offsite)["damaged"] == [damaged.parent.name]


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


def test_rules_take_two_copies_of_a_second_as_a_prune_does(offsite: Offsite) -> None:
    """Which of two archives of the same second is the newer one says the time of the copy, and not the name."""
    offsite.copied()
    (record,) = Ledger(Repository(offsite.uploads.archives), offsite.config().destinations[0]).copies().values()
    now, rules = record.copied + timedelta(days=40), policy(RetentionRule(days=1, count=1))
    for older, newer in (("a", "b"), ("b", "a")):
        first, second = (
            replace(
                record,
                stem=record.stem._replace(backup_id=record.stem.backup_id[:-6] + 6 * letter),
                copied=record.copied + timedelta(seconds=seconds),
            )
            for letter, seconds in ((older, 0), (newer, 1))
        )
        known = {first.stem: first, second.stem: second}
        assert unexpectedly_gone(known, [second.stem], rules, now) == []
        assert unexpectedly_gone(known, [first.stem], rules, now) == [second.stem]


def test_look_at_one_copy_clears_nothing_of_others(offsite: Offsite) -> None:
    """That a copy is gone stays known while another one is verified by its name."""
    offsite.uploads.base()
    offsite.copied()
    gone, there = sorted((offsite.directory / "disk").glob("*.json"))
    gone.unlink()
    assert not offsite.verify().run_rotation().intact
    assert offsite.verify().run(there.stem.partition(".")[0]).intact
    assert proof_of(offsite)["damaged"] == [gone.stem]


def test_dead_destination_keeps_no_other_from_its_turn(offsite: Offsite) -> None:
    """The others are verified and remembered, and the failure is told all the same."""
    offsite.copied()
    disk = f"file://{offsite.directory}/disk"
    both = {"BACKUP_OFFSITE_URLS": f"file://{offsite.directory}/away {disk}"}
    found = offsite.verify(**both).run_rotation()
    assert isinstance(found.faults[0], StorageError)
    assert len(found.findings) == 1
    assert proof_of(offsite)["copies"] == 1


def test_what_killed_verifications_left_is_removed(offsite: Offsite) -> None:
    """Their downloads would fill the disk; one that is still used stays."""
    offsite.copied()
    places = offsite.uploads.archives / ".offsite"
    with own_place(places) as used:
        (used / "whole.tar.gz").write_bytes(b"whole")
        (places / "verify-17").mkdir()
        (places / "verify-17" / "half.tar.gz").write_bytes(b"half")
        assert offsite.verify().run(level=VerifyLevel.CONTENTS).intact
        assert list(places.glob("verify-*")) == [used]
        assert list(used.iterdir())
    assert not list(places.glob("verify-*"))


def test_full_disk_is_said_in_words(offsite: Offsite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verification that reads copies needs room for one, and leaves nothing where there is not enough."""
    offsite.copied()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("portal.ops.offsite.beside.receive", full)
        with pytest.raises(DiskFullError):
            offsite.verify().run(level=VerifyLevel.CONTENTS)
    monkeypatch.setattr("portal.ops.offsite.place._DISK_RESERVE", 1 << 60)
    with pytest.raises(DiskFullError, match="MiB free"):
        offsite.verify().run(level=VerifyLevel.CONTENTS)
    assert not list((offsite.uploads.archives / ".offsite").glob("verify-*"))


def proof_of(offsite: Offsite) -> dict[str, Any]:
    """What is remembered of the last verification."""
    (destination,) = offsite.config().destinations
    found: dict[str, Any] = Ledger(Repository(offsite.uploads.archives), destination).proof()["verified"]
    return found
