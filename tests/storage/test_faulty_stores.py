"""Stores that are full, slow, silent or lying: every operation ends in time, and says which store and what to do."""

from __future__ import annotations

import errno
import gc
import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from portal.ops.errors import StorageError, StoreDeniedError, StoreFullError, StoreUnreachableError
from portal.ops.settings.database_url import Secret
from portal.ops.settings.destination import parse_destination
from portal.ops.storage import directory
from portal.ops.storage.directory import DirectoryBackend
from portal.ops.storage.object_store import _put_seconds
from portal.ops.storage.open import open_backend
from portal.ops.storage.versions import VersionedBackend, bucket_protection
from tests.support.fake_s3 import REFUSALS, FakeS3, Manner, Refusal
from tests.support.stores import PASSWORD, SftpServer
from tests.support.waiting import LONG_SECONDS, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from portal.ops.storage.backend import Backend

CONTENT = b"content" * 1000
NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}

OPERATIONS: dict[str, Callable[[Backend], object]] = {
    "put": lambda backend: put(backend),
    "read": lambda backend: b"".join(backend.read("a/00000.age")),
    "list": lambda backend: list(backend.list("")),
    "list_top": lambda backend: list(backend.list_top()),
    "head": lambda backend: backend.head("a/00000.age"),
    "delete": lambda backend: backend.delete("a/00000.age"),
}


def put(backend: Backend, data: bytes = CONTENT) -> None:
    backend.put("a/00000.age", memoryview(data), sha256(data).hexdigest())


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second attempts; an answer may take its time."""
    monkeypatch.setattr("portal.ops.storage.object_store._RETRIES", 0)


@pytest.fixture
def impatient(once: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Time limits of a second for stores that do not answer at all, and no second attempts."""
    for name, value in {"_READ_SECONDS": 1, "_ANSWER_SECONDS": 1, "_SLOWEST": 1 << 40}.items():
        monkeypatch.setattr(f"portal.ops.storage.object_store.{name}", value)
    monkeypatch.setattr("portal.ops.storage.s3_head._SECONDS", 1)
    monkeypatch.setattr("portal.ops.storage.sftp._STEP_SECONDS", 0.5)
    yield
    gc.collect()  # connections that were given up are finalized here, and not while Python 3.11 compiles a module


