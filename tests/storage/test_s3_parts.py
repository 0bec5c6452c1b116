"""Requests for the digests that S3 keeps, and buckets as they were at a moment."""

from __future__ import annotations

import base64
import http.client
import re
from datetime import UTC, datetime
from hashlib import sha256
from types import SimpleNamespace
from typing import Any, Final

import pytest

from portal.ops.errors import (
    ConfigurationError,
    ObjectAbsentError,
    StorageError,
    StoreDeniedError,
    StoreUnreachableError,
)
from portal.ops.settings.destination import parse_destination
from portal.ops.storage import s3_head, versions
from portal.ops.storage.credentials import Credentials
from portal.ops.storage.s3_head import Kept, S3Head
from portal.ops.storage.versions import VersionedBackend, bucket_protection

PAIR: Final = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
NOON: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)


class Answer:
    """What a store answers to a HEAD."""

    def __init__(self, status: int = 200, **headers: str) -> None:
        self.status = status
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def getheader(self, name: str, default: str = "") -> str:
        """A header."""
        return self._headers.get(name, default)

    def read(self) -> bytes:
        """No body."""
        return b""


class Connection:
    """Notes requests, and answers or breaks as it is told."""

    def __init__(self, answers: list[Answer | Exception]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.closed = 0

    def request(self, method: str, path: str, headers: dict[str, str]) -> None:
        """Note a request."""
        self.asked.append((method, path, headers))

    def getresponse(self) -> Answer:
        """The next answer."""
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Note it."""
        self.closed += 1


def asking(head: S3Head, monkeypatch: pytest.MonkeyPatch, *answers: Answer | Exception) -> Connection:
    connection = Connection(list(answers))
    monkeypatch.setattr(head, "_connect", lambda: connection)
    return connection


DIGEST: Final = base64.b64encode(bytes(range(32))).decode()


class TestS3Head:
    HEAD: Final = Credentials(access_key="AKID", secret_key="secret", session_token="")

    @pytest.mark.parametrize(
        ("answer", "kept"),
        [
            (
                Answer(x_amz_checksum_sha256=DIGEST, x_amz_object_lock_retain_until_date="2026-12-01T00:00:00Z"),
                Kept(sha256=bytes(range(32)).hex(), locked_until=datetime(2026, 12, 1, tzinfo=UTC)),
            ),
            (Answer(x_amz_checksum_sha256=DIGEST, x_amz_checksum_type="COMPOSITE"), Kept(None, None)),
            (
                Answer(x_amz_checksum_sha256=DIGEST, x_amz_checksum_type="FULL_OBJECT"),
                Kept(bytes(range(32)).hex(), None),
            ),
            (Answer(x_amz_checksum_sha256=f"{DIGEST}-2"), Kept(None, None)),
            (Answer(x_amz_checksum_sha256="AAAA"), Kept(None, None)),
            (Answer(x_amz_object_lock_retain_until_date="soon"), Kept(None, None)),
            (Answer(404), Kept(None, None, is_absent=True)),
            (Answer(403, x_amz_checksum_sha256=DIGEST), Kept(None, None)),
        ],
    )
    def test_answers(self, monkeypatch: pytest.MonkeyPatch, answer: Answer, kept: Kept) -> None:
        """Digest and lock, where they make sense."""
        head = S3Head("https://host", "/bucket/", "eu-1", self.HEAD)
        asking(head, monkeypatch, answer)
        assert head.look("a") == kept

    @pytest.mark.parametrize(
        ("url", "path"),
        [
            ("s3://b/x?endpoint=http://h:9/up/", "/up/b/x/a%20b~"),
            ("s3://b?endpoint=https://h:9", "/b/a%20b~"),
            ("s3://b/x?endpoint=https://b.h:9&addressing=host", "/x/a%20b~"),
        ],
    )
    def test_paths(self, monkeypatch: pytest.MonkeyPatch, url: str, path: str) -> None:
        """With the bucket in front, unless it is in the host's name."""
        head = S3Head.of(parse_destination(url), PAIR)
        assert head
        connection = asking(head, monkeypatch, Answer())
        head.look("a b~")
        assert [asked[:2] for asked in connection.asked] == [("HEAD", path)]

    def test_amazons_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the region; over TLS. Without keys nothing is asked."""
        destination = parse_destination("s3://b/x?region=eu-1")
        head = S3Head.of(destination, PAIR)
        assert head
        assert head._host == "s3.eu-1.amazonaws.com"
        assert isinstance(head._connect(), http.client.HTTPSConnection)
        plain = S3Head("http://h", "/", "r", self.HEAD)._connect()
        assert not isinstance(plain, http.client.HTTPSConnection)
        assert plain.timeout == 30
        assert S3Head.of(destination, {"HOME": "/nonexistent"}) is None
        connection = asking(head, monkeypatch, Answer())
        head.look("a")
        assert connection.asked[0][1] == "/b/x/a"

    def test_a_connection_is_kept_and_made_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Once; a store that is away is told with its host."""
        head = S3Head("https://host", "/b/", "eu-1", self.HEAD)
        connection = asking(head, monkeypatch, Answer(), ConnectionResetError("reset"), Answer(404))
        assert [head.look("a"), head.look("b")] == [Kept(None, None), Kept(None, None, is_absent=True)]
        assert (connection.closed, len(connection.asked)) == (1, 3)
        asking(head, monkeypatch, OSError("first"))
        head._connection = None
        connection = asking(head, monkeypatch, http.client.BadStatusLine("x"), OSError())
        with pytest.raises(StoreUnreachableError) as caught:
            head.look("a")
        assert caught.value.message == "host does not answer: OSError"
        assert (connection.closed, head._connection) == (2, None)

    def test_the_signature(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As Amazon's rules give it; computed once by hand with their steps."""

        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime(2026, 11, 29, 12, 34, 56, tzinfo=tz)

        monkeypatch.setattr(s3_head, "datetime", Clock)
        credentials = Credentials(access_key="AKID", secret_key="secret", session_token="token")
        head = S3Head("https://host:9", "/b/", "eu-1", credentials)
        headers = head._signed("/b/a")
        assert headers["x-amz-date"] == "20261129T123456Z"
        assert headers["x-amz-security-token"] == "token"
        assert headers["x-amz-checksum-mode"] == "ENABLED"
        assert headers["host"] == "host:9"
        assert headers["authorization"] == expected_signature(headers)
        bare = S3Head("https://host:9", "/b/", "eu-1", self.HEAD)._signed("/b/a")
        assert "x-amz-security-token" not in bare


def expected_signature(headers: dict[str, str]) -> str:
    """The header of Signature Version 4 for a HEAD of /b/a, by botocore, which is another's work."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials as Theirs

    names = [name for name in sorted(headers) if name != "authorization"]
    auth = S3SigV4Auth(Theirs("AKID", "secret", "token"), "s3", "eu-1")
    request = AWSRequest("HEAD", "https://host:9/b/a", headers={name: headers[name] for name in names})
    request.context["timestamp"] = headers["x-amz-date"]
    canonical = "\n".join(
        (
            "HEAD",
            "/b/a",
            "",
            "".join(f"{name}:{headers[name]}\n" for name in names),
            ";".join(names),
            sha256(b"").hexdigest(),
        )
    )
    signature = auth.signature(auth.string_to_sign(request, canonical), request)
    return f"AWS4-HMAC-SHA256 Credential={auth.scope(request)}, SignedHeaders={';'.join(names)}, Signature={signature}"


class Client:
    """A bucket's versions, as `boto3` gives them."""

    def __init__(self, pages: list[dict[str, Any]], error: Exception | None = None) -> None:
        self._pages = pages
        self._error = error
        self.asked: list[dict[str, Any]] = []
        self.is_closed = False

    def get_paginator(self, what: str) -> Any:
        """Itself."""
        assert what == "list_object_versions"
        return self

    def paginate(self, **given: Any) -> list[dict[str, Any]]:
        """Every page."""
        self.asked.append(given)
        if self._error:
            raise self._error
        return self._pages

    def get_object(self, **given: Any) -> dict[str, Any]:
        """A piece for each MiB that is asked for at once."""
        self.asked.append(given)
        return {"Body": SimpleNamespace(iter_chunks=lambda size: iter([b"x" * (size >> 20)]))}

    def close(self) -> None:
        """Note it."""
        self.is_closed = True


def version(key: str, number: int, day: int, size: int = 10) -> dict[str, Any]:
    return {"Key": key, "VersionId": f"v{number}", "Size": size, "LastModified": datetime(2026, 11, day, tzinfo=UTC)}


class TestVersions:
    PAGES: Final = [
        {"Versions": [version("x/b/1", 1, 1), version("x/a", 3, 30), version("x/a", 2, 29), version("x/a", 1, 1)]},
        {},
        {"Versions": [version("x/b/1", 2, 29, 20), version("x/late", 1, 30)]},
    ]

    def at(self, monkeypatch: pytest.MonkeyPatch, client: Client) -> VersionedBackend:
        """The bucket at the 29th."""
        monkeypatch.setattr(versions, "client_of", lambda *_: client)
        return VersionedBackend(
            parse_destination("s3://bucket/x?endpoint=http://127.0.0.1:9"), {}, datetime(2026, 11, 29, tzinfo=UTC)
        )

    def test_what_was_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The last version of each object up to the moment; all are listed once."""
        client = Client(self.PAGES)
        backend = self.at(monkeypatch, client)
        assert [(one.name, one.size) for one in backend.list("")] == [("a", 10), ("b/1", 20)]
        assert [one.name for one in backend.list("b/")] == ["b/1"]
        assert [one.name for one in backend.list_top()] == ["a"]
        assert client.asked == [{"Bucket": "bucket", "Prefix": "x/"}]
        with pytest.raises(ObjectAbsentError, match=r"^there was no s3://bucket/x/late at 2026-11-29 00:00\n"):
            list(backend.read("late"))
        backend.close()
        assert client.is_closed

    @pytest.mark.parametrize(
        ("start", "length", "asked"),
        [
            (0, None, {}),
            (5, None, {"Range": "bytes=5-"}),
            (0, 3, {"Range": "bytes=0-2"}),
            (5, 3, {"Range": "bytes=5-7"}),
            (5, 0, None),
            (10, 3, None),
        ],
    )
    def test_ranges(
        self, monkeypatch: pytest.MonkeyPatch, start: int, length: int | None, asked: dict[str, str] | None
    ) -> None:
        """Of the version at that time; nothing beyond its end."""
        client = Client(self.PAGES)
        backend = self.at(monkeypatch, client)
        assert list(backend.read("a", start, length)) == ([] if asked is None else [b"x"])
        expected = [] if asked is None else [{"Bucket": "bucket", "Key": "x/a", "VersionId": "v2", **asked}]
        assert client.asked[1:] == expected
        found = backend.head("a")
        assert (found.size, found.sha256, found.modified) == (
            10,
            sha256(b"x").hexdigest(),
            datetime(2026, 11, 29, tzinfo=UTC),
        )

    def test_the_past_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is written or removed there; and only S3 has one."""
        backend = self.at(monkeypatch, Client([]))
        with pytest.raises(StorageError, match="cannot be written in the past"):
            backend.put("a", b"", "")
        with pytest.raises(StorageError, match="cannot be removed from the past"):
            backend.delete("a")
        assert list(backend.unfinished()) == []
        with pytest.raises(ConfigurationError, match="has no versions to look back at"):
            VersionedBackend(parse_destination("file:///disk"), {}, NOON)

    @pytest.mark.parametrize(
        ("code", "kind", "message"),
        [
            ("NoSuchKey", ObjectAbsentError, "there is no s3://bucket/x"),
            ("404", ObjectAbsentError, "there is no s3://bucket/x"),
            (
                "AccessDenied",
                StoreDeniedError,
                "s3://bucket/x refused the request: the credentials are wrong or do not permit it",
            ),
            (
                "403",
                StoreDeniedError,
                "s3://bucket/x refused the request: the credentials are wrong or do not permit it",
            ),
            ("Odd", StorageError, "s3://bucket/x cannot be used: Odd"),
            (None, StoreUnreachableError, "s3://bucket/x does not answer: EndpointConnectionError"),
        ],
    )
    def test_errors(
        self, monkeypatch: pytest.MonkeyPatch, code: str | None, kind: type[StorageError], message: str
    ) -> None:
        """Each has its class, and says what is wrong."""
        from botocore.exceptions import ClientError, EndpointConnectionError

        error = (
            ClientError({"Error": {"Code": code}}, "ListObjectVersions")
            if code
            else EndpointConnectionError(endpoint_url="x")
        )
        backend = self.at(monkeypatch, Client([], error))
        with pytest.raises(StorageError) as caught:
            list(backend.list(""))
        assert (type(caught.value), caught.value.message) == (kind, message)
        assert caught.value.hint

    @pytest.mark.parametrize(
        ("versioning", "lock", "expected"),
        [
            (
                {"Status": "Enabled"},
                {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 30}}},
                (True, "compliance 30 days"),
            ),
            (
                {},
                {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Years": 2}}},
                (False, "governance 2 years"),
            ),
            ({"Status": "Suspended"}, {"ObjectLockEnabled": "Enabled"}, (False, "no default")),
            ({"Status": "Enabled"}, {"Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 2}}}, (True, "")),
        ],
    )
    def test_protection(
        self,
        monkeypatch: pytest.MonkeyPatch,
        versioning: dict[str, Any],
        lock: dict[str, Any],
        expected: tuple[bool, str],
    ) -> None:
        """Versioning, and the default lock in words."""
        closed: list[bool] = []
        client = SimpleNamespace(
            get_bucket_versioning=lambda **_: versioning,
            get_object_lock_configuration=lambda **_: {"ObjectLockConfiguration": lock},
            close=lambda: closed.append(True),
        )
        monkeypatch.setattr(versions, "client_of", lambda *_: client)
        assert bucket_protection(parse_destination("s3://bucket"), {}) == expected
        assert closed == [True]

    @pytest.mark.parametrize(
        ("code", "is_told"),
        [("ObjectLockConfigurationNotFoundError", True), ("NoSuchX", True), ("AccessDenied", False)],
    )
    def test_no_lock(self, monkeypatch: pytest.MonkeyPatch, code: str, is_told: bool) -> None:
        """A bucket without one is told from one that does not say."""
        from botocore.exceptions import ClientError

        def fails(**_: object) -> None:
            raise ClientError({"Error": {"Code": code}}, "GetObjectLockConfiguration")

        client = SimpleNamespace(
            get_bucket_versioning=lambda **_: {"Status": "Enabled"},
            get_object_lock_configuration=fails,
            close=lambda: None,
        )
        monkeypatch.setattr(versions, "client_of", lambda *_: client)
        if is_told:
            assert bucket_protection(parse_destination("s3://bucket"), {}) == (True, "")
        else:
            with pytest.raises(StoreDeniedError, match=r"^s3://bucket refused the request: the cred") as caught:
                bucket_protection(parse_destination("s3://bucket?endpoint=http://127.0.0.1:9"), {})
            assert "s3:GetBucketVersioning" in caught.value.hint

    @pytest.mark.parametrize(
        ("environ", "kind", "message"),
        [
            ({}, StoreDeniedError, "there are no credentials for s3://b$"),
            (PAIR, StoreUnreachableError, "s3://b does not answer: EndpointConnectionError$"),
        ],
    )
    def test_nobody_to_ask(
        self, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], kind: type[StorageError], message: str
    ) -> None:
        """Missing credentials and a store that does not answer are told apart, and not called a refusal."""
        for name in PAIR:
            monkeypatch.delenv(name, raising=False)
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            monkeypatch.setenv(name, "/nonexistent")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        destination = parse_destination("s3://b?endpoint=http://127.0.0.1:9")
        for ask in (
            lambda: bucket_protection(destination, environ),
            lambda: list(VersionedBackend(destination, environ, NOON).list("")),
        ):
            with pytest.raises(kind) as caught:
                ask()
            assert re.search(message, caught.value.message)

    @pytest.mark.parametrize(
        ("url", "style", "endpoint"),
        [
            ("s3://b?endpoint=http://h&region=r", "path", "http://h"),
            ("s3://b?endpoint=http://h&addressing=host&region=r", "virtual", "http://h"),
            ("s3://b?region=r", None, None),
        ],
    )
    def test_client(self, monkeypatch: pytest.MonkeyPatch, url: str, style: str | None, endpoint: str | None) -> None:
        """With keys, region and endpoint."""
        import boto3

        asked: list[tuple[Any, dict[str, Any]]] = []
        monkeypatch.setattr(boto3, "client", lambda *names, **given: asked.append((names, given)))
        for environ in (PAIR, {**PAIR, "AWS_SESSION_TOKEN": "t"}, {}):
            versions.client_of(parse_destination(url), environ)
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
        for (names, given), expected in zip(asked, (keys, {**keys, "aws_session_token": "t"}, {}), strict=True):
            config = given.pop("config")
            assert (names, given.pop("region_name"), given.pop("endpoint_url", None)) == (("s3",), "r", endpoint)
            assert given == expected
            assert (config.s3 or {}).get("addressing_style") == style
            assert config.retries["max_attempts"] == 4
