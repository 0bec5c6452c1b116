"""Backups, copies, fetches, verifications and prunes of one repository, all at once and killed at any instant.

Whatever an operation reports as done is complete, nothing is without what it needs, nobody waits for ever, and nothing
is left over. The long form (KEKKAI_LONG_TESTS=1) repeats each operation some hundred times.
"""

from __future__ import annotations

import random
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from portal.ops.chains.lineage import line_of
from portal.ops.errors import BusyError, OpsError
from portal.ops.monitoring.facts import read_status
from portal.ops.offsite.copy import CopyJob
from portal.ops.offsite.fetch import FetchJob
from portal.ops.offsite.ledger import Ledger
from portal.ops.offsite.listing import list_copies
from portal.ops.offsite.prune import OffsitePruneJob
from portal.ops.offsite.verify import OffsiteVerifyJob
from portal.ops.repository.access_log import AccessLog, Witness
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.locks import archive_lock
from portal.ops.repository.repository import Repository
from portal.ops.retention.pin import pin, unpin
from portal.ops.retention.policy import RetentionPolicy, RetentionRule
from portal.ops.retention.prune import PruneJob
from portal.ops.runtime.progress import utc_now
from portal.ops.verify.job import VerifyJob
from portal.ops.verify.verify import Verifier
from tests.support.crashes import SEED, rounds
from tests.support.offsite import offsite_at
from tests.support.races import Race

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.offsite.config import OffsiteConfig
    from portal.ops.offsite.result import DestinationsResult
    from tests.support.offsite import Offsite

ROUNDS = rounds(5, in_long=150)
HERE = RetentionPolicy(rule=RetentionRule(days=0, count=2))
AFAR = RetentionPolicy(rule=RetentionRule(days=0, count=1))


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """What the processes do."""

    offsite: Offsite

    @property
    def repository(self) -> Repository:
        """The repository, as each operation opens it."""
        return Repository(self.offsite.uploads.archives, lock_timeout=20)

    @property
    def config(self) -> OffsiteConfig:
        """The copies, as each operation is told of them."""
        return self.offsite.config(BACKUP_LOCK_TIMEOUT="20")

    def back_up(self, chance: random.Random) -> None:
        """A backup of changed uploads, mostly an incremental; it is complete."""
        path = f"tenant-0/new-{chance.randrange(20)}.json"
        self.offsite.uploads.write(path, chance.randbytes(chance.randrange(10, 20_000)))
        job = self.offsite.uploads.job(lock_timeout=20, chain_length=3)
        result = job.backup_media(incremental=chance.random() < 0.8, request_id=str(chance.random()))
        assert result.error is None, result.error
        self._is_complete(result.backup_id)

    def copy(self, _: random.Random) -> None:
        """A copy of what is missing."""
        raise_other(CopyJob(self.config, AFAR).run())

    def prune_copies(self, _: random.Random) -> None:
        """A prune of the copies."""
        raise_other(OffsitePruneJob(self.config, AFAR).run())

    def fetch(self, chance: random.Random) -> None:
        """A fetch of any copy; with all that it needs."""
        there = sorted(list_copies(self.offsite.backend()).newest())
        if there:
            self._is_complete(FetchJob(self.config).run(chance.choice(there)).backup_id)

    def verify_copies(self, _: random.Random) -> None:
        """All copies are intact, each time."""
        found = OffsiteVerifyJob(self.config, AFAR).run() if self.offsite.names() else None
        assert found is None or found.error is None, found

    def prune(self, _: random.Random) -> None:
        """A prune of the repository."""
        PruneJob(self.repository, HERE).run().raise_error()

    def verify(self, chance: random.Random) -> None:
        """Any archive is intact, each time."""
        if names := [one.name for one in self.repository.archives()]:
            witness = Witness(repository=self.repository)
            job = VerifyJob(repository=self.repository, witness=witness, jobs=1, lock_timeout=20)
            found = job.run(chance.choice(names))
            assert found.intact, found.message

    def pin(self, chance: random.Random) -> None:
        """A pinned archive stays until it is unpinned."""
        if names := [one.name for one in self.repository.archives()]:
            name = chance.choice(names)
            pin(self.repository, name)
            PruneJob(self.repository, HERE).run()
            assert self.offsite.uploads.archive(name).exists()
            unpin(self.repository, name)

    def look(self, _: random.Random) -> None:
        """The status has no archive that is not complete."""
        facts = read_status(self.offsite.settings(), utc_now()).facts
        assert (facts.incomplete, facts.damaged) == ({}, ())

    def _is_complete(self, name: str) -> None:
        """An archive is there with all that it needs, or a prune has removed it."""
        path = self.offsite.uploads.archive(name)
        try:
            with archive_lock(path, 20):
                line_of(path)
        except OpsError as error:
            assert not path.exists(), error


def raise_other(result: DestinationsResult) -> None:
    """Nothing has failed, except that somebody else was at work."""
    assert all(isinstance(fault, BusyError) for fault in result.faults), result.errors


@pytest.fixture
def crowd(tmp_path: Path) -> Crowd:
    """A repository with a chain, and a copy of it."""
    (tmp_path / "disk").mkdir()
    made = Crowd(offsite=offsite_at(tmp_path, f"file://{tmp_path}/disk"))
    chance = random.Random(SEED)
    for _ in range(3):
        made.back_up(chance)
    made.copy(chance)
    return made


def assert_sound(crowd: Crowd, *, is_killed: bool) -> None:
    """Everything that is there is complete, here and off-site, and both logs are true."""
    repository = crowd.repository
    if is_killed:  # the next ones tidy up
        crowd.back_up(random.Random(SEED))
        crowd.prune(random.Random(SEED))
        crowd.copy(random.Random(SEED))
    assert {entry.fault for entry in Catalogue(repository).entries()} <= {""}
    for archive in repository.archives():
        found = Verifier(jobs=1).verify(archive.path)
        assert found.intact, found.message
    names = {archive.path.name for archive in repository.archives()}
    sidecars = {path.name.removesuffix(".sha256") for path in repository.path.glob("*.sha256")}
    assert sidecars == names
    assert list(repository.path.glob(".*.partial")) == []
    assert AccessLog(repository).verify().faults == ()
    with closing(crowd.offsite.backend()) as backend:
        listing = list_copies(backend)
    newest = listing.newest()
    assert [fault for commit in newest.values() if (fault := listing.chain_fault(commit, newest))] == []
    crowd.verify_copies(random.Random(SEED))
    ledger = Ledger(repository, crowd.config.destinations[0])
    assert set(ledger.copies()) == {commit.stem for commit in listing.commits}
    if not is_killed:
        assert list(repository.path.rglob("*.tmp")) == []


@pytest.mark.parametrize("is_killed", [False, True], ids=["in peace", "killed"])
@pytest.mark.parametrize(
    "names",
    [
        ("copy back_up", "prune_copies", "fetch verify_copies"),
        ("fetch", "prune", "back_up copy"),
        ("prune", "back_up", "verify look pin"),
    ],
    ids=["copies", "fetches", "archives"],
)
def test_nothing_is_lost_between_two(crowd: Crowd, tmp_path: Path, names: tuple[str, ...], *, is_killed: bool) -> None:
    """Three processes at once: each operation keeps its promise, and what is left is sound."""
    race = Race(directory=tmp_path, rounds=ROUNDS, seed=SEED)
    race.run(*([getattr(crowd, name) for name in one.split()] for one in names), is_first_killed=is_killed)
    assert_sound(crowd, is_killed=is_killed)
