"""One suite that every store passes: S3, Azure, SFTP, a directory, and one whose connections break."""

from __future__ import annotations

import os
from hashlib import sha256
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from portal.ops.errors import (
    NotIntactError,
    ObjectAbsentError,
    ObjectExistsError,
    StoreDeniedError,
    StoreUnreachableError,
)
from portal.ops.settings.database_url import Secret
from portal.ops.settings.destination import parse_destination
from portal.ops.storage.backend import read_all
from portal.ops.storage.directory import DirectoryBackend
from portal.ops.storage.open import open_backend
from tests.support.azurite import CONTAINER, sas_token
from tests.support.stores import BUCKET, HOST, PASSWORD, SftpServer, Unsteady

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from demo.object_store import EmbeddedObjectStore
    from portal.ops.storage.backend import Backend

CONTENT = os.urandom(3_000_001)


def put(backend: Backend, name: str, data: bytes = CONTENT) -> None:
    backend.put(name, memoryview(data), sha256(data).hexdigest())


@pytest.fixture(params=["s3", "azure", "sftp", "directory", "unsteady"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """Each of the stores; the unsteady one holds out for this suite."""
    if request.param in ("s3", "azure"):
        url = request.getfixturevalue("bucket_url" if request.param == "s3" else "azure_url")
        opened = open_backend(parse_destination(url), os.environ)
        yield opened
        opened.close()
    elif request.param == "sftp":
        with SftpServer(tmp_path) as server:
            opened = open_backend(parse_destination(server.url), {}, password=Secret(PASSWORD))
            yield opened
            opened.close()
    else:
        (tmp_path / "disk").mkdir()
        real = open_backend(parse_destination(f"file://{tmp_path}/disk"), {})
        yield real if request.param == "directory" else Unsteady(real, lambda _: False)


class TestEveryStore:
    def test_gives_back_what_it_took(self, backend: Backend) -> None:
        """An object is read byte for byte as it was written."""
        put(backend, "a/00000.age")
        assert b"".join(backend.read("a/00000.age")) == CONTENT

    @pytest.mark.parametrize(("start", "length"), [(0, 1), (65_536, 1_500_000), (3_000_000, 1), (2_999_990, 500)])
    def test_gives_a_part(self, backend: Backend, start: int, length: int) -> None:
        """Any part of an object can be read without the rest; past its end there is nothing."""
        put(backend, "a/00000.age")
        assert b"".join(backend.read("a/00000.age", start, length)) == CONTENT[start : start + length]

    def test_never_overwrites(self, backend: Backend) -> None:
        """Whoever writes a name again is refused, and the first object stays."""
        put(backend, "a.json", b"first")
        with pytest.raises(ObjectExistsError):
            put(backend, "a.json", b"second")
        assert read_all(backend, "a.json", 100) == b"first"

    def test_lists_by_name(self, backend: Backend) -> None:
        """Objects are listed with their sizes, in the order of their names, below a prefix alone where it is given."""
        for name in ("b/1.age", "a/2.age", "a/1.age", "a.json"):
            put(backend, name, name.encode())
        assert [(one.name, one.size) for one in backend.list("")] == [
            ("a.json", 6),
            ("a/1.age", 7),
            ("a/2.age", 7),
            ("b/1.age", 7),
        ]
        assert [one.name for one in backend.list("a/")] == ["a/1.age", "a/2.age"]
        assert [one.name for one in backend.list_top()] == ["a.json"]

    def test_hides_what_is_being_written(self, backend: Backend, tmp_path: Path) -> None:
        """The file of a killed writer is no object; where a store has such files, they are listed, and can be removed.

        Files that others have hidden there are not ours.
        """
        put(backend, "a/1.age", b"x")
        directory = next((path.parent for path in tmp_path.rglob("1.age")), None)
        killed = f".2.age.{123:09}.tmp"
        if directory is not None:
            (directory / ".snapshot").mkdir()
            for name in (killed, ".DS_Store", ".tmp", f".snapshot/{killed}"):
                (directory / name).write_bytes(b"half")
        assert [one.name for one in backend.list("")] == ["a/1.age"]
        assert [(one.name, one.size) for one in backend.unfinished()] == ([(f"a/{killed}", 4)] if directory else [])
        backend.delete(f"a/{killed}")
        assert list(backend.unfinished()) == []

    def test_is_empty_at_first(self, backend: Backend) -> None:
        """A place that nothing was written to lists nothing."""
        assert list(backend.list("")) == list(backend.list("none/")) == list(backend.list_top()) == []

    def test_knows_digests(self, backend: Backend) -> None:
        """The digest of an object is known, with its size and a moment in a time zone."""
        put(backend, "a/00000.age")
        found = backend.head("a/00000.age")
        assert (found.size, found.sha256) == (len(CONTENT), sha256(CONTENT).hexdigest())
        assert found.modified.tzinfo is not None

    def test_tells_what_is_absent(self, backend: Backend) -> None:
        """An object that is not there is an error of its own."""
        for look in (lambda: backend.head("none"), lambda: list(backend.read("none"))):
            with pytest.raises(ObjectAbsentError):
                look()

    def test_deletes(self, backend: Backend) -> None:
        """What is deleted is gone and can be written again; deleting what is not there does no harm."""
        put(backend, "a/1.age", b"x")
        for _ in range(2):
            backend.delete("a/1.age")
        assert list(backend.list("")) == []
        put(backend, "a/1.age", b"y")

    def test_refuses_what_is_too_large(self, backend: Backend) -> None:
        """A small object is not read on where it turns out to be large."""
        put(backend, "a.json")
        with pytest.raises(NotIntactError):
            read_all(backend, "a.json", 1000)


class TestAzure:
    def test_reads_back_for_a_digest(self, azure_url: str) -> None:
        """Azure keeps no SHA-256, so the bytes are read, and nobody is told otherwise."""
        backend = open_backend(parse_destination(azure_url), os.environ)
        put(backend, "a/00000.age")
        assert not backend.head("a/00000.age").is_own_digest

    def test_needs_no_more_than_is_documented(self, azure_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A token that can read, create and list is enough for copies; it removes nothing."""
        monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
        backend = open_backend(parse_destination(azure_url), {"AZURE_STORAGE_SAS_TOKEN": sas_token("rcl")})
        put(backend, "a/1.age", b"x")
        assert [one.name for one in backend.list("")] == ["a/1.age"]
        with pytest.raises(ObjectExistsError):
            put(backend, "a/1.age", b"y")
        with pytest.raises(StoreDeniedError):
            backend.delete("a/1.age")
        assert read_all(backend, "a/1.age", 10) == b"x"

    @pytest.mark.parametrize("key", ["d3Jvbmc=", "no base64!"])
    def test_refuses_a_wrong_key(self, azure_url: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its fault is told from one of the store, and it is not repeated."""
        monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
        with pytest.raises(StoreDeniedError, match="refused the request") as caught:
            put(open_backend(parse_destination(azure_url), {"AZURE_STORAGE_ACCOUNT_KEY": key}), "a.json", b"x")
        assert key not in str(caught.value)

    def test_container_that_does_not_exist(self, azure_url: str) -> None:
        """It is not created, and Azure's own word for it is used."""
        backend = open_backend(parse_destination(azure_url.replace(f"az://{CONTAINER}", "az://absent")), os.environ)
        with pytest.raises(StoreDeniedError, match="there is no container absent"):
            put(backend, "a.json", b"x")


class TestGoogle:
    @pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), ("{}", "missing field")])
    def test_credentials_that_cannot_be_read(self, tmp_path: Path, content: str | None, reason: str) -> None:
        """The variable that names them is the thing to look at, not the store."""
        path = tmp_path / "account.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(StoreDeniedError, match=reason) as caught:
            open_backend(parse_destination("gs://bucket/portal"), {"GOOGLE_APPLICATION_CREDENTIALS": str(path)})
        assert "GOOGLE_APPLICATION_CREDENTIALS" in caught.value.hint


