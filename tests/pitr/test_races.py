"""WAL that is stored, pruned or fetched in the instant between two looks of somebody else."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from portal.ops.backup import strategy
from portal.ops.backup.strategy import plan_incremental_cluster
from portal.ops.chains.lineage import Ancestor
from portal.ops.manifest import Manifest
from portal.ops.model import BackupType, Component
from portal.ops.pitr import prune_wal as pruning
from portal.ops.pitr import scratch, wal_archive
from portal.ops.pitr.base_chain import BaseParent, FullBaseNeededError
from portal.ops.pitr.look import read_wal
from portal.ops.pitr.lsn import Segment
from portal.ops.pitr.offsite_wal import WalCopier
from portal.ops.pitr.prune_wal import prune_wal
from portal.ops.pitr.wal_archive import Cluster, WalArchive
from portal.ops.pitr.wal_reader import segments_between
from portal.ops.pitr.window import Base
from portal.ops.repository.durable import sync_directory
from portal.ops.repository.locks import try_lock
from portal.ops.repository.repository import Repository
from portal.ops.storage.directory import DirectoryBackend
from portal.ops.storage.objects import ObjectWriter

if TYPE_CHECKING:
    from pathlib import Path

CLUSTER: Final = Cluster(system_identifier="7000", segment_bytes=1 << 20, major=17)
NOW: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)
HISTORY: Final = "00000002.history"


def name(number: int) -> str:
    return Segment(1, number).name(CLUSTER.segment_bytes)


def receive(archive: WalArchive, number: int) -> Path:
    """A segment that pg_receivewal has completed."""
    path = archive.receiving / name(number)
    path.write_bytes(bytes(CLUSTER.segment_bytes))
    return path


class Busy(WalArchive):
    """An archive in which a segment is stored as soon as somebody has looked for files of one kind."""

    def files(self) -> Any:
        """The stored files."""
        found = super().files()
        self._store()
        return found

    def completed(self) -> list[Path]:
        """The files to store."""
        found = super().completed()
        self._store()
        return found

    def _store(self) -> None:
        for source in super().completed():
            self.publish(source, covered=NOW, until=NOW)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    found = Repository(tmp_path / "repository")
    found.prepare()
    return found


@pytest.fixture
def busy(repository: Repository) -> Busy:
    """Two segments are stored, the third is complete, the fourth is being received."""
    WalArchive.prepare(repository, CLUSTER)
    archive = Busy(repository, CLUSTER)
    for number in (1, 2):
        archive.publish(receive(archive, number), covered=NOW, until=NOW)
    receive(archive, 3)
    (archive.receiving / f"{name(4)}.partial").write_bytes(bytes(CLUSTER.segment_bytes))
    return archive


def test_segment_that_is_stored_meanwhile_is_no_gap(busy: Busy) -> None:
    """It is seen where it was or where it is, and with what it covers if that is known."""
    pieces = read_wal(busy, {}).pieces
    assert {piece.segment.number for piece in pieces} == {1, 2, 3, 4}
    assert {piece.segment: piece.covered for piece in pieces if piece.is_complete}[Segment(1, 3)] == NOW


def test_commits_of_a_segment_that_is_stored_meanwhile_are_read(busy: Busy) -> None:
    """The timeline passes over none."""
    assert [segment.number for segment, _ in segments_between(busy, None, None)] == [1, 2, 3, 4]


def test_history_that_is_stored_meanwhile_is_known(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is when it is looked for."""
    archive = WalArchive.prepare(repository, CLUSTER)
    real = os.listdir
    source = archive.receiving / HISTORY
    source.write_text("1\t0/3000000\tno recovery target specified\n")

    def late(place: Path) -> list[str]:
        found = real(place)
        if place == archive.receiving and source.exists():
            source.rename(archive.path / HISTORY)
        return found

    monkeypatch.setattr("portal.ops.pitr.wal_archive.os.listdir", late)
    assert archive.histories() == {2: ((1, 0x3000000),)}


