"""Archives on their way: received in pieces, read in parts, sent at a rate."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pyrage
import pytest

from portal.ops.errors import (
    IdentityError,
    NotIntactError,
    StoreUnreachableError,
)
from portal.ops.offsite import sending
from portal.ops.offsite.commit import Segment
from portal.ops.offsite.reading import RemoteFile
from portal.ops.offsite.receiving import blame, receive
from portal.ops.storage.age_keys import read_identities
from tests.support.put_copies import ID, Put
from tests.support.stores import Unsteady

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.storage.age_keys import Identity

CHUNK: Final = 65_536


class Sink:
    """Takes an archive, and notes up to where it is whole."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.settled: list[int] = []

    def patch(self, offset: int, data: bytes) -> None:
        """Write a piece."""
        self.content[len(self.content) :] = bytes(max(0, offset + len(data) - len(self.content)))
        self.content[offset : offset + len(data)] = data

    def settle(self, end: int) -> None:
        """Note an end."""
        self.settled.append(end)


class TestReceiving:
    @pytest.fixture(params=["plain", "sealed"])
    def world(self, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Put, tuple[Identity, ...]]:
        """A store, and what opens it."""
        (tmp_path / "disk").mkdir()
        if request.param == "plain":
            return Put(tmp_path / "disk"), ()
        key = pyrage.x25519.Identity.generate()
        (tmp_path / "key").write_text(str(key))
        return Put(tmp_path / "disk", str(key.to_public())), read_identities(tmp_path / "key")

    def test_it_comes_whole(self, world: tuple[Put, tuple[Identity, ...]]) -> None:
        """In pieces, which are told, and without a gap up to where it is settled."""
        put, identities = world
        content, sink, told = os.urandom(250_000), Sink(), list[int]()
        receive(put.backend, put.copy(content, 100_000), identities, sink, told.append)
        assert bytes(sink.content) == content
        assert sum(told) == sink.settled[-1] == len(content)
        assert sink.settled == sorted(sink.settled)

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            (None, "it is missing"),
            (lambda data: data + b"x", "it has more bytes than it should"),
            (lambda data: data[:-1], "it has fewer bytes than it should"),
        ],
    )
    def test_a_segment_of_another_size(self, world: tuple[Put, tuple[Identity, ...]], change: Any, what: str) -> None:
        """It is named, with its store."""
        put, identities = world
        commit = put.copy(os.urandom(250), 100)
        path = put.directory / commit.segment_name(1)
        put.change(commit, 1, change(path.read_bytes()) if change else None)
        with pytest.raises(NotIntactError) as caught:
            receive(put.backend, commit, identities, Sink(), lambda _: None)
        name = f"the off-site segment {commit.segment_name(1)} in file://{put.directory} is damaged: "
        assert caught.value.message == name + what
        assert caught.value.hint.startswith("Take another copy")

    @pytest.mark.parametrize("size", [99, 101])
    def test_a_segment_of_another_archive(self, world: tuple[Put, tuple[Identity, ...]], size: int) -> None:
        """It has as many bytes as it should, and holds more or fewer of an archive."""
        put, identities = world
        commit = put.copy(os.urandom(250), 100)
        piece = put._sealed(os.urandom(size))
        put.change(commit, 1, piece)
        segments = (commit.segments[0], Segment(len(piece), ""), commit.segments[2])
        with pytest.raises(NotIntactError, match=f"{commit.segment_name(1)} .* it holds another part of an archive"):
            receive(put.backend, replace(commit, segments=segments), identities, Sink(), lambda _: None)

    def test_whose_fault_it_is(self, world: tuple[Put, tuple[Identity, ...]]) -> None:
        """The segment with another digest, or nobody's."""
        put, _ = world
        commit = put.copy(os.urandom(250), 100)
        assert blame(put.backend, commit).message == (
            f"the copy of {ID} in file://{put.directory} does not give the archive that its commit describes"
        )
        put.change(commit, 2, b"x")
        assert blame(put.backend, commit).message == (
            f"the off-site segment {commit.segment_name(2)} in file://{put.directory} is damaged: its SHA-256 is "
            "not the one of the commit"
        )

    def test_errors_of_the_store_and_of_the_disk(self, world: tuple[Put, tuple[Identity, ...]]) -> None:
        """They are raised as they are."""
        put, identities = world
        commit = put.copy(os.urandom(250), 100)
        away = Unsteady(put.backend, lambda what: what == "read")
        with pytest.raises(StoreUnreachableError):
            receive(away, commit, identities, Sink(), lambda _: None)

        class Full(Sink):
            def patch(self, offset: int, data: bytes) -> None:
                raise OSError(28, "full")

        with pytest.raises(OSError, match="full"):
            receive(put.backend, commit, identities, Full(), lambda _: None)

    def test_parts_are_read(self, world: tuple[Put, tuple[Identity, ...]]) -> None:
        """From any place, over the ends of chunks and segments; what is near has come already."""
        put, identities = world
        content = os.urandom(5 * CHUNK)
        commit = put.copy(content, 3 * CHUNK + 5)
        file = RemoteFile(put.backend, commit, identities)
        assert (file.size, file.name, file.received) == (len(content), ID, 0)
        for offset, length in ((0, 1), (CHUNK - 1, 2), (3 * CHUNK, 10), (4 * CHUNK, CHUNK), (len(content) - 3, 9)):
            assert file.read_at(length, offset) == content[offset : offset + length]
        received = file.received
        assert file.read_at(len(content), 0) == content
        assert file.received == received
        assert file.read_at(5, len(content)) == b""
        file.close()
        assert file.read_at(5, 0) == content[:5]
        assert file.received > received

    def test_parts_of_a_damaged_copy(self, world: tuple[Put, tuple[Identity, ...]]) -> None:
        """What was cut or exchanged is not given out."""
        put, identities = world
        content = os.urandom(1000)
        commit = put.copy(content, 400)
        put.change(commit, 1, (put.directory / commit.segment_name(1)).read_bytes()[:-100])
        file = RemoteFile(put.backend, commit, identities)
        assert file.read_at(400, 0) == content[:400]
        for data in (None, b""):
            if data is not None:
                put.change(commit, 1, data)
            with pytest.raises(NotIntactError, match="cut short" if not identities else "is damaged"):
                RemoteFile(put.backend, commit, identities).read_at(400, 400)


