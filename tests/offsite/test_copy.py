"""Copies: what is stored, how an interrupted copy goes on, what a host can and cannot do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import (
    BusyError,
    ConfigurationError,
    IdentityError,
    NotIntactError,
    RepositoryError,
    StoreUnreachableError,
)
from portal.ops.model import SUFFIX
from portal.ops.offsite.beside import archive_beside
from portal.ops.offsite.copy import CopyJob
from portal.ops.offsite.layout import segment_bytes_for
from portal.ops.offsite.ledger import Ledger
from portal.ops.offsite.listing import list_copies
from portal.ops.repository.access_log import AccessLog, Action
from portal.ops.repository.repository import Repository
from portal.ops.repository.sidecar import read_sidecar, sidecar_of
from portal.ops.storage.age_keys import generate
from tests.support.offsite import offsite_at, policy, small_archives
from tests.support.stores import HOST, Lying, Unsteady

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from demo.object_store import EmbeddedObjectStore
    from portal.ops.storage.backend import Backend
    from tests.support.offsite import Offsite


def archive_of(offsite: Offsite) -> Path:
    (path,) = offsite.uploads.archives.glob(f"*{SUFFIX}")
    return path


def with_store(offsite: Offsite, wrap: Callable[[Backend], Backend]) -> CopyJob:
    """A copy whose store is another one."""
    return CopyJob(offsite.through(wrap), policy())


class TestCopy:
    def test_a_copy_is_the_archive_in_segments(self, offsite: Offsite) -> None:
        """Decrypting the segments one after the other with age alone gives the archive, byte for byte."""
        offsite.copied()
        archive = archive_of(offsite)
        names = [name for name in offsite.names() if name.endswith(".age")]
        stem = archive.name.removesuffix(SUFFIX)
        assert names == [f"{stem}/{number:05d}.age" for number in range(len(names))]
        assert len(names) > 2
        import pyrage

        key = (offsite.directory / "identity").read_text().split()[-1]
        identity = pyrage.x25519.Identity.from_str(key)
        disk = offsite.directory / "disk"
        assert (
            b"".join(pyrage.decrypt((disk / name).read_bytes(), [identity]) for name in names) == archive.read_bytes()
        )

    def test_the_commit_says_what_is_needed_and_no_more(self, offsite: Offsite) -> None:
        """The commit has sizes, digests and recipients; no name of a file, of the host or of a database."""
        offsite.copied()
        archive = archive_of(offsite)
        text = next((offsite.directory / "disk").glob("*.json")).read_text()
        found = json.loads(text)
        assert found["archive"] == {"size": archive.stat().st_size, "sha256": read_sidecar(archive)}
        assert found["recipients"] == offsite.environ["BACKUP_ENCRYPTION_RECIPIENTS"].split()
        assert not re.search(
            rf"\b{re.escape(os.uname().nodename)}\b", text
        )  # a short one may be in the middle of a key
        assert "tenant" not in text
        assert "AGE-SECRET" not in text

    def test_asked_twice_it_is_made_once(self, offsite: Offsite) -> None:
        """What has a copy is not copied again, also where the memory of it was lost."""
        first = offsite.copied()
        before = offsite.names()
        assert [name for _, name in first.copied] == [archive_of(offsite).name.removesuffix(SUFFIX)]
        assert offsite.copied().copied == ()
        subprocess.run(["rm", "-r", offsite.uploads.archives / ".offsite"], check=True)
        offsite.copied(str(archive_of(offsite)))
        assert offsite.names() == before

    def test_a_chain_goes_with_all_that_it_needs(self, offsite: Offsite) -> None:
        """The copy of an incremental brings its base along, and the base first."""
        offsite.uploads.write("tenant-0/new.json")
        newest = offsite.uploads.incremental()
        result = offsite.copied(newest.backup_id)
        assert [name for _, name in result.copied] == [newest.base, newest.backup_id]

    def test_types_that_are_not_copied(self, offsite: Offsite) -> None:
        """Only the types that are asked for are copied."""
        assert offsite.copied(BACKUP_OFFSITE_TYPES="full database").copied == ()

    def test_nothing_leaves_without_recipients(self, offsite: Offsite) -> None:
        """Without a recipient nothing is stored; with encryption off in so many words, the archive as it is."""
        result = offsite.copy(BACKUP_ENCRYPTION_RECIPIENTS="")
        assert isinstance(result.faults[0], ConfigurationError)
        assert offsite.names() == []
        offsite.copied(BACKUP_ENCRYPTION_RECIPIENTS="", BACKUP_OFFSITE_ENCRYPTION="off")
        parts = sorted((offsite.directory / "disk").glob("*/*.part"))
        assert b"".join(part.read_bytes() for part in parts) == archive_of(offsite).read_bytes()

    def test_one_recipient_is_a_warning(self, offsite: Offsite) -> None:
        """One key that can be lost is warned of; two are not."""
        assert "one recipient only" in offsite.copied().warnings[0]
        both = f"{offsite.environ['BACKUP_ENCRYPTION_RECIPIENTS']} {generate(offsite.directory / 'second').recipient}"
        assert offsite.copied(BACKUP_ENCRYPTION_RECIPIENTS=both).warnings == ()

    def test_a_damaged_archive_is_not_copied(self, offsite: Offsite) -> None:
        """An archive that is not what its sidecar says gets no commit, and no later attempt takes its segments."""
        archive = archive_of(offsite)
        whole = archive.read_bytes()
        archive.write_bytes(whole[:-5000] + bytes(100) + whole[-4900:])
        result = offsite.copy(archive.name)
        assert isinstance(result.faults[0], NotIntactError)
        assert not list((offsite.directory / "disk").glob("*.json"))
        archive.write_bytes(whole)
        offsite.copied(archive.name)
        assert offsite.elsewhere().fetch(archive.name.removesuffix(SUFFIX)).read_bytes() == whole

    def test_a_missing_sidecar(self, offsite: Offsite) -> None:
        """An archive that nobody knows the digest of is not copied, and the fault says so."""
        sidecar_of(archive_of(offsite)).unlink()
        assert "no .sha256" in str(offsite.copy(archive_of(offsite).name).error) or offsite.names() == []

    def test_an_archive_here_that_lost_its_sidecar(self, offsite: Offsite) -> None:
        """Fetched, it is compared with its copy: the same one gets its sidecar back, any other is refused."""
        offsite.copied()
        archive = archive_of(offsite)
        whole, sidecar = archive.read_bytes(), sidecar_of(archive).read_text()
        name = archive.name.removesuffix(SUFFIX)
        sidecar_of(archive).unlink()
        archive.write_bytes(whole[:1000])
        with pytest.raises(NotIntactError, match="is there, and is not the archive that the copy is of"):
            offsite.fetch(name)
        archive.write_bytes(whole)
        assert offsite.fetch(name) == archive
        assert sidecar_of(archive).read_text() == sidecar

    def test_no_place_to_read_a_copy_to(self, offsite: Offsite) -> None:
        """A directory that cannot be made in the repository is an error of the repository, with what to do."""
        offsite.copied()
        config = offsite.elsewhere().config()
        backend = offsite.backend()
        (commit,) = list_copies(backend).commits
        config.local_path.mkdir(parents=True)
        (config.local_path / ".offsite").touch()
        with (
            pytest.raises(RepositoryError, match="cannot write to") as caught,
            archive_beside(config, Repository(config.local_path), backend, commit, lambda _: None),
        ):
            pytest.fail("there is no archive")
        assert caught.value.hint

    def test_an_interrupted_copy_whose_segments_are_gone(self, offsite: Offsite) -> None:
        """A prune removes the segments of a copy that stood still for a week; the next attempt begins again."""
        puts = 0

        def third(what: str) -> bool:
            nonlocal puts
            puts += what == "put"
            return puts > 2

        assert with_store(offsite, lambda real: Unsteady(real, third)).run().faults
        sent = offsite.names()
        assert len(sent) == 2
        for name in sent:
            offsite.backend().delete(name)
        offsite.copied()
        archive = archive_of(offsite)
        assert [name for name in offsite.names() if name in sent] == sent
        assert offsite.elsewhere().fetch("latest").read_bytes() == archive.read_bytes()

    def test_copies_for_new_recipients(self, offsite: Offsite) -> None:
        """Copied again, an archive is encrypted for the new recipients; the old copy stays until it is pruned."""
        offsite.copied()
        second = generate(offsite.directory / "second")
        name = archive_of(offsite).name.removesuffix(SUFFIX)
        result = offsite.copy(name, again=True, BACKUP_ENCRYPTION_RECIPIENTS=second.recipient)
        assert result.error is None
        commits = list_copies(offsite.backend()).commits
        assert [(commit.stem.generation, commit.recipients) for commit in commits] == [
            (1, (second.recipient,)),
            (0, (offsite.environ["BACKUP_ENCRYPTION_RECIPIENTS"],)),
        ]
        other = offsite.elsewhere(BACKUP_ENCRYPTION_IDENTITY_FILE=str(second.path))
        assert other.fetch(name).read_bytes() == archive_of(offsite).read_bytes()

    def test_the_access_log_has_it(self, offsite: Offsite) -> None:
        """A copy is in the access log with its destination and without a secret."""
        offsite.copied()
        (entry,) = [
            one
            for one in AccessLog(Repository(offsite.uploads.archives)).entries()
            if one.action is Action.OFFSITE_COPY
        ]
        assert entry.details["destination"] == f"file://{offsite.directory}/disk"

    def test_a_large_archive_gets_large_segments(self, offsite: Offsite, monkeypatch: pytest.MonkeyPatch) -> None:
        """A copy has no more segments than its commit can list, and comes back as it was."""
        monkeypatch.setattr("portal.ops.offsite.layout.MOST_SEGMENTS", 2)
        offsite.copied()
        assert len([name for name in offsite.names() if name.endswith(".age")]) == 2
        assert offsite.elsewhere().fetch("latest").read_bytes() == archive_of(offsite).read_bytes()

    def test_a_slow_line_gets_small_segments(self) -> None:
        """Where the rate is limited, no burst is longer than a few seconds of it."""
        assert segment_bytes_for(1_000_000, 0) == 4_000_000
        assert segment_bytes_for(1000, 0) == 1 << 20


class TestInterrupted:
    @pytest.mark.parametrize("how", [True, "after"])
    @pytest.mark.parametrize("call", [1, 2, 3])
    def test_it_goes_on_with_the_next_segment(self, offsite: Offsite, call: int, how: bool | str) -> None:
        """A connection that breaks before or after a segment was stored costs one segment at the most."""
        calls = {"put": 0}
        broken = [how]

        def fails(what: str) -> bool | str:
            calls[what] = calls.get(what, 0) + 1
            return broken.pop() if what == "put" and calls["put"] == call and broken else False

        job = with_store(offsite, lambda real: Unsteady(real, fails))
        first = job.run()
        assert isinstance(first.faults[0], StoreUnreachableError)
        assert first.retryable
        done = calls["put"]
        assert job.run().error is None
        segments = len([name for name in offsite.names() if name.endswith(".age")])
        assert calls["put"] <= segments + 1 + 1
        assert done == call
        name = archive_of(offsite).name.removesuffix(SUFFIX)
        assert offsite.elsewhere().fetch(name).read_bytes() == archive_of(offsite).read_bytes()

    def test_the_memory_of_it_was_lost(self, offsite: Offsite) -> None:
        """Where nobody knows any more what was sent, the copy starts again beside it, and nothing is overwritten."""
        calls: list[str] = []

        def fails(what: str) -> bool:
            calls.append(what)
            return calls.count("put") == 3 and what == "put"

        job = with_store(offsite, lambda real: Unsteady(real, fails))
        assert job.run().error is not None
        before = {path: path.read_bytes() for path in (offsite.directory / "disk").rglob("*.age")}
        assert before
        subprocess.run(["rm", "-r", offsite.uploads.archives / ".offsite"], check=True)
        offsite.copied()
        assert {path: path.read_bytes() for path in before} == before
        (commit,) = list_copies(offsite.backend()).commits
        assert commit.stem.generation == 1
        assert offsite.elsewhere().fetch("latest").read_bytes() == archive_of(offsite).read_bytes()

    def test_two_at_once_make_one_copy(self, offsite: Offsite) -> None:
        """Two workers that copy the same archive make one copy: the second one waits, or is told to."""
        results = []
        threads = [threading.Thread(target=lambda: results.append(offsite.copy())) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(len(result.copied) for result in results) == 1
        assert all(result.error is None or isinstance(result.faults[0], BusyError) for result in results)
        assert len(list_copies(offsite.backend()).commits) == 1


class TestS3:
    def test_a_host_that_may_only_write(
        self, tmp_path: Path, object_store: EmbeddedObjectStore, bucket_url: str, small_segments: None
    ) -> None:
        """Credentials without the right to administer suffice to copy; the store has the digests."""
        world = offsite_at(tmp_path, bucket_url, **HOST.environ())
        small_archives(world.uploads)
        name = world.uploads.base().backup_id
        world.copied()
        found = world.verify().run()
        assert found.intact
        assert not found.findings[0].is_downloaded
        assert world.elsewhere().fetch(name).read_bytes() == world.uploads.archive(name).read_bytes()

    def test_a_store_that_is_away(self, tmp_path: Path, small_segments: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """A store that does not answer is a fault that can be tried again, named with its destination."""
        monkeypatch.setattr("portal.ops.storage.object_store._RETRIES", 0)
        world = offsite_at(tmp_path, "s3://backup/x?endpoint=http://127.0.0.1:9", **HOST.environ())
        small_archives(world.uploads)
        name = world.uploads.base().backup_id
        result = world.copy()
        assert result.retryable
        assert result.missing == {"s3://backup/x": (name,)}

    def test_one_destination_away_keeps_nothing_from_the_other(self, offsite: Offsite) -> None:
        """Of two destinations one is away: the other one gets its copy."""
        urls = f"file://{offsite.directory}/gone {offsite.environ['BACKUP_OFFSITE_URLS']}"
        result = offsite.copy(BACKUP_OFFSITE_URLS=urls)
        assert isinstance(result.faults[0], StoreUnreachableError)
        assert len(result.copied) == 1
        assert [len(names) for names in result.missing.values()] == [1, 0]


def test_the_ledger_survives_a_torn_line(offsite: Offsite) -> None:
    """A line that a crash has truncated is no copy, and the next one is written behind it."""
    offsite.copied()
    config = offsite.config()
    ledger = Ledger(Repository(config.local_path), config.destinations[0])
    (record,) = ledger.copies().values()
    with (ledger.directory / "copies.jsonl").open("ab") as file:
        file.write(b'{"version": 1, "stem"')
    ledger.add(replace(record, stem=record.stem._replace(generation=1)))
    assert [stem.generation for stem in ledger.copies()] == [0, 1]


def test_the_portals_own_configuration(
    tmp_path: Path, object_store: EmbeddedObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job with the portal's own words for S3 copies its archive there; where S3 is away, the backup stands."""
    for name, value in HOST.environ().items():
        monkeypatch.setenv(name, value)
    world = offsite_at(tmp_path, object_store.url("backup", "api"))
    small_archives(world.uploads, kilobytes=10)
    own = {
        "destination": "s3",
        "s3_bucket": "backup",
        "s3_prefix": "api",
        "s3_endpoint": object_store.endpoint,
        "encryption_enabled": True,
        "encryption_recipients": (world.environ["BACKUP_ENCRYPTION_RECIPIENTS"],),
    }
    result = world.uploads.job(**own).backup_media()
    assert result.success
    assert not any("not made" in warning for warning in result.warnings)
    (commit,) = list_copies(world.backend()).commits
    assert commit.archive_sha256 == result.checksum
    monkeypatch.setattr("portal.ops.storage.object_store._RETRIES", 0)
    away = world.uploads.job(**{**own, "s3_endpoint": "http://127.0.0.1:9"}).backup_media()
    assert away.success
    assert any("does not answer" in warning for warning in away.warnings)


