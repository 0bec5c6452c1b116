"""Reads files encrypted with age (age-encryption.org/v1): the header, the file key, the payload in pieces.

The payload is a row of chunks of 64 KiB, each encrypted and authenticated by itself. So any part of a file can be read
without the rest, which the age libraries do not offer; what is read here is what they write (ADR 91). Files are
written by `pyrage` alone.

    header    the version; a stanza for each recipient, with the file key wrapped for it; a MAC under the file key
    payload   a nonce of 16 bytes; chunks of 65,536 bytes with a tag of 16 bytes each; the last one is marked as such
"""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from portal.ops.errors import IdentityError, NotIntactError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from portal.ops.storage.age_keys import Identity

CHUNK_BYTES: Final = 1 << 16
TAG_BYTES: Final = 16
HEADER_MOST: Final = 1 << 16
"""A header with more recipients than fit into this is not read."""

_SEALED_BYTES: Final = CHUNK_BYTES + TAG_BYTES
_NONCE_BYTES: Final = 16
_FILE_KEY_BYTES: Final = 16
_VERSION: Final = b"age-encryption.org/v1"
_KIND: Final = b"X25519"
_WRAP: Final = b"age-encryption.org/v1/X25519"
_LINE: Final = 64
_HINT: Final = "Fetch the copy again, or take another one."


class NeedMoreError(Exception):
    """The header goes on behind the bytes that are there."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of a file.

    Arguments:
        size: bytes, up to the payload.
        stanzas: for each X25519 recipient the share and the wrapped file key.
    """

    size: int
    stanzas: tuple[tuple[bytes, bytes], ...]
    authenticated: bytes
    mac: bytes


def parse_header(data: bytes) -> Header:
    """The header at the start of a file.

    Raises:
        NeedMoreError: it is longer than the data.
        NotIntactError: it is invalid.
    """
    end = data.find(b"\n--- ")
    mac_end = data.find(b"\n", end + 1) if end >= 0 else -1
    if end < 0 or mac_end < 0:
        if len(data) > HEADER_MOST or not data.startswith(_VERSION[: len(data)]):
            raise _damaged("it does not start as a file of age does")
        raise NeedMoreError
    lines = data[:end].split(b"\n")
    if lines[0] != _VERSION:
        raise _damaged("it is of another version of age")
    try:
        stanzas = tuple(_stanzas(lines[1:]))
        mac = _unpadded(data[end + 5 : mac_end])
    except (ValueError, IndexError) as error:
        raise _damaged("its header is invalid") from error
    return Header(size=mac_end + 1, stanzas=stanzas, authenticated=data[: end + 4], mac=mac)


def open_payload(header: Header, nonce: bytes, identities: Sequence[Identity]) -> Payload:
    """The decryptor of the payload.

    Arguments:
        nonce: the 16 bytes after the header.

    Raises:
        IdentityError: the file was not encrypted for any of the identities.
        NotIntactError: the header was changed.
    """
    key = _file_key(header, identities)
    expected = hmac.digest(_derive(key, b"", b"header"), header.authenticated, "sha256")
    if not hmac.compare_digest(expected, header.mac):
        raise _damaged("its header was changed")
    if len(nonce) != _NONCE_BYTES:
        raise _damaged("it is cut short")
    return Payload(_derive(key, nonce, b"payload"))


class Payload:
    """Decrypts chunks of a payload."""

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        self._cipher = ChaCha20Poly1305(key)

    def chunk(self, number: int, sealed: bytes | memoryview, *, is_last: bool) -> bytes:
        """The content of one chunk.

        Raises:
            NotIntactError: it was changed, moved, or is not the last one although nothing follows it.
        """
        from cryptography.exceptions import InvalidTag

        nonce = number.to_bytes(11, "big") + (b"\x01" if is_last else b"\x00")
        try:
            return self._cipher.decrypt(nonce, sealed, None)
        except InvalidTag:
            raise _damaged("it was changed, or is cut short") from None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The places of a file's chunks.

    Arguments:
        start: where the first chunk starts, after header and nonce.
        size: bytes of the whole file.
    """

    start: int
    size: int

    @property
    def count(self) -> int:
        """The number of chunks; even an empty file has one."""
        return max(1, -(-(self.size - self.start) // _SEALED_BYTES))

    @property
    def plain_size(self) -> int:
        """Bytes of the content.

        Raises:
            NotIntactError: a file of this size is impossible.
        """
        size = self.size - self.start - TAG_BYTES * self.count
        if size < 0:
            raise _damaged("it is cut short")
        return size

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The start of some chunks, and their length in bytes.

        Arguments:
            first: number of the first chunk; likewise `last`.
        """
        start = self.start + first * _SEALED_BYTES
        return start, min(self.size, start + (last - first + 1) * _SEALED_BYTES) - start


