"""Names of WAL and of its objects off-site, positions, and what an object may say."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from portal.ops.errors import NotIntactError
from portal.ops.pitr import archive_index
from portal.ops.pitr.archive_index import Stamp, WalFile
from portal.ops.pitr.lsn import (
    Segment,
    format_lsn,
    parse_history,
    parse_history_name,
    parse_lsn,
    parse_segment,
)
from portal.ops.pitr.replication import Position
from portal.ops.pitr.wal_objects import (
    Told,
    WalObject,
    deflate,
    inflate,
    parse_object,
    place_in_wal,
    signer_of,
    split,
    with_comment,
    with_signature,
)
from portal.ops.pitr.wal_state import Coverage, state_of
from portal.ops.pitr.wal_trust import WalTrust, in_order
from portal.ops.storage.signature import SigningKey

if TYPE_CHECKING:
    from pathlib import Path

MIB: Final = 1 << 20
NOON: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)
KEY: Final = SigningKey(b"k" * 32)
NAME: Final = "0000000A0000000B0000000C"


class TestPositions:
    @pytest.mark.parametrize(("text", "lsn"), [("0/0", 0), ("16/B374D848", 0x16B374D848), ("1/0", 1 << 32)])
    def test_as_postgresql_writes_them(self, text: str, lsn: int) -> None:
        """Two hexadecimal numbers, of which the second one has 32 bits."""
        assert (parse_lsn(text), format_lsn(lsn)) == (lsn, text)

    @pytest.mark.parametrize("text", ["", "5", "1/", "/1", "1/123456789", "g/0", "1/0 "])
    def test_of_another_form(self, text: str) -> None:
        """They are refused."""
        with pytest.raises(ValueError, match="is no position in the WAL"):
            parse_lsn(text)

    @pytest.mark.parametrize("size", [MIB, 16 * MIB, 1024 * MIB])
    def test_segments(self, size: int) -> None:
        """The name has timeline and number, whatever the size; the last of a log is followed by the next log's."""
        in_a_log = (1 << 32) // size
        last, first = Segment(10, in_a_log - 1), Segment(10, in_a_log)
        assert (last.name(size), first.name(size)) == (
            f"0000000A00000000{in_a_log - 1:08X}",
            "0000000A0000000100000000",
        )
        for one in (last, first, Segment(1, 5 * in_a_log)):
            assert parse_segment(one.name(size), size) == one

    @pytest.mark.parametrize("name", ["", NAME[:-1], f"{NAME}0", NAME.lower(), f"{NAME}.gz"])
    def test_no_segment(self, name: str) -> None:
        """Other names."""
        assert parse_segment(name, MIB) is None

    def test_histories(self) -> None:
        """Names, and what is in the file, with remarks and other lines."""
        assert parse_history_name("0000000A.history") == 10
        assert [parse_history_name(name) for name in ("0000000A.historyx", "A.history", NAME)] == [None] * 3
        text = "1\t0/3000060\tno recovery target\n# remark\n\n 2  1/5 before\n"
        assert parse_history(text) == ((1, 0x3000060), (2, (1 << 32) + 5))


