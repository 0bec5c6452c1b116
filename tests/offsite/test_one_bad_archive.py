"""One archive or copy that cannot be used: all others are still copied, verified, listed and pruned."""

from __future__ import annotations

import fcntl
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import (
    BusyError,
    IdentityError,
    NotIntactError,
    StoreDeniedError,
    StoreFullError,
    StoreUnreachableError,
)
from portal.ops.model import VerifyLevel
from portal.ops.offsite.copy import CopyJob
from portal.ops.offsite.listing import list_copies
from portal.ops.offsite.prune import OffsitePruneJob
from portal.ops.offsite.verify import OffsiteVerifyJob
from portal.ops.repository.access_log import AccessLog, Action
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.repository import Repository
from portal.ops.retention.policy import RetentionRule
from portal.ops.runtime.progress import utc_now
from portal.ops.storage.age_keys import generate
from tests.support.commands import run
from tests.support.offsite import policy
from tests.support.stores import Refusing, Unsteady

if TYPE_CHECKING:
    from datetime import datetime

    from portal.ops.offsite.copy import CopyResult
    from portal.ops.storage.backend import Backend
    from tests.support.offsite import Offsite


@pytest.fixture
def archives(offsite: Offsite) -> list[str]:
    """Three archives, in the order in which they are copied."""
    for _ in range(2):
        offsite.uploads.base()
    return [entry.name for entry in Catalogue(Repository(offsite.uploads.archives)).entries()]


def damage(offsite: Offsite, name: str) -> bytes:
    """Change a few bytes of an archive; return what it was."""
    path = offsite.uploads.archive(name)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5000] + bytes(100) + whole[-4900:])
    return whole


def copies(offsite: Offsite) -> set[str]:
    return {one.backup_id for one in list_copies(offsite.backend()).commits}


def copied(result: CopyResult) -> set[str]:
    return {name for _, name in result.copied}


