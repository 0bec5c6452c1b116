"""The keys of age: recipients (public) and identities (secret), of type X25519.

Both are written in Bech32 (BIP 173): ``age1…`` and ``AGE-SECRET-KEY-1…``. Other types (passphrases, SSH keys, plugins)
are refused, so that `age` alone suffices for a recovery after a total loss.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from portal.ops.errors import ConfigurationError, IdentityError
from portal.ops.storage.directory import sync_directory
from portal.ops.units import system_reason

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_ALPHABET: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_KEY_BYTES: Final = 32
_RECIPIENT: Final = "age"
_IDENTITY: Final = "age-secret-key-"
_MOST_BYTES: Final = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A secret key, never shown."""

    secret: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class NewIdentity:
    """The file that `generate` has written, and the recipient."""

    path: Path
    recipient: str


def check_recipients(recipients: Iterable[str]) -> tuple[str, ...]:
    """Return the recipients if all are valid.

    Raises:
        ConfigurationError: a text is no recipient.
    """
    found = tuple(recipients)
    for text in found:
        if _key_of(text, _RECIPIENT) is None:
            raise ConfigurationError(
                f"{text[:80]!r} is no age recipient: a character is wrong or missing",
                hint="Copy the public key again: it starts with age1; 'keygen' shows it, and so does 'age-keygen -y'.",
            )
    return found


def read_identities(path: Path) -> tuple[Identity, ...]:
    """Read the identities in a file by `age-keygen` or `generate`; lines that start with ``#`` are skipped.

    Raises:
        IdentityError: the file cannot be read, or has no identity.
    """
    try:
        with path.open("rb") as file:
            lines = file.read(_MOST_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = system_reason(error) if isinstance(error, OSError) else "it is not text"
        raise IdentityError(
            f"the identity file {path} cannot be read: {reason}",
            hint="BACKUP_ENCRYPTION_IDENTITY_FILE names the file with the secret key; put it there for the restore.",
        ) from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    found = [key for text in keys if (key := _key_of(text, _IDENTITY))]
    if not found or len(found) < len(keys):
        raise IdentityError(
            f"{path} holds {'a line that is no age identity' if keys else 'no age identity'}",
            hint="It has one line for each secret key, AGE-SECRET-KEY-1…; passphrases and SSH keys are not supported.",
        )
    return tuple(Identity(secret=secret) for secret in found)


def generate(path: Path) -> NewIdentity:
    """Create an identity, and write it to a new file that only its owner can read.

    Raises:
        ConfigurationError: the file exists, or cannot be written.
    """
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    recipient = str(identity.to_public())
    created = datetime.now(UTC).isoformat(timespec="seconds")
    text = f"# created: {created}\n# public key: {recipient}\n{identity}\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
        except BaseException:
            path.unlink()  # a part of a key is none, and would be in the way of the next attempt
            raise
        sync_directory(path.parent)
    except FileExistsError:
        raise ConfigurationError(
            f"{path} is there already", hint="Give the name of a new file: a key that is overwritten is lost."
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {path}: {system_reason(error)}", hint="Give another place with --output FILE."
        ) from error
    return NewIdentity(path=path, recipient=recipient)


def _key_of(text: str, kind: str) -> bytes | None:
    """The 32 bytes of a key, or None if the text is no key of that kind."""
    found = _decode(text)
    if found is None or found[0] != kind:
        return None
    key = _to_bytes(found[1])
    return key if key is not None and len(key) == _KEY_BYTES else None


def _decode(text: str) -> tuple[str, str] | None:
    """Split a Bech32 text into prefix and data letters; None if the checksum is wrong."""
    if text != text.lower() and text != text.upper():
        return None
    prefix, mark, data = text.lower().rpartition("1")
    if not mark or len(data) < 6 or any(letter not in _ALPHABET for letter in data):
        return None
    values = [ord(letter) >> 5 for letter in prefix] + [0] + [ord(letter) & 31 for letter in prefix]
    values += [_ALPHABET.index(letter) for letter in data]
    return (prefix, data[:-6]) if _polymod(values) == 1 else None


def _polymod(values: Iterable[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, part in enumerate(_GENERATOR):
            check ^= part if top >> bit & 1 else 0
    return check


def _to_bytes(data: str) -> bytes | None:
    """Convert letters of five bits to bytes; remaining bits must be zero."""
    number, bits = 0, 5 * len(data)
    for letter in data:
        number = number << 5 | _ALPHABET.index(letter)
    extra = bits % 8
    if extra >= 5 or number & ((1 << extra) - 1):
        return None
    return (number >> extra).to_bytes(bits // 8, "big")
