"""Copies, fetches, verifications and prunes beside each other, at the worst instant, which a store chooses."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.chains.lineage import line_of
from portal.ops.errors import ArchiveAbsentError, BusyError, ObjectAbsentError
from portal.ops.model import VerifyLevel
from portal.ops.offsite import copy as copying
from portal.ops.offsite import verify as verifying
from portal.ops.offsite.copy import CopyJob
from portal.ops.offsite.fetch import FetchJob
from portal.ops.offsite.ledger import Ledger
from portal.ops.offsite.listing import list_copies
from portal.ops.offsite.prune import OffsitePruneJob, OffsitePruneResult
from portal.ops.offsite.verify import OffsiteVerifyJob
from portal.ops.repository.access_log import AccessLog, Outcome
from portal.ops.repository.locks import archive_lock
from portal.ops.repository.repository import Repository
from portal.ops.retention.policy import RetentionRule
from portal.ops.retention.prune import PruneJob
from portal.ops.runtime.progress import utc_now
from tests.support.offsite import Offsite, policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from portal.ops.storage.backend import Backend, StoredObject

NEWEST = RetentionRule(days=1, count=1)
LATER = timedelta(days=40)


class Watched:
    """A store that does something before the first call that is waited for, and nothing else.

    Arguments:
        at: whether a call, by method and name of the object, is that one.
    """

    def __init__(self, real: Backend, at: Callable[[str, str], bool], act: Callable[[], Any]) -> None:
        self._real = real
        self._at = at
        self._act: Callable[[], Any] | None = act

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """The objects below a prefix."""
        self._look("list", prefix)
        return self._real.list(prefix)

    def read(self, name: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read an object."""
        self._look("read", name)
        return self._real.read(name, start, length)

    def head(self, name: str) -> StoredObject:
        """What is known of an object."""
        self._look("head", name)
        return self._real.head(name)

    def delete(self, name: str) -> None:
        """Remove an object."""
        self._look("delete", name)
        self._real.delete(name)

    def _look(self, method: str, name: str) -> None:
        act = self._act
        if act and self._at(method, name):
            self._act = None
            act()


def watched(at: Callable[[str, str], bool], act: Callable[[], Any]) -> Callable[[Backend], Any]:
    return lambda real: Watched(real, at, act)


def is_segment(method: str, name: str) -> bool:
    return method in ("read", "head") and name.endswith(".age")


def pruned(offsite: Offsite, wrap: Callable[[Backend], Any] = lambda real: real) -> OffsitePruneResult:
    """Prune the copies, as if all of them were old."""
    return OffsitePruneJob(offsite.through(wrap), policy(NEWEST), clock=lambda: utc_now() + LATER).run()


def chain_faults(offsite: Offsite) -> list[str]:
    newest = list_copies(offsite.backend()).newest()
    return [
        fault for commit in newest.values() if (fault := list_copies(offsite.backend()).chain_fault(commit, newest))
    ]


def failures(offsite: Offsite) -> list[str]:
    """What the access log has of failed work."""
    log = AccessLog(Repository(offsite.uploads.archives))
    assert not log.verify().faults
    return [f"{one.action} {one.subject}" for one in log.entries() if one.outcome is not Outcome.DONE]


@pytest.fixture
def doomed(offsite: Offsite) -> tuple[str, str]:
    """An old base, of which there is a copy beside that of a newer one; and an incremental that follows it, of which
    there is none.
    """
    (base,) = (path.name.removesuffix(".tar.gz") for path in offsite.uploads.archives.glob("*.tar.gz"))
    offsite.copied(base)
    offsite.uploads.write("tenant-0/new.json", b"new")
    child = offsite.uploads.incremental().backup_id
    newer = offsite.uploads.base().backup_id
    offsite.copied(newer)
    return base, child


