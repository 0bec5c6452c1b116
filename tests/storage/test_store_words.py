"""What becomes of the errors of each store, and with which options each library is asked."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import obstore.store
import pytest
from obstore import exceptions

from portal.ops.errors import (
    ConfigurationError,
    NotIntactError,
    ObjectAbsentError,
    ObjectExistsError,
    StorageError,
    StoreDeniedError,
    StoreFullError,
    StoreUnreachableError,
)
from portal.ops.settings.destination import parse_destination
from portal.ops.storage import directory, object_store
from portal.ops.storage.backend import read_all
from portal.ops.storage.directory import DirectoryBackend
from portal.ops.storage.object_store import ObjectStoreBackend, _put_seconds
from portal.ops.storage.open import open_backend
from portal.ops.storage.sftp import SftpBackend

if TYPE_CHECKING:
    from pathlib import Path

KEYS: Final = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
S3: Final = "s3://bucket/x?endpoint=http://127.0.0.1:9"


@pytest.fixture
def bucket() -> ObjectStoreBackend:
    """A bucket that nobody asks."""
    return ObjectStoreBackend(parse_destination(S3), KEYS)


class TestObjectStore:
    @pytest.mark.parametrize(
        ("error", "kind", "message"),
        [
            (exceptions.AlreadyExistsError("x"), ObjectExistsError, "s3://bucket/x/a is there already"),
            (exceptions.PreconditionError("x"), ObjectExistsError, "s3://bucket/x/a is there already"),
            (FileNotFoundError("NoSuchBucket"), StoreDeniedError, "there is no bucket bucket"),
            (FileNotFoundError("x"), ObjectAbsentError, "there is no s3://bucket/x/a"),
            (
                ValueError("ExpiredToken"),
                StoreDeniedError,
                "s3://bucket/x/a refused the request: the credentials have expired",
            ),
            (
                ValueError("TokenRefreshRequired"),
                StoreDeniedError,
                "s3://bucket/x/a refused the request: the credentials have expired",
            ),
            (
                ValueError("TemporaryRedirect"),
                StorageError,
                "the bucket bucket is in another region, or at another endpoint",
            ),
            (
                ValueError("BareRedirect expecting 'eu-1'"),
                StorageError,
                "the bucket bucket is in the region eu-1, or at another endpoint",
            ),
            (
                exceptions.PermissionDeniedError("x"),
                StoreDeniedError,
                "s3://bucket/x/a refused the request: the credentials are wrong or do not permit it",
            ),
            (
                exceptions.UnauthenticatedError("x"),
                StoreDeniedError,
                "s3://bucket/x/a refused the request: the credentials are wrong or do not permit it",
            ),
            *(
                (
                    ValueError(said),
                    StoreDeniedError,
                    "s3://bucket/x/a refused the request: the credentials are wrong or do not permit it",
                )
                for said in (
                    "403 Forbidden",
                    "(code: 403)",
                    "AccessDenied",
                    "401 Unauthorized",
                    "SignatureDoesNotMatch",
                )
            ),
            *(
                (
                    ValueError(f"AccessDenied {said}"),
                    StoreDeniedError,
                    "s3://bucket/x/a refused the request: it is locked, or the credentials are wrong or do not permit "
                    "it",
                )
                for said in ("ObjectLocked", "WORM", "object lock", "ObjectUnderRetention", "retention")
            ),
            *(
                (ValueError(said), StoreFullError, "s3://bucket/x has no space left")
                for said in ("507 x", "InsufficientStorage", "QuotaExceeded", "EntityTooLarge", "No space")
            ),
            *(
                (ValueError(f"{said}\nmore"), StoreUnreachableError, f"s3://bucket/x does not answer: {said}")
                for said in (
                    "error sending request",
                    "timed out",
                    "Connect",
                    "connection",
                    "status code: 5",
                    "Server error",
                )
            ),
            (ValueError(" odd\nmore"), StorageError, "s3://bucket/x/a cannot be used: odd"),
            (ValueError("y" * 400), StorageError, f"s3://bucket/x/a cannot be used: {'y' * 300}"),
            (
                ValueError("..<Code>Odd</Code>\n <Message>It is odd</Message>.."),
                StorageError,
                "s3://bucket/x/a cannot be used: Odd: It is odd",
            ),
        ],
    )
    def test_errors(self, bucket: ObjectStoreBackend, error: Exception, kind: type[StorageError], message: str) -> None:
        """Each answer has its class, says what is wrong, and what to do."""
        found = bucket._explain(error, "a")
        assert (type(found), found.message) == (kind, message)
        assert found.hint
        with pytest.raises(kind), bucket._explained("a"):
            raise error

    def test_errors_of_the_whole_bucket(self, bucket: ObjectStoreBackend) -> None:
        """No object is named; a container has its own word."""
        assert bucket._explain(ValueError("odd"), "").message == "s3://bucket/x cannot be used: odd"
        azure = ObjectStoreBackend(
            parse_destination("az://container/x?account=a"), {"AZURE_STORAGE_ACCOUNT_KEY": "d3Jvbmc="}
        )
        found = azure._explain(FileNotFoundError("ContainerNotFound"), "")
        assert found.message == "there is no container container"

    def test_the_store_is_locked_for_s3_only(self) -> None:
        """Others have no locks for single objects."""
        azure = parse_destination("az://container/x?account=a")
        with pytest.raises(ConfigurationError, match=r"^az://container/x knows no lock for single objects"):
            ObjectStoreBackend(azure, {}, lock_days=1)
        for url in ("file:///disk", "sftp://host/disk"):
            with pytest.raises(ConfigurationError, match="cannot lock new objects"):
                open_backend(parse_destination(url), {}, lock_days=1)

    @pytest.mark.parametrize(
        ("size", "seconds"),
        [
            (0, 60 + (1 << 20) // 40_000),
            (1 << 20, 60 + (1 << 20) // 40_000),
            ((1 << 20) + 1, 60 + (8 << 20) // 40_000),
            (64 << 20, 60 + (64 << 20) // 40_000),
            (1 << 31, 60 + (1 << 31) // 40_000),
        ],
    )
    def test_time_limits(self, size: int, seconds: int) -> None:
        """There is one for each class of sizes."""
        assert _put_seconds(size) == seconds


class TestOptions:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
        """The bucket and the options of each client that is made."""
        made: list[tuple[str, dict[str, Any]]] = []

        def client(place: str, **options: Any) -> object:
            made.append((place, options))
            return object()

        for kind in ("S3Store", "GCSStore", "AzureStore"):
            monkeypatch.setattr(obstore.store, kind, client)
        return made

    def test_of_s3(self, asked: list[tuple[str, dict[str, Any]]]) -> None:
        """Keys, region, endpoint, and limits for reading and writing."""
        url = f"{S3}&region=eu-1&storage_class=IA&lock=compliance"
        backend = ObjectStoreBackend(
            parse_destination(url),
            {**KEYS, "AWS_SESSION_TOKEN": "t"},
            lock_days=1,
            clock=lambda: datetime(2026, 1, 1, tzinfo=UTC),
        )
        for size in (5, 1 << 20, 5):
            backend._writer(size)
        assert backend._attributes == {"Storage-Class": "IA"}
        (place, reading), (_, writing) = asked
        assert place == "bucket"
        client = reading.pop("client_options")
        retry = reading.pop("retry_config")
        assert reading == {
            "prefix": "x",
            "checksum_algorithm": "SHA256",
            "region": "eu-1",
            "endpoint": "http://127.0.0.1:9",
            "virtual_hosted_style_request": False,
            "access_key_id": "a",
            "secret_access_key": "b",
            "session_token": "t",
        }
        assert client == {
            "connect_timeout": timedelta(seconds=10),
            "timeout": timedelta(seconds=_put_seconds(64 << 20)),
            "allow_http": True,
            "user_agent": "kekkai-backup",
            "read_timeout": timedelta(seconds=60),
        }
        assert retry == {
            "max_retries": 4,
            "retry_timeout": timedelta(seconds=60),
            "backoff": {"init_backoff": timedelta(seconds=0.5), "max_backoff": timedelta(seconds=15), "base": 3},
        }
        assert "read_timeout" not in writing["client_options"]
        assert writing["client_options"]["timeout"] == timedelta(seconds=_put_seconds(5))
        assert writing["client_options"]["default_headers"] == {
            "x-amz-sdk-checksum-algorithm": "SHA256",
            "x-amz-object-lock-mode": "COMPLIANCE",
            "x-amz-object-lock-retain-until-date": "2026-01-02T01:00:00Z",
        }

    def test_of_s3_without_anything(self, asked: list[tuple[str, dict[str, Any]]]) -> None:
        """On a machine with a role; the bucket's name can be in the host's."""
        ObjectStoreBackend(parse_destination("s3://bucket"), {"HOME": "/nonexistent"})
        ObjectStoreBackend(parse_destination("s3://bucket?endpoint=https://b.host&addressing=host"), KEYS)
        (_, bare), (_, host) = asked
        assert {name: bare[name] for name in bare if not name.endswith(("_options", "_config"))} == {
            "prefix": None,
            "checksum_algorithm": "SHA256",
            "region": "us-east-1",
        }
        assert host["virtual_hosted_style_request"] is True
        assert (bare["client_options"]["allow_http"], host["client_options"]["allow_http"]) == (False, False)

    def test_of_google(self, asked: list[tuple[str, dict[str, Any]]]) -> None:
        """Its own variable, and no headers of S3."""
        path = {"GOOGLE_APPLICATION_CREDENTIALS": "/key.json"}
        backend = ObjectStoreBackend(parse_destination("gs://bucket/x"), path)
        backend._writer(5)
        ObjectStoreBackend(parse_destination("gs://bucket"), {})
        (place, given), (_, writing), (_, bare) = asked
        assert (place, given["prefix"], given["application_credentials"]) == ("bucket", "x", "/key.json")
        assert "default_headers" not in writing["client_options"]
        assert ("application_credentials" in bare, bare["prefix"]) == (False, None)
        assert backend._head is None

    def test_of_azure(self, asked: list[tuple[str, dict[str, Any]]]) -> None:
        """Each variable has its option; what the URL says counts."""
        names = ("ACCOUNT_NAME", "ACCOUNT_KEY", "SAS_TOKEN")
        environ = {f"AZURE_STORAGE_{name}": name.lower() for name in names}
        environ |= {f"AZURE_{name}": name.lower() for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET")}
        ObjectStoreBackend(parse_destination("az://container"), environ)
        ObjectStoreBackend(parse_destination("az://container/x?account=other&endpoint=http://e"), environ)
        (_, first), (_, second) = asked
        assert {name: first[name] for name in first if not name.endswith(("_options", "_config"))} == {
            "prefix": None,
            "account_name": "account_name",
            "account_key": "account_key",
            "sas_key": "sas_token",
            "tenant_id": "tenant_id",
            "client_id": "client_id",
            "client_secret": "client_secret",
        }
        assert (second["account_name"], second["endpoint"], second["prefix"]) == ("other", "http://e", "x")

    def test_a_range(self, bucket: ObjectStoreBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        """All, the rest, or a part is asked for; nothing of nothing."""
        asked: list[Any] = []

        def get(_store: object, name: str, *, options: Any) -> Any:
            asked.append((name, options))
            return SimpleNamespace(stream=lambda size: iter([b"a" * (size >> 20), b"b"]))

        monkeypatch.setattr(obstore, "get", get)
        assert list(bucket.read("n")) == [b"a", b"b"]
        assert list(bucket.read("n", 5)) == [b"a", b"b"]
        assert list(bucket.read("n", 5, 3)) == [b"a", b"b"]
        assert list(bucket.read("n", 0, 3)) == [b"a", b"b"]
        assert list(bucket.read("n", 5, 0)) == []
        assert asked == [
            ("n", None),
            ("n", {"range": {"offset": 5}}),
            ("n", {"range": (5, 8)}),
            ("n", {"range": (0, 3)}),
        ]

    def test_an_upload_that_is_refused_because_it_is_there(
        self, bucket: ObjectStoreBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where credentials may only create, that is the answer to a name that is taken; else it stays a refusal."""

        def refused(*_: object, **__: object) -> None:
            raise exceptions.PermissionDeniedError("x")

        monkeypatch.setattr(obstore, "put", refused)
        monkeypatch.setattr(obstore, "head", lambda *_: {})
        with pytest.raises(ObjectExistsError, match=r"^s3://bucket/x/a is there already") as caught:
            bucket.put("a", b"", "")
        assert caught.value.hint == "Nothing is overwritten off-site."
        monkeypatch.setattr(obstore, "head", refused)
        with pytest.raises(StoreDeniedError):
            bucket.put("a", b"", "")


