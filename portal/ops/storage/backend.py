"""The seam to off-site stores: seven methods, which object stores, SFTP servers and directories have alike.

Names of objects are relative to the destination, with slashes between their parts. An object is written once: whoever
writes the same name again is refused. Every implementation passes one suite (`tests/storage/test_backends.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from portal.ops.errors import NotIntactError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

READ_BYTES: Final = 1 << 20
"""A download comes in pieces of about this size."""

Data = bytes | memoryview


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object, as its store describes it.

    Arguments:
        name: relative to the destination.
        size: bytes.
        modified: when it was written.
        sha256: its digest in hexadecimal; nothing where it was not asked for.
        is_own_digest: the store computed the digest itself when the object was written, so nothing was read for it.
        locked_until: until when nobody may remove it, where `head` has found that out.
    """

    name: str
    size: int
    modified: datetime
    sha256: str | None = None
    is_own_digest: bool = False
    locked_until: datetime | None = None


class Backend(Protocol):
    """An off-site store. Every method raises `StorageError` where the store fails; see `portal.ops.errors`."""

    @property
    def shown(self) -> str:
        """Its name for people: the URL without options."""

    def put(self, name: str, data: Data, sha256: str) -> None:
        """Store an object, whole or not at all.

        Arguments:
            data: its bytes, which stay as they are until this returns.
            sha256: their digest, which the store checks where it can.

        Raises:
            ObjectExistsError: the name is taken.
        """

    def read(self, name: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of an object, or a part of them, in pieces.

        Arguments:
            start: the first byte.
            length: how many; all that follow by default. An object that ends before gives fewer.

        Raises:
            ObjectAbsentError: there is none.
        """

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """The objects below a prefix that ends with a slash or is empty, in the order of their names."""

    def list_top(self) -> Iterator[StoredObject]:
        """The objects directly below the destination, and none that is deeper."""

    def head(self, name: str) -> StoredObject:
        """An object with its digest: the store's own, or else the digest of what it gives to read.

        Raises:
            ObjectAbsentError: there is none.
        """

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no error.

        Raises:
            StoreDeniedError: the credentials do not permit it, or the object is locked.
        """

    def close(self) -> None:
        """Close connections."""


def read_all(backend: Backend, name: str, most: int) -> bytes:
    """The bytes of a small object.

    Arguments:
        most: more bytes than this are refused.

    Raises:
        NotIntactError: it is larger.
        ObjectAbsentError: there is none.
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