class TestReadingSealed:
    def test_another_part(self, tmp_path: Path) -> None:
        """A segment that holds more than it should is told with its name; so is one whose header does not end."""
        key = pyrage.x25519.Identity.generate()
        (tmp_path / "key").write_text(str(key))
        (tmp_path / "disk").mkdir()
        put, identities = Put(tmp_path / "disk", str(key.to_public())), read_identities(tmp_path / "key")
        commit = put.copy(bytes(100), 100)
        piece = put._sealed(bytes(101))
        put.change(commit, 0, piece)
        other = replace(commit, segments=(Segment(len(piece), ""),))
        with pytest.raises(NotIntactError, match=f"^the off-site segment {ID}/00000.age is damaged: it holds another"):
            RemoteFile(put.backend, other, identities).read_at(1, 0)
        put.change(commit, 0, b"age-encryption.org/v1\n" + bytes(1 << 17))
        with pytest.raises(NotIntactError):
            RemoteFile(put.backend, commit, identities).read_at(1, 0)
        put.change(commit, 0, b"age-encryption.org/v1\n" + bytes(100))
        with pytest.raises(NotIntactError, match="its header does not end") as caught:
            RemoteFile(put.backend, commit, identities).read_at(1, 0)
        assert "offsite list" in caught.value.hint
        wrong = pyrage.x25519.Identity.generate()
        (tmp_path / "key").write_text(str(wrong))
        fresh = put.copy(bytes(100), 100, f"{ID[:-1]}e")
        with pytest.raises(IdentityError):
            RemoteFile(put.backend, fresh, read_identities(tmp_path / "key")).read_at(1, 0)

    def test_no_more_chunks_are_kept_than_are_needed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The oldest go."""
        monkeypatch.setattr("portal.ops.offsite.reading._KEPT_CHUNKS", 2)
        monkeypatch.setattr("portal.ops.offsite.reading._AHEAD_CHUNKS", 1)
        put = Put(tmp_path)
        content = os.urandom(4 * CHUNK)
        file = RemoteFile(put.backend, put.copy(content, 4 * CHUNK), ())
        assert file.read_at(len(content), 0) == content
        received = file.received
        assert len(file._chunks) == 2
        assert file.read_at(1, 3 * CHUNK) == content[3 * CHUNK : 3 * CHUNK + 1]
        assert file.received == received
        assert file.read_at(1, 0) == content[:1]
        assert file.received == received + CHUNK


class TestPace:
    def test_a_rate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was sent is waited for; signals are noticed every second. Without a rate nobody waits."""
        now, slept = [100.0], list[float]()

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            now[0] += seconds

        monkeypatch.setattr("portal.ops.offsite.sending.time.monotonic", lambda: now[0])
        monkeypatch.setattr("portal.ops.offsite.sending.time.sleep", sleep)
        sending._Pace(0).sent(1 << 40)
        assert slept == []
        pace = sending._Pace(100)
        pace.sent(250)
        assert slept == [1.0, 1.0, 0.5]
        now[0] += 5
        pace.sent(400)
        assert slept[3:] == []
        pace.sent(200)
        assert slept[3:] == [1.0]