class TestObjects:
    @pytest.mark.parametrize(
        ("name", "found"),
        [
            (f"wal/7/{NAME}.0123456789abcdef.gz.age", WalObject("7", NAME, False)),
            (f"wal/7/{NAME}.0123456789abcdef.gz", WalObject("7", NAME, False)),
            (f"wal/7/{NAME}+0-100.0123456789abcdef.gz.age", WalObject("7", NAME, True)),
            (f"wal/7/{NAME}.partial.0123456789abcdef.gz.age", WalObject("7", f"{NAME}.partial", False)),
            ("wal/7/0000000A.history.0123456789abcdef.gz.age", WalObject("7", "0000000A.history", False)),
            ("wal/7/cluster.0123456789abcdef.gz.age", WalObject("7", "cluster", False)),
            (f"wal/7/{NAME}.0123456789abcde.gz.age", None),
            (f"wal/7/{NAME}.gz.age", None),
            (f"other/7/{NAME}.0123456789abcdef.gz.age", None),
        ],
    )
    def test_names(self, name: str, found: WalObject | None) -> None:
        """Cluster, file and whether it is a part."""
        assert parse_object(name) == found

    @pytest.mark.parametrize(
        ("file", "is_segment"),
        [(NAME, True), (f"{NAME}.partial", True), ("cluster", False), ("0000000A.history", False)],
    )
    def test_which_are_segments(self, file: str, is_segment: bool) -> None:
        """Whole ones and parts."""
        assert WalObject("7", file, is_part=False).is_segment is is_segment

    def test_places_sort_like_positions(self) -> None:
        """The timeline does not count; histories come last."""
        assert place_in_wal(f"{NAME}.partial") == "0000000B0000000C"
        files = ["00000002.history", "000000010000000000000002", "000000020000000000000001", "00000001.history"]
        assert sorted(files, key=in_order) == [files[2], files[1], files[3], files[0]]

    def test_content(self) -> None:
        """A gzip file that gunzip reads, also with its comment; the comment comes off again."""
        plain = b"wal" * 1000
        stored = deflate(plain)
        told = {"covered": NOON.isoformat(), "until": "2026-11-29T14:00:00+02:00"}
        commented = with_comment(stored, told)
        assert gzip.decompress(commented) == plain
        assert json.loads(commented[10:].partition(b"\0")[0]) == told
        assert split(commented) == (split(stored)[0][:9] + b"\xff" + stored[10:], Told(NOON, NOON))
        assert split(stored) == (stored, Told())
        assert split(b"short") == (b"short", Told())
        assert inflate(stored, len(plain)) == plain

    def test_content_that_is_too_large_or_cut(self) -> None:
        """Neither is taken."""
        stored = deflate(b"x" * 1000)
        for data, most in ((stored, 999), (stored[:-1], 1000)):
            with pytest.raises(NotIntactError, match="does not end where it should"):
                inflate(data, most)
        with pytest.raises(NotIntactError, match=r"^a WAL object is damaged\n") as caught:
            inflate(b"no gzip at all", 1000)
        assert caught.value.hint == "Take another copy."

    @pytest.mark.parametrize(
        "comment", [b"", b"{", b"[]", b"5", b'{"covered": 5}', b'{"until": "soon"}', b"[" * 100_000, b"\xff"]
    )
    def test_comments_that_make_no_sense(self, comment: bytes) -> None:
        """They are damage."""
        stored = with_comment(deflate(b"x"), {})
        with pytest.raises(NotIntactError, match="has a comment that is invalid"):
            split(stored[:10] + comment + stored[12:])

    def test_moments_before_all_times(self) -> None:
        """In UTC there is no such moment."""
        with pytest.raises(NotIntactError, match="has a comment that is invalid"):
            split(with_comment(deflate(b"x"), {"covered": "0001-01-01T00:00:00+23:00"}))

    def test_header_of_another_program(self) -> None:
        """No comment is put into what we have not written."""
        with pytest.raises(NotIntactError, match="gzip header that is not ours"):
            with_comment(with_comment(deflate(b"x"), {}), {})


