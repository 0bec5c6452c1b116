"""Reads an S3 bucket as it was at a moment, from its object versions, through `boto3`. For administrators.

A writer without permission to delete can still hide an object behind a delete marker, or write another version. If the
bucket has versioning, the older versions remain, and this module lists and reads them.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from hashlib import sha256 as new_digest
from typing import TYPE_CHECKING, Any, Final, NoReturn

from portal.ops.errors import (
    ConfigurationError,
    ObjectAbsentError,
    StorageError,
    StoreDeniedError,
    StoreUnreachableError,
)
from portal.ops.hints import Advice
from portal.ops.settings.destination import Destination, Scheme
from portal.ops.storage.backend import READ_BYTES, StoredObject
from portal.ops.storage.credentials import find_credentials, region_of
from portal.ops.storage.s3_region import find_place

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from botocore.exceptions import ClientError

    from portal.ops.storage.backend import Data

_DENIED: Final = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403", "Forbidden"})
_ABSENT: Final = frozenset({"NoSuchKey", "NoSuchVersion", "404", "NotFound"})


class VersionedBackend:
    """A bucket at a moment, read-only.

    Arguments:
        destination: the bucket and the prefix in it.
        environ: variables with an administrator's credentials.
        moment: the last version of each object at this time is seen; later delete markers are ignored.

    Raises:
        ConfigurationError: it is no S3 bucket, or `boto3` is not installed.
    """

    def __init__(self, destination: Destination, environ: Mapping[str, str], moment: datetime) -> None:
        if destination.scheme is not Scheme.S3:
            raise ConfigurationError(
                f"{destination.shown} has no versions to look back at", hint="Only s3:// destinations have."
            )
        self._destination = destination
        self._environ = environ
        self._moment = moment
        self._prefix = f"{destination.prefix}/" if destination.prefix else ""
        self._client = client_of(destination, environ)
        self._versions: dict[str, tuple[str, StoredObject]] | None = None

    @property
    def shown(self) -> str:
        """The URL without options."""
        return self._destination.shown

    def put(self, name: str, data: Data, sha256: str) -> NoReturn:
        """Refuse: past versions cannot be changed."""
        del data, sha256
        raise StorageError(f"{self.shown}/{name} cannot be written in the past", hint="Copy to the present.")

    def read(self, name: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read an object as it was; see `Backend.read`."""
        version, found = self._at(name)
        if length == 0 or start >= found.size:
            return
        end = "" if length is None else start + length - 1
        given: dict[str, Any] = {"Range": f"bytes={start}-{end}"} if start or length is not None else {}
        with self._explained(name):
            answer = self._client.get_object(
                Bucket=self._destination.place, Key=self._prefix + name, VersionId=version, **given
            )
            yield from answer["Body"].iter_chunks(READ_BYTES)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """The objects below a prefix at that time; see `Backend.list`."""
        return (found for name, (_, found) in sorted(self._all().items()) if name.startswith(prefix))

    def list_top(self) -> Iterator[StoredObject]:
        """The objects directly below the destination at that time; see `Backend.list_top`."""
        return (found for found in self.list("") if "/" not in found.name)

    def unfinished(self) -> Iterator[StoredObject]:
        """Nothing; see `Backend.unfinished`."""
        return iter(())

    def head(self, name: str) -> StoredObject:
        """An object at that time, with the digest of its content as read; see `Backend.head`."""
        digest = new_digest()
        for piece in self.read(name):
            digest.update(piece)
        _, found = self._at(name)
        return StoredObject(name=name, size=found.size, modified=found.modified, sha256=digest.hexdigest())

    def delete(self, name: str) -> NoReturn:
        """Refuse: past versions cannot be changed."""
        raise StorageError(f"{self.shown}/{name} cannot be removed from the past", hint="Prune the present.")

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def _at(self, name: str) -> tuple[str, StoredObject]:
        found = self._all().get(name)
        if found is None:
            raise ObjectAbsentError(
                f"there was no {self.shown}/{name} at {self._moment:%Y-%m-%d %H:%M}", hint="Look at another time."
            )
        return found

    def _all(self) -> dict[str, tuple[str, StoredObject]]:
        """The version of each object at that time."""
        if self._versions is None:
            newest: dict[str, tuple[str, StoredObject]] = {}
            with self._explained(""):
                pages = self._client.get_paginator("list_object_versions").paginate(
                    Bucket=self._destination.place, Prefix=self._prefix
                )
                for page in pages:
                    for one in page.get("Versions", ()):
                        self._take(newest, one)
            self._versions = newest
        return self._versions

    def _take(self, newest: dict[str, tuple[str, StoredObject]], one: Mapping[str, Any]) -> None:
        name, modified = one["Key"].removeprefix(self._prefix), one["LastModified"]
        known = newest.get(name)
        if modified <= self._moment and (known is None or known[1].modified < modified):
            newest[name] = one["VersionId"], StoredObject(name=name, size=one["Size"], modified=modified)

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turn errors of `boto3` into ours."""
        what = f"{self.shown}/{name}" if name else self.shown
        with _explained(
            self._destination,
            self._environ,
            what,
            "Listing versions needs s3:ListBucketVersions, reading them s3:GetObjectVersion.",
        ):
            yield


@contextmanager
def _explained(destination: Destination, environ: Mapping[str, str], what: str, permissions: str) -> Iterator[None]:
    """Turn errors of `boto3` into ours.

    Arguments:
        what: the object or bucket.
        permissions: the hint if the store refuses the request.
    """
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except ClientError as error:
        raise _refused(error, destination, environ, what, permissions) from error
    except NoCredentialsError as error:
        raise StoreDeniedError(
            f"there are no credentials for {destination.shown}",
            hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, an administrator's for this.",
        ) from error
    except BotoCoreError as error:
        raise StoreUnreachableError(
            f"{destination.shown} does not answer: {type(error).__name__}", hint="Look at the network and the store."
        ) from error


def _refused(
    error: ClientError, destination: Destination, environ: Mapping[str, str], what: str, permissions: str
) -> StorageError:
    """The error for a store's answer."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in _ABSENT:
        return ObjectAbsentError(f"there is no {what}", hint="Look at another time.")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if place := find_place(destination, environ, f"status code: {status} {error}"):
        return StorageError(f"the bucket {destination.place} is {place.message}", hint=place.hint)
    if code in _DENIED:
        return StoreDeniedError(
            f"{what} refused the request: the credentials are wrong or do not permit it", hint=permissions
        )
    return StorageError(f"{what} cannot be used: {code}", hint="Look at the store itself.")


