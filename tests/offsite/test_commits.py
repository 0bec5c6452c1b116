"""The commit of a copy as it is stored, and what no commit may say; the names of a copy's objects."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from portal.ops.errors import NotIntactError
from portal.ops.offsite.commit import MOST_BYTES, Commit, Segment, WalStart
from portal.ops.offsite.layout import Stem, parse_stem, segment_bytes_for, stem_of_commit
from portal.ops.offsite.ledger import CopyRecord
from portal.ops.offsite.listing import listed
from portal.ops.storage.signature import SigningKey

STEM: Final = Stem("base_20260201_120000_abcdef", 2)
DIGEST: Final = "ab" * 32
MOST_SEGMENT: Final = 1 << 30
COMMIT: Final = Commit(
    stem=STEM,
    type="base",
    moment=datetime(2026, 2, 1, 12, tzinfo=UTC),
    copied=datetime(2026, 2, 1, 13, tzinfo=UTC),
    archive_size=250,
    archive_sha256=DIGEST,
    segment_bytes=100,
    segments=(Segment(110, "1" * 64), Segment(111, "2" * 64), Segment(62, "3" * 64)),
    recipients=("age1a", "age1b"),
    parent="base_20260131_120000_abcdef",
    parent_sha256="cd" * 32,
    base="base_20260130_120000_abcdef",
    components=("cluster", "other"),
    writer="another release",
    wal=WalStart("700", "00000001000000000000000A"),
)


def changed(**changes: Any) -> bytes:
    """The commit, unsigned, with other facts."""
    return json.dumps({**json.loads(COMMIT.encode()), **changes}).encode()


class TestCommit:
    def test_it_comes_back(self) -> None:
        """Signed and unsigned, with all that it may have and with the least."""
        least = replace(COMMIT, parent=None, parent_sha256=None, base=None, components=(), wal=None, recipients=())
        key = SigningKey(bytes(32))
        for commit in (COMMIT, least):
            assert Commit.decode(commit.encode(), STEM) == commit
            assert Commit.decode(commit.encode(key), STEM) == replace(commit, signer=key.signer)

    def test_what_is_stored(self) -> None:
        """Every fact has its name; what is not known of WAL is left out."""
        assert json.loads(COMMIT.encode()) == {
            "version": 1,
            "backup_id": STEM.backup_id,
            "directory": f"{STEM.backup_id}.2",
            "type": "base",
            "moment": "2026-02-01T12:00:00+00:00",
            "copied": "2026-02-01T13:00:00+00:00",
            "components": ["cluster", "other"],
            "parent": "base_20260131_120000_abcdef",
            "parent_sha256": "cd" * 32,
            "base": "base_20260130_120000_abcdef",
            "archive": {"size": 250, "sha256": DIGEST},
            "recipients": ["age1a", "age1b"],
            "segment_bytes": 100,
            "segments": [
                {"name": f"{STEM}/00000.age", "size": 110, "sha256": "1" * 64},
                {"name": f"{STEM}/00001.age", "size": 111, "sha256": "2" * 64},
                {"name": f"{STEM}/00002.age", "size": 62, "sha256": "3" * 64},
            ],
            "writer": "another release",
            "wal": {"cluster": "700", "first": "00000001000000000000000A"},
        }
        assert COMMIT.encode().endswith(b"\n}\n")
        assert "wal" not in json.loads(replace(COMMIT, wal=None).encode())

    def test_its_sizes(self) -> None:
        """The last segment has what is left of the archive."""
        assert [COMMIT.plain_size(number) for number in range(3)] == [100, 100, 50]
        assert COMMIT.stored_bytes == 283
        assert (COMMIT.is_encrypted, replace(COMMIT, recipients=()).is_encrypted) == (True, False)
        assert replace(COMMIT, recipients=()).segment_name(1) == f"{STEM}/00001.part"

    def test_times_are_of_utc(self) -> None:
        """Whatever zone they are written in."""
        found = Commit.decode(changed(copied="2026-02-01T15:00:00+02:00"), STEM)
        assert (found.copied, found.copied.tzinfo) == (COMMIT.copied, UTC)

    @pytest.mark.parametrize(
        "changes",
        [
            {"directory": STEM.backup_id},
            {"backup_id": "base_20260201_120000_abcdee"},
            {"archive": {"size": 0, "sha256": DIGEST}},
            {"archive": {"size": 250.0, "sha256": DIGEST}},
            {"archive": {"size": True, "sha256": DIGEST}},
            {"archive": {"size": 250, "sha256": DIGEST.upper()}},
            {"archive": {"size": 250, "sha256": f"{DIGEST}0"}},
            {"archive": {"size": 250, "sha256": 5}},
            {"archive": {"size": 300, "sha256": DIGEST, "segment_bytes": 0}, "segment_bytes": 0},
            {"archive": {"size": 301, "sha256": DIGEST}},
            {"archive": {"size": 200, "sha256": DIGEST}},
            {"segments": []},
            {"segments": [{"size": 0, "sha256": DIGEST}] * 3},
            {"segments": [{"size": 1, "sha256": "x"}] * 3},
            {"segment_bytes": MOST_SEGMENT + 1, "archive": {"size": 2 * MOST_SEGMENT + 3, "sha256": DIGEST}},
            {"parent": "../elsewhere"},
            {"parent": 5},
            {"base": "elsewhere"},
            {"parent_sha256": "x"},
            {"wal": {"cluster": "7x", "first": "00000001000000000000000A"}},
            {"wal": {"cluster": "700", "first": "00000001000000000000000a"}},
            {"wal": {"cluster": "700", "first": "00000001000000000000000A0"}},
            {"wal": {"cluster": "700"}},
            {"wal": 5},
            {"copied": "yesterday"},
            {"copied": "0001-01-01T00:00:00+23:00"},
            {"recipients": 5},
            {"signature": "00", "signer": 5},
            {"signature": "00"},
        ],
    )
    def test_what_it_may_not_say(self, changes: dict[str, Any]) -> None:
        """Whatever is amiss, it is no commit, and another copy is advised."""
        with pytest.raises(NotIntactError, match=rf"^the commit {STEM.commit} is invalid\n") as caught:
            Commit.decode(changed(**changes), STEM)
        assert caught.value.hint == "Take another copy; list the copies."

    @pytest.mark.parametrize("data", [b"", b"[]", b"5", b"{", b"[" * 100_000, b"\xff"])
    def test_what_is_no_commit_at_all(self, data: bytes) -> None:
        """Other content, or nothing."""
        with pytest.raises(NotIntactError, match="is invalid"):
            Commit.decode(data, STEM)

    def test_segments_of_the_largest_size(self) -> None:
        """One GiB is allowed."""
        archive = {"size": 2 * MOST_SEGMENT + 1, "sha256": DIGEST}
        assert Commit.decode(changed(segment_bytes=MOST_SEGMENT, archive=archive), STEM).plain_size(2) == 1

    def test_a_later_format(self) -> None:
        """Only the release that wrote it can read it, and the message says so."""
        with pytest.raises(NotIntactError, match=rf"^the commit {STEM.commit} has format version 2\n") as caught:
            Commit.decode(changed(version=2), STEM)
        assert "the release that wrote it" in caught.value.hint

    def test_a_wrong_signature(self) -> None:
        """It is told apart from what is no commit."""
        facts = json.loads(COMMIT.encode(SigningKey(bytes(32))))
        with pytest.raises(NotIntactError, match=rf"^the signature of the commit {STEM.commit} is wrong\n") as caught:
            Commit.decode(json.dumps({**facts, "writer": "x"}).encode(), STEM)
        assert caught.value.hint.startswith("It was changed.")

    def test_as_it_is_listed(self) -> None:
        """A copy as JSON."""
        assert listed(replace(COMMIT, signer="ef"), "file:///disk") == {
            "destination": "file:///disk",
            "backup_id": STEM.backup_id,
            "copy": f"{STEM.backup_id}.2",
            "type": "base",
            "timestamp": "2026-02-01T12:00:00Z",
            "copied": "2026-02-01T13:00:00Z",
            "size_bytes": 250,
            "stored_bytes": 283,
            "segments": 3,
            "checksum": DIGEST,
            "parent": "base_20260131_120000_abcdef",
            "base": "base_20260130_120000_abcdef",
            "encrypted": True,
            "recipients": ["age1a", "age1b"],
            "signer": "ef",
        }


class TestNames:
    def test_of_a_copy(self) -> None:
        """The first copy has the archive's name, and each further one a number."""
        first = Stem(STEM.backup_id)
        assert (str(first), str(STEM)) == (STEM.backup_id, f"{STEM.backup_id}.2")
        assert (STEM.directory, STEM.commit) == (f"{STEM}/", f"{STEM}.json")
        assert STEM.segment(7, encrypted=False) == f"{STEM}/00007.part"

    @pytest.mark.parametrize(("text", "generation"), [("", 0), (".1", 1), (".99999", 99_999)])
    def test_are_understood(self, text: str, generation: int) -> None:
        """With and without a number."""
        assert parse_stem(f"{STEM.backup_id}{text}") == Stem(STEM.backup_id, generation)
        assert stem_of_commit(f"{STEM.backup_id}{text}.json") == Stem(STEM.backup_id, generation)

    @pytest.mark.parametrize("text", [".0", ".01", ".100000", ".x", ".1.1", ".", " "])
    def test_of_others(self, text: str) -> None:
        """What we would not write is not ours."""
        assert parse_stem(f"{STEM.backup_id}{text}") is None

    def test_of_other_objects(self) -> None:
        """Only the commit itself has the name of one."""
        assert stem_of_commit(STEM.backup_id) is None
        assert stem_of_commit(f"{STEM.backup_id}.json.json") is None
        assert stem_of_commit("other.json") is None

    @pytest.mark.parametrize(
        ("rate", "size"),
        [(0, 64 << 20), (1, 1 << 20), (1 << 18, 1 << 20), (1 << 20, 4 << 20), (1 << 24, 64 << 20), (1 << 25, 64 << 20)],
    )
    def test_segments_for_a_rate(self, rate: int, size: int) -> None:
        """Four seconds of it, with a least and a most; without a limit the most."""
        assert segment_bytes_for(rate, 1000) == size

    @pytest.mark.parametrize("size", [1, 50 << 30, 500_000_000_000, 10 << 40, 40 << 40])
    @pytest.mark.parametrize("rate", [0, 1, 1_000_000])
    def test_segments_of_a_large_archive(self, rate: int, size: int) -> None:
        """However slow the line is, the commit can be read back, and the names of segments have five digits."""
        each = segment_bytes_for(rate, size)
        count = -(-size // each)
        last = STEM.segment(count - 1, encrypted=True)
        assert last.startswith(f"{STEM}/{count - 1:05d}.")
        assert len(last) == len(STEM.segment(0, encrypted=True))
        segments = (Segment(each + 100_000, "b" * 64),) * count
        commit = replace(COMMIT, archive_size=size, segment_bytes=each, segments=segments)
        assert len(commit.encode()) <= MOST_BYTES


class TestRecord:
    RECORD: Final = CopyRecord.of(COMMIT)

    def test_it_comes_back(self) -> None:
        """A line of the record has what the status needs."""
        assert CopyRecord(
            stem=STEM, copied=COMMIT.copied, archive_sha256=DIGEST, stored_bytes=283, recipients=("age1a", "age1b")
        ) == CopyRecord.decode(self.RECORD.encode())
        assert json.loads(self.RECORD.encode()) == {
            "version": 1,
            "stem": str(STEM),
            "copied": "2026-02-01T13:00:00+00:00",
            "archive_sha256": DIGEST,
            "stored_bytes": 283,
            "recipients": ["age1a", "age1b"],
        }
        assert self.RECORD.encode().endswith(b"}\n")

    @pytest.mark.parametrize(
        "changes", [{"version": 2}, {"stem": "other"}, {"stem": 5}, {"copied": "x"}, {"stored_bytes": float("inf")}]
    )
    def test_lines_that_make_no_sense(self, changes: dict[str, Any]) -> None:
        """Those of a later format, and damaged ones, are passed over."""
        assert CopyRecord.decode(json.dumps({**json.loads(self.RECORD.encode()), **changes}).encode()) is None

    @pytest.mark.parametrize("line", [b"{}", b"5", b"{", b"[" * 100_000])
    def test_lines_that_are_no_record(self, line: bytes) -> None:
        """A crash or a person has left them."""
        assert CopyRecord.decode(line) is None
