"""Copies that are verified, fetched, read and pruned; and what becomes of those that somebody has damaged."""

from __future__ import annotations

import json
import random
import shutil
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import ArchiveAbsentError, ConfigurationError, IdentityError, NotIntactError
from portal.ops.filesystem.temporary import temporary_name
from portal.ops.model import SUFFIX, VerifyLevel
from portal.ops.offsite.fetch import FetchJob
from portal.ops.offsite.listing import list_copies
from portal.ops.offsite.prune import OffsitePruneJob
from portal.ops.repository.repository import Repository
from portal.ops.repository.sidecar import read_sidecar
from portal.ops.restore.config import RestoreScope
from portal.ops.restore.moment_offsite import moment_at_hand
from portal.ops.retention.policy import RetentionRule
from portal.ops.runtime.progress import utc_now
from portal.ops.storage.age_keys import generate
from portal.ops.verify.verify import Verifier
from tests.support.offsite import policy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.offsite import Offsite


def segments(offsite: Offsite) -> list[Path]:
    return sorted((offsite.directory / "disk").rglob("*.age"))


def cut(path: Path, _: Offsite) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path, _: Offsite) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove(path: Path, _: Offsite) -> None:
    path.unlink()


def swap(path: Path, offsite: Offsite) -> None:
    path.write_bytes(segments(offsite)[1].read_bytes())


def replace_by_an_older_one(path: Path, offsite: Offsite) -> None:
    """A segment of the same place of an older copy, which decrypts well."""
    name = path.parent.name
    second = offsite.copy(name, again=True)
    assert second.error is None
    path.write_bytes((offsite.directory / "disk" / f"{name}.1" / path.name).read_bytes())
    for other in (offsite.directory / "disk" / f"{name}.1").iterdir():
        other.unlink()
    (offsite.directory / "disk" / f"{name}.1.json").unlink()


DAMAGES = [cut, flip, remove, swap, replace_by_an_older_one]


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_no_damage_passes(self, offsite: Offsite, damage: Callable[[Path, Offsite], None]) -> None:
        """A segment that is cut, changed, missing, swapped or older is found without the key and never restored."""
        offsite.copied()
        name = next(offsite.uploads.archives.glob(f"*{SUFFIX}")).name.removesuffix(SUFFIX)
        damage(segments(offsite)[0], offsite)
        found = offsite.verify(BACKUP_ENCRYPTION_IDENTITY_FILE="").run(name)
        assert not found.intact
        assert "00000.age" in found.message
        other = offsite.elsewhere()
        with pytest.raises(NotIntactError, match="00000"):
            other.fetch(name)
        assert not list(other.uploads.archives.glob(f"*{SUFFIX}*"))
        assert not list(other.uploads.archives.glob(".*.partial"))

    def test_another_destination_has_it_intact(self, offsite: Offsite) -> None:
        """A damaged copy does not keep the intact one of another destination from being fetched, nor makes ``latest``
        an older archive; where all are damaged, the first fault is told."""
        (offsite.directory / "second").mkdir()
        both = {"BACKUP_OFFSITE_URLS": f"{offsite.environ['BACKUP_OFFSITE_URLS']} file://{offsite.directory}/second"}
        offsite.copied(**both)
        (archive,) = offsite.uploads.archives.glob(f"*{SUFFIX}")
        flip(segments(offsite)[0], offsite)
        for name in ("latest", archive.name.removesuffix(SUFFIX)):
            found = FetchJob(offsite.elsewhere(name, **both).config()).run(name)
            assert found.path.read_bytes() == archive.read_bytes()
            assert found.destination == f"file://{offsite.directory}/second"
            assert "disk was passed over: the off-site segment" in found.warnings[0]
        (segment,) = (offsite.directory / "second").rglob("00000.age")
        remove(segment, offsite)
        with pytest.raises(NotIntactError, match="disk is damaged: "):
            offsite.elsewhere(**both).fetch("latest")

    def test_a_commit_that_makes_no_sense(self, offsite: Offsite) -> None:
        """A damaged commit is no copy, is named, and makes a verification fail."""
        offsite.copied()
        commit = next((offsite.directory / "disk").glob("*.json"))
        commit.write_text("{")
        found = offsite.verify().run()
        assert not found.intact
        with pytest.raises(NotIntactError, match="is invalid"):
            offsite.elsewhere().fetch("latest")

    def test_a_commit_that_lies(self, offsite: Offsite) -> None:
        """A commit of another archive's segments does not pass: the archive's own digest decides."""
        offsite.copied()
        commit = next((offsite.directory / "disk").glob("*.json"))
        facts = json.loads(commit.read_text())
        facts["archive"]["sha256"] = "0" * 64
        del facts["signer"], facts["signature"]
        commit.write_text(json.dumps(facts))
        with pytest.raises(NotIntactError, match="does not give the archive"):
            offsite.elsewhere().fetch("latest")
        assert "not made by this repository" in offsite.verify().run().message

    def test_a_wrong_identity(self, offsite: Offsite) -> None:
        """Another key, or none, is told as such, and nothing is left behind."""
        offsite.copied()
        other = offsite.elsewhere(BACKUP_ENCRYPTION_IDENTITY_FILE=str(generate(offsite.directory / "wrong").path))
        with pytest.raises(IdentityError):
            other.fetch("latest")
        with pytest.raises(IdentityError, match="no identity"):
            offsite.elsewhere(BACKUP_ENCRYPTION_IDENTITY_FILE="").fetch("latest")
        assert not list(other.uploads.archives.glob(f"*{SUFFIX}"))


