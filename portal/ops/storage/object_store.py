"""Object stores: S3 and compatible ones, Google Cloud Storage, Azure Blob Storage, through `obstore`.

A segment is one PUT that must not replace anything. S3 receives its SHA-256, checks it, and stores it. Google and Azure
store other digests, so there `head` has to read the bytes.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import sha256 as new_digest
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from portal.ops.errors import (
    ConfigurationError,
    ObjectAbsentError,
    ObjectExistsError,
    StorageError,
    StoreDeniedError,
    StoreFullError,
    StoreUnreachableError,
)
from portal.ops.settings.destination import Destination, Scheme
from portal.ops.storage.backend import READ_BYTES, StoredObject
from portal.ops.storage.credentials import find_credentials, region_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from obstore.store import ObjectStore

    from portal.ops.storage.backend import Data
    from portal.ops.storage.s3_head import S3Head

_RETRIES: Final = 4
_RETRY_SECONDS: Final = 60
_FIRST_PAUSE: Final = timedelta(milliseconds=500)
_LONGEST_PAUSE: Final = timedelta(seconds=15)
_CONNECT_SECONDS: Final = 10
_READ_SECONDS: Final = 60
_ANSWER_SECONDS: Final = 60
_SLOWEST: Final = 40_000
"""Bytes per second of the slowest useful line: an upload that is slower on average is given up."""

_SIZES: Final = (1 << 20, 8 << 20, 64 << 20, 1 << 30)
"""There is a client with its own time limit for uploads up to each of these sizes, in bytes."""

_SAME_LOCK: Final = timedelta(hours=1)
"""The locks of objects that are stored within this time end at the same moment."""

_LYING_HINT: Final = "Look at the store; its answers cannot be relied on. Copy elsewhere until they can."
_KEPT_HINT: Final = "Nothing is overwritten off-site."
_PERMISSIONS_HINT: Final = "Compare what the credentials permit with docs/offsite.md."
_ANSWER: Final = re.compile(r"<Code>(?P<code>[^<]+)</Code>\s*<Message>(?P<message>[^<]+)</Message>")


class _Cause(NamedTuple):
    """A cause of errors, known by codes in a store's answer.

    Arguments:
        codes: any of them identifies the cause.
        message: the message, with fields such as ``{what}``.
    """

    codes: tuple[str, ...]
    error: type[StorageError]
    message: str
    hint: str


_CAUSES: Final = (
    _Cause(
        ("ExpiredToken", "TokenRefreshRequired"),
        StoreDeniedError,
        "{what} refused the request: the credentials have expired",
        "Set new ones; what was being copied continues with the next segment.",
    ),
    _Cause(
        ("RequestTimeTooSkewed",),
        StoreDeniedError,
        "{what} refused the request: the clocks of this machine and of the store differ too much",
        "Set this machine's clock, and let NTP keep it.",
    ),
    _Cause(
        ("InvalidObjectState",),
        StoreDeniedError,
        "{what} is in a storage class for archives, and cannot be read from there",
        "Restore it in the bucket first, for some days; then try again.",
    ),
    _Cause(
        ("service account file", "application credentials"),
        StoreDeniedError,
        "the credentials of {store} cannot be read: {reason}",
        "Look at the file that GOOGLE_APPLICATION_CREDENTIALS names.",
    ),
    _Cause(
        ("missing ObjectLockConfiguration", "missing Object Lock Configuration"),
        StorageError,
        "the bucket {bucket} was created without object lock",
        "Create one with object lock, or unset BACKUP_OFFSITE_LOCK.",
    ),
    _Cause(
        ("SlowDown", "429 Too Many Requests", "TooManyRequests"),
        StoreUnreachableError,
        f"{{store}} asks for fewer requests, also after {_RETRIES} more attempts",
        "Try again later. If it happens often, set BACKUP_OFFSITE_RATE, or raise the store's limits.",
    ),
)
_DENIED: Final = (
    "403 Forbidden",
    "(code: 403)",
    "AccessDenied",
    "401 Unauthorized",
    "SignatureDoesNotMatch",
    "InvalidAccessKeyId",
    "Invalid Access Key",
    "immutable due to",
)
_LOCKED: Final = ("ObjectLocked", "WORM", "object lock", "ObjectUnderRetention", "retention", "immutable due to")
_FULL: Final = ("507 ", "InsufficientStorage", "QuotaExceeded", "EntityTooLarge", "No space", "XMinioStorageFull")
_AZURE: Final = {
    "AZURE_STORAGE_ACCOUNT_NAME": "account_name",
    "AZURE_STORAGE_ACCOUNT_KEY": "account_key",
    "AZURE_STORAGE_SAS_TOKEN": "sas_key",
    "AZURE_TENANT_ID": "tenant_id",
    "AZURE_CLIENT_ID": "client_id",
    "AZURE_CLIENT_SECRET": "client_secret",
}
_NO_BUCKET: Final = ("NoSuchBucket", "ContainerNotFound")
_AWAY: Final = ("error sending request", "timed out", "Connect", "connection", "status code: 5", "Server error")


class ObjectStoreBackend:
    """Objects in a bucket.

    Arguments:
        destination: the bucket and the prefix in it.
        environ: variables with credentials.
        lock_days: days to lock new objects; 0 for the bucket's default.
        clock: returns the current time.
    """

    def __init__(
        self,
        destination: Destination,
        environ: Mapping[str, str],
        *,
        lock_days: int = 0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._destination = destination
        self._is_s3 = destination.scheme is Scheme.S3
        if lock_days and not self._is_s3:
            raise ConfigurationError(
                f"{destination.shown} knows no lock for single objects",
                hint="Unset BACKUP_OFFSITE_LOCK, and give the bucket a retention policy of its own.",
            )
        self._attributes = {"Storage-Class": kind} if (kind := destination.options.get("storage_class")) else None
        connect = _s3 if self._is_s3 else _azure if destination.scheme is Scheme.AZ else _google
        with self._explained(""):
            self._store = connect(destination, environ, _options(destination, _put_seconds(64 << 20), is_reading=True))
        self._lock_days = lock_days
        self._clock = clock
        self._locks_since = clock()
        self._connect: Callable[[int], ObjectStore] = lambda seconds: connect(
            destination, environ, _options(destination, seconds, self._headers())
        )
        self._writing: dict[int, ObjectStore] = {}
        self._environ = environ

    @property
    def shown(self) -> str:
        """The URL without options."""
        return self._destination.shown

    def put(self, name: str, data: Data, sha256: str) -> None:
        """Store an object with one PUT; see `Backend.put`."""
        try:
            self._create(name, data)
        except StoreDeniedError as error:  # the answer to a name that is taken, where credentials may create only
            if self._has(name):
                raise ObjectExistsError(f"{self.shown}/{name} is there already", hint=_KEPT_HINT) from error
            raise
        kept = self._head.look(name) if self._head is not None else None
        if kept is not None and (kept.is_absent or kept.sha256 not in (None, sha256)):
            has = "has nothing there" if kept.is_absent else f"has the SHA-256 {kept.sha256}"
            raise StorageError(
                f"{self.shown}/{name} differs from the data sent: the store accepted it, and {has}",
                hint=_LYING_HINT,
            )

    def _create(self, name: str, data: Data) -> None:
        import obstore

        with self._explained(name):
            obstore.put(
                self._writer(len(data)),
                name,
                data,
                mode="create",
                use_multipart=False,
                attributes=self._attributes,
            )

    def _has(self, name: str) -> bool:
        """True if an object is known to be there."""
        import obstore

        try:
            with self._explained(name):
                obstore.head(self._store, name)
        except StorageError:
            return False
        return True

    @cached_property
    def _head(self) -> S3Head | None:
        """Asks S3 for the metadata of an object; None for other stores, or if only the cloud knows the credentials."""
        if not self._is_s3:
            return None
        from portal.ops.storage.s3_head import S3Head  # imported late: a fetch needs no HTTP client of Python's

        return S3Head.of(self._destination, self._environ)

    def _headers(self) -> dict[str, str]:
        """The headers of an upload to S3: the algorithm of its checksum, which locked objects require, and the lock."""
        if not self._is_s3:
            return {}
        headers = {"x-amz-sdk-checksum-algorithm": "SHA256"}
        if self._lock_days:
            until = self._locks_since + timedelta(days=self._lock_days) + _SAME_LOCK
            headers["x-amz-object-lock-mode"] = self._destination.options.get("lock", "governance").upper()
            headers["x-amz-object-lock-retain-until-date"] = until.strftime("%Y-%m-%dT%H:%M:%SZ")
        return headers

    def _writer(self, size: int) -> ObjectStore:
        """The client for uploads of this size. Its locks have a fixed end, so it is replaced every hour."""
        seconds, now = _put_seconds(size), self._clock()
        if self._lock_days and not timedelta(0) <= now - self._locks_since < _SAME_LOCK:
            self._locks_since = now
            self._writing.clear()
        if seconds not in self._writing:
            self._writing[seconds] = self._connect(seconds)
        return self._writing[seconds]

    def read(self, name: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read an object; see `Backend.read`."""
        import obstore

        if length == 0:
            return
        wanted: Any = {"offset": start} if length is None else (start, start + length)
        options: Any = None if start == 0 and length is None else {"range": wanted}
        with self._explained(name):
            for piece in obstore.get(self._store, name, options=options).stream(READ_BYTES):
                yield bytes(piece)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """The objects below a prefix; see `Backend.list`."""
        import obstore

        with self._explained(prefix):
            found = [one for some in obstore.list(self._store, prefix or None) for one in some]
        for one in sorted(found, key=lambda one: str(one["path"])):
            yield _stored(one)

    def list_top(self) -> Iterator[StoredObject]:
        """The objects directly below the destination; see `Backend.list_top`."""
        import obstore

        with self._explained(""):
            found = obstore.list_with_delimiter(self._store)["objects"]
        for one in sorted(found, key=lambda one: str(one["path"])):
            yield _stored(one)

    def unfinished(self) -> Iterator[StoredObject]:
        """Nothing: an upload that is broken off leaves no object; see `Backend.unfinished`."""
        return iter(())

    def head(self, name: str) -> StoredObject:
        """An object with its digest; see `Backend.head`."""
        found = self._found(name)
        kept = self._head.look(name) if self._head is not None else None
        if kept is not None and kept.sha256:
            return replace(_stored(found, kept.sha256), is_own_digest=True, locked_until=kept.locked_until)
        digest = new_digest()
        for piece in self.read(name):
            digest.update(piece)
        return replace(_stored(found, digest.hexdigest()), locked_until=kept.locked_until if kept else None)

    def _found(self, name: str) -> Any:
        """An object's facts; if the store refuses them, a read tells why: the answer to a HEAD has no reason."""
        import obstore

        try:
            with self._explained(name):
                return obstore.head(self._store, name)
        except (ObjectAbsentError, StoreUnreachableError):
            raise
        except StorageError:
            for _ in self.read(name, 0, 1):
                break
            raise

    def delete(self, name: str) -> None:
        """Remove an object; see `Backend.delete`."""
        import obstore

        with self._explained(name):
            try:
                obstore.delete(self._store, name)
            except FileNotFoundError:
                return

    def close(self) -> None:
        """Do nothing: connections close by themselves."""

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turn errors of `obstore` into ours."""
        from obstore import exceptions

        try:
            yield
        except (exceptions.BaseError, FileNotFoundError, OSError, ValueError) as error:
            raise self._explain(error, name) from error

    def _explain(self, error: Exception, name: str) -> StorageError:
        from obstore import exceptions

        what = f"{self.shown}/{name}" if name else self.shown
        said = str(error)
        if isinstance(error, exceptions.AlreadyExistsError | exceptions.PreconditionError):
            return ObjectExistsError(f"{what} is there already", hint=_KEPT_HINT)
        if any(word in said for word in _NO_BUCKET):
            kind = "container" if self._destination.scheme is Scheme.AZ else "bucket"
            return StoreDeniedError(
                f"there is no {kind} {self._destination.place}",
                hint="Create it, or correct BACKUP_OFFSITE_URLS; a backup never creates one.",
            )
        if isinstance(error, FileNotFoundError):
            return ObjectAbsentError(f"there is no {what}", hint="List the copies.")
        if known := self._known(said, what):
            return known
        is_refused = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
        is_refused |= any(word in said for word in _DENIED)
        may_be_elsewhere = self._is_s3 and (is_refused or not any(word in said for word in (*_FULL, *_AWAY)))
        if may_be_elsewhere and (elsewhere := self._elsewhere(said)):
            return elsewhere
        if is_refused:
            locked = "it is locked, or " if any(word in said for word in _LOCKED) else ""
            return StoreDeniedError(
                f"{what} refused the request: {locked}the credentials are wrong or do not permit it",
                hint=_PERMISSIONS_HINT,
            )
        if any(word in said for word in _FULL):
            return StoreFullError(f"{self.shown} has no space left", hint="Make room there, or raise its quota.")
        if any(word in said for word in _AWAY):
            return StoreUnreachableError(
                f"{self.shown} does not answer: {_brief(said)}", hint="Look at the network and at the store itself."
            )
        return StorageError(f"{what} cannot be used: {_brief(said)}", hint="Look at the store itself.")

    def _elsewhere(self, said: str) -> StorageError | None:
        """The error for a bucket in another region or at another endpoint, or None."""
        from portal.ops.storage.s3_region import find_place  # imported late: a fetch needs no HTTP client of Python's

        place = find_place(self._destination, self._environ, said)
        if place is None:
            return None
        return StorageError(f"the bucket {self._destination.place} is {place.message}", hint=place.hint)

    def _known(self, said: str, what: str) -> StorageError | None:
        """The error for an answer that has one cause, or None."""
        cause = next((cause for cause in _CAUSES if any(code in said for code in cause.codes)), None)
        if cause is None:
            return None
        return cause.error(
            cause.message.format(
                what=what,
                store=self.shown,
                bucket=self._destination.place,
                reason=_brief(said).rpartition(" error: ")[2],
            ),
            hint=cause.hint,
        )


def _put_seconds(size: int) -> int:
    """The time limit of an upload in seconds: its time on the slowest line, and a margin for the answer."""
    bound = next((one for one in _SIZES if size <= one), size)
    return _ANSWER_SECONDS + bound // _SLOWEST


def _options(
    destination: Destination, seconds: int, headers: Mapping[str, str] | None = None, *, is_reading: bool = False
) -> dict[str, Any]:
    """The options of requests: time limits, so that a hung server ends in an error, and a few retries.

    Arguments:
        seconds: the limit for one request; a download ends earlier if no data comes for `_READ_SECONDS`.
    """
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        "timeout": timedelta(seconds=seconds),
        "allow_http": destination.options.get("endpoint", "").startswith("http://"),
        "user_agent": "kekkai-backup",
    }
    if is_reading:
        client["read_timeout"] = timedelta(seconds=_READ_SECONDS)
    if headers:
        client["default_headers"] = dict(headers)
    pauses = {"init_backoff": _FIRST_PAUSE, "max_backoff": _LONGEST_PAUSE, "base": 3}
    retry = {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_SECONDS), "backoff": pauses}
    return {"client_options": client, "retry_config": retry}


def _s3(destination: Destination, environ: Mapping[str, str], options: dict[str, Any]) -> ObjectStore:
    from obstore.store import S3Store

    given: dict[str, Any] = {"checksum_algorithm": "SHA256"}
    given["region"] = region_of(destination, environ)
    if endpoint := destination.options.get("endpoint"):
        given["endpoint"] = endpoint
        given["virtual_hosted_style_request"] = destination.options.get("addressing") == "host"
    if found := find_credentials(environ):
        given["access_key_id"] = found.access_key
        given["secret_access_key"] = found.secret_key
        if found.session_token:
            given["session_token"] = found.session_token
    return S3Store(destination.place, prefix=destination.prefix or None, **given, **options)


def _google(destination: Destination, environ: Mapping[str, str], options: dict[str, Any]) -> ObjectStore:
    from obstore.store import GCSStore

    given: dict[str, Any] = {}
    if path := environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        given["application_credentials"] = path
    return GCSStore(destination.place, prefix=destination.prefix or None, **given, **options)


def _azure(destination: Destination, environ: Mapping[str, str], options: dict[str, Any]) -> ObjectStore:
    from obstore.store import AzureStore

    given: dict[str, Any] = {}
    for variable, name in _AZURE.items():
        if value := environ.get(variable):
            given[name] = value
    if account := destination.options.get("account"):
        given["account_name"] = account
    if endpoint := destination.options.get("endpoint"):
        given["endpoint"] = endpoint
    return AzureStore(destination.place, prefix=destination.prefix or None, **given, **options)


def _stored(found: Any, digest: str | None = None) -> StoredObject:
    return StoredObject(
        name=str(found["path"]),
        size=int(found["size"]),
        modified=found["last_modified"],
        sha256=digest,
    )


def _brief(said: str) -> str:
    """What the store itself says, or the first line of an `obstore` message; the others are for its developers."""
    if answer := _ANSWER.search(said):
        return f"{answer['code']}: {answer['message']}"[:300]
    return said.strip().partition("\n")[0][:300]
