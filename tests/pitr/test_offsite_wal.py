"""WAL is off-site within seconds, encrypted, and leads to the last moment on another machine."""

from __future__ import annotations

import gzip
import shutil
import threading
from typing import TYPE_CHECKING

import pyrage
import pytest

from portal.ops.offsite.commit import WalStart
from portal.ops.offsite.config import OffsiteConfig
from portal.ops.offsite.copy import CopyJob
from portal.ops.offsite.listing import list_copies
from portal.ops.pitr import archive_index
from portal.ops.pitr.look import look
from portal.ops.pitr.lsn import Segment
from portal.ops.pitr.offsite_wal import WalCopier
from portal.ops.pitr.plan import plan_recovery
from portal.ops.pitr.recovery import recovered
from portal.ops.repository.repository import Repository
from portal.ops.retention.policy import RetentionPolicy, RetentionRule
from portal.ops.runtime.process import SystemRunner
from portal.ops.settings.load import load_settings
from portal.ops.storage.age_keys import read_identities
from portal.ops.storage.directory import DirectoryBackend
from portal.ops.storage.objects import ObjectWriter
from tests.support.bad_disk import bad_disk
from tests.support.restores import mounted
from tests.support.sessions import session
from tests.support.waiting import wait_until
from tests.support.wal_servers import WalPortal, wal_portal
from tests.support.wal_stores import fetched

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WalPortal]:
    """A server with a base backup whose WAL is received."""
    with wal_portal(tmp_path_factory.mktemp("offsite-wal")) as made:
        with made.postgres.connect() as connection:
            connection.execute("CREATE TABLE stamped (number int)")
        with made.receiving():
            assert made.job().backup_base().success
            made.wait_until_covered()
            yield made


def test_another_machine_recovers_what_was_just_committed(portal: WalPortal, tmp_path: Path) -> None:
    """Everything goes off-site, the segment that is being written too; nothing more is sent afterwards."""
    store, key = tmp_path / "store", pyrage.x25519.Identity.generate()
    store.mkdir()
    (tmp_path / "key").write_text(f"{key}\n")
    (tmp_path / "key").chmod(0o600)
    stop = threading.Event()
    copier = WalCopier(
        portal.repository,
        lambda: ObjectWriter(DirectoryBackend(store), [str(key.to_public())]),
        shown="file://store",
    )
    thread = threading.Thread(target=copier.run, args=(stop,))
    thread.start()
    try:
        with portal.postgres.connect() as connection:
            connection.execute("INSERT INTO stamped VALUES (1)")
            connection.execute("SELECT pg_switch_wal()")
            connection.execute("INSERT INTO stamped VALUES (2)")
        portal.wait_until_covered()
        wait_until(lambda: _has_all(portal, store))
    finally:
        stop.set()
        thread.join()
    elsewhere = Repository(tmp_path / "elsewhere")
    elsewhere.prepare()
    for path in portal.repository.path.glob("base_*"):
        shutil.copy2(path, elsewhere.path)
    assert fetched(elsewhere, DirectoryBackend(store), read_identities(tmp_path / "key")) > 0
    assert fetched(elsewhere, DirectoryBackend(store), read_identities(tmp_path / "key")) <= 1
    plan = plan_recovery(elsewhere, None)
    recovering = recovered(elsewhere, plan, runner=SystemRunner(), bin_dir=portal.bin_dir, jobs=2, lock_timeout=5)
    with recovering as server, session(server.target("postgres")) as connection:
        assert connection.execute("SELECT number FROM stamped ORDER BY 1").fetchall() == [(1,), (2,)]