class TestSignatures:
    STORED: Final = deflate(b"x")

    def signed(self, **changes: Any) -> bytes:
        """An object with a signature, and other facts in its comment."""
        return with_comment(self.STORED, with_signature("7/a", self.STORED, {"covered": None}, KEY) | changes)

    def test_it_is_known_by_its_signer(self) -> None:
        """Unsigned, it has none."""
        assert signer_of("7/a", self.signed()) == KEY.signer
        assert signer_of("7/a", with_comment(self.STORED, {"covered": None})) == ""

    @pytest.mark.parametrize(
        "changes",
        [{"covered": 1}, {"signer": ""}, {"signature": ""}, {"signer": 5}, {"signature": 5}, {"signature": "00" * 64}],
    )
    def test_it_is_of_everything(self, changes: dict[str, Any]) -> None:
        """What was changed afterwards is refused."""
        with pytest.raises(NotIntactError, match="a signature that is not its own"):
            signer_of("7/a", self.signed(**changes))
        with pytest.raises(NotIntactError, match="a signature that is not its own"):
            signer_of("7/b", self.signed())

    def test_place_of_an_object(self) -> None:
        """Neither directory nor digest is signed, nor whether it is encrypted."""
        trust = WalTrust({KEY.signer})
        for place in ("wal/7/a.0123456789abcdef.gz.age", "wal/7/a.0000000000000000.gz"):
            assert trust.is_signed(place, self.signed())
        assert not trust.is_signed("wal/7/a.0.gz", with_comment(self.STORED, {}))
        assert not WalTrust(None).is_signed("wal/7/a.0.gz", self.signed())

    def test_cluster_by_cluster(self) -> None:
        """Unsigned WAL of a cluster is from before, also where another cluster's was signed."""
        trust = WalTrust({KEY.signer})
        trust.begin()
        trust.take(NAME, "first", is_signed=True)
        trust.begin()
        trust.take(NAME, "second", is_signed=False)
        assert trust.unsigned == ["second"]

    def test_histories_from_before(self) -> None:
        """Up to the timeline of the first signed segment; a signed history says nothing of segments."""
        trust = WalTrust({KEY.signer})
        trust.take("0000000A.history", "signed history", is_signed=True)
        trust.take(NAME[:-1] + "B", "old", is_signed=False)
        trust.take(NAME, "signed", is_signed=True)
        trust.take(NAME[:-1] + "D", "signed too", is_signed=True)
        trust.take("0000000A.history", "history", is_signed=False)
        with pytest.raises(NotIntactError, match="it is not signed, although earlier WAL is"):
            trust.take("0000000B.history", "later", is_signed=False)
        assert trust.unsigned == ["old", "history"]

    def test_anybodys(self) -> None:
        """Nothing is named as unsigned."""
        trust = WalTrust(None)
        trust.take(NAME, "x", is_signed=False)
        assert trust.unsigned == []


class TestIndex:
    FILE: Final = WalFile(name=NAME, size=7, sha256="ab", covered=NOON, until=None)

    def test_lines(self) -> None:
        """They come back, times in UTC; each is one line of JSON."""
        assert json.loads(self.FILE.encode()) == {
            "name": NAME,
            "size": 7,
            "sha256": "ab",
            "covered": "2026-11-29T12:00:00+00:00",
            "until": None,
        }
        assert WalFile.decode(self.FILE.encode()) == self.FILE
        assert self.FILE.encode().endswith(b'"until":null}\n')
        other = WalFile.decode(b'{"name": "a", "size": 1, "sha256": "", "until": "2026-11-29T14:00:00+02:00"}')
        assert other
        assert (other.until, other.until and other.until.tzinfo) == (NOON, UTC)

    @pytest.mark.parametrize(
        "line",
        [b"{", b"{}", b"5", b'{"name": "a", "size": "x", "sha256": ""}', b'{"name": "a", "size": [], "sha256": 1}'],
    )
    def test_damaged_lines(self, line: bytes) -> None:
        """They are passed over."""
        assert WalFile.decode(line) is None

    def test_last_line_of_a_name_counts(self, tmp_path: Path) -> None:
        """A line that a crash has cut is ended before the next one; the stamp changes each time."""
        assert (archive_index.load(tmp_path), archive_index.stamp(tmp_path)) == ({}, None)
        stamps = []
        later = WalFile(name=NAME, size=8, sha256="cd")
        for file in (self.FILE, WalFile(name="b", size=1, sha256="")):
            archive_index.append(tmp_path, file)
            stamps.append(archive_index.stamp(tmp_path))
        index = tmp_path / archive_index.NAME
        assert index.read_bytes().count(b"\n") == 2
        assert index.stat().st_mode & 0o777 == 0o600
        with index.open("ab") as written:
            written.write(b'{"name": "c"')
        archive_index.append(tmp_path, later)
        assert index.read_bytes().splitlines()[2:] == [b'{"name": "c"', later.encode().strip()]
        assert archive_index.load(tmp_path) == {NAME: later, "b": WalFile(name="b", size=1, sha256="")}
        stamps.append(archive_index.stamp(tmp_path))
        assert stamps[-1] == Stamp(index.stat().st_ino, index.stat().st_size)
        assert len(set(stamps)) == 3
        with archive_index.index_lock(tmp_path):
            archive_index.rewrite(tmp_path, [later])
        assert index.read_bytes() == later.encode()


