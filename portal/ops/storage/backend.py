"""The interface to off-site stores: eight methods that object stores, SFTP servers and directories all support.

Object names are relative to the destination, with slashes between their parts. An object is written once; writing the
name again is refused. Every implementation passes one suite (`tests/storage/test_backends.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from portal.ops.errors import NotIntactError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

READ_BYTES: Final = 1 << 20
"""The approximate size of pieces of a download."""

Data = bytes | memoryview


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object as described by its store.

    Arguments:
        name: the name relative to the destination.
        size: bytes.
        modified: when it was written.
        sha256: the digest in hexadecimal; None if it was not requested.
        is_own_digest: whether the store computed the digest when the object was written, so that nothing was read for
            it.
        locked_until: when the lock against removal ends, if `head` has found that out.
    """

    name: str
    size: int
    modified: datetime
    sha256: str | None = None
    is_own_digest: bool = False
    locked_until: datetime | None = None


class Backend(Protocol):
    """An off-site store. Every method raises `StorageError` if the store fails; see `portal.ops.errors`."""

    @property
    def shown(self) -> str:
        """The name for people: the URL without options."""

    def put(self, name: str, data: Data, sha256: str) -> None:
        """Store an object completely or not at all.

        Arguments:
            data: the bytes, which must not change until this returns.
            sha256: their digest, which the store checks if it can.

        Raises:
            ObjectExistsError: an object of that name exists.
        """

    def read(self, name: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read an object or a part of it, in pieces.

        Arguments:
            start: the position of the first byte.
            length: the number of bytes; by default all. A shorter object returns fewer.

        Raises:
            ObjectAbsentError: the object does not exist.
        """

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """The objects below a prefix, which ends with a slash or is empty, sorted by name."""

    def list_top(self) -> Iterator[StoredObject]:
        """The objects directly below the destination, none of them deeper."""

    def unfinished(self) -> Iterator[StoredObject]:
        """The hidden files of writers that are at work or were killed; an object store has none.

        No other method lists them; `delete` removes one.
        """

    def head(self, name: str) -> StoredObject:
        """An object with its digest: the store's own, or that of the content as read.

        Raises:
            ObjectAbsentError: the object does not exist.
        """

    def delete(self, name: str) -> None:
        """Remove an object; does nothing if it does not exist.

        Raises:
            StoreDeniedError: the credentials do not permit it, or the object is locked.
        """

    def close(self) -> None:
        """Close connections."""


def read_all(backend: Backend, name: str, most: int) -> bytes:
    """Read a small object.

    Arguments:
        most: the most bytes to accept.

    Raises:
        NotIntactError: it is larger.
        ObjectAbsentError: the object does not exist.
    """
    found = bytearray()
    for piece in backend.read(name):
        found += piece
        if len(found) > most:
            raise NotIntactError(
                f"{backend.shown}/{name} is larger than {most} bytes, so it is none of ours",
                hint="Somebody has written it there; remove it with an administrator's credentials.",
            )
    return bytes(found)