class TestCopyBesidePrune:
    def test_nothing_is_copied_while_copies_are_removed(self, offsite: Offsite, doomed: tuple[str, str]) -> None:
        """An incremental that came then would have lost its base; the next copy takes both."""
        base, child = doomed
        results = []
        wrap = watched(lambda method, _: method == "delete", lambda: results.append(offsite.copy(child)))
        assert [stem for _, stem in pruned(offsite, wrap).removed] == [base]
        (refused,) = results
        assert [type(fault) for fault in refused.faults] == [BusyError]
        assert chain_faults(offsite) == []
        offsite.copied(child)
        assert chain_faults(offsite) == []
        assert {base, child} <= {commit.backup_id for commit in list_copies(offsite.backend()).commits}

    def test_what_another_machine_needs_by_now_stays(self, offsite: Offsite, doomed: tuple[str, str]) -> None:
        """No lock reaches to another machine: what was copied since the prune looked is looked at again."""
        base, child = doomed
        other = offsite.elsewhere()
        wrap = watched(lambda method, prefix: (method, prefix) == ("list", ""), lambda: offsite.copied(child))
        result = pruned(other, wrap)
        assert (result.removed, result.spared) == ((), (f"{base}: a new copy needs it",))
        assert chain_faults(offsite) == []

    def test_record_has_what_was_copied_and_not_what_was_removed(
        self, offsite: Offsite, doomed: tuple[str, str]
    ) -> None:
        """Both replace it, one after the other."""
        base, child = doomed
        assert pruned(offsite).error is None
        offsite.copied(child)
        ledger = Ledger(Repository(offsite.uploads.archives), offsite.config().destinations[0])
        assert set(ledger.copies()) == {commit.stem for commit in list_copies(offsite.backend()).commits}
        assert base in {stem.backup_id for stem in ledger.copies()}

    def test_a_machine_without_a_record_gets_none(self, offsite: Offsite, doomed: tuple[str, str]) -> None:
        """A prune creates no repository for its lock."""
        other = offsite.elsewhere()
        assert [stem for _, stem in pruned(other).removed] == [doomed[0]]
        assert not other.uploads.archives.exists() or not (other.uploads.archives / ".offsite").exists()


