"""The WAL archive of a cluster, without a server: what is stored, read, listed and removed, and what a reader sees."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import pytest

from portal.ops.errors import BusyError, NotIntactError, RepositoryError
from portal.ops.pitr import archive_index, wal_archive
from portal.ops.pitr.look import read_wal
from portal.ops.pitr.lsn import Segment
from portal.ops.pitr.wal_archive import Cluster, WalArchive
from portal.ops.pitr.wal_feed import WalFeed
from portal.ops.pitr.wal_reader import segments_between
from portal.ops.pitr.window import Piece
from portal.ops.repository.repository import Repository

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB: Final = 1 << 20
CLUSTER: Final = Cluster(system_identifier="7000", segment_bytes=MIB, major=17, limits={"max_connections": 100})
NOON: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)
HISTORY: Final = "00000002.history"


def name(number: int) -> str:
    return Segment(1, number).name(MIB)


def minute(number: float) -> datetime:
    return NOON + timedelta(minutes=number)


def content(number: int) -> bytes:
    return bytes([number]) * MIB


@pytest.fixture
def archive(tmp_path: Path) -> WalArchive:
    """An archive without any WAL."""
    repository = Repository(tmp_path / "repository")
    repository.prepare()
    return WalArchive.prepare(repository, CLUSTER)


def received(archive: WalArchive, file: str, data: bytes = b"") -> Path:
    """A file of pg_receivewal."""
    path = archive.receiving / file
    path.write_bytes(data)
    return path


class TestPreparing:
    def test_a_cluster_becomes_the_current_one(self, archive: WalArchive) -> None:
        """Unless it shall not; what is known of it is kept."""
        other = replace(CLUSTER, system_identifier="7001")
        repository = archive.repository
        WalArchive.prepare(repository, other, is_current=False)
        current = WalArchive.current(repository)
        assert current
        assert current.cluster == CLUSTER
        before = (repository.path / "wal/current.json").stat().st_ino
        WalArchive.prepare(repository, CLUSTER)
        assert (repository.path / "wal/current.json").stat().st_ino == before
        WalArchive.prepare(repository, other)
        current = WalArchive.current(repository)
        assert current
        assert current.cluster == other
        since = WalArchive.current_since(repository)
        assert since
        assert since.timestamp() == pytest.approx((repository.path / "wal/current.json").stat().st_mtime, abs=1e-3)
        assert WalArchive.current_since(Repository(repository.path / "none")) is None
        assert {path.stat().st_mode & 0o777 for path in (archive.path, archive.receiving)} == {0o700}

    def test_limits_only_grow(self, archive: WalArchive) -> None:
        """Each is the highest that was seen, and a record that says nothing new is not written again."""
        path = archive.path / "cluster.json"
        grown = WalArchive.prepare(
            archive.repository, replace(CLUSTER, limits={"max_connections": 50, "max_wal_senders": 7})
        )
        assert grown.cluster.limits == {"max_connections": 100, "max_wal_senders": 7}
        assert json.loads(path.read_text())["limits"] == grown.cluster.limits
        before = path.stat().st_ino
        WalArchive.prepare(archive.repository, replace(CLUSTER, limits={"max_connections": 1}))
        assert path.stat().st_ino == before

    def test_a_record_that_makes_no_sense_is_none(self, archive: WalArchive) -> None:
        """As after a crash."""
        current = archive.repository.path / "wal/current.json"
        for text in ("{", "[]", "5"):
            current.write_text(text)
            assert WalArchive.current(archive.repository) is None
        assert WalArchive.of(archive.repository, "9") is None
        (archive.repository.path / "wal/8").write_text("")
        assert WalArchive.of(archive.repository, "8") is None
        current.unlink()
        current.mkdir()
        with pytest.raises(RepositoryError, match=r"^cannot read .*current\.json: is a directory\n"):
            WalArchive.current(archive.repository)

    def test_an_archive_that_cannot_be_made(self, tmp_path: Path) -> None:
        """It is said where, and why."""
        (tmp_path / "wal").write_text("")
        with pytest.raises(RepositoryError, match=r"^cannot make the WAL archive in .*/wal/7000: ") as caught:
            WalArchive.prepare(Repository(tmp_path), CLUSTER)
        assert caught.value.hint == "Look at the disk and its mount; BACKUP_LOCAL_PATH names it."

    def test_one_service_receives(self, archive: WalArchive) -> None:
        """The second one is told where."""
        with (
            archive.receiving_alone(),
            pytest.raises(BusyError, match=r"^another WAL service receives into .*/wal/7000 ") as caught,
            archive.receiving_alone(),
        ):
            pass
        assert "stop one of the two" in caught.value.hint
        with archive.receiving_alone():
            assert archive.path.is_dir()


class TestStoring:
    def test_what_was_received_is_sorted(self, archive: WalArchive) -> None:
        """Complete files, and incomplete ones, each in order; others are left alone."""
        for file in (name(3), name(2), HISTORY, f"{name(5)}.partial", f"{name(4)}.partial", "notes", "x.partial"):
            received(archive, file)
        assert [path.name for path in archive.completed()] == [name(2), name(3), HISTORY]
        assert [path.name for path in archive.partials()] == [f"{name(4)}.partial", f"{name(5)}.partial"]

    def test_a_segment_is_compressed(self, archive: WalArchive) -> None:
        """With size and digest of what is stored; the original goes, and gunzip reads the result."""
        file = archive.publish(received(archive, name(1), content(1) * 2), covered=minute(1), until=minute(2))
        stored = archive.path / f"{name(1)}.gz"
        assert gzip.decompress(stored.read_bytes()) == content(1) * 2
        assert (file.name, file.size, file.covered, file.until) == (
            name(1),
            stored.stat().st_size,
            minute(1),
            minute(2),
        )
        assert file.sha256 == hashlib.sha256(stored.read_bytes()).hexdigest()
        assert file.size < MIB
        assert stored.stat().st_mode & 0o777 == 0o600
        assert archive.files() == {name(1): file}
        assert os.listdir(archive.receiving) == []

    def test_a_history_is_not(self, archive: WalArchive) -> None:
        """It is stored as it came, and says where timelines branched off."""
        file = archive.publish(received(archive, HISTORY, b"1\t0/300000\twhy\n"), covered=None, until=NOON)
        assert (archive.path / HISTORY).read_bytes() == b"1\t0/300000\twhy\n"
        assert (file.size, archive.histories()) == (15, {2: ((1, 0x300000),)})
        received(archive, "00000003.history", b"2\t0/400000\twhy\n")
        assert archive.histories() == {2: ((1, 0x300000),), 3: ((2, 0x400000),)}

    def test_what_cannot_be_stored_stays(self, archive: WalArchive, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing else is left of it."""
        source = received(archive, name(1), content(1))

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "full")

        with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
            patched.setattr("portal.ops.pitr.wal_archive.os.fsync", full)
            archive.publish(source, covered=None, until=None)
        assert source.read_bytes() == content(1)
        assert [path for path in archive.path.iterdir() if path.name.endswith(".tmp")] == []
        assert archive.files() == {}

    def test_what_a_copy_had(self, archive: WalArchive) -> None:
        """It is taken as it is."""
        data = gzip.compress(content(1))
        archive.take(name(1), data, covered=minute(1), until=None)
        (file,) = archive.files().values()
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert (file.covered, file.until) == (minute(1), None)
        assert archive.stored(name(1)).read_bytes() == data

    @pytest.mark.parametrize(("before", "after"), [(None, 5), (3, 5), (7, 7)])
    def test_what_the_last_segment_covers_so_far(self, archive: WalArchive, before: int | None, after: int) -> None:
        """The one that ends at the position, or has it; never less than is known."""
        for number in (0, 1, 2):
            covered = minute(before) if before and number == 1 else None
            archive.publish(received(archive, name(number), content(number)), covered=covered, until=None)
        archive.note_covered(2 * MIB, minute(5))
        archive.take(HISTORY, b"", covered=None, until=None)
        archive.note_covered(2 * MIB - 1, minute(4))
        assert [file.covered for file in archive.files().values()] == [None, minute(after), None, None]

    def test_unfinished_copies_are_swept(self, archive: WalArchive) -> None:
        """Those of WAL; others are none of ours."""
        ours = [f".{name(1)}.gz.abc.tmp", ".00000002.history.abc.tmp"]
        others = [".state.json.abc.tmp", f"{name(1)}.tmp", ".0000000.history.tmp"]
        for file in (*ours, *others):
            (archive.path / file).write_bytes(b"")
        archive.sweep()
        assert {path.name for path in archive.path.glob("*.tmp")} | {
            path.name for path in archive.path.glob(".*.tmp")
        } == {*others}

    def test_removal(self, archive: WalArchive) -> None:
        """Of the files that are named; how many bytes that frees. Their lines go too."""
        files = [
            archive.publish(received(archive, name(number), content(number)), covered=None, until=None)
            for number in (1, 2, 3)
        ]
        assert archive.remove({name(1), name(3), "unknown"}) == files[0].size + files[2].size
        assert list(archive_index.load(archive.path)) == list(archive.files()) == [name(2)]
        assert [path.name for path in archive.path.glob("*.gz")] == [f"{name(2)}.gz"]