class StreamDecryptor:
    """Decrypts a file that comes in pieces, from front to back. What it gives is authentic; complete at the end only.

    Arguments:
        identities: one of which the file was encrypted for.
    """

    def __init__(self, identities: Sequence[Identity]) -> None:
        self._identities = identities
        self._held = b""
        self._payload: Payload | None = None
        self._number = 0

    def feed(self, piece: bytes | memoryview) -> Iterator[bytes]:
        """The content that is known by now; the last chunk comes with `finish`.

        Raises:
            IdentityError: the file was not encrypted for any of the identities.
            NotIntactError: it was changed.
        """
        data = self._held + piece
        self._held = data
        if self._payload is None:
            if not self._open():
                return
            data = self._held
        assert self._payload is not None
        at, view = 0, memoryview(data)
        while len(view) - at > _SEALED_BYTES:  # one that ends here may be the last one
            yield self._payload.chunk(self._number, view[at : at + _SEALED_BYTES], is_last=False)
            self._number += 1
            at += _SEALED_BYTES
        self._held = data[at:]

    def finish(self) -> bytes:
        """The last of the content.

        Raises:
            NotIntactError: the file was changed, or is cut short.
        """
        if self._payload is None:
            raise _damaged("it is cut short")
        return self._payload.chunk(self._number, self._held, is_last=True)

    def _open(self) -> bool:
        try:
            header = parse_header(self._held[: HEADER_MOST + 1])
        except NeedMoreError:
            return False
        if len(self._held) < header.size + _NONCE_BYTES:
            return False
        nonce = self._held[header.size : header.size + _NONCE_BYTES]
        self._payload = open_payload(header, nonce, self._identities)
        self._held = self._held[header.size + _NONCE_BYTES :]
        return True


def _stanzas(lines: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Share and wrapped key of each X25519 stanza; raises ValueError where a line is invalid."""
    number = 0
    while number < len(lines):
        words = lines[number].split(b" ")
        if words[0] != b"->" or len(words) < 2:
            raise ValueError("no stanza")
        number += 1
        body = bytearray()
        while True:
            line = lines[number]
            body += line
            number += 1
            if len(line) < _LINE:
                break
        if words[1] == _KIND:
            share, wrapped = _unpadded(words[2]), _unpadded(bytes(body))
            if len(words) != 3 or len(share) != 32 or len(wrapped) != _FILE_KEY_BYTES + TAG_BYTES:
                raise ValueError("a stanza of another length")
            yield share, wrapped


def _file_key(header: Header, identities: Sequence[Identity]) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    for identity in identities:
        private = X25519PrivateKey.from_private_bytes(identity.secret)
        public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        for share, wrapped in header.stanzas:
            try:
                shared = private.exchange(X25519PublicKey.from_public_bytes(share))
                return ChaCha20Poly1305(_derive(shared, share + public, _WRAP)).decrypt(bytes(12), wrapped, None)
            except (InvalidTag, ValueError):  # for another recipient; or a share that is no point of use
                continue
    raise IdentityError(
        "the copy was not encrypted for any of the identities at hand",
        hint="BACKUP_ENCRYPTION_IDENTITY_FILE has to hold the secret key of one of the recipients of that time.",
    )


def _derive(key: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869) for one block of 32 bytes."""
    extracted = hmac.digest(salt or bytes(32), key, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def _unpadded(text: bytes) -> bytes:
    """Base64 without padding, in its only canonical form."""
    try:
        data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
    if base64.b64encode(data).rstrip(b"=") != text:
        raise ValueError("not canonical")
    return data


def _damaged(what: str) -> NotIntactError:
    return NotIntactError(f"an encrypted file is damaged: {what}", hint=_HINT)