class TestFetch:
    def test_a_chain_comes_with_all_that_it_needs(self, offsite: Offsite) -> None:
        """An incremental is fetched with its base, each byte for byte with its sidecar, and restores."""
        offsite.uploads.write("tenant-0/new.json", b"new")
        newest = offsite.uploads.incremental()
        offsite.copied()
        other = offsite.elsewhere()
        path = other.fetch(newest.backup_id)
        assert read_sidecar(path) == newest.checksum
        assert Verifier().verify(path).intact
        assert other.uploads.restored(newest.backup_id) == offsite.uploads.tree()

    def test_what_is_here_is_not_fetched_again(self, offsite: Offsite) -> None:
        """A second fetch reads nothing; another archive of that name is refused."""
        offsite.copied()
        other = offsite.elsewhere()
        path = other.fetch("latest")
        assert FetchJob(other.config()).run("latest").fetched == ()
        path.with_name(path.name + ".sha256").write_text(f"{'0' * 64}  {path.name}\n")
        with pytest.raises(NotIntactError, match="is not the archive"):
            other.fetch("latest")

    def test_an_archive_that_has_no_copy(self, offsite: Offsite) -> None:
        """A name that no destination knows is a matter of usage."""
        with pytest.raises(ConfigurationError, match="no copy"):
            offsite.elsewhere().fetch("latest")

    @pytest.mark.parametrize("level", [VerifyLevel.CONTENTS, VerifyLevel.DUMP])
    def test_deeper_verification(self, offsite: Offsite, level: VerifyLevel) -> None:
        """Deeper levels decrypt and look at every file, and leave nothing of it."""
        offsite.copied()
        other = offsite.elsewhere()
        assert other.verify().run(level=level).intact
        assert not list(other.uploads.archives.rglob(f"*{SUFFIX}"))


class TestReading:
    def test_one_file(self, offsite: Offsite) -> None:
        """A file of a chain is read from the last archive that has it, with little beside it."""
        path = "tenant-1/scan-1.sarif"
        offsite.uploads.write(path, changed := random.Random(5).randbytes(10_000))
        newest = offsite.uploads.incremental()
        offsite.copied()
        with FetchJob(offsite.elsewhere().config()).file(newest.backup_id, f"media/{path}") as (reader, member, _):
            assert b"".join(map(bytes, reader.extract(member))) == changed
        with FetchJob(offsite.config()).file(newest.backup_id, "media/tenant-0/scan-2.sarif") as (reader, member, _):
            content = b"".join(map(bytes, reader.extract(member)))
        assert content == (offsite.uploads.root / "tenant-0/scan-2.sarif").read_bytes()

    def test_a_file_that_is_gone(self, offsite: Offsite) -> None:
        """What an incremental has deleted is not read from its base."""
        (offsite.uploads.root / "tenant-0/scan-2.sarif").unlink()
        newest = offsite.uploads.incremental()
        offsite.copied()
        reading = FetchJob(offsite.config()).file(newest.backup_id, "media/tenant-0/scan-2.sarif")
        with pytest.raises(ArchiveAbsentError), reading:
            pass

    def test_a_damaged_segment(self, offsite: Offsite) -> None:
        """A file whose part of a segment was changed is not given out."""
        offsite.copied()
        for path in segments(offsite)[:-1]:
            data = bytearray(path.read_bytes())
            for at in range(1000, len(data), 60_000):
                data[at] ^= 1
            path.write_bytes(data)
        reading = FetchJob(offsite.config()).file("latest", "media/tenant-0/scan-2.sarif")
        with pytest.raises(NotIntactError), reading as (reader, member, _):
            list(reader.extract(member))