class TestStateFile:
    def test_it_is_replaced(self, archive: WalArchive) -> None:
        """Without one it is empty."""
        assert archive.state() == {}
        for number in (1, 2):
            archive.save_state({"received": number})
            assert archive.state() == {"received": number}

    def test_a_full_disk_takes_it_too(self, archive: WalArchive, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is written into the old one, also where that was longer; another fault is raised. No copy stays."""
        archive.save_state({"received": 1, "problem": "x" * 1000})
        code = [errno.ENOSPC]

        def fails(*_: object) -> None:
            raise OSError(code[0], os.strerror(code[0]))

        with monkeypatch.context() as patched:
            patched.setattr("pathlib.Path.rename", fails)
            archive.save_state({"problem": "full"})
            assert archive.state() == {"problem": "full"}
            code[0] = errno.EIO
            with pytest.raises(OSError, match="Input/output error"):
                archive.save_state({})
        assert archive.state() == {"problem": "full"}
        assert [path for path in archive.path.iterdir() if path.name.endswith(".tmp")] == []


class TestReading:
    def test_the_best_file_is_read(self, archive: WalArchive, tmp_path: Path) -> None:
        """A whole one before a part, a stored one before one that is being received."""
        place = tmp_path / "segment"
        assert not archive.read(name(1), place)
        steps: list[Callable[[], object]] = [
            lambda: received(archive, f"{name(1)}.partial", content(1)),
            lambda: archive.take(f"{name(1)}.partial", gzip.compress(content(2)), covered=None, until=None),
            lambda: received(archive, name(1), content(3)),
            lambda: archive.take(name(1), gzip.compress(content(4)), covered=None, until=None),
        ]
        for number, step in enumerate(steps, start=1):
            step()
            assert archive.read(name(1), place)
            assert place.read_bytes() == content(number)

    def test_one_that_is_stored_meanwhile(
        self, archive: WalArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is looked for again."""
        unpack = wal_archive._unpack
        looked: list[Path] = []

        def late(source: Path, destination: Path) -> None:
            looked.append(source)
            if len(looked) == 4:
                archive.take(name(1), gzip.compress(content(1)), covered=None, until=None)
            unpack(source, destination)

        monkeypatch.setattr(wal_archive, "_unpack", late)
        assert archive.read(name(1), tmp_path / "segment")
        assert (tmp_path / "segment").read_bytes() == content(1)

    @pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[:10] + b"x" * 20 + data[30:]])
    def test_damage(self, archive: WalArchive, tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
        """The file is named, and what helps."""
        stored = gzip.compress(os.urandom(3 * MIB))
        archive.take(name(1), change(stored), covered=None, until=None)
        with pytest.raises(NotIntactError, match=rf"^the WAL file .*/{name(1)}\.gz is damaged\n") as caught:
            archive.read(name(1), tmp_path / "segment")
        assert "off-site copy" in caught.value.hint

    def test_positions_that_are_here(self, archive: WalArchive) -> None:
        """Those in a segment, and its end; stored, received and incomplete."""
        assert not archive.has_segment_at(MIB)
        archive.publish(received(archive, name(1), content(1)), covered=None, until=None)
        received(archive, f"{name(4)}.partial")
        held = [archive.has_segment_at(position) for position in (MIB - 1, MIB, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1)]
        assert held == [False, True, True, True, False]
        assert [archive.has_segment_at(position) for position in (4 * MIB - 1, 4 * MIB, 5 * MIB)] == [False, True, True]
        archive.publish(received(archive, name(0), content(0)), covered=None, until=None)
        assert archive.has_segment_at(0)

    def test_what_is_received_is_frozen(self, archive: WalArchive, tmp_path: Path) -> None:
        """Each under its whole name; what is stored as a whole is read from there."""
        for number in (1, 2):
            archive.publish(received(archive, name(number), content(number)), covered=None, until=None)
        archive.take(f"{name(3)}.partial", gzip.compress(content(7)), covered=None, until=None)
        received(archive, name(2), content(9))
        received(archive, f"{name(3)}.partial", content(3))
        received(archive, f"{name(4)}.partial", content(4))
        stored = archive.freeze(tmp_path)
        assert stored == {name(1), name(2), name(3)}
        assert {path.name: path.read_bytes() for path in tmp_path.glob("0*")} == {
            name(3): content(3),
            name(4): content(4),
        }


class TestWal:
    def test_what_each_segment_covers(self, archive: WalArchive) -> None:
        """The last one, complete or not, also what the service reports."""
        archive.publish(received(archive, name(1), content(1)), covered=minute(1), until=None)
        archive.take(f"{name(2)}.partial", b"", covered=minute(2), until=None)
        archive.publish(received(archive, HISTORY, b"1\t0/200000\tx\n"), covered=None, until=minute(4))
        received(archive, f"{name(2)}.partial")
        received(archive, name(3))
        state = {"covered_to": minute(5).isoformat(), "received": 3 * MIB}
        wal = read_wal(archive, state)
        assert sorted(wal.pieces, key=str) == sorted(
            [
                Piece(segment=Segment(1, 1), covered=minute(1), is_complete=True),
                Piece(segment=Segment(1, 2), covered=minute(5), is_complete=False),
                Piece(segment=Segment(1, 2), covered=minute(5), is_complete=False),
                Piece(segment=Segment(1, 3), covered=None, is_complete=True),
            ],
            key=str,
        )
        assert (wal.histories, wal.created, wal.segment_bytes) == ({2: ((1, 0x200000),)}, {2: minute(4)}, MIB)

    def test_a_report_that_is_older(self, archive: WalArchive) -> None:
        """It takes nothing back; without position or moment it says nothing."""
        archive.publish(received(archive, name(1), content(1)), covered=minute(3), until=None)
        for state in (
            {"covered_to": minute(2).isoformat(), "received": MIB + 1},
            {"covered_to": minute(9).isoformat(), "received": 0},
            {"covered_to": None, "received": MIB + 1},
            {"covered_to": minute(9).isoformat(), "received": MIB},
        ):
            assert [piece.covered for piece in read_wal(archive, state).pieces] == [minute(3)]

    def test_segments_with_the_commits_of_a_time(self, archive: WalArchive) -> None:
        """From the first that may have a later commit to the first that covers more; then what is being received."""
        for number in (1, 2, 3, 4):
            archive.publish(
                received(archive, name(number), content(number)), covered=minute(number), until=minute(number)
            )
        archive.publish(received(archive, HISTORY), covered=None, until=None)
        received(archive, name(5))
        received(archive, f"{name(6)}.partial")

        def between(start: float | None, end: float | None) -> list[int]:
            found = segments_between(
                archive, None if start is None else minute(start), None if end is None else minute(end)
            )
            assert [one for _, one in found] == [name(segment.number) for segment, _ in found]
            return [segment.number for segment, _ in found]

        assert between(None, None) == [1, 2, 3, 4, 5, 6]
        assert between(2, None) == [2, 3, 4, 5, 6]
        assert between(2.5, 3) == [3, 4]
        assert between(None, 1.5) == [1, 2]
        assert between(None, 4) == [1, 2, 3, 4, 5, 6]
        assert between(9, 9) == [5, 6]


class TestFeed:
    def test_each_segment_is_given_once(self, archive: WalArchive, tmp_path: Path) -> None:
        """Stored and frozen ones, histories again and again; what is not there, and what comes later, is not given."""
        for number in (1, 2):
            archive.publish(received(archive, name(number), content(number)), covered=None, until=None)
        archive.publish(received(archive, HISTORY, b"history"), covered=None, until=None)
        received(archive, f"{name(3)}.partial", content(3))
        with WalFeed(archive, tmp_path, None) as feed:
            archive.publish(received(archive, name(4), content(4)), covered=None, until=None)
            answers = {
                file: feed._provide(file) for file in (name(1), name(3), name(4), HISTORY, "../x", "00000009.history")
            }
            assert answers == {
                name(1): True,
                name(3): True,
                name(4): False,
                HISTORY: True,
                "../x": False,
                "00000009.history": False,
            }
            assert (feed.given, feed.idle_requests, feed.failure) == (2, 2, None)
            assert feed._provide(HISTORY)
            assert not feed._provide(name(1))
            assert feed.idle_requests == 3
            assert feed._provide(name(2))
            assert (feed.given, feed.idle_requests) == (3, 0)
            assert (tmp_path / "wal" / name(3)).read_bytes() == content(3)
            assert (tmp_path / "wal" / name(2)).read_bytes() == content(2)

    def test_the_next_ones_are_unpacked_ahead(self, archive: WalArchive, tmp_path: Path) -> None:
        """Four of them, which are there."""
        for number in (1, 2, 4, 5, 6):
            archive.publish(received(archive, name(number), content(number)), covered=None, until=None)
        with WalFeed(archive, tmp_path, None) as feed:
            assert feed._provide(name(1))
            assert sorted(feed._ready) == [name(2), name(4), name(5)]

    def test_a_segment_that_is_damaged(self, archive: WalArchive, tmp_path: Path) -> None:
        """The server does not get it, and the recovery is told why."""
        archive.take(name(1), b"no gzip", covered=None, until=None)
        with WalFeed(archive, tmp_path, None) as feed:
            assert not feed._provide(name(1))
            assert isinstance(feed.failure, NotIntactError)
            assert feed.command == f'/bin/sh "{tmp_path}/fetch.sh" "%f" "%p"'