class TestCopying:
    def test_the_others_leave_the_machine(self, offsite: Offsite, archives: list[str]) -> None:
        """The damaged one is named, stays missing and gives the exit code; repaired, it is copied too."""
        whole = damage(offsite, archives[0])
        result = offsite.copy()
        assert copied(result) == copies(offsite) == set(archives[1:])
        assert result.failed == ((f"file://{offsite.directory}/disk", archives[0]),)
        assert list(result.missing.values()) == [(archives[0],)]
        assert result.exit_code == NotIntactError.exit_code
        assert f"{archives[0]}.tar.gz is damaged" in str(result.error)
        log = AccessLog(Repository(offsite.uploads.archives)).entries()
        outcomes = {one.subject: str(one.outcome) for one in log if one.action is Action.OFFSITE_COPY}
        assert outcomes == {archives[0]: "failed", archives[1]: "done", archives[2]: "done"}
        offsite.uploads.archive(archives[0]).write_bytes(whole)
        assert copied(offsite.copied()) == {archives[0]}
        assert offsite.elsewhere().fetch(archives[0]).read_bytes() == whole

    def test_every_bad_one_is_named(self, offsite: Offsite, archives: list[str]) -> None:
        """Two damaged archives are two errors, in the result and on the terminal, each with its hint."""
        for name in archives[:2]:
            damage(offsite, name)
        assert len(offsite.copy().errors) == 2
        done = run("offsite", "copy", environ=offsite.environ)
        assert done.returncode == NotIntactError.exit_code
        for name in archives[:2]:
            assert f"error: {name}.tar.gz is damaged" in done.stderr
        assert done.stderr.count("hint: It was not copied.") == 2

    def test_no_attempt_adds_segments(self, offsite: Offsite, archives: list[str]) -> None:
        """Where an archive stays damaged, later attempts read it and send nothing."""
        damage(offsite, archives[0])
        offsite.copy()
        before = offsite.names()
        for _ in range(2):
            assert not offsite.copy().success
        assert offsite.names() == before

    def test_what_needs_it_waits(self, offsite: Offsite) -> None:
        """The archives that need a damaged base are not sent, and say why; another chain and its base are."""
        offsite.uploads.write("tenant-0/new.json", b"new")
        child = offsite.uploads.incremental()
        offsite.uploads.write("tenant-0/newer.json", b"newer")
        grandchild = offsite.uploads.incremental()
        other = offsite.uploads.base()
        assert child.base
        whole = damage(offsite, child.base)
        result = offsite.copy()
        assert copied(result) == copies(offsite) == {other.backup_id}
        line = (child.base, child.backup_id, grandchild.backup_id)
        assert [name for _, name in result.failed] == list(line)
        assert f"{child.backup_id} was not copied: it needs {child.base}" in str(result.error)
        assert {fault.exit_code for fault in result.faults} == {NotIntactError.exit_code}
        offsite.uploads.archive(child.base).write_bytes(whole)
        assert copied(offsite.copied()) == set(line)

    def test_what_needs_it_goes_if_its_copy_exists(self, offsite: Offsite) -> None:
        """A base that was damaged after it had been copied keeps no incremental back."""
        offsite.copied()
        offsite.uploads.write("tenant-0/new.json", b"new")
        child = offsite.uploads.incremental()
        assert child.base
        damage(offsite, child.base)
        assert copied(offsite.copied()) == {child.backup_id}

    def test_every_destination_gets_the_others(self, offsite: Offsite, archives: list[str]) -> None:
        """A damaged archive is a failure at each destination, and the others are copied to each."""
        (offsite.directory / "second").mkdir()
        urls = f"{offsite.environ['BACKUP_OFFSITE_URLS']} file://{offsite.directory}/second"
        damage(offsite, archives[1])
        result = offsite.copy(BACKUP_OFFSITE_URLS=urls)
        assert len(result.copied) == 4
        assert [name for _, name in result.failed] == [archives[1]] * 2

    def test_one_that_is_removed_meanwhile(self, offsite: Offsite, archives: list[str]) -> None:
        """An archive that a prune removes while others are copied is no failure."""

        def prunes(what: str) -> bool:
            if what == "put":
                for path in offsite.uploads.archives.glob(f"{archives[-1]}*"):
                    path.unlink()
            return False

        result = CopyJob(offsite.through(lambda real: Unsteady(real, prunes)), policy()).run()
        assert result.error is None
        assert copied(result) == set(archives[:-1])
        assert list(result.missing.values()) == [()]

    def test_a_store_that_refuses_one_archive(self, offsite: Offsite, archives: list[str]) -> None:
        """The others are copied; refused twice in a row, the store counts as unusable, and the rest stays missing."""
        asked: list[str] = []

        def refusing(*names: str) -> CopyResult:
            asked.clear()

            def refuses(what: str, name: str) -> bool:
                asked.append(name.split("/")[0])
                return what == "put" and name.startswith(names)

            return CopyJob(offsite.through(lambda real: Refusing(real, refuses)), policy()).run()

        result = refusing(*archives)
        assert isinstance(result.faults[-1], StoreDeniedError)
        assert (len(result.faults), archives[2] in asked) == (2, False)
        assert copied(refusing(archives[0], archives[2])) == {archives[1]}

    @pytest.mark.parametrize("kind", [StoreUnreachableError, StoreFullError])
    def test_a_store_that_is_away_or_full(self, offsite: Offsite, archives: list[str], kind: type[Exception]) -> None:
        """It is not tried for every archive again."""
        asked: list[str] = []

        def away(what: str) -> bool:
            asked.append(what)
            if what == "put":
                raise kind("the store is gone")
            return False

        result = CopyJob(offsite.through(lambda real: Unsteady(real, away)), policy()).run()
        assert asked.count("put") == 1
        assert list(result.missing.values()) == [tuple(archives)]

    def test_a_retry_can_help(self, offsite: Offsite, archives: list[str]) -> None:
        """A damaged archive does not hide that a destination that is away is worth another attempt."""
        damage(offsite, archives[0])
        urls = f"{offsite.environ['BACKUP_OFFSITE_URLS']} file://{offsite.directory}/away"
        assert not offsite.copy().retryable
        assert offsite.copy(BACKUP_OFFSITE_URLS=urls).retryable