def test_copier_passes_over_what_is_pruned_meanwhile(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is gone when its turn comes is no fault of the copies; the others are sent."""
    archive = WalArchive.prepare(repository, CLUSTER)
    for number in (1, 2):
        archive.publish(receive(archive, number), covered=NOW, until=NOW)
    (tmp_path / "store").mkdir()
    copier = WalCopier(repository, lambda: ObjectWriter(DirectoryBackend(tmp_path / "store"), []), shown="store")
    real = WalArchive.files

    def late(self: WalArchive) -> Any:
        found = real(self)
        archive.stored(name(1)).unlink(missing_ok=True)
        return found

    monkeypatch.setattr(WalArchive, "files", late)
    with ObjectWriter(DirectoryBackend(tmp_path / "store"), []) as writer:
        copier.copy(writer)
    assert copier._unread_files() == ""
    sent = {path.name.split(".")[0] for path in (tmp_path / "store").rglob("*.gz*")}
    assert sent == {"cluster", name(2)}


def test_wal_stays_until_its_base_backup_can_have_come(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """WAL that was just received or fetched is of a base backup that is on its way, although all others are newer."""
    archive = WalArchive.prepare(repository, CLUSTER)
    for number in (1, 2, 3):
        archive.publish(receive(archive, number), covered=NOW, until=NOW)
    stored = datetime.fromtimestamp(archive.stored(name(1)).stat().st_mtime, UTC)
    newer = Base(name="base", timeline=1, start_lsn=3 << 20, end_lsn=4 << 20, ended=NOW)
    (repository.path / "base_20261129_110000_abcdef.tar.gz").write_bytes(b"")
    monkeypatch.setattr(pruning, "base_of", lambda _: (newer, {"system_identifier": "7000"}))
    assert prune_wal(repository, stored + timedelta(hours=23)) == 0
    assert set(archive.files()) == {name(1), name(2), name(3)}
    assert prune_wal(repository, stored + timedelta(hours=25)) > 0
    assert set(archive.files()) == {name(3)}


def test_file_that_is_fetched_while_it_is_removed_stays_known(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What exists is listed, whoever brings it back before its line is gone."""
    archive = WalArchive.prepare(repository, CLUSTER)
    for number in (1, 2):
        archive.publish(receive(archive, number), covered=NOW, until=NOW)
    content = archive.stored(name(1)).read_bytes()

    def late(place: Path) -> None:
        sync_directory(place)
        if not archive.stored(name(1)).exists():
            archive.take(name(1), content, covered=NOW, until=NOW)

    with monkeypatch.context() as patched:
        patched.setattr(wal_archive, "sync_directory", late)
        archive.remove({name(1), name(2)})
    assert set(archive.files()) == {name(1)}


def test_scratch_directory_is_found_by_nobody_before_it_is_locked(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep at that instant would have forgotten it: after a kill, nobody would have removed it."""
    swept: list[str] = []

    def late(descriptor: int, kind: int) -> bool:
        monkeypatch.setattr(scratch, "try_lock", try_lock)
        swept.extend(scratch.sweep_scratch(repository))
        return try_lock(descriptor, kind)

    monkeypatch.setattr(scratch, "try_lock", late)
    with scratch.scratch_directory(repository, None, 0, parent=tmp_path) as directory:
        records = [path.name for path in (repository.path / scratch.DIRECTORY).iterdir()]
        assert (swept, records) == ([], [f"{directory.name}.lock"])
        assert scratch.sweep_scratch(repository) == []
        assert directory.exists()
    assert list((repository.path / scratch.DIRECTORY).iterdir()) == []


def test_base_backup_is_a_full_one_where_its_parent_is_pruned_meanwhile(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not fail: without a parent there is always a full one."""
    manifest = Manifest(
        backup_id="base_20261129_110000_abcdef",
        type=BackupType.BASE.value,
        timestamp="2026-11-29T11:00:00Z",
        components=(Component.CLUSTER,),
        hostname="",
        db_name="",
    )
    pruned = Ancestor(path=repository.path / f"{manifest.backup_id}.tar.gz", manifest=manifest, sha256="0" * 64)
    monkeypatch.setattr(strategy, "find_parent", lambda _: BaseParent(line=(pruned,), full_bytes=1))
    with pytest.raises(FullBaseNeededError, match="has just been removed"):
        plan_incremental_cluster(repository, 0.1)