def _cut(data: bytes) -> bytes:
    return data[:-1]


def _other(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


class TestLyingStores:
    @pytest.mark.parametrize("victim", ["00001.age", ".json"])
    @pytest.mark.parametrize("keeps", [lambda _: None, _cut], ids=["nothing", "less"])
    def test_what_is_not_kept_is_not_committed(
        self, offsite: Offsite, keeps: Callable[[bytes], bytes | None], victim: str
    ) -> None:
        """A segment or a commit that the store took and has not, or not all of, makes the copy fail; a later one is
        made where the store is honest again."""
        lies = [True]
        job = with_store(offsite, lambda real: Lying(real, keeps, lambda name: lies[0] and name.endswith(victim)))
        result = job.run()
        assert "differs from the data sent" in str(result.error)
        assert result.copied == ()
        if victim != ".json":
            assert not list((offsite.directory / "disk").glob("*.json"))
        lies[0] = False
        assert job.run().error is None
        assert offsite.elsewhere().fetch("latest").read_bytes() == archive_of(offsite).read_bytes()

    def test_other_bytes_are_noticed_by_the_next_verification(self, offsite: Offsite) -> None:
        """Where a store keeps no digests, other bytes of the same size are found by the next verification."""
        job = with_store(offsite, lambda real: Lying(real, _other, lambda name: name.endswith("00001.age")))
        assert job.run().error is None
        found = offsite.verify().run_rotation()
        assert not found.intact
        assert "00001.age has another SHA-256" in found.message


class TestAgain:
    def test_archives_that_the_repository_has_no_longer(self, offsite: Offsite) -> None:
        """All copies are made anew for new recipients, a chain with its base, and nothing is left beside; once is
        enough."""
        offsite.uploads.write("tenant-0/new.json", b"new")
        newest = offsite.uploads.incremental()
        offsite.copied()
        whole = {path.name: path.read_bytes() for path in offsite.uploads.archives.glob(f"*{SUFFIX}")}
        for path in offsite.uploads.archives.glob(f"*{SUFFIX}*"):
            path.unlink()
        new = generate(offsite.directory / "second")
        changes = {"BACKUP_ENCRYPTION_RECIPIENTS": new.recipient}
        result = offsite.copy(again=True, **changes)
        assert result.error is None
        assert len(result.copied) == len(whole) == 2
        other = offsite.elsewhere(BACKUP_ENCRYPTION_IDENTITY_FILE=str(new.path))
        for name in (newest.base, newest.backup_id):
            assert name
            assert other.fetch(name).read_bytes() == whole[f"{name}{SUFFIX}"]
        assert not list(offsite.uploads.archives.glob(f"*{SUFFIX}*"))
        assert not list((offsite.uploads.archives / ".offsite").glob("verify-*"))
        assert offsite.copy(again=True, **changes).copied == ()

    def test_one_archive_that_the_repository_has_no_longer(self, offsite: Offsite) -> None:
        """Named, it is copied anew; without an identity that is an error, and for all archives a warning."""
        offsite.copied()
        archive = archive_of(offsite)
        name = archive.name.removesuffix(SUFFIX)
        sidecar_of(archive).unlink()
        archive.unlink()
        new = generate(offsite.directory / "second")
        changes = {"BACKUP_ENCRYPTION_RECIPIENTS": new.recipient}
        without = offsite.copy(name, again=True, BACKUP_ENCRYPTION_IDENTITY_FILE="", **changes)
        assert isinstance(without.faults[0], IdentityError)
        every = offsite.copy(again=True, BACKUP_ENCRYPTION_IDENTITY_FILE="", **changes)
        assert every.error is None
        assert any("are no longer here" in warning for warning in every.warnings)
        assert [copied for _, copied in offsite.copy(name, again=True, **changes).copied] == [name]
        newest = list_copies(offsite.backend()).newest()[name]
        assert newest.recipients == (new.recipient,)