class TestDirectory:
    @pytest.mark.parametrize(
        ("code", "kind", "message"),
        [
            (errno.ENOSPC, StoreFullError, "file://{} is full"),
            (errno.EDQUOT, StoreFullError, "file://{} is full"),
            (errno.ENOENT, ObjectAbsentError, "there is no file://{}/a"),
            (errno.ENOTDIR, ObjectAbsentError, "there is no file://{}/a"),
            (errno.EACCES, StoreDeniedError, "file://{}/a may not be used: permission denied"),
            (errno.EPERM, StoreDeniedError, "file://{}/a may not be used: operation not permitted"),
            (errno.EROFS, StoreDeniedError, "file://{}/a may not be used: read-only file system"),
            (errno.EIO, StoreUnreachableError, "file://{}/a does not answer: input/output error"),
            (errno.ESTALE, StoreUnreachableError, "file://{}/a does not answer: stale file handle"),
            (errno.ENOTCONN, StoreUnreachableError, "file://{}/a does not answer: transport endpoint is not connected"),
            (errno.EINVAL, StorageError, "file://{}/a cannot be used: invalid argument"),
            (errno.EFBIG, StorageError, "file://{}/a cannot be used: file too large"),
        ],
    )
    def test_errors(self, tmp_path: Path, code: int, kind: type[StorageError], message: str) -> None:
        """Each has its class, says what is wrong, and what to do."""
        backend = DirectoryBackend(tmp_path)
        with pytest.raises(StorageError) as caught, backend._explained("a"):
            raise OSError(code, os.strerror(code))
        assert (type(caught.value), caught.value.message) == (kind, message.format(tmp_path))
        assert caught.value.hint

    def test_errors_of_the_whole_directory(self, tmp_path: Path) -> None:
        """Nothing that could be absent was named, so the directory is."""
        found = DirectoryBackend(tmp_path)._explain(FileNotFoundError(errno.ENOENT, "x"), "")
        assert (type(found), found.message) == (StoreUnreachableError, f"the directory {tmp_path} is not there")
        odd = DirectoryBackend(tmp_path)._explain(OSError(errno.EINVAL, "Odd"), "")
        assert odd.message == f"file://{tmp_path} cannot be used: odd"

    @pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
    def test_file_systems_without_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        """The file is renamed; a name that is taken stays so."""

        def refused(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("portal.ops.storage.directory.os.link", refused)
        for name in ("one", "other"):
            (tmp_path / name).write_text(name)
        directory._publish(tmp_path / "one", tmp_path / "final")
        with pytest.raises(FileExistsError):
            directory._publish(tmp_path / "other", tmp_path / "final")
        assert (tmp_path / "final").read_text() == "one"
        assert not (tmp_path / "one").exists()

    def test_an_error_of_a_link(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another one is told, and nothing is left."""

        def fails(*_: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr("portal.ops.storage.directory.os.link", fails)
        with pytest.raises(StoreUnreachableError):
            DirectoryBackend(tmp_path).put("a/b", b"x", "")
        assert list((tmp_path / "a").iterdir()) == []

    def test_rights_and_empty_directories(self, tmp_path: Path) -> None:
        """Only the owner reads; a directory goes with its last object, and the destination stays."""
        backend = DirectoryBackend(tmp_path)
        for name in ("a/b/one", "a/two"):
            backend.put(name, memoryview(b"xyz"), "")
        assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_dir()} == {0o700}
        assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {0o600}
        assert b"".join(backend.read("a/two", 1)) == b"yz"
        assert list(backend.read("a/two", 1, 0)) == []
        backend.delete("a/b/one")
        assert [path.name for path in tmp_path.rglob("*")] == ["a", "two"]
        backend.delete("a/two")
        assert list(tmp_path.iterdir()) == []

    def test_what_the_share_cannot_sync(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that cannot be synced is not stored; a directory that cannot be is no fault."""
        sync = os.fsync

        def fails(descriptor: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{descriptor}"):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            sync(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr("portal.ops.storage.directory.os.fsync", fails)
            DirectoryBackend(tmp_path).put("a", b"x", "")
        before = len(os.listdir("/proc/self/fd"))
        directory.sync_directory(tmp_path)
        assert len(os.listdir("/proc/self/fd")) == before
        assert (tmp_path / "a").read_bytes() == b"x"

    def test_small_objects(self, tmp_path: Path) -> None:
        """Up to the very size that is allowed."""
        backend = DirectoryBackend(tmp_path)
        backend.put("a", b"12345", "")
        assert read_all(backend, "a", 5) == b"12345"
        with pytest.raises(
            NotIntactError, match=f"^file://{tmp_path}/a is larger than 4 bytes, so it is none of ours\n"
        ):
            read_all(backend, "a", 4)


def test_kinds_of_stores() -> None:
    """Each scheme has its own."""
    assert isinstance(open_backend(parse_destination("file:///disk"), {}), DirectoryBackend)
    assert isinstance(open_backend(parse_destination(S3), KEYS), object_store.ObjectStoreBackend)
    sftp = open_backend(parse_destination("sftp://host/disk"), {})
    assert isinstance(sftp, SftpBackend)
    sftp.close()