class TestS3:
    def test_keeps_digests_of_its_own(self, bucket_url: str) -> None:
        """The digest comes from the server, which has computed it; nothing is downloaded for it."""
        backend = open_backend(parse_destination(bucket_url), os.environ)
        put(backend, "a/00000.age")
        assert backend.head("a/00000.age").is_own_digest

    def test_refuses_a_wrong_secret(self, bucket_url: str) -> None:
        """Wrong credentials are told from a store that does not answer."""
        environ = {"AWS_ACCESS_KEY_ID": "administrator", "AWS_SECRET_ACCESS_KEY": "wrong"}
        backend = open_backend(parse_destination(bucket_url), environ)
        with pytest.raises(StoreDeniedError) as caught:
            put(backend, "a.json", b"x")
        assert "wrong" not in str(caught.value).replace("credentials are wrong", "")

    def test_stays_out_of_other_buckets(self, object_store: EmbeddedObjectStore) -> None:
        """What the credentials do not permit is told as such."""
        backend = open_backend(parse_destination(object_store.url("other")), HOST.environ())
        with pytest.raises(StoreDeniedError):
            put(backend, "a.json", b"x")

    def test_takes_credentials_from_files(self, bucket_url: str, tmp_path: Path) -> None:
        """Keys can be in files that variables name, as secrets of containers are."""
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            (tmp_path / name).write_text(os.environ[name] + "\n")
        environ = {f"{name}_FILE": str(tmp_path / name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        backend = open_backend(parse_destination(bucket_url), environ)
        put(backend, "a.json", b"x")
        assert backend.head("a.json").is_own_digest

    def test_nobody_listens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A store that cannot be reached is one to try again."""
        monkeypatch.setattr("portal.ops.storage.object_store._RETRIES", 0)
        url = f"s3://{BUCKET}/x?endpoint=http://127.0.0.1:9"
        backend = open_backend(parse_destination(url), {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"})
        with pytest.raises(StoreUnreachableError) as caught:
            put(backend, "a.json", b"x")
        assert caught.value.retryable


class TestSftp:
    def test_refuses_a_wrong_password(self, tmp_path: Path) -> None:
        """A password that the server does not take is told as such, and not shown."""
        with SftpServer(tmp_path) as server:
            backend = open_backend(parse_destination(server.url), {}, password=Secret("hunter22"))
            with pytest.raises(StoreDeniedError) as caught:
                put(backend, "a.json", b"x")
            backend.close()
        assert "hunter22" not in str(caught.value)

    def test_refuses_an_unknown_server(self, tmp_path: Path) -> None:
        """A server whose key is not known gets nothing."""
        with SftpServer(tmp_path) as server:
            (tmp_path / "known_hosts").write_text("")
            backend = open_backend(parse_destination(server.url), {}, password=Secret(PASSWORD))
            with pytest.raises(StoreDeniedError, match="known hosts"):
                put(backend, "a.json", b"x")
            backend.close()

    def test_nobody_listens(self, tmp_path: Path) -> None:
        """A server that is away is one to try again; so is one that goes away, and it works once it is back."""
        with SftpServer(tmp_path) as server:
            url = server.url
        backend = open_backend(parse_destination(url), {}, password=Secret(PASSWORD))
        with pytest.raises(StoreUnreachableError):
            put(backend, "a.json", b"x")
        backend.close()


class TestDirectory:
    def test_share_that_is_not_mounted(self, tmp_path: Path) -> None:
        """A directory that is not there is never made: the disk that it stands for is not mounted."""
        backend = DirectoryBackend(tmp_path / "share")
        for work in (lambda: put(backend, "a.json", b"x"), lambda: list(backend.list_top())):
            with pytest.raises(StoreUnreachableError, match="is not there"):
                work()
        assert not (tmp_path / "share").exists()

    def test_leaves_nothing_of_what_failed(self, tmp_path: Path) -> None:
        """What cannot be stored whole leaves neither an object nor a temporary file."""
        backend = DirectoryBackend(tmp_path)
        put(backend, "a.json", b"first")
        with pytest.raises(ObjectExistsError):
            put(backend, "a.json", b"second")
        assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("ftp://host/x", "starts with none of"),
        ("s3://key:secret@bucket/x", "credentials in it"),
        ("sftp://user:secret@host/x", "credentials in it"),
        ("s3://", "without a bucket"),
        ("s3://bucket/x?regoin=a", "unknown option 'regoin'"),
        ("s3://bucket/a/../b", "prefix other than"),
        ("file://host/x", "three slashes"),
        ("file:///", "without an absolute path"),
        ("s3://bucket?lock=forever", "lock=forever"),
    ],
)
def test_urls_that_cannot_be_used(url: str, fault: str) -> None:
    """A destination that is invalid is refused with the reason, and without what may be a secret."""
    with pytest.raises(ValueError, match=fault) as caught:
        parse_destination(url)
    assert "secret@" not in str(caught.value)


def test_destinations_have_steady_names() -> None:
    """A destination's identifier is the same as long as the place is, whatever its other options say."""
    one, same, other = (
        parse_destination(f"s3://bucket/prefix?endpoint={endpoint}{more}").identifier
        for endpoint, more in (("http://a", ""), ("http://a", "&region=x"), ("http://b", ""))
    )
    assert one == same != other
    assert uuid4().hex not in one
