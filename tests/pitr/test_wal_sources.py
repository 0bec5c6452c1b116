"""WAL that comes back from several destinations: each gives what the ones before it do not have."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import pytest

from portal.ops.errors import NotIntactError, StorageError
from portal.ops.pitr.lsn import PARTIAL
from portal.ops.pitr.wal_archive import WalArchive
from portal.ops.pitr.wal_sources import FetchedWal, fetch_from_all
from portal.ops.repository.repository import Repository
from portal.ops.runtime.progress import read_text
from portal.ops.settings.load import load_settings
from tests.support import commands
from tests.support.wal_stores import CLUSTER, WalStore, segment

if TYPE_CHECKING:
    from pathlib import Path

NOW: Final = datetime(2026, 11, 28, 12, tzinfo=UTC)
FIRST, SECOND, THIRD = (f"00000001000000000000000{number}" for number in (1, 2, 3))


class Destinations:
    """Two stores in the settings' order, and an empty repository."""

    def __init__(self, directory: Path) -> None:
        self.one, self.other = WalStore(directory / "one"), WalStore(directory / "other")
        for store in (self.one, self.other):
            store.describe(CLUSTER)
        self.repository = Repository(directory / "repository")
        self.repository.prepare()
        self.environ = {
            "BACKUP_LOCAL_PATH": str(self.repository.path),
            "BACKUP_OFFSITE_ENCRYPTION": "off",
            "BACKUP_OFFSITE_URLS": f"file://{directory}/one file://{directory}/other",
        }

    def fetch(self) -> FetchedWal:
        """Ask all."""
        return fetch_from_all(self.repository, load_settings(self.environ, read_text), None)

    def files(self) -> list[str]:
        """What is in the repository."""
        archive = WalArchive.of(self.repository, CLUSTER.system_identifier)
        return sorted(archive.files()) if archive else []


@pytest.fixture
def stores(tmp_path: Path) -> Destinations:
    """Two destinations that know the cluster."""
    return Destinations(tmp_path)


def test_segment_that_the_first_lacks_comes_from_the_second(stores: Destinations) -> None:
    """And one that both have comes once."""
    stores.one.put(FIRST, segment())
    stores.one.put(THIRD, segment())
    for name in (SECOND, THIRD):
        stores.other.put(name, segment())
    assert stores.fetch() == FetchedWal(count=3)
    assert stores.files() == [FIRST, SECOND, THIRD]


def test_first_that_cannot_be_reached_keeps_nothing_from_coming(stores: Destinations, tmp_path: Path) -> None:
    """It is named; the command says so, and ends well with what the second has."""
    (tmp_path / "one").rename(tmp_path / "away")
    stores.other.put(FIRST, segment())
    found = stores.fetch()
    assert (found.count, stores.files()) == (1, [FIRST])
    (fault,) = found.faults
    assert isinstance(fault, StorageError)
    assert f"{tmp_path}/one" in fault.message
    stores.other.put(SECOND, segment())
    result, said = commands.done("wal", "--fetch", environ=stores.environ | {"PATH": "/usr/bin:/bin"})
    assert (result["fetched"], result["files"]) == (1, 2)
    assert f"{tmp_path}/one" in said


def test_none_that_can_be_reached_is_a_failure(stores: Destinations, tmp_path: Path) -> None:
    """Of the first one."""
    for name in ("one", "other"):
        (tmp_path / name).rename(tmp_path / f"{name}-away")
    with pytest.raises(StorageError, match=f"{tmp_path}/one"):
        stores.fetch()


def test_damaged_object_is_no_fault_where_another_one_is_intact(stores: Destinations) -> None:
    """In either order; damaged everywhere, it is."""
    for store, name in ((stores.one, FIRST), (stores.other, SECOND)):
        path = store.put(name, segment())
        path.write_bytes(path.read_bytes()[:10] + b"no comment\0")
    stores.one.put(SECOND, segment())
    stores.other.put(FIRST, segment())
    assert stores.fetch() == FetchedWal(count=2)
    for store in (stores.one, stores.other):
        path = store.put(THIRD, segment())
        path.write_bytes(path.read_bytes()[:10] + b"no comment\0")
    assert [type(fault) for fault in stores.fetch().faults] == [NotIntactError] * 2


def test_current_segment_is_the_one_that_reaches_farthest(stores: Destinations) -> None:
    """The second store got more of it before the server was lost."""
    stores.one.put(f"{FIRST}+0-10000", b"a" * 10_000, covered=NOW)
    stores.other.put(f"{FIRST}+0-10000", b"a" * 10_000, covered=NOW)
    stores.other.put(f"{FIRST}+10000-20000", b"b" * 10_000, covered=NOW + timedelta(seconds=4))
    assert stores.fetch() == FetchedWal(count=2)
    archive = WalArchive.of(stores.repository, CLUSTER.system_identifier)
    assert archive is not None
    assert archive.files()[FIRST + PARTIAL].covered == NOW + timedelta(seconds=4)