def test_an_archive_that_is_pruned_before_its_turn_is_no_failure(
    offsite: Offsite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even in the instant before it is locked: nobody is told of a copy that failed."""
    lost = offsite.uploads.base().backup_id

    def late(path: Path, timeout: float) -> Any:
        if lost in path.name:
            path.unlink()
        return archive_lock(path, timeout)

    monkeypatch.setattr(copying, "archive_lock", late)
    result = CopyJob(offsite.config(), policy()).run()
    assert (result.error, result.failed) == (None, ())
    assert lost not in {name for _, name in result.copied}
    assert [*result.missing.values()] == [()]
    assert failures(offsite) == []


class TestReadingBesidePrune:
    def test_a_fetch_says_that_the_copy_was_removed(self, offsite: Offsite, doomed: tuple[str, str]) -> None:
        """It does not call it damaged."""
        other = offsite.elsewhere()
        config = other.through(watched(is_segment, lambda: pruned(offsite)))
        with pytest.raises(ArchiveAbsentError, match="has just been removed"):
            FetchJob(config).run(doomed[0])
        assert list(other.uploads.archives.glob("*.tar.gz*")) == []

    def test_a_file_that_is_read_too(self, offsite: Offsite, doomed: tuple[str, str]) -> None:
        """Reading one says the same as fetching all."""
        config = offsite.elsewhere().through(watched(is_segment, lambda: pruned(offsite)))
        with (
            pytest.raises(ArchiveAbsentError, match="has just been removed"),
            FetchJob(config).file(doomed[0], "media/tenant-0/scan-0.sarif"),
        ):
            raise AssertionError("it was read")

    @pytest.mark.parametrize("level", [VerifyLevel.CHECKSUM, VerifyLevel.CONTENTS])
    def test_a_verification_passes_over_it(self, offsite: Offsite, doomed: tuple[str, str], level: VerifyLevel) -> None:
        """No damage is found, none is recorded, and no line of the access log says so."""
        newest = list_copies(offsite.backend()).newest()
        at = f"{doomed[0]}/"
        wrap = watched(lambda method, name: is_segment(method, name) and name.startswith(at), lambda: pruned(offsite))
        found = OffsiteVerifyJob(offsite.through(wrap), policy(NEWEST), clock=lambda: utc_now() + LATER).run(
            None, level
        )
        assert found.error is None
        assert {one.backup_id for one in found.findings} == newest.keys() - {doomed[0]}
        assert failures(offsite) == []
        ledger = Ledger(Repository(offsite.uploads.archives), offsite.config().destinations[0])
        assert ledger.proof()["verified"]["damaged"] == []

    def test_what_is_copied_meanwhile_is_not_gone(
        self, offsite: Offsite, doomed: tuple[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A copy that is younger than the list of copies is in the record only."""

        def late(*args: Any, **options: Any) -> Any:
            found = list_copies(*args, **options)
            offsite.copied(doomed[1])
            return found

        monkeypatch.setattr(verifying, "list_copies", late)
        assert offsite.verify().run().error is None
        assert doomed[1] in {commit.backup_id for commit in list_copies(offsite.backend()).commits}

    def test_one_that_was_asked_for_is_said_to_be_gone(self, offsite: Offsite, doomed: tuple[str, str]) -> None:
        """Nobody is told that nothing was wrong with it."""
        config = offsite.through(watched(is_segment, lambda: pruned(offsite)))
        with pytest.raises(ArchiveAbsentError, match="has just been removed"):
            OffsiteVerifyJob(config).run(doomed[0])

    def test_what_is_missing_from_a_copy_is_still_damage(self, offsite: Offsite, doomed: tuple[str, str]) -> None:
        """Where the commit stays."""
        with pytest.raises(ObjectAbsentError):
            list(offsite.backend().read(f"{doomed[1]}.json"))
        (offsite.directory / "disk" / doomed[0] / "00000.age").unlink()
        assert offsite.verify().run(doomed[0]).findings[0].damages == (f"{doomed[0]}/00000.age is missing",)


def test_a_chain_is_kept_from_a_prune_while_it_is_fetched(offsite: Offsite) -> None:
    """Its base is old, and nothing needs it until the rest has come."""
    base = next(offsite.uploads.archives.glob("*.tar.gz")).name.removesuffix(".tar.gz")
    offsite.uploads.write("tenant-0/new.json", b"new")
    child = offsite.uploads.incremental().backup_id
    offsite.copied()
    other = offsite.elsewhere()
    other.uploads.write("own.json", b"own")
    own = other.uploads.base().backup_id
    repository = Repository(other.uploads.archives)
    prune = PruneJob(repository, policy(NEWEST), clock=lambda: utc_now() + LATER)
    removed: list[str] = []

    def act() -> None:
        assert other.uploads.archive(base).exists()
        removed.extend(one.entry.name for one in prune.run().raise_error().removed)

    wrap = watched(lambda method, name: is_segment(method, name) and name.startswith(f"{child}/"), act)
    fetched = FetchJob(other.through(wrap)).run(child)
    assert removed == []
    assert fetched.fetched == (base, child)
    assert [one.name for one in line_of(fetched.path)] == [base, child]
    assert {one.entry.name for one in prune.run().removed} == {base, child}
    assert other.uploads.archive(own).exists()


def test_results_of_two_processes_are_all_recorded(offsite: Offsite) -> None:
    """A verification and a drill that record at once leave both results, whichever is first."""
    ledgers = [Ledger(Repository(offsite.uploads.archives), offsite.config().destinations[0]) for _ in range(2)]

    def record(ledger: Ledger, kind: str) -> None:
        for number in range(40):
            with ledger.recording() as is_ours:
                assert is_ours
                ledger.note_proof(kind, {"number": number})

    threads = [
        threading.Thread(target=record, args=pair) for pair in zip(ledgers, ("verified", "drilled"), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    proof = ledgers[0].proof()
    assert (proof["verified"], proof["drilled"]) == ({"number": 39}, {"number": 39})