def _has_all(portal: WalPortal, store: Path) -> bool:
    """Whether the store has every complete segment, and the present one as far as it was received."""
    archive = look(portal.repository).archive
    assert archive is not None
    size = archive.cluster.segment_bytes
    received = int(archive.state()["received"])
    name, end = Segment(1, received // size).name(size), received % size
    parts = [path.name.split(".")[0].rpartition("-")[2] for path in (store / "wal").rglob(f"{name}+*")]
    return all(_stored(store, one) for one in archive.files()) and max(map(int, parts), default=0) >= end


def test_nothing_is_sent_while_nothing_is_written(portal: WalPortal, tmp_path: Path) -> None:
    """A second look without new WAL stores nothing; and gunzip reads what was stored."""
    store = tmp_path / "store"
    store.mkdir()
    copier = WalCopier(portal.repository, lambda: ObjectWriter(DirectoryBackend(store), ()), shown="file://store")
    with ObjectWriter(DirectoryBackend(store), ()) as writer:
        while True:
            copier.copy(writer)
            received, before = _received(portal), sorted(path.name for path in store.rglob("*"))
            copier.copy(writer)
            if _received(portal) == received:  # the server writes by itself now and then
                break
        assert sorted(path.name for path in store.rglob("*")) == before
    archive = look(portal.repository).archive
    assert archive is not None
    segments = [path for path in store.rglob("*.age") if "+" not in path.name and "cluster" not in path.name]
    assert segments
    for path in segments:
        assert len(gzip.decompress(path.read_bytes())) == archive.cluster.segment_bytes


def _received(portal: WalPortal) -> tuple[object, object]:
    """How far the WAL is received."""
    archive = look(portal.repository).archive
    assert archive is not None
    return archive.state()["received"], archive.stamp()


def _complete_segments(portal: WalPortal) -> None:
    """Write two segments of WAL to their end, one after the other."""
    for _ in range(2):
        with portal.postgres.connect() as connection:
            connection.execute("INSERT INTO stamped VALUES (3)")
            connection.execute("SELECT pg_switch_wal()")
        portal.wait_until_covered()
    wait_until(lambda: _last_is_stored(portal))


def _last_is_stored(portal: WalPortal) -> bool:
    """Whether the segment before the one that is being received has its place in the archive."""
    archive = look(portal.repository).archive
    assert archive is not None
    size = archive.cluster.segment_bytes
    return Segment(1, int(archive.state()["received"]) // size - 1).name(size) in archive.files()


def test_file_that_cannot_be_read_keeps_no_other_back(portal: WalPortal, tmp_path: Path) -> None:
    """On a bad sector all other WAL is copied, and the fault names the file until it can be read again."""
    store = tmp_path / "store"
    store.mkdir()
    _complete_segments(portal)
    archive = look(portal.repository).archive
    assert archive is not None
    name = sorted(archive.files())[0]
    path, told = archive.stored(name), list[str]()
    copier = WalCopier(
        portal.repository,
        lambda: ObjectWriter(DirectoryBackend(store), ()),
        shown="file://store",
        tell=told.append,
    )
    stop = threading.Event()
    thread = threading.Thread(target=copier.run, args=(stop,))
    with bad_disk(tmp_path / "disk", path.name, path.read_bytes(), good_blocks=2) as bad, mounted(path, bad):
        thread.start()
        try:
            wait_until(lambda: all(_stored(store, other) for other in archive.files() if other != name))
            wait_until(lambda: bool(told))
            assert f"cannot read {path}: input/output error" in told[-1]
            assert not _stored(store, name)
        finally:
            stop.set()
            thread.join()
    with ObjectWriter(DirectoryBackend(store), ()) as writer:
        copier._unread[name] = "", 0.0  # the minute is over
        copier.copy(writer)
    assert _stored(store, name)


def _stored(store: Path, name: str) -> bool:
    return any(path.name.startswith(f"{name}.") for path in (store / "wal").rglob("*"))


def test_index_is_read_again_only_after_a_change(
    portal: WalPortal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copier looks five times a second, and the index of a week has thousands of lines."""
    store, read = tmp_path / "store", list["Path"]()
    store.mkdir()
    load = archive_index.load

    def noted(directory: Path) -> dict[str, archive_index.WalFile]:
        read.append(directory)
        return load(directory)

    copier = WalCopier(portal.repository, lambda: ObjectWriter(DirectoryBackend(store), ()), shown="file://store")
    archive = look(portal.repository).archive
    assert archive is not None
    wait_until(lambda: _last_is_stored(portal))
    with ObjectWriter(DirectoryBackend(store), ()) as writer:
        copier.copy(writer)
        monkeypatch.setattr(archive_index, "load", noted)
        copier.copy(writer)
        assert not read
        known = archive.stamp()
        before = {path.name for path in store.rglob("*") if "+" not in path.name}
        with portal.postgres.connect() as connection:
            connection.execute("INSERT INTO stamped VALUES (4)")
            connection.execute("SELECT pg_switch_wal()")
        wait_until(lambda: archive.stamp() != known)
        read.clear()
        copier.copy(writer)
        assert read
        assert {path.name for path in store.rglob("*") if "+" not in path.name} > before


def test_a_failing_copy_is_told_and_goes_on(portal: WalPortal, tmp_path: Path) -> None:
    """While the store is away the fault is told with its hint; once it is back, WAL is copied, and nothing is wrong."""
    store, told, stop = tmp_path / "store", list[str](), threading.Event()

    copier = WalCopier(
        portal.repository,
        lambda: ObjectWriter(DirectoryBackend(store), ()),
        shown="file://store",
        tell=told.append,
    )
    thread = threading.Thread(target=copier.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: bool(told))
        assert "is not there" in told[0]
        assert "hint: Mount" in told[0]
        store.mkdir()
        wait_until(lambda: told[-1] == "")
        assert list(store.rglob("*.age"))
    finally:
        stop.set()
        thread.join()


def test_wal_that_was_pruned_is_not_sent_again(portal: WalPortal, tmp_path: Path) -> None:
    """A service that starts anew sends nothing that is there, and nothing from before where the WAL there begins."""
    store = tmp_path / "store"
    store.mkdir()
    _complete_segments(portal)

    def copied() -> list[str]:
        copier = WalCopier(portal.repository, lambda: ObjectWriter(DirectoryBackend(store), ()), shown="file://store")
        with ObjectWriter(DirectoryBackend(store), ()) as writer:
            copier.copy(writer)
        return sorted(path.name for path in store.rglob("0*.age") if "+" not in path.name)

    names = copied()
    assert len(names) > 1
    oldest = next(store.rglob(names[0]))
    oldest.unlink()
    assert copied() == names[1:]


def test_a_copy_of_a_base_says_where_its_wal_begins(portal: WalPortal, tmp_path: Path) -> None:
    """The commit of a base backup has its cluster and first segment, so a prune needs no key."""
    store = tmp_path / "store"
    store.mkdir()
    settings = load_settings(
        {
            "BACKUP_LOCAL_PATH": str(portal.repository.path),
            "BACKUP_OFFSITE_URLS": f"file://{store}",
            "BACKUP_OFFSITE_ENCRYPTION": "off",
        },
        lambda _: "",
    )
    result = CopyJob(OffsiteConfig.from_settings(settings), RetentionPolicy(rule=RetentionRule())).run()
    assert result.error is None
    (commit,) = list_copies(DirectoryBackend(store)).commits
    archive, (base,) = portal.look().archive, portal.look().bases
    assert archive is not None
    size = archive.cluster.segment_bytes
    first = Segment(base.timeline, base.start_lsn // size).name(size)
    assert commit.wal == WalStart(archive.cluster.system_identifier, first)
