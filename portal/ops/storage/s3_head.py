"""Asks S3 for the SHA-256 that it stores with an object, the one request that `obstore` does not offer.

The request is signed with AWS Signature Version 4: a canonical request, a string to sign, and a key derived from date,
region and service.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import http.client
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote, urlsplit

from portal.ops.errors import StoreUnreachableError
from portal.ops.storage.connection import open_connection
from portal.ops.storage.credentials import Credentials, find_credentials, region_of
from portal.ops.storage.s3_region import bucket_address

if TYPE_CHECKING:
    from collections.abc import Mapping

    from portal.ops.settings.destination import Destination

_NOTHING: Final = sha256(b"").hexdigest()
_SECONDS: Final = 30
_ALGORITHM: Final = "AWS4-HMAC-SHA256"


class Kept(NamedTuple):
    """The metadata that a store keeps about an object.

    Arguments:
        sha256: the digest computed when the object was written; None if the store keeps none.
        locked_until: when the lock against removal ends.
        is_absent: whether the object does not exist.
    """

    sha256: str | None
    locked_until: datetime | None
    is_absent: bool = False


class S3Head:
    """Sends requests for one bucket over one connection that stays open.

    Arguments:
        endpoint: scheme and host, such as ``https://s3.eu-central-1.amazonaws.com``.
        path: the prefix of object names, with a slash at the end.
    """

    def __init__(self, endpoint: str, path: str, region: str, credentials: Credentials) -> None:
        parts = urlsplit(endpoint)
        self._host = parts.netloc
        self._endpoint = f"{parts.scheme}://{parts.netloc}"
        self._path = parts.path.rstrip("/") + path
        self._region = region
        self._credentials = credentials
        self._connection: http.client.HTTPConnection | None = None

    @classmethod
    def of(cls, destination: Destination, environ: Mapping[str, str]) -> S3Head | None:
        """For a destination, or None if only its cloud knows the credentials."""
        if (credentials := find_credentials(environ)) is None:
            return None
        region = region_of(destination, environ)
        endpoint, bucket = bucket_address(destination, region)
        prefix = f"/{destination.prefix}/" if destination.prefix else "/"
        return cls(endpoint, f"{bucket}{prefix}", region, credentials)

    def look(self, name: str) -> Kept:
        """Query the metadata of an object.

        Raises:
            StoreUnreachableError: the store does not answer.
        """
        path = quote(self._path + name, safe="/-_.~")
        try:
            answer = self._request(path)
        except (OSError, http.client.HTTPException) as error:
            raise StoreUnreachableError(
                f"{self._host} does not answer: {str(error) or type(error).__name__}",
                hint="Look at the network and at the store itself.",
            ) from error
        if answer.status != 200:
            return Kept(sha256=None, locked_until=None, is_absent=answer.status == http.client.NOT_FOUND)
        return Kept(sha256=_digest(answer), locked_until=_lock(answer))

    def _request(self, path: str) -> http.client.HTTPResponse:
        """Send one HEAD; repeat it over a new connection if the store has closed the old one."""
        for is_again in (False, True):
            connection = self._connection or self._connect()
            try:
                connection.request("HEAD", path, headers=self._signed(path))
                answer = connection.getresponse()
                answer.read()
                self._connection = connection
                return answer
            except (OSError, http.client.HTTPException):
                connection.close()
                self._connection = None
                if is_again:
                    raise
        raise AssertionError("unreachable")

    def _connect(self) -> http.client.HTTPConnection:
        return open_connection(self._endpoint, _SECONDS)

    def _signed(self, path: str) -> dict[str, str]:
        """The headers of a HEAD request for `path`, with the signature."""
        now = datetime.now(UTC)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        headers = {
            "host": self._host,
            "x-amz-checksum-mode": "ENABLED",
            "x-amz-content-sha256": _NOTHING,
            "x-amz-date": stamp,
        }
        if self._credentials.session_token:
            headers["x-amz-security-token"] = self._credentials.session_token
        names = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        canonical = "\n".join(("HEAD", path, "", lines, names, _NOTHING))
        scope = f"{day}/{self._region}/s3/aws4_request"
        to_sign = "\n".join((_ALGORITHM, stamp, scope, sha256(canonical.encode()).hexdigest()))
        key = f"AWS4{self._credentials.secret_key}".encode()
        for part in (day, self._region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.new(key, to_sign.encode(), "sha256").hexdigest()
        access = self._credentials.access_key
        headers["authorization"] = (
            f"{_ALGORITHM} Credential={access}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        return headers


def _digest(answer: http.client.HTTPResponse) -> str | None:
    if answer.getheader("x-amz-checksum-type", "FULL_OBJECT") != "FULL_OBJECT":
        return None  # of a multipart upload: a digest of digests
    try:
        digest = base64.b64decode(answer.getheader("x-amz-checksum-sha256", ""), validate=True)
    except binascii.Error:
        return None
    return digest.hex() if len(digest) == sha256().digest_size else None


def _lock(answer: http.client.HTTPResponse) -> datetime | None:
    try:
        return datetime.fromisoformat(answer.getheader("x-amz-object-lock-retain-until-date", ""))
    except ValueError:
        return None
