"""What pg_waldump says, what is copied off-site when, and how receiving ends: programs and stores play their parts."""

from __future__ import annotations

import errno
import gzip
import os
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

import psycopg
import pytest

from portal.ops.errors import (
    DiskFullError,
    RepositoryError,
    SourceError,
    StorageError,
    StoreUnreachableError,
)
from portal.ops.pitr import offsite_wal, receiver, wal_reader
from portal.ops.pitr.lsn import Segment
from portal.ops.pitr.offsite_wal import WalCopier, _There
from portal.ops.pitr.receiver import GapError, ReceiverEndedError, WalReceiver
from portal.ops.pitr.wal_archive import Cluster, WalArchive
from portal.ops.pitr.wal_objects import deflate, split
from portal.ops.pitr.wal_reader import Commit, commits, last_commit
from portal.ops.repository.repository import Repository
from portal.ops.settings.database_url import DatabaseTarget
from portal.ops.storage.directory import DirectoryBackend
from portal.ops.storage.objects import ObjectWriter
from portal.ops.storage.signature import SigningKey
from tests.support.fake_runner import FakeProcess, FakeRunner, Script

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB: Final = 1 << 20
NOON: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)
CLUSTER: Final = Cluster(system_identifier="7000", segment_bytes=MIB, major=17)
VERSION: Final = Script(stdout=b"pg_waldump (PostgreSQL) 17.4\n")


def name(number: int) -> str:
    return Segment(1, number).name(MIB)


@pytest.fixture
def archive(tmp_path: Path) -> WalArchive:
    """An archive without any WAL."""
    repository = Repository(tmp_path / "repository")
    repository.prepare()
    return WalArchive.prepare(repository, CLUSTER)


def commit_line(number: int, minute: int, more: str = "") -> str:
    return (
        f"rmgr: Transaction len (rec/tot): 34/34, tx: {number}, lsn: 0/0152, prev 0/0151, desc: COMMIT "
        f"2026-11-29 12:{minute:02d}:00.250000 UTC{more}"
    )


def delete_line(number: int, table: int) -> str:
    return f"rmgr: Heap len (rec/tot): 54/54, tx: {number}, lsn: 0/01, desc: DELETE blkref #0: rel 1663/5/{table} blk 0"


def read(lines: Sequence[str]) -> list[Commit]:
    deleted: defaultdict[int, Counter[wal_reader.Relation]] = defaultdict(Counter)
    return [found for line in lines if (found := wal_reader._read(line, deleted))]


class TestLines:
    def test_rows_that_were_removed(self) -> None:
        """By table and transaction, with those of its parts; what was rolled back counts for nothing."""
        found = read(
            [
                delete_line(7, 1),
                delete_line(7, 1),
                delete_line(8, 2),
                delete_line(9, 3),
                "rmgr: Transaction tx: 9, lsn: 0/01, desc: ABORT 2026-11-29 12:00:00.0 UTC",
                "no record at all",
                "rmgr: Heap tx: 7, lsn: 0/01, desc: INSERT off: 1",
                commit_line(7, 1, "; rels: base/5/10 base/5/11; subxacts: 8 4"),
                commit_line(9, 2),
            ]
        )
        moments = [NOON + timedelta(minutes=minute, milliseconds=250) for minute in (1, 2)]
        assert found == [
            Commit(moment=moments[0], transaction=7, deleted={(5, 1): 2, (5, 2): 1}, removed=((5, 10), (5, 11))),
            Commit(moment=moments[1], transaction=9),
        ]

    def test_prepared_ones(self) -> None:
        """They are commits too."""
        line = commit_line(7, 1).replace("COMMIT ", "COMMIT_PREPARED gid: ")
        assert [one.transaction for one in read([line])] == [7]