class TestPrune:
    def _later(self, offsite: Offsite, days: int, rule: RetentionRule, **changes: str) -> OffsitePruneJob:
        return OffsitePruneJob(offsite.config(**changes), policy(rule), clock=lambda: utc_now() + timedelta(days=days))

    def test_the_rules_decide(self, offsite: Offsite) -> None:
        """What the off-site rules do not keep goes, commit first and segments with it; the newest one stays."""
        offsite.copied()
        offsite.uploads.base()
        offsite.copied()
        before = list_copies(offsite.backend()).commits
        rule = RetentionRule(days=1, count=1)
        assert len(self._later(offsite, 40, rule).run(dry_run=True).removed) == 1
        assert list_copies(offsite.backend()).commits == before
        result = self._later(offsite, 40, rule).run()
        assert result.error is None
        assert len(result.removed) == 1
        (left,) = list_copies(offsite.backend()).commits
        assert left == before[0]
        assert {name.split("/")[0].removesuffix(".json") for name in offsite.names()} == {left.backup_id}
        assert (
            self._later(offsite, 40, RetentionRule(days=1), BACKUP_OFFSITE_RETENTION_RULES="media: days 90")
            .run()
            .removed
            == ()
        )

    def test_chains_stay_complete(self, offsite: Offsite) -> None:
        """The base of an incremental that is kept is kept."""
        offsite.uploads.write("tenant-0/new.json")
        newest = offsite.uploads.incremental()
        offsite.copied()
        assert self._later(offsite, 40, RetentionRule(days=1, count=1)).run().removed == ()
        assert len(list_copies(offsite.backend()).line_of(list_copies(offsite.backend()).find(newest.backup_id))) == 2

    def test_copies_that_were_replaced_and_remains_go(self, offsite: Offsite) -> None:
        """Of two copies of an archive the older goes; after a week, so do segments without a commit.

        The files of killed writers go with them.
        """
        offsite.copied()
        name = list_copies(offsite.backend()).commits[0].backup_id
        assert offsite.copy(name, again=True).error is None
        remains = offsite.directory / "disk" / "media_20200101_000000_abcdef"
        remains.mkdir()
        (remains / "00000.age").write_bytes(b"x")
        killed = [remains / temporary_name("00001.age"), remains.parent / name / temporary_name("00000.age")]
        for path in killed:
            path.write_bytes(b"half")
        assert self._later(offsite, 1, RetentionRule()).run().swept == ()
        result = self._later(offsite, 8, RetentionRule()).run()
        hidden = sorted(str(path.relative_to(remains.parent)) for path in killed)
        assert (result.swept[0], sorted(result.swept[1:])) == (f"{remains.name}/00000.age", hidden)
        assert not any(path.exists() for path in [*killed, remains])
        assert [commit.stem.generation for commit in list_copies(offsite.backend()).commits] == [1]
        assert offsite.elsewhere().fetch(name).exists()


def test_a_moment_is_fetched_where_the_repository_is_gone(offsite: Offsite) -> None:
    """The disk of the repository was replaced by an empty one: whoever made the backups gets them back all the same."""
    offsite.copied()
    archives = offsite.uploads.archives
    shutil.rmtree(archives)
    archives.mkdir()
    (name,) = moment_at_hand(offsite.settings(), "latest", RestoreScope.MEDIA)
    assert [one.name for one in Repository(archives).archives()] == [name]
