"""WAL is off-site within seconds, encrypted, and leads to the last moment on another machine."""

from __future__ import annotations

import gzip
import shutil
import threading
import time
from typing import TYPE_CHECKING

import pyrage
import pytest

from portal.ops.pitr.look import look
from portal.ops.pitr.offsite_wal import WalCopier
from portal.ops.pitr.plan import plan_recovery
from portal.ops.pitr.recovery import recovered
from portal.ops.pitr.wal_fetch import fetch_wal
from portal.ops.postgres.connection import connect
from portal.ops.repository.repository import Repository
from portal.ops.runtime.process import SystemRunner
from portal.ops.storage.age_keys import read_identities
from portal.ops.storage.directory import DirectoryBackend
from portal.ops.storage.objects import ObjectWriter
from tests.support.waiting import wait_until
from tests.support.wal_servers import WalPortal, wal_portal

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
    """Within seconds everything is off-site, the segment that is being written too; nothing more is sent afterwards."""
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
        committed = time.monotonic()
        portal.wait_until_covered()
        wait_until(lambda: _has_part(store), seconds=10)
        assert time.monotonic() - committed < 8  # a busy machine; it is 4 s on a quiet one
    finally:
        stop.set()
        thread.join()
    elsewhere = Repository(tmp_path / "elsewhere")
    elsewhere.prepare()
    for path in portal.repository.path.glob("base_*"):
        shutil.copy2(path, elsewhere.path)
    assert fetch_wal(elsewhere, DirectoryBackend(store), read_identities(tmp_path / "key")) > 0
    assert fetch_wal(elsewhere, DirectoryBackend(store), read_identities(tmp_path / "key")) <= 1
    plan = plan_recovery(elsewhere, None)
    recovering = recovered(elsewhere, plan, runner=SystemRunner(), bin_dir=portal.bin_dir, jobs=2, lock_timeout=5)
    with recovering as server, connect(server.target("postgres")) as connection:
        assert connection.execute("SELECT number FROM stamped ORDER BY 1").fetchall() == [(1,), (2,)]


def _has_part(store: Path) -> bool:
    return any("+" in path.name for path in (store / "wal").rglob("*"))


def test_nothing_is_sent_while_nothing_is_written(portal: WalPortal, tmp_path: Path) -> None:
    """A second look without new WAL stores nothing; and gunzip reads what was stored."""
    store = tmp_path / "store"
    store.mkdir()
    copier = WalCopier(portal.repository, lambda: ObjectWriter(DirectoryBackend(store), ()), shown="file://store")
    with ObjectWriter(DirectoryBackend(store), ()) as writer:
        copier.copy(writer)
        before = sorted(path.name for path in store.rglob("*"))
        copier.copy(writer)
        assert sorted(path.name for path in store.rglob("*")) == before
    archive = look(portal.repository).archive
    assert archive is not None
    segments = [path for path in store.rglob("*.age") if "+" not in path.name and "cluster" not in path.name]
    assert segments
    for path in segments:
        assert len(gzip.decompress(path.read_bytes())) == archive.cluster.segment_bytes