class TestReading:
    def test_runs_of_segments(self, archive: WalArchive) -> None:
        """Each is read at once, in order; a missing one ends it; rows are asked for where they count."""
        for number in (1, 2, 5):
            archive.take(name(number), gzip.compress(b""), covered=None, until=None)
        said = "\n".join((delete_line(1, 2), commit_line(1, 1))).encode()
        runner = FakeRunner({"pg_waldump": [VERSION, Script(stdout=said), Script(stdout=commit_line(2, 2).encode())]})
        segments = [(Segment(1, number), name(number)) for number in (1, 2, 4, 5)]
        found = list(commits(archive, segments, runner=runner, bin_dir=Path("/bin"), with_rows=True))
        assert [(one.transaction, one.deleted) for one in found] == [(1, {(5, 2): 1}), (2, {})]
        one, other = runner.commands[1:]
        assert [Path(one[0]).name, *one[2:]] == [
            "pg_waldump",
            "--rmgr=Transaction",
            "--rmgr=Heap",
            name(1),
            name(2),
        ]
        assert other[-2:] == [name(5), name(5)]
        assert runner.environments[1]["TZ"] == "UTC"
        place = Path(one[1].removeprefix("--path="))
        assert not place.exists()

    def test_the_last_one_is_looked_for_backwards(self, archive: WalArchive) -> None:
        """Two segments at a time, with the one before; twelve at the most."""
        for number in range(20):
            archive.take(name(number), gzip.compress(b""), covered=None, until=None)
        segments = [Segment(1, number) for number in range(20)]
        late = Script(stdout="\n".join((commit_line(1, 1), commit_line(2, 9))).encode())

        def look(*scripts: Script, moment: datetime | None = None) -> tuple[datetime | None, list[list[str]]]:
            runner = FakeRunner({"pg_waldump": [one for script in scripts for one in (VERSION, script)]})
            found = last_commit(archive, segments, moment, runner=runner, bin_dir=Path("/bin"))
            return found, [command[-2:] for command in runner.commands if len(command) > 2]

        assert look(late) == (NOON + timedelta(minutes=9, milliseconds=250), [[name(17), name(19)]])
        before = NOON + timedelta(minutes=5)
        assert look(Script(), late, moment=before) == (
            NOON + timedelta(minutes=1, milliseconds=250),
            [[name(17), name(19)], [name(15), name(17)]],
        )
        nothing, asked = look(*[Script()] * 6)
        assert (nothing, len(asked), asked[-1]) == (None, 6, [name(7), name(9)])
        segments = segments[:1]
        assert look(*[Script()] * 6)[1] == [[name(0), name(0)]]