class TestVerifying:
    def test_a_copy_for_another_identity(self, offsite: Offsite, archives: list[str]) -> None:
        """The copies that the identity opens are verified, and the one that it does not open is told."""
        other = generate(offsite.directory / "other")
        offsite.copied(archives[1], BACKUP_ENCRYPTION_RECIPIENTS=other.recipient)
        offsite.copied()
        found = offsite.verify().run(None, VerifyLevel.CONTENTS)
        assert {one.backup_id for one in found.findings} == {archives[0], archives[2]}
        assert not found.intact
        assert isinstance(found.faults[0], IdentityError)
        assert found.exit_code == IdentityError.exit_code

    def test_damage_is_told_beside_a_destination_that_is_away(self, offsite: Offsite, archives: list[str]) -> None:
        """Both are in the message and in what the command shows, and damage determines the exit code."""
        offsite.copied()
        segment = next((offsite.directory / "disk").glob("*/00000.age"))
        segment.write_bytes(b"other")
        urls = f"file://{offsite.directory}/away {offsite.environ['BACKUP_OFFSITE_URLS']}"
        found = offsite.verify(BACKUP_OFFSITE_URLS=urls).run()
        assert found.exit_code == NotIntactError.exit_code
        assert "00000.age has" in str(found.error)
        assert "away is not there" in str(found.error)
        done = run("offsite", "verify", environ={**offsite.environ, "BACKUP_OFFSITE_URLS": urls})
        assert done.returncode == NotIntactError.exit_code
        assert "00000.age has" in done.stderr
        assert "away is not there" in done.stderr

    def test_a_segment_that_the_store_refuses(self, offsite: Offsite, archives: list[str]) -> None:
        """Such as one in a storage class that must be restored first: the other copies are verified."""
        offsite.copied()

        def wrap(real: Backend) -> Backend:
            return Refusing(real, lambda what, name: what == "read" and name.startswith(f"{archives[0]}/"))

        found = OffsiteVerifyJob(offsite.through(wrap)).run(None, VerifyLevel.CONTENTS)
        assert {one.backup_id for one in found.findings} == set(archives[1:])
        assert isinstance(found.faults[0], StoreDeniedError)


class TestListing:
    def test_a_commit_that_the_store_refuses(self, offsite: Offsite, archives: list[str]) -> None:
        """The other copies are listed, verified and fetched; the one is told, and never counts as remains."""
        offsite.copied()

        def wrap(real: Backend) -> Backend:
            return Refusing(real, lambda what, name: what == "read" and name == f"{archives[1]}.json")

        config = offsite.through(wrap)
        listing = list_copies(config.open(config.destinations[0]))
        assert {one.backup_id for one in listing.commits} == {archives[0], archives[2]}
        assert "refused the request" in listing.damaged[archives[1]]
        found = OffsiteVerifyJob(config).run()
        assert [one.stem for one in found.findings if one.damages] == [archives[1]]
        job = OffsitePruneJob(config, policy(), clock=lambda: utc_now() + timedelta(days=30))
        job.run()
        assert any(name.startswith(f"{archives[1]}/") for name in offsite.names())

    def test_a_store_that_refuses_every_commit(self, offsite: Offsite) -> None:
        """Credentials that may not read are an error, and no empty list."""
        offsite.copied()
        config = offsite.through(lambda real: Refusing(real, lambda what, _: what == "read"))
        with pytest.raises(StoreDeniedError):
            list_copies(config.open(config.destinations[0]))


class TestPruning:
    def test_a_copy_that_cannot_be_removed(self, offsite: Offsite, archives: list[str]) -> None:
        """A store that refuses one removal, such as of a locked copy: it is spared with the reason, and others go."""
        offsite.copied()
        refused, other = doomed(offsite)

        def wrap(real: Backend) -> Backend:
            return Refusing(real, lambda what, name: what == "delete" and name == f"{refused}.json")

        result = OffsitePruneJob(offsite.through(wrap), policy(ONE), clock=later).run()
        assert result.error is None
        assert {stem for _, stem in result.removed} == {other}
        assert [one for one in result.spared if refused in one and "refused" in one]
        assert copies(offsite) == set(archives) - {other}

    def test_a_copy_that_another_prune_removes(self, offsite: Offsite, archives: list[str]) -> None:
        """It is gone, which is what was wanted."""
        offsite.copied()
        first, other = doomed(offsite)

        def removes(what: str) -> bool:
            if what == "head":
                (offsite.directory / "disk" / f"{first}.json").unlink(missing_ok=True)
            return False

        config = offsite.through(lambda real: Unsteady(real, removes))
        result = OffsitePruneJob(config, policy(ONE), clock=later).run()
        assert result.error is None
        assert {stem for _, stem in result.removed} == {first, other}


ONE = RetentionRule(days=1, count=1)


def doomed(offsite: Offsite) -> list[str]:
    """The copies that the next prune removes."""
    return [stem for _, stem in OffsitePruneJob(offsite.config(), policy(ONE), clock=later).run(dry_run=True).removed]


def later() -> datetime:
    """In a month."""
    return utc_now() + timedelta(days=30)


def test_an_archive_in_use(offsite: Offsite, archives: list[str]) -> None:
    """An archive whose lock is held is left for the next attempt, and the others are copied."""

    with offsite.uploads.archive(archives[0]).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = offsite.copy()
    assert copied(result) == set(archives[1:])
    assert isinstance(result.faults[0], BusyError)
    assert result.retryable
