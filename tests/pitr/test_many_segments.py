"""What is fine with ten segments of WAL and has to be with the WAL of months."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from portal.ops.pitr.lsn import Segment
from portal.ops.pitr.offsite_wal import WalCopier
from portal.ops.pitr.wal_archive import Cluster, WalArchive
from portal.ops.pitr.wal_objects import deflate
from portal.ops.repository.repository import Repository
from portal.ops.storage.objects import ObjectWriter, Stored

if TYPE_CHECKING:
    from pathlib import Path

NOON: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)
IDENTIFIER: Final = "7000000000000000001"
BYTES: Final = 1 << 20


def name_of(number: int) -> str:
    return Segment(1, number).name(BYTES)


class Far(ObjectWriter):
    """A destination that has the parts of many segments."""

    def __init__(self, segments: range, parts: int) -> None:
        self.stored: list[str] = []
        self.lists = 0
        self._names = [
            f"wal/{IDENTIFIER}/{name_of(number)}+{part * 8192}-{part * 8192 + 8192}.{part:016x}.gz.age"
            for number in segments
            for part in range(parts)
        ]

    def names(self, prefix: str) -> list[str]:
        """All of them."""
        self.lists += 1
        return [name for name in self._names if name.startswith(prefix)]

    def store(self, name: str, content: bytes) -> Stored:
        """Note the name."""
        self.stored.append(name.rpartition("/")[2].partition(".")[0])
        return Stored(name, len(content), is_new=True)


def test_each_new_segment_costs_the_same_however_many_parts_are_off_site(tmp_path: Path) -> None:
    """A part goes off-site every two seconds; a new segment is no reason to go through those of months."""
    repository = Repository(tmp_path)
    repository.prepare()
    cluster = Cluster(system_identifier=IDENTIFIER, segment_bytes=BYTES, major=17)
    archive = WalArchive.prepare(repository, cluster)
    far = Far(range(1000, 1500), 100)
    copier = WalCopier(repository, lambda: far, shown="far")
    content = deflate(b"x")
    archive.take(name_of(999), content, covered=NOON, until=NOON)  # it has been pruned off-site
    archive.take(name_of(1500), content, covered=NOON, until=NOON)
    copier.copy(far)
    started = time.process_time()
    for number in range(1501, 1701):
        archive.take(name_of(number), content, covered=NOON, until=NOON)
        copier.copy(far)
    assert time.process_time() - started < 8
    assert far.lists == 1
    assert [name for name in far.stored if name != "cluster"] == [name_of(number) for number in range(1500, 1701)]


def test_a_new_cluster_has_segments_of_the_same_names(tmp_path: Path) -> None:
    """Where the server was set up again while the service runs, its WAL goes off-site from the first segment on."""
    repository = Repository(tmp_path)
    repository.prepare()
    far = Far(range(0), 0)
    copier = WalCopier(repository, lambda: far, shown="far")
    for identifier in (IDENTIFIER, "7000000000000000002"):
        cluster = Cluster(system_identifier=identifier, segment_bytes=BYTES, major=17)
        archive = WalArchive.prepare(repository, cluster)
        for number in (1, 2):
            archive.take(name_of(number), deflate(b"x"), covered=NOON, until=NOON)
        copier.copy(far)
    assert far.stored == ["cluster", name_of(1), name_of(2)] * 2
