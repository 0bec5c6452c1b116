"""Copies, fetches and prunes that are killed at any instant."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import TYPE_CHECKING

from portal.ops.model import SUFFIX
from portal.ops.offsite.listing import list_copies
from portal.ops.offsite.prune import OffsitePruneJob
from portal.ops.retention.policy import RetentionRule
from portal.ops.runtime.progress import utc_now
from tests.support.crashes import SEED, rounds
from tests.support.killing import killed_at
from tests.support.offsite import policy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.offsite import Offsite

_RUNS = 6


def steps(most: int) -> Iterator[int]:
    """Instants to be killed at: all of them in the long form, a few otherwise."""
    chosen = random.Random(SEED)
    return iter(sorted(chosen.sample(range(1, most), rounds(min(_RUNS, most - 1), in_long=most - 1))))


def stored(offsite: Offsite) -> dict[str, bytes]:
    disk = offsite.directory / "disk"
    return {str(path.relative_to(disk)): path.read_bytes() for path in disk.rglob("*") if path.is_file()}


def test_a_copy_that_is_killed_goes_on(offsite: Offsite) -> None:
    """Killed again and again, a copy is complete in the end; nothing that was stored is overwritten or sent twice."""
    name = next(offsite.uploads.archives.glob(f"*{SUFFIX}")).name.removesuffix(SUFFIX)
    seen: dict[str, bytes] = {}
    kills = 0
    for step in steps(40):
        kills += killed_at(step, lambda: offsite.copied())
        now = {name: data for name, data in stored(offsite).items() if not name.split("/")[-1].startswith(".")}
        assert {name: now[name] for name in seen} == seen
        seen = now
    offsite.copied()
    assert kills
    (commit,) = list_copies(offsite.backend()).commits
    assert commit.stem.generation == 0
    assert len([one for one in offsite.names() if one.endswith(".age")]) == len(commit.segments)
    assert offsite.elsewhere().fetch(name).read_bytes() == offsite.uploads.archive(name).read_bytes()
    assert offsite.verify().run().intact


def test_a_fetch_that_is_killed_leaves_no_half_archive(offsite: Offsite) -> None:
    """An archive is there after a fetch that was killed, or it is not; the next fetch brings it."""
    offsite.copied()
    name = list_copies(offsite.backend()).commits[0].backup_id
    whole = offsite.uploads.archive(name).read_bytes()
    for step in steps(12):
        other = offsite.elsewhere(f"elsewhere-{step}")
        killed_at(step, lambda other=other: other.fetch(name))  # type: ignore[misc]
        path = other.uploads.archive(name)
        assert not path.exists() or path.read_bytes() == whole
        assert other.fetch(name).read_bytes() == whole
        assert other.uploads.job().repository.sweep() == []


def test_a_prune_that_is_killed_leaves_no_half_copy(offsite: Offsite) -> None:
    """A copy that is listed is complete, whenever a prune was killed; the next prune goes on with it."""
    offsite.uploads.base()
    offsite.copied()

    def prune() -> None:
        rule = RetentionRule(days=1, count=1)
        job = OffsitePruneJob(offsite.config(), policy(rule), clock=lambda: utc_now() + timedelta(days=40))
        assert job.run().error is None

    for step in range(1, 1 + rounds(7, in_long=39)):
        killed_at(step, prune)
        found = offsite.elsewhere().verify().run()  # the machine that pruned may still expect a copy that is gone
        assert found.intact, found.message
    prune()
    (left,) = list_copies(offsite.backend()).commits
    assert {one.split("/")[0].removesuffix(".json") for one in offsite.names()} == {left.backup_id}