class TestCopying:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Path:
        """A destination."""
        (tmp_path / "store").mkdir()
        return tmp_path / "store"

    def writer(self, store: Path) -> ObjectWriter:
        """What stores there."""
        return ObjectWriter(DirectoryBackend(store), ())

    def copier(self, archive: WalArchive, store: Path, **more: Any) -> WalCopier:
        """What copies there."""
        return WalCopier(archive.repository, lambda: self.writer(store), shown="store", **more)

    def stored(self, store: Path) -> dict[str, bytes]:
        """The objects by the start of their names."""
        return {path.name.split(".")[0]: path.read_bytes() for path in store.rglob("*.age")}

    def test_the_current_segment(self, archive: WalArchive, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As far as it was received, from the last whole page on; not more often than every two seconds."""
        monkeypatch.setattr(offsite_wal, "CURRENT_SECONDS", 0.0)
        partial = archive.receiving / f"{name(3)}.partial"
        partial.write_bytes(bytes(range(256)) * (MIB // 256))
        copier, writer = self.copier(archive, store), self.writer(store)
        for received in (3 * MIB + 100, 3 * MIB + 100, 3 * MIB + 9000, 3 * MIB + 20_000, 4 * MIB):
            archive.save_state({"received": received, "covered_to": NOON.isoformat()})
            copier.copy(writer)
        found = self.stored(store)
        assert sorted(found) == [f"{name(3)}+{part}" for part in ("0-100", "0-9000", "8192-20000")]
        content, told = split(found[f"{name(3)}+8192-20000"])
        assert gzip.decompress(content) == partial.read_bytes()[8192:20_000]
        assert told.covered == NOON
        monkeypatch.setattr(offsite_wal, "CURRENT_SECONDS", 60.0)
        archive.save_state({"received": 3 * MIB + 30_000})
        copier.copy(writer)
        assert len(self.stored(store)) == 3

    def test_it_is_not_sent_where_it_makes_no_sense(
        self, archive: WalArchive, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without a position, or with one in another segment."""
        monkeypatch.setattr(offsite_wal, "CURRENT_SECONDS", 0.0)
        copier, writer = self.copier(archive, store), self.writer(store)
        copier.copy(writer)
        (archive.receiving / f"{name(3)}.partial").write_bytes(bytes(MIB))
        for state in ({}, {"received": None}, {"received": 5 * MIB + 5}, {"received": 3 * MIB}):
            archive.save_state(state)
            copier.copy(writer)
        assert self.stored(store) == {}
        bare = WalCopier(Repository(store / "none"), lambda: writer, shown="store")
        bare.copy(writer)

    def test_files_are_sent_once(self, archive: WalArchive, store: Path) -> None:
        """With what they cover; a history as a gzip file too. What was pruned there is not sent again."""
        archive.take(name(5), deflate(b"five"), covered=NOON, until=NOON + timedelta(minutes=1))
        archive.take("00000002.history", b"1\t0/1\tx\n", covered=None, until=None)
        self.copier(archive, store).copy(self.writer(store))
        found = self.stored(store)
        assert sorted(found) == [name(5), "00000002", "cluster"]
        content, told = split(found[name(5)])
        assert (gzip.decompress(content), told) == (b"five", (NOON, NOON + timedelta(minutes=1)))
        assert gzip.decompress(found["00000002"]) == b"1\t0/1\tx\n"
        archive.take(name(4), deflate(b"four"), covered=None, until=None)
        archive.take(name(6), deflate(b"six"), covered=None, until=None)
        self.copier(archive, store).copy(self.writer(store))
        assert sorted(self.stored(store)) == [name(5), name(6), "00000002", "cluster"]

    def test_a_file_that_cannot_be_read(
        self, archive: WalArchive, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is tried again after a minute, and told until then; the others are sent."""
        now = [1000.0]
        monkeypatch.setattr("portal.ops.pitr.offsite_wal.time.monotonic", lambda: now[0])
        for number in (1, 2):
            archive.take(name(number), deflate(bytes([number])), covered=None, until=None)
        bad = archive.stored(name(1))
        good = bad.read_bytes()
        bad.unlink()
        bad.mkdir()
        copier, writer = self.copier(archive, store), self.writer(store)
        copier.copy(writer)
        assert copier._unread_files().startswith(f"cannot read {bad}: ")
        assert sorted(self.stored(store)) == [name(2), "cluster"]
        bad.rmdir()
        bad.write_bytes(good)
        now[0] += 59
        copier.copy(writer)
        assert sorted(self.stored(store)) == [name(2), "cluster"]
        now[0] += 1
        copier.copy(writer)
        assert (sorted(self.stored(store)), copier._unread_files()) == ([name(1), name(2), "cluster"], "")

    @pytest.mark.parametrize("damaged", [b"", b"\x1f\x8b", bytes(range(64))], ids=["empty", "cut", "overwritten"])
    def test_a_damaged_file_keeps_no_other_back(self, archive: WalArchive, store: Path, damaged: bytes) -> None:
        """As fsck leaves one; the fault names it, and the copying goes on."""
        for number in (1, 2):
            archive.take(name(number), deflate(bytes([number])), covered=None, until=None)
        bad = archive.stored(name(1))
        good = bad.read_bytes()
        bad.write_bytes(damaged)
        copier, writer = self.copier(archive, store), self.writer(store)
        copier.copy(writer)
        assert copier._unread_files().startswith(f"{bad} has a gzip header that is not ours")
        assert sorted(self.stored(store)) == [name(2), "cluster"]
        bad.write_bytes(good)
        copier._unread[name(1)] = "", 0.0  # the minute is over
        copier.copy(writer)
        assert (sorted(self.stored(store)), copier._unread_files()) == ([name(1), name(2), "cluster"], "")

    def test_what_is_there(self) -> None:
        """Parts are left out, and the oldest counts without its timeline."""
        names = [f"wal/7/{file}.0123456789abcdef.gz.age" for file in (name(5), f"{name(3)}+0-9", "cluster")]
        assert _There.of(names) == _There(name(3)[8:], frozenset((names[0], names[2])))
        assert _There.of([]) == _There()

    def test_a_key_signs_what_is_new(self, archive: WalArchive, store: Path) -> None:
        """It is asked for until there is one."""
        keys: list[SigningKey | None] = [None, SigningKey(b"k" * 32), None]
        copier = self.copier(archive, store, find_key=lambda: keys.pop(0))
        for number in (1, 2, 3):
            archive.take(name(number), deflate(bytes([number])), covered=None, until=None)
            copier.copy(self.writer(store))
        assert {file: b"signature" in data for file, data in self.stored(store).items() if file != "cluster"} == {
            name(1): False,
            name(2): True,
            name(3): True,
        }
        assert len(keys) == 1

    def test_faults_and_pauses(self, archive: WalArchive, monkeypatch: pytest.MonkeyPatch) -> None:
        """They are told at once and every ten seconds; the pauses grow to a minute, until it works again."""
        now, waited, told = [0.0], list[float](), list[str]()
        monkeypatch.setattr("portal.ops.pitr.offsite_wal.time.monotonic", lambda: now[0])

        class Stop(Event):
            def wait(self, timeout: float | None = None) -> bool:
                waited.append(timeout or 0)
                return len(waited) >= 9

            def is_set(self) -> bool:
                return len(waited) >= 9

        def away() -> ObjectWriter:
            raise StoreUnreachableError("away", hint="Wait.")

        copier = WalCopier(archive.repository, away, shown="store", tell=told.append)
        copier.run(Stop())
        assert waited == [1, 2, 4, 8, 16, 32, 60, 60, 60]
        assert told == ["away\n  hint: Wait."]
        assert copier.problem == told[0]
        for second, problem in ((1, "other"), (2, "other"), (11, "other"), (12, "")):
            now[0] = second
            copier._note(problem)
        assert told[1:] == ["other", "other", ""]

    def test_it_goes_on_after_a_fault(self, archive: WalArchive, store: Path) -> None:
        """The pause begins anew once something was copied."""
        waited: list[float] = []
        opened: list[int] = []

        class Stop(Event):
            def wait(self, timeout: float | None = None) -> bool:
                waited.append(timeout or 0)
                return len(waited) > 6

            def is_set(self) -> bool:
                return len(waited) > 6

        def writer() -> ObjectWriter:
            opened.append(1)
            if len(opened) != 3:
                raise StorageError("full", hint="")
            return self.writer(store)

        copier = WalCopier(archive.repository, writer, shown="store")
        calls: list[int] = []
        real = copier.copy

        def copy(one: ObjectWriter) -> None:
            calls.append(1)
            if len(calls) == 2:
                raise OSError(errno.EIO, "broken")
            real(one)

        copier.copy = copy  # type: ignore[method-assign, assignment]
        copier.run(Stop())
        assert waited == [1.0, 2.0, 0.2, 0.2, 1.0, 2.0, 4.0]


class TestReceiving:
    def made(self, archive: WalArchive, **more: Any) -> WalReceiver:
        """A service that has not begun."""
        target = DatabaseTarget(host="h", port=1, name="n", user="u")
        return WalReceiver(archive.repository, target, runner=FakeRunner({}), **more)

    @pytest.mark.parametrize(
        ("script", "kind", "message"),
        [
            (
                Script(stderr="a\npg_receivewal: error: refused\n", returncode=1),
                ReceiverEndedError,
                "pg_receivewal ended: pg_receivewal: error: refused",
            ),
            (
                Script(stderr="error: cause\nerror: disconnected\n", returncode=1),
                ReceiverEndedError,
                "pg_receivewal ended: error: cause",
            ),
            (Script(stderr="last words\n", returncode=1), ReceiverEndedError, "pg_receivewal ended: last words"),
            (Script(returncode=3), ReceiverEndedError, "pg_receivewal ended: exit code 3"),
            (Script(stderr=f"error: {os.strerror(errno.ENOSPC)}\n"), DiskFullError, None),
            (
                Script(stderr="error: segment 1 has already been removed\n"),
                GapError,
                "the WAL cannot be continued: error: segment 1 has already been removed",
            ),
            (
                Script(stderr="error: timeline 2 is not in this server's history\n"),
                GapError,
                "the WAL cannot be continued: error: timeline 2 is not in this server's history",
            ),
        ],
    )
    def test_how_it_ends(self, archive: WalArchive, script: Script, kind: type[Exception], message: str | None) -> None:
        """The cause is told; where the server cannot go on, what there is is stored, and a base backup asked for."""
        partial = archive.receiving / f"{name(1)}.partial"
        partial.write_bytes(bytes(MIB))
        gaps: list[str] = []
        archived: list[str] = []
        made = self.made(archive, on_gap=gaps.append, on_archived=archived.append)
        made._received = MIB + 5
        row: Any = SimpleNamespace(execute=lambda *_: SimpleNamespace(fetchone=lambda: (NOON,)))
        with pytest.raises(kind) as caught:
            made._raise_end(archive, row, FakeProcess(script))
        if message:
            assert cast("SourceError", caught.value).message == message
        is_gap = kind is GapError
        assert (len(gaps), archived, partial.exists()) == (is_gap, [partial.name] if is_gap else [], not is_gap)
        if is_gap:
            assert archive.files()[partial.name].until == NOON

    @pytest.mark.parametrize(
        ("error", "kind", "message"),
        [
            (OSError(errno.ENOSPC, "x"), DiskFullError, None),
            (OSError(errno.EDQUOT, "x"), DiskFullError, None),
            (
                OSError(errno.EIO, "broken"),
                RepositoryError,
                f"the operating system refused: [Errno {errno.EIO}] broken",
            ),
            (psycopg.OperationalError("first\nsecond"), SourceError, "the server refuses: first"),
        ],
    )
    def test_errors_in_words(
        self, archive: WalArchive, error: Exception, kind: type[Exception], message: str | None
    ) -> None:
        """Those of the system and of the server."""
        found = self.made(archive)._explained(error)
        assert type(found) is kind
        assert message in (None, found.message)
        assert found.hint

    def test_room(self, archive: WalArchive, monkeypatch: pytest.MonkeyPatch) -> None:
        """64 MiB and two segments have to be free."""
        free = [(64 << 20) + 2 * MIB]
        monkeypatch.setattr(
            "portal.ops.pitr.receiver.os.statvfs", lambda _: SimpleNamespace(f_bavail=free[0], f_frsize=1)
        )
        self.made(archive)._check_space(archive)
        free[0] -= 1
        with pytest.raises(DiskFullError, match=r"receiving WAL needs 69\.2 MB") as caught:
            self.made(archive)._check_space(archive)
        assert "max_slot_wal_keep_size" in caught.value.hint

    def test_what_was_known(self, archive: WalArchive) -> None:
        """Position and moment; a problem is reported beside it, and leaves them."""
        made = self.made(archive)
        made._recall(archive)
        assert (made._received, made._covered.at(MIB)) == (0, None)
        archive.take(name(0), b"", covered=None, until=None)
        archive.save_state({"received": MIB, "covered_to": NOON.isoformat()})
        made._report(problem="unseen")
        assert "problem" not in archive.state()
        made._archive = archive
        made._recall(archive)
        assert (made._received, made._covered.at(MIB), made._covered.at(MIB - 1)) == (MIB, NOON, None)
        assert archive.files()[name(0)].covered == NOON
        made._report(problem="away")
        state = archive.state()
        assert (state["received"], state["problem"], state["pid"]) == (MIB, "away", os.getpid())
        (archive.path / "state.json").unlink()
        (archive.path / "state.json").mkdir()
        made._report(problem="away")  # neither read nor written, which ends no service
        assert datetime.fromisoformat(state["updated"]).tzinfo is not None

    def test_pauses(self, archive: WalArchive, monkeypatch: pytest.MonkeyPatch) -> None:
        """They grow to half a minute, and are short again after a minute without an error."""
        now, waited = [0.0], list[float]()
        monkeypatch.setattr("portal.ops.pitr.receiver.time.monotonic", lambda: now[0])
        made = self.made(archive)
        lasted = [0.0] * 8 + [61.0, 60.0]

        def turn(_: Event) -> None:
            now[0] += lasted[len(waited)]
            raise SourceError("away", hint="")

        class Stop(Event):
            def wait(self, timeout: float | None = None) -> bool:
                waited.append(timeout or 0)
                return False

            def is_set(self) -> bool:
                return len(waited) == len(lasted)

        made._turn = turn  # type: ignore[method-assign, assignment]
        made.run(Stop())
        assert waited == [0.5, 1, 2, 4, 8, 16, 30, 30, 0.5, 1]

    def test_segments_that_were_only_allocated(self, archive: WalArchive) -> None:
        """They go; one of its full size stays, and completed ones are stored."""
        (archive.receiving / f"{name(3)}.partial").write_bytes(b"x")
        (archive.receiving / f"{name(2)}.partial").write_bytes(bytes(MIB))
        (archive.receiving / name(1)).write_bytes(bytes(MIB))
        row: Any = SimpleNamespace(execute=lambda *_: SimpleNamespace(fetchone=lambda: (NOON,)))
        self.made(archive)._sweep(archive, row)
        assert [path.name for path in archive.receiving.iterdir()] == [f"{name(2)}.partial"]
        assert list(archive.files()) == [name(1)]
        assert receiver.APPLICATION == "kekkai-wal"