class TestCoverage:
    def test_pairs_that_are_no_longer_needed_go(self) -> None:
        """The last one before the position stays, which covers it."""
        covered = Coverage()
        for number in (1, 2, 3):
            covered.recall(NOON + timedelta(minutes=number), 100 * number)
        covered.forget(250)
        assert [covered.at(lsn) for lsn in (199, 200, 299, 300)] == [
            None,
            NOON + timedelta(minutes=2),
            NOON + timedelta(minutes=2),
            NOON + timedelta(minutes=3),
        ]
        covered.forget(300)
        assert covered.at(299) is None
        covered.forget(1000)
        assert covered.at(300) == NOON + timedelta(minutes=3)

    def test_idle_server(self) -> None:
        """Its clock goes on while its position stays; the last clock counts, and the others are forgotten."""
        covered = Coverage()
        for second in range(4):
            covered.note(NOON + timedelta(seconds=second), flushed=100, inserted=100, delay=timedelta(0))
        assert covered.at(100) == NOON + timedelta(seconds=2)
        assert len(covered._looks) == 1
        covered.forget(100)
        assert covered.at(100) == NOON + timedelta(seconds=2)


POSITION: Final = Position(
    clock=NOON,
    slot="kekkai",
    flushed="1/20",
    inserted="1/30",
    wal_writer_delay=timedelta(seconds=0.2),
    has_slot=True,
    active=True,
    restart="1/10",
    wal_status="reserved",
    safe_wal_size=5,
)


class TestState:
    def test_of_a_server_that_is_ahead(self) -> None:
        """By how many bytes and seconds."""
        behind = NOON - timedelta(seconds=3)
        found = state_of(POSITION, known={}, received=(1 << 32) + 0x10, covered=behind)
        assert found == {
            "server_clock": "2026-11-29T12:00:00.000000+00:00",
            "received": (1 << 32) + 0x10,
            "received_lsn": "1/10",
            "covered_to": "2026-11-29T11:59:57.000000+00:00",
            "lag_bytes": 0x10,
            "lag_seconds": 3.0,
            "slot": {"name": "kekkai", "active": True, "wal_status": "reserved", "safe_wal_size": 5},
        }

    def test_without_a_lag(self) -> None:
        """Everything has come, or even more."""
        for received in ((1 << 32) + 0x20, (1 << 32) + 0x21):
            found = state_of(POSITION, known={}, received=received, covered=None)
            assert (found["lag_bytes"], found["lag_seconds"], found["covered_to"]) == (0, 0.0, None)

    def test_what_was_covered_stays_so(self) -> None:
        """A later report that knows less takes nothing back."""
        known = {"covered_to": "2026-11-29T11:59:59.000000+00:00"}
        for covered in (None, NOON - timedelta(minutes=1)):
            assert state_of(POSITION, known=known, received=0, covered=covered)["covered_to"] == known["covered_to"]
        assert state_of(POSITION, known={"covered_to": None}, received=0, covered=None)["lag_seconds"] is None

    def test_positions(self) -> None:
        """As numbers; a slot counts while it has its WAL."""
        assert (POSITION.flushed_lsn, POSITION.inserted_lsn, POSITION.restart_lsn) == (
            (1 << 32) + 0x20,
            (1 << 32) + 0x30,
            (1 << 32) + 0x10,
        )
        assert POSITION.longest_delay == timedelta(seconds=0.6)
        without = replace(POSITION, restart=None)
        assert without.restart_lsn == 0
        usable = [POSITION, replace(POSITION, wal_status="unreserved")]
        lost = [without, replace(POSITION, has_slot=False), replace(POSITION, wal_status="lost")]
        assert [one.is_usable for one in (*usable, *lost)] == [True, True, False, False, False]