def client_of(destination: Destination, environ: Mapping[str, str]) -> Any:
    """A `boto3` client for a destination.

    Raises:
        ConfigurationError: `boto3` is not installed.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise ConfigurationError(
            "looking at versions and locks of a bucket needs boto3", hint=f"Install it: {Advice.INSTALL_ADMIN}."
        ) from None
    given: dict[str, Any] = {}
    if found := find_credentials(environ):
        given |= {"aws_access_key_id": found.access_key, "aws_secret_access_key": found.secret_key}
        given |= {"aws_session_token": found.session_token} if found.session_token else {}
    if endpoint := destination.options.get("endpoint"):
        given["endpoint_url"] = endpoint
    addressing = "virtual" if destination.options.get("addressing") == "host" else "path"
    config = Config(s3={"addressing_style": addressing} if endpoint else {}, retries={"max_attempts": 4})
    return boto3.client("s3", region_name=region_of(destination, environ), config=config, **given)


def bucket_protection(destination: Destination, environ: Mapping[str, str]) -> tuple[bool, str]:
    """A bucket's versioning and default lock, in words; empty if it has neither.

    Raises:
        ConfigurationError: `boto3` is not installed.
        StorageError: the store does not answer, or refuses the request.
    """
    client = client_of(destination, environ)
    from botocore.exceptions import ClientError

    needed = "This needs s3:GetBucketVersioning and s3:GetBucketObjectLockConfiguration."
    with closing(client), _explained(destination, environ, destination.shown, needed):
        versions = client.get_bucket_versioning(Bucket=destination.place).get("Status") == "Enabled"
        try:
            found = client.get_object_lock_configuration(Bucket=destination.place)["ObjectLockConfiguration"]
        except ClientError as error:
            if "ObjectLockConfigurationNotFound" not in str(error) and "NoSuch" not in str(error):
                raise
            return versions, ""
    if found.get("ObjectLockEnabled") != "Enabled":
        return versions, ""
    rule = found.get("Rule", {}).get("DefaultRetention", {})
    length = f"{rule['Days']} days" if rule.get("Days") else f"{rule['Years']} years" if rule.get("Years") else ""
    return versions, f"{rule.get('Mode', 'no default').lower()} {length}".strip()