class TestS3:
    @pytest.mark.parametrize("what", OPERATIONS)
    def test_a_silent_store(self, impatient: None, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
        """A store that takes requests and never answers ends every operation in time, to be tried again."""
        for name in ("_READ_SECONDS", "_ANSWER_SECONDS"):
            monkeypatch.setattr(f"portal.ops.storage.object_store.{name}", 0.3)
        with FakeS3(Manner.SILENT) as server:
            backend = open_backend(parse_destination(server.url), KEYS)
            started = time.monotonic()
            with pytest.raises(StoreUnreachableError) as caught:
                OPERATIONS[what](backend)
        assert time.monotonic() - started < LONG_SECONDS
        assert caught.value.retryable
        assert "s3://backup/x" in caught.value.message
        assert caught.value.hint

    def test_a_store_that_takes_nothing(self, impatient: None) -> None:
        """An upload whose bytes nobody takes ends in time."""
        with FakeS3(Manner.DEAF) as server:
            backend = open_backend(parse_destination(server.url), KEYS)
            with pytest.raises(StoreUnreachableError, match="does not answer"):
                put(backend, bytes(20 << 20))

    def test_a_full_store(self, once: None) -> None:
        """A store without space says so, and what to do."""
        with FakeS3(Manner.FULL) as server:
            backend = open_backend(parse_destination(server.url), KEYS)
            with pytest.raises(StoreFullError, match="s3://backup/x has no space left") as caught:
                put(backend)
        assert "Make room" in caught.value.hint

    @pytest.mark.parametrize("manner", [Manner.KEEPS_NOTHING, Manner.KEEPS_OTHER_BYTES])
    def test_a_lying_store(self, once: None, manner: Manner) -> None:
        """Success for an object that is not there, or has another digest, is noticed at once."""
        with FakeS3(manner) as server:
            backend = open_backend(parse_destination(server.url), KEYS)
            with pytest.raises(StorageError, match="differs from the data sent"):
                put(backend)

    @pytest.mark.parametrize("what", sorted({*OPERATIONS} - {"head"}))
    @pytest.mark.parametrize(
        ("refusal", "kind", "message", "hint"),
        [
            ("expired", StoreDeniedError, "the credentials have expired", "Set new ones"),
            ("skewed", StoreDeniedError, "clocks of this machine and of the store differ", "NTP"),
            ("cold", StoreDeniedError, "storage class for archives", "Restore it in the bucket"),
            ("moved", StorageError, "the bucket backup is in the region eu-central-1", "Set region=eu-central-1"),
            (
                "other region",
                StorageError,
                "the bucket backup is in the region eu-central-1",
                "Set region=eu-central-1",
            ),
            ("no locks", StorageError, "was created without object lock", "unset BACKUP_OFFSITE_LOCK"),
            ("other", StorageError, "cannot be used: InvalidStorageClass: The storage", "Look at the store"),
            ("throttled", StoreUnreachableError, "s3://backup/x asks for fewer requests", "Try again later"),
        ],
    )
    def test_an_answer_with_one_cause(
        self, once: None, what: str, refusal: str, kind: type[StorageError], message: str, hint: str
    ) -> None:
        """The cause is named, with what to do; only a store that throttles is worth another attempt."""
        with FakeS3(Manner.KEEPS_NOTHING, REFUSALS[refusal]) as server:
            backend = open_backend(parse_destination(server.url), KEYS)
            with pytest.raises(kind, match=message) as caught:
                OPERATIONS[what](backend)
        assert hint in caught.value.hint
        assert caught.value.retryable == (refusal == "throttled")
        assert len(caught.value.message) < 200

    @pytest.mark.parametrize("refusal", ["expired", "skewed", "cold", "moved", "other region", "other"])
    def test_a_head_tells_what_a_read_would(self, once: None, refusal: str) -> None:
        """The cause is named although the answer to a HEAD has none."""
        said = []
        with FakeS3(Manner.KEEPS_NOTHING, REFUSALS[refusal]) as server:
            backend = open_backend(parse_destination(server.url), KEYS)
            for what in ("read", "head"):
                with pytest.raises(StorageError) as caught:
                    OPERATIONS[what](backend)
                said.append(str(caught.value))
        assert said[0] == said[1]

    @pytest.mark.parametrize("what", [*OPERATIONS, "versions", "protection"])
    @pytest.mark.parametrize("status", [301, 307, 308])
    @pytest.mark.parametrize("has_reason", [True, False])
    def test_a_store_that_refers_to_another_host(self, once: None, what: str, status: int, has_reason: bool) -> None:
        """Region and endpoint are named, though the other host refuses requests that are signed for the first one."""
        with FakeS3(Manner.KEEPS_NOTHING, REFUSALS["denied"]) as other:
            there = f"http://127.0.0.1:{other.server_port}"
            headers = (("Location", f"{there}/backup"), ("x-amz-bucket-region", "eu-central-1"))
            referral = Refusal(status, "TemporaryRedirect" if has_reason else "", "Please re-send", headers)
            with FakeS3(Manner.KEEPS_NOTHING, referral) as first:
                backend = open_backend(parse_destination(first.url), KEYS)
                with pytest.raises(StorageError) as caught:
                    if what == "versions":
                        list(VersionedBackend(parse_destination(first.url), KEYS, NOON).list(""))
                    elif what == "protection":
                        bucket_protection(parse_destination(first.url), KEYS)
                    else:
                        OPERATIONS[what](backend)
        assert caught.value.message == f"the bucket backup is in the region eu-central-1, at {there}"
        assert caught.value.hint == f"Set region=eu-central-1 and endpoint={there} in BACKUP_OFFSITE_URLS."

    def test_a_refusal_by_the_right_store(self, once: None) -> None:
        """Credentials that do not suffice are no other region."""
        refusal = replace(REFUSALS["denied"], headers=(("x-amz-bucket-region", "us-east-1"),))
        with FakeS3(Manner.KEEPS_NOTHING, refusal) as server:
            backend = open_backend(parse_destination(server.url), KEYS)
            with pytest.raises(StoreDeniedError, match="refused the request: the credentials are wrong"):
                backend.head("a/00000.age")

    def test_a_store_that_throttles_for_a_moment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The request is repeated, with pauses that grow."""
        monkeypatch.setattr("portal.ops.storage.object_store._FIRST_PAUSE", timedelta(milliseconds=200))
        with FakeS3(Manner.KEEPS_NOTHING, REFUSALS["throttled"], times=3) as server:
            backend = open_backend(parse_destination(server.url), KEYS)
            started = time.monotonic()
            assert list(backend.list_top()) == []
        assert server.requests == 4
        assert time.monotonic() - started > 0.6

    def test_time_follows_from_size(self) -> None:
        """A small object may take minutes at most; a segment what it needs at 40 kB a second."""
        assert _put_seconds(1000) < 100
        assert (64 << 20) / 40_000 < _put_seconds(64 << 20) < 1800


class TestSftp:
    @pytest.mark.parametrize(
        ("hangs_at", "what"),
        [
            ("write", "put"),
            ("rename", "put"),
            ("read", "read"),
            ("stat", "list"),
            ("stat", "head"),
            ("remove", "delete"),
        ],
    )
    def test_a_server_that_hangs(self, impatient: None, tmp_path: Path, hangs_at: str, what: str) -> None:
        """A server that keeps the connection and never answers one request ends the operation in time."""
        with SftpServer(tmp_path, hangs_at=hangs_at) as server:
            (server.root / "a").mkdir()
            if what != "put":
                (server.root / "a" / "00000.age").write_bytes(CONTENT)
            backend = open_backend(parse_destination(server.url), {}, password=Secret(PASSWORD))
            started = time.monotonic()
            with pytest.raises(StoreUnreachableError, match="no answer within") as caught:
                OPERATIONS[what](backend)
            assert time.monotonic() - started < LONG_SECONDS
            backend.close()
        assert caught.value.retryable
        assert caught.value.hint

    def test_a_server_without_sftp(self, tmp_path: Path) -> None:
        """It is an error that says so, and leaves no connection open, however often it is tried."""
        with SftpServer(tmp_path, has_sftp=False) as server:
            backend = open_backend(parse_destination(server.url), {}, password=Secret(PASSWORD))
            for _ in range(3):
                with pytest.raises(StorageError, match="cannot be used: Session refused"):
                    list(backend.list(""))
            wait_until(lambda: server.connections == 0)
            backend.close()


class TestDirectory:
    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A full disk is told as such, with the directory; nothing of the object is left."""

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(StoreFullError, match=f"file://{tmp_path} is full"):
            put(DirectoryBackend(tmp_path))
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []

    def test_a_share_that_keeps_less(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A share that reports success and keeps fewer bytes is noticed at once."""
        write = directory._write
        monkeypatch.setattr(directory, "_write", lambda path, data: write(path, bytes(data)[:-1]))
        with pytest.raises(StorageError, match="although 7000 were written"):
            put(DirectoryBackend(tmp_path))
