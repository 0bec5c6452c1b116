"""WAL that comes back from off-site, where whoever may write to the store can have put something."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import pytest

from portal.ops.errors import DiskFullError, NotIntactError
from portal.ops.pitr.lsn import PARTIAL
from portal.ops.pitr.wal_archive import WalArchive
from portal.ops.repository.repository import Repository
from tests.support.wal_stores import CLUSTER, WalStore, fetched, segment

if TYPE_CHECKING:
    from pathlib import Path

NOW: Final = datetime(2026, 11, 28, 12, tzinfo=UTC)
FIRST, SECOND, THIRD = (f"00000001000000000000000{number}" for number in (1, 2, 3))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """An empty repository."""
    made = Repository(tmp_path / "repository")
    made.prepare()
    return made


@pytest.fixture
def store(tmp_path: Path) -> WalStore:
    """A store that knows the cluster."""
    made = WalStore(tmp_path / "store")
    made.describe(CLUSTER)
    return made


@pytest.mark.parametrize("identifier", ["../../outside", "/tmp/kekkai-outside", "7001"])
def test_description_does_not_say_where_files_go(
    repository: Repository, tmp_path: Path, store: WalStore, identifier: str
) -> None:
    """A forged one is refused, and nothing is written but what belongs to the cluster of that name."""
    store.describe(replace(CLUSTER, system_identifier=identifier), under="8000")
    store.put(FIRST, segment(), cluster="8000")
    store.put(FIRST, segment())
    with pytest.raises(NotIntactError, match="is invalid"):
        fetched(repository, store.backend)
    assert set((repository.path / "wal").iterdir()) == {
        repository.path / "wal" / name for name in ("7000", "current.json")
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repository", "store"]


@pytest.mark.parametrize(
    "changed", [{"segment_bytes": 1 << 62}, {"segment_bytes": "many"}, {"major": None}, {"limits": 7}]
)
def test_description_that_makes_no_sense_is_refused(
    repository: Repository, store: WalStore, changed: dict[str, object]
) -> None:
    """With the name of the object, and not with a traceback or all of the memory."""
    store.put("cluster", json.dumps({**asdict(CLUSTER), **changed}).encode(), cluster="8000")
    with pytest.raises(NotIntactError, match="wal/8000/cluster"):
        fetched(repository, store.backend)


def test_limits_are_those_of_all_descriptions(repository: Repository, store: WalStore) -> None:
    """They grew, and a server with too low ones would refuse to replay."""
    store.describe(replace(CLUSTER, limits={"max_connections": 300}))
    store.describe(replace(CLUSTER, limits={"max_worker_processes": 9}))
    fetched(repository, store.backend)
    archive = WalArchive.of(repository, "7000")
    assert archive is not None
    assert archive.cluster.limits == {"max_connections": 300, "max_worker_processes": 9}


def test_damaged_object_keeps_no_other_from_coming(repository: Repository, store: WalStore) -> None:
    """The segments around it come, it is named, and its second copy is taken where there is one."""
    for name in (FIRST, SECOND, THIRD):
        store.put(name, segment())
    for name in (FIRST, SECOND):
        path = store.put(name, segment())
        path.write_bytes(path.read_bytes()[:10] + b"no comment\0")
    store.put(f"{THIRD}+0-100", b"x" * 100)
    archive = WalArchive.prepare(repository, CLUSTER)
    with pytest.raises(NotIntactError, match=FIRST):
        fetched(repository, store.backend)
    assert sorted(archive.files()) == [FIRST, SECOND, THIRD]


def test_what_covers_most_is_taken(repository: Repository, store: WalStore) -> None:
    """A segment is stored again when more is known of what it covers; the order of names says nothing."""
    for minutes in (1, 3, 2):
        store.put(FIRST, segment(), covered=NOW + timedelta(minutes=minutes))
    assert fetched(repository, store.backend) == 1
    archive = WalArchive.of(repository, "7000")
    assert archive is not None
    assert archive.files()[FIRST].covered == NOW + timedelta(minutes=3)


def test_part_that_reaches_farthest_says_what_is_covered(repository: Repository, store: WalStore) -> None:
    """After a restart the service sends a segment from its beginning: that part is the newest, and sorts first."""
    for start, end, minute in ((0, 10_000, 1), (8192, 20_000, 2), (0, 30_000, 3)):
        content = b"".join(bytes([65 + at // 10_000]) for at in range(start, end))
        store.put(f"{FIRST}+{start}-{end}", content, covered=NOW + timedelta(minutes=minute))
    assert fetched(repository, store.backend) == 1
    assert fetched(repository, store.backend) == 0
    archive = WalArchive.of(repository, "7000")
    assert archive is not None
    assert archive.files()[FIRST + PARTIAL].covered == NOW + timedelta(minutes=3)
    archive.read(FIRST, repository.path / "segment")
    found = (repository.path / "segment").read_bytes()
    assert found == (b"A" * 10_000 + b"B" * 10_000 + b"C" * 10_000).ljust(CLUSTER.segment_bytes, b"\0")


def test_parts_stand_in_for_a_damaged_segment(repository: Repository, store: WalStore) -> None:
    """If nothing of it is missing, they are the segment, and what follows it can be used."""
    content, half = segment(b"w"), CLUSTER.segment_bytes // 2
    path = store.put(FIRST, content)
    path.write_bytes(path.read_bytes()[:10] + b"no comment\0")
    store.put(f"{FIRST}+0-{half}", content[:half], covered=NOW)
    store.put(f"{FIRST}+{half}-{len(content)}", content[half:], covered=NOW + timedelta(minutes=1))
    with pytest.raises(NotIntactError, match=FIRST):
        fetched(repository, store.backend)
    archive = WalArchive.of(repository, "7000")
    assert archive is not None
    assert {name: file.covered for name, file in archive.files().items()} == {FIRST: NOW + timedelta(minutes=1)}
    archive.read(FIRST, repository.path / "segment")
    assert (repository.path / "segment").read_bytes() == content


def test_partial_segment_that_was_stored_as_one_comes_too(repository: Repository, store: WalStore) -> None:
    """A machine that had itself fetched it has sent it on like that; nothing else of that kind of name comes."""
    store.put(FIRST + PARTIAL, segment(), covered=NOW)
    store.put("stranger", b"x")
    assert fetched(repository, store.backend) == 1
    archive = WalArchive.of(repository, "7000")
    assert archive is not None
    assert list(archive.files()) == [FIRST + PARTIAL]


def test_full_disk_is_said_in_words(repository: Repository, store: WalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do; a restore to a moment meets it on the worst day."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store.put(FIRST, segment())
    monkeypatch.setattr(WalArchive, "take", full)
    with pytest.raises(DiskFullError, match="cannot write WAL to") as caught:
        fetched(repository, store.backend)
    assert caught.value.hint


def test_cluster_that_is_received_stays_the_current_one(repository: Repository, store: WalStore) -> None:
    """WAL of another cluster comes too, and the window goes on being that of the own one."""
    WalArchive.prepare(repository, replace(CLUSTER, system_identifier="6000"))
    store.put(FIRST, segment())
    assert fetched(repository, store.backend) == 1
    current = WalArchive.current(repository)
    assert current is not None
    assert current.cluster.system_identifier == "6000"
