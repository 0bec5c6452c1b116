"""WAL off-site is signed by the repository's key, and what somebody else has put there is not taken."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import pytest

from portal.ops.pitr.offsite_wal import WalCopier
from portal.ops.pitr.wal_archive import WalArchive
from portal.ops.pitr.wal_fetch import Found, fetch_wal
from portal.ops.pitr.wal_objects import deflate, signer_of
from portal.ops.repository.repository import Repository
from portal.ops.storage.directory import DirectoryBackend
from portal.ops.storage.objects import ObjectWriter
from portal.ops.storage.signature import SigningKey
from tests.support.wal_stores import CLUSTER, WalStore, segment

if TYPE_CHECKING:
    from pathlib import Path

NOW: Final = datetime(2026, 11, 28, 12, tzinfo=UTC)
OURS, THEIRS = SigningKey(b"o" * 32), SigningKey(b"t" * 32)
FIRST, SECOND, THIRD = (f"00000001000000000000000{number}" for number in (1, 2, 3))


class Machine:
    """A store, and an empty repository that takes what OURS has signed."""

    def __init__(self, directory: Path) -> None:
        self.store = WalStore(directory / "store")
        self.store.describe(CLUSTER)
        self.repository = Repository(directory / "repository")
        self.repository.prepare()

    def fetch(self) -> Found:
        """Everything that may be taken."""
        return fetch_wal(self.repository, self.store.backend, (), {OURS.signer})

    def files(self) -> list[str]:
        """What came."""
        archive = WalArchive.of(self.repository, CLUSTER.system_identifier)
        return sorted(archive.files()) if archive else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A store with an unsigned description of the cluster."""
    return Machine(tmp_path)


def test_unsigned_wal_from_before_is_taken_and_named(machine: Machine) -> None:
    """Older releases have not signed; the first that is signed ends that."""
    old = machine.store.put(FIRST, segment())
    machine.store.put(SECOND, segment(), key=OURS)
    machine.store.put(f"{THIRD}+0-100", b"x" * 100, key=OURS)
    found = machine.fetch()
    assert (found.damages, len(found.unsigned)) == ([], 1)
    assert found.unsigned[0].endswith(old.name)
    assert machine.files() == [FIRST, SECOND, f"{THIRD}.partial"]


def test_unsigned_wal_behind_signed_one_is_refused(machine: Machine) -> None:
    """Somebody who can write to the store would otherwise add transactions at the end; a part of a segment neither."""
    machine.store.put(FIRST, segment(), key=OURS)
    machine.store.put(SECOND, segment())
    machine.store.put(f"{THIRD}+0-100", b"x" * 100)
    found = machine.fetch()
    assert [damage.file for damage in found.damages] == [SECOND, THIRD]
    assert "not signed" in found.damages[0].error.message
    assert (machine.files(), found.unsigned) == ([FIRST], [])


def test_unsigned_part_continues_no_signed_one(machine: Machine) -> None:
    """The segment ends with what is signed."""
    machine.store.put(f"{FIRST}+0-8192", b"a" * 8192, covered=NOW, key=OURS)
    machine.store.put(f"{FIRST}+8192-9000", b"b" * 808, covered=NOW + timedelta(minutes=1))
    assert len(machine.fetch().damages) == 1
    archive = WalArchive.of(machine.repository, CLUSTER.system_identifier)
    assert archive is not None
    assert archive.files()[f"{FIRST}.partial"].covered == NOW


def test_signed_copy_of_a_segment_is_the_one_that_counts(machine: Machine) -> None:
    """Whatever an unsigned one says that it covers."""
    machine.store.put(FIRST, segment(b"f"), covered=NOW + timedelta(days=1))
    machine.store.put(FIRST, segment(b"g"), covered=NOW, key=OURS)
    assert machine.fetch().damages == []
    archive = WalArchive.of(machine.repository, CLUSTER.system_identifier)
    assert archive is not None
    assert gzip.decompress(archive.stored(FIRST).read_bytes()) == segment(b"g")


def test_unsigned_segment_hides_no_signed_parts(machine: Machine) -> None:
    """What somebody has put there as the whole of the last segment keeps nobody from its genuine parts."""
    machine.store.put(FIRST, segment(), key=OURS)
    machine.store.put(SECOND, segment(b"f"))
    machine.store.put(f"{SECOND}+0-100", b"x" * 100, covered=NOW, key=OURS)
    assert [damage.file for damage in machine.fetch().damages] == [SECOND]
    assert machine.files() == [FIRST, f"{SECOND}.partial"]


def test_another_signer_is_refused(machine: Machine) -> None:
    """With its key, and what to do where it is one's own."""
    machine.store.put(FIRST, segment(), key=THEIRS)
    (damage,) = machine.fetch().damages
    assert THEIRS.signer in damage.error.message
    assert "BACKUP_OFFSITE_SIGNERS" in (damage.error.hint or "")
    assert machine.files() == []
    assert len(fetch_wal(machine.repository, machine.store.backend, (), None).taken) == 1


@pytest.mark.parametrize("what", ["name", "moment", "content"])
def test_signature_is_of_name_moments_and_content(machine: Machine, what: str) -> None:
    """One that was moved to another object is none."""
    path = machine.store.put(FIRST, segment(), covered=NOW, key=OURS)
    if what == "name":
        path.rename(path.with_name(path.name.replace(FIRST, SECOND)))
    elif what == "moment":
        path.write_bytes(path.read_bytes().replace(b"2026-11-28", b"2027-11-28"))
    else:
        path.write_bytes(path.read_bytes().rpartition(b"\0" + deflate(segment())[10:])[0] + b"\0" + deflate(b"y")[10:])
    (damage,) = machine.fetch().damages
    assert "signature" in damage.error.message


def test_history_of_a_timeline_from_before_is_taken(machine: Machine) -> None:
    """One that leads off to a new timeline has to be signed, as the WAL before it is."""
    later = "00000002000000000000000" + "4"
    machine.store.put("00000002.history", b"1\t0/100000\tno reason\n")
    machine.store.put(later, segment(), key=OURS)
    machine.store.put("00000003.history", b"2\t0/500000\tno reason\n")
    found = machine.fetch()
    assert [damage.file for damage in found.damages] == ["00000003.history"]
    assert machine.files() == ["00000002.history", later]


def test_service_signs_what_is_new(tmp_path: Path) -> None:
    """With the first copy of an archive the repository has a key; what was copied before is not sent again."""
    repository, store = Repository(tmp_path / "repository"), tmp_path / "store"
    repository.prepare()
    store.mkdir()
    archive = WalArchive.prepare(repository, CLUSTER)
    archive.take(FIRST, deflate(segment()), covered=NOW, until=NOW)

    def copy(key: SigningKey | None) -> dict[str, str]:
        with ObjectWriter(DirectoryBackend(store), ()) as writer:
            WalCopier(repository, lambda: writer, shown="store", find_key=lambda: key).copy(writer)
        places = (path for path in store.rglob("0*.age"))
        return {
            path.name.partition(".")[0]: signer_of(f"7000/{path.name.partition('.')[0]}", path.read_bytes())
            for path in places
        }

    assert copy(None) == {FIRST: ""}
    archive.take(SECOND, deflate(segment()), covered=NOW, until=NOW)
    assert copy(OURS) == copy(OURS) == {FIRST: "", SECOND: OURS.signer}
    assert len(list(store.rglob("0*.age"))) == 2
    (signed,) = store.rglob(f"{SECOND}*.age")
    assert gzip.decompress(signed.read_bytes()) == segment()
