"""Copies that are looked at: listed, counted and compared with their commits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.errors import (
    ArchiveAbsentError,
    ConfigurationError,
    NotIntactError,
    StorageError,
    StoreUnreachableError,
)
from portal.ops.model import VerifyLevel
from portal.ops.offsite.fetch import Fetched, FetchJob, is_offsite
from portal.ops.offsite.ledger import CopyRecord, Ledger
from portal.ops.offsite.listing import count_copies, is_removed, list_copies, unless_removed
from portal.ops.offsite.local import copy_for_drill, local_archive, note_drill
from portal.ops.offsite.signing import Trust, own_key
from portal.ops.offsite.verify import OffsiteVerifyJob
from portal.ops.repository.repository import Repository
from portal.ops.runtime.progress import read_text
from portal.ops.settings.load import load_settings
from tests.support.put_copies import ID, NOW, Put, actions, put_copy, small_world
from tests.support.stores import Unsteady

if TYPE_CHECKING:
    from tests.support.offsite import Offsite


@pytest.fixture
def world(tmp_path: Path) -> Offsite:
    """A destination with nothing in it, and a repository with a key."""
    return small_world(tmp_path)


class TestLooking:
    def verify(self, world: Offsite, name: str | None = None, wrap: Any = None) -> Any:
        """Verify copies by their digests."""
        config = world.through(wrap) if wrap else world.config()
        return OffsiteVerifyJob(config, clock=lambda: NOW, actor="me").run(name)

    def test_damage_of_many_copies_stays_known(self, world: Offsite) -> None:
        """All of them are recorded, and stay so while a few others are looked at."""
        copies = [put_copy(world, day) for day in range(1, 26)]
        for copy in copies:
            Put(world.directory / "disk").change(copy, 0, None)
        self.verify(world)
        put_copy(world, 26)
        OffsiteVerifyJob(world.config(), clock=lambda: NOW).run_rotation()
        ledger = Ledger(Repository(world.config().local_path), world.config().destinations[0])
        assert sorted(ledger.proof()["verified"]["damaged"]) == sorted(str(copy.stem) for copy in copies)

    def test_what_it_says(self, world: Offsite) -> None:
        """Each copy is looked at, recorded with its turn, and has a line in the access log."""
        first, second = put_copy(world, 1), put_copy(world, 2)
        put = Put(world.directory / "disk")
        put.change(first, 0, b"y" * 100)
        put.change(first, 1, b"short")
        put.change(first, 2, None)
        found = self.verify(world)
        assert {one.backup_id: one.damages for one in found.findings} == {
            second.backup_id: (),
            first.backup_id: (
                f"{first.segment_name(0)} has another SHA-256 than it should",
                f"{first.segment_name(1)} has 5 bytes, and should have 100",
                f"{first.segment_name(2)} is missing",
            ),
        }
        assert [one.is_downloaded for one in found.findings] == [True, True]
        lines = {subject: (outcome, details) for _, subject, outcome, details in actions(world)}
        assert lines[second.backup_id][0] == "done"
        assert lines[first.backup_id][0] == "failed"
        assert lines[first.backup_id][1]["damages"] == 3
        assert lines[world.backend().shown][1]["copies"] == 2
        ledger = Ledger(Repository(world.config().local_path), world.config().destinations[0])
        assert ledger.turns() == {str(first.stem): NOW, str(second.stem): NOW}
        proof = ledger.proof()["verified"]
        assert (proof["moment"], proof["level"], proof["copies"], proof["damaged"], proof["foreign"]) == (
            NOW.isoformat(),
            "checksum",
            2,
            [str(first.stem)],
            [],
        )

    def test_what_is_gone_or_anothers(self, world: Offsite) -> None:
        """A commit that is gone, one that was changed, a foreign one, and one that is not the one from here."""
        gone, other = put_copy(world, 1), put_copy(world, 2)
        disk = world.directory / "disk"
        (disk / gone.stem.commit).unlink()
        key = own_key(Repository(world.config().local_path))
        (disk / other.stem.commit).write_bytes(replace(other, archive_sha256="0" * 64).encode(key))
        (disk / "media_20260101_120000_abcdef.json").write_text("{")
        Put(disk).copy(b"x", 1, "media_20260102_120000_abcdef")
        found = {one.stem: one.damages for one in self.verify(world).findings}
        assert found[str(gone.stem)][0].startswith("it was copied from here, and its commit is gone;")
        assert found[str(other.stem)] == ("its commit is not the one that was written from here",)
        assert found["media_20260101_120000_abcdef"] == ("its commit is invalid, or was changed after it was signed",)
        assert found["media_20260102_120000_abcdef"][0].startswith("it was not made by this repository")
        one = self.verify(world, other.backup_id)
        assert [finding.stem for finding in one.findings] == [str(other.stem)]

    def test_a_chain_with_a_gap(self, world: Offsite) -> None:
        """The copy is intact, and of no use; also where its turn has not come."""
        child = put_copy(world, 2, parent="media_20260101_120000_abcdef")
        (finding,) = self.verify(world).findings
        assert finding.damages == ("it needs media_20260101_120000_abcdef, of which there is no copy",)
        put_copy(world, 3)
        put_copy(world, 4)
        job = OffsiteVerifyJob(world.config(), clock=lambda: NOW)
        job.run_rotation()
        found = [one for one in job.run_rotation().findings if one.stem == str(child.stem)]
        assert [one.damages for one in found] == [finding.damages]

    def test_a_commit_of_another_archive(self, world: Offsite) -> None:
        """Read to its end, the copy does not give the archive that the commit describes; nothing of it stays."""
        commit = put_copy(world, 1, archive_sha256="0" * 64)
        (finding,) = OffsiteVerifyJob(world.config()).run(None, VerifyLevel.CONTENTS).findings
        assert finding.damages == (
            f"the copy of {commit.backup_id} in {world.backend().shown} does not give the archive that its commit "
            "describes",
        )
        assert finding.is_downloaded
        assert not list((world.config().local_path / ".offsite").glob("verify-*"))

    def test_a_drill_is_something_else(self, world: Offsite) -> None:
        """It is said how to run one."""
        with pytest.raises(ConfigurationError, match="a drill takes more than verifying a copy") as caught:
            OffsiteVerifyJob(world.config()).run(None, VerifyLevel.DRILL)
        assert "offsite:<id>" in caught.value.hint

    def test_nothing_to_verify(self, world: Offsite) -> None:
        """No copy at all is no error; one that was named is; so is a store that is away."""
        assert self.verify(world).findings == ()
        with pytest.raises(ConfigurationError, match="no copy 'media'"):
            self.verify(world, "media")
        away = OffsiteVerifyJob(world.config(BACKUP_OFFSITE_URLS=f"file://{world.directory}/away"))
        with pytest.raises(StoreUnreachableError):
            away.run()

    def test_the_connection_breaks(self, world: Offsite) -> None:
        """The other copies are not tried, and the failure is told."""
        put_copy(world, 1)
        put_copy(world, 2)
        calls: list[str] = []

        def fails(what: str) -> bool:
            calls.append(what)
            return what == "head" and calls.count("head") == 2 + 1 + 1

        found = self.verify(world, wrap=lambda real: Unsteady(real, fails))
        assert len(found.findings) == 1
        assert [type(fault) for fault in found.faults] == [StoreUnreachableError]
        assert calls.count("head") == 4
        lines = {subject: outcome for _, subject, outcome, _ in actions(world)}
        assert lines[world.backend().shown] == "failed"

    def test_twenty_damages_suffice(self, world: Offsite) -> None:
        """Of one copy; missing segments are counted like others."""
        commit = Put(world.directory / "disk").copy(
            b"x" * 2500, 100, key=own_key(Repository(world.config().local_path))
        )
        for number in range(25):
            (world.directory / "disk" / commit.segment_name(number)).unlink()
        (finding,) = self.verify(world).findings
        assert finding.damages == tuple(f"{commit.segment_name(number)} is missing" for number in range(20))


class TestListing:
    def test_only_what_is_needed_is_read(self, world: Offsite) -> None:
        """Of a chain its archives; of the latest the newest full one, or the newest of all."""
        base = put_copy(world, 1)
        child = put_copy(world, 2, parent=base.backup_id)
        put_copy(world, 3)
        backend = world.backend()
        assert [one.stem for one in list_copies(backend, child.backup_id).commits] == [child.stem, base.stem]
        assert [one.backup_id[6:14] for one in list_copies(backend, "latest").commits] == ["20260203"]
        assert len(list_copies(backend, "media").commits) == 3
        assert len(list_copies(backend).commits) == 3

    def test_a_store_that_is_away_counts_before_one_without_a_copy(self, world: Offsite) -> None:
        """The copy may be there; where all stores answer, there is none."""
        with pytest.raises(ConfigurationError, match="there is no copy"):
            FetchJob(world.config()).run("latest")
        urls = f"{world.environ['BACKUP_OFFSITE_URLS']} file://{world.directory}/away"
        for given in (urls, " ".join(reversed(urls.split()))):
            with pytest.raises(StoreUnreachableError):
                FetchJob(world.config(BACKUP_OFFSITE_URLS=given)).run("latest")

    def test_counting(self, world: Offsite) -> None:
        """Known copies are not read; others count by their signer."""
        own = put_copy(world, 1)
        Put(world.directory / "disk").copy(b"x", 1, "media_20260102_120000_abcdef")
        (world.directory / "disk" / "media_20260103_120000_abcdef.json").write_text("{")
        signers = frozenset({own_key(Repository(world.config().local_path)).signer})
        assert count_copies(world.backend(), Trust(signers=signers, known={})) == (1, ("media_20260102_120000_abcdef",))
        (world.directory / "disk" / own.stem.commit).write_text("{")
        known = {own.stem: CopyRecord.of(own)}
        assert count_copies(world.backend(), Trust(signers=None, known=known)) == (2, ())

    def test_removed_while_it_is_used(self, world: Offsite) -> None:
        """That is no damage; damage stays damage."""
        commit, backend = put_copy(world, 1), world.backend()
        assert not is_removed(backend, commit)
        with pytest.raises(NotIntactError, match=r"^x$"), unless_removed(backend, commit):
            raise NotIntactError("x")
        backend.delete(commit.stem.commit)
        assert is_removed(backend, commit)
        with pytest.raises(ArchiveAbsentError) as caught, unless_removed(backend, commit):
            raise NotIntactError("x")
        assert caught.value.message == f"the copy {commit.stem} in {backend.shown} has just been removed"
        with pytest.raises(StorageError, match=r"^y$"), unless_removed(backend, commit):
            raise StorageError("y")


class TestDrills:
    def test_archives_that_are_here(self, tmp_path: Path) -> None:
        """Their names are left as they are, and they are no copies."""
        settings = load_settings({"BACKUP_LOCAL_PATH": str(tmp_path)}, read_text)
        assert local_archive(settings, "latest") == "latest"
        assert copy_for_drill(settings, "latest") is None
        assert [is_offsite(name) for name in ("offsite:x", "x", Path("offsite:x"))] == [True, False, False]

    def test_what_a_drill_has_shown(self, tmp_path: Path) -> None:
        """It is recorded for the destination that the copy came from, if anything was shown."""
        repository = Repository(tmp_path)
        repository.prepare()
        urls = "file:///disk file:///other"
        settings = load_settings({"BACKUP_LOCAL_PATH": str(repository.path), "BACKUP_OFFSITE_URLS": urls}, read_text)
        copy = Fetched(
            backup_id=ID,
            path=Path(),
            destination="file:///disk",
            checksum="",
            size=1,
            fetched=(),
            recipients=("b", "a"),
        )
        here, other = (Ledger(repository, one) for one in settings.offsite.destinations())
        note_drill(settings, copy, success=None)
        assert here.proof() == {}
        note_drill(settings, copy, success=False, clock=lambda: NOW)
        assert here.proof()["drilled"] == {
            "moment": NOW.isoformat(),
            "success": False,
            "backup_id": ID,
            "recipients": ["a", "b"],
        }
        assert other.proof() == {}
