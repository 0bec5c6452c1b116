"""Reads files encrypted with age (age-encryption.org/v1): the header, the file key, parts of the payload.

The payload consists of chunks of 64 KiB, each encrypted and authenticated separately. So any part of a file can be read
without the rest, which age libraries do not offer (ADR 91). Only `pyrage` writes files.

    header    the version; a stanza for each recipient with the wrapped file key; a MAC under the file key
    payload   a nonce of 16 bytes; chunks of 65,536 bytes with a tag of 16 bytes each; the last one is marked
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
"""The longest header to read, in bytes."""

_SEALED_BYTES: Final = CHUNK_BYTES + TAG_BYTES
_NONCE_BYTES: Final = 16
_FILE_KEY_BYTES: Final = 16
_VERSION: Final = b"age-encryption.org/v1"
_KIND: Final = b"X25519"
_WRAP: Final = b"age-encryption.org/v1/X25519"
_LINE: Final = 64
_HINT: Final = "Fetch the copy again, or take another one."


class NeedMoreError(Exception):
    """Raised if the header continues after the available bytes."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """A file's header.

    Arguments:
        size: bytes, up to the payload.
        stanzas: for each X25519 recipient, the share and the wrapped file key.
    """

    size: int
    stanzas: tuple[tuple[bytes, bytes], ...]
    authenticated: bytes
    mac: bytes


def parse_header(data: bytes) -> Header:
    """Parse the header at the start of a file.

    Raises:
        NeedMoreError: the header is longer than the data.
        NotIntactError: the header is invalid.
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
    """Find the file key and return the payload's decryptor.

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
        """Decrypt one chunk.

        Raises:
            NotIntactError: the chunk was changed or moved, or is not marked as the last one although it is.
        """
        from cryptography.exceptions import InvalidTag

        nonce = number.to_bytes(11, "big") + (b"\x01" if is_last else b"\x00")
        try:
            return self._cipher.decrypt(nonce, sealed, None)
        except InvalidTag:
            raise _damaged("it was changed, or is cut short") from None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a file's chunks are.

    Arguments:
        start: the position of the first chunk, after header and nonce.
        size: the size of the file in bytes.
    """

    start: int
    size: int

    @property
    def count(self) -> int:
        """The number of chunks; an empty file has one too."""
        return max(1, -(-(self.size - self.start) // _SEALED_BYTES))

    @property
    def plain_size(self) -> int:
        """The size of the content in bytes.

        Raises:
            NotIntactError: no file can have this size.
        """
        size = self.size - self.start - TAG_BYTES * self.count
        if size < 0:
            raise _damaged("it is cut short")
        return size

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The position of consecutive chunks, and their length in bytes.

        Arguments:
            first: the number of the first chunk; likewise `last`.
        """
        start = self.start + first * _SEALED_BYTES
        return start, min(self.size, start + (last - first + 1) * _SEALED_BYTES) - start


class StreamDecryptor:
    """Decrypts a file that arrives in pieces. Returned content is authentic, but complete only after `finish`.

    Arguments:
        identities: the identities, for one of which the file must be encrypted.
    """

    def __init__(self, identities: Sequence[Identity]) -> None:
        self._identities = identities
        self._held = b""
        self._payload: Payload | None = None
        self._number = 0

    def feed(self, piece: bytes | memoryview) -> Iterator[bytes]:
        """Add a piece; return the content that is known by now. `finish` returns the last chunk.

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
        while len(view) - at > _SEALED_BYTES:  # a chunk that ends here may be the last one
            yield self._payload.chunk(self._number, view[at : at + _SEALED_BYTES], is_last=False)
            self._number += 1
            at += _SEALED_BYTES
        self._held = data[at:]

    def finish(self) -> bytes:
        """Return the rest of the content.

        Raises:
            NotIntactError: the file was changed or truncated.
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
    """Share and wrapped key of each X25519 stanza; ValueError if a line is invalid."""
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

    for identity in identities:
        private = X25519PrivateKey.from_private_bytes(identity.secret)
        public = private.public_key().public_bytes_raw()
        for share, wrapped in header.stanzas:
            try:
                shared = private.exchange(X25519PublicKey.from_public_bytes(share))
                return ChaCha20Poly1305(_derive(shared, share + public, _WRAP)).decrypt(bytes(12), wrapped, None)
            except (InvalidTag, ValueError):  # for another recipient, or the share is no valid point
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
    """Decode canonical Base64 without padding."""
    try:
        data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
    if base64.b64encode(data).rstrip(b"=") != text:
        raise ValueError("not canonical")
    return data


def _damaged(what: str) -> NotIntactError:
    return NotIntactError(f"an encrypted file is damaged: {what}", hint=_HINT)
