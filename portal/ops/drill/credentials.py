"""Checks that the portal's present key decrypts the credentials in a restored database.

DefectDojo stores a credential as text, ``<scheme>:<nonce>:<ciphertext>``, the last two in hexadecimal. The AES-256 key
is the first 32 hexadecimal digits of the SHA-256 of ``DD_CREDENTIAL_AES_256_KEY``, as ASCII.

    AES.1   OFB mode, a nonce of 16 bytes; the text is filled up with one to 16 zero bytes, and not authenticated
    AES.2   GCM, a nonce of 12 bytes; the tag of 16 bytes is at the end of the ciphertext

No credential is stored, logged or shown: the result only says whether it could be decrypted.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from portal.ops.postgres.connection import connect
from portal.ops.postgres.server import restoring_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portal.ops.settings.database_url import DatabaseTarget, Secret

_BLOCK: Final = 16
_MOST_TRIED: Final = 20

_COLUMNS: Final = """
    SELECT n.nspname, c.relname, a.attname
    FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND c.relname LIKE 'dojo\\_%' AND n.nspname !~ '^pg_'
        AND a.attname IN ('password', 'ssh', 'api_key') AND a.atttypid IN ('text'::regtype, 'varchar'::regtype)
        AND NOT a.attisdropped
    ORDER BY 1, 2, 3
"""
_STORED: Final = r"^AES\.[12]:[0-9a-f]+:[0-9a-f]+$"


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """The result.

    Arguments:
        tried: the number of credentials tried.
        opened: the number of those that the key decrypted.
        closed: the columns with credentials that it did not decrypt, as ``table.column``.
    """

    tried: int = 0
    opened: int = 0
    closed: tuple[str, ...] = ()


def try_credentials(target: DatabaseTarget, key: Secret) -> Credentials:
    """Decrypt some of the stored credentials in a database.

    Raises:
        SourceError: the server cannot be queried.
    """
    aes_key = sha256(key.reveal().encode()).hexdigest()[:32].encode()
    tried = opened = 0
    closed: set[str] = set()
    for place, stored in _stored(target):
        tried += 1
        if decrypt(stored, aes_key) is None:
            closed.add(place)
        else:
            opened += 1
    return Credentials(tried=tried, opened=opened, closed=tuple(sorted(closed)))


def _stored(target: DatabaseTarget) -> Iterator[tuple[str, str]]:
    """The first stored credentials, each with its table and column."""
    from psycopg import sql

    with connect(target) as connection, restoring_errors(target):
        left = _MOST_TRIED
        for schema, table, column in connection.execute(_COLUMNS).fetchall():
            query = sql.SQL("SELECT {0} FROM {1} WHERE {0} ~ %s LIMIT %s").format(
                sql.Identifier(column), sql.Identifier(schema, table)
            )
            rows = connection.execute(query, (_STORED, left)).fetchall()
            left -= len(rows)
            yield from ((f"{table}.{column}", stored) for (stored,) in rows)


def decrypt(stored: str, aes_key: bytes) -> str | None:
    """Decrypt a stored credential; None if the key is wrong.

    Arguments:
        stored: the value in the database.
        aes_key: 32 bytes.
    """
    scheme, *parts = stored.split(":")
    try:
        nonce, ciphertext = map(bytes.fromhex, parts)
        plain = _open_gcm(aes_key, nonce, ciphertext) if scheme == "AES.2" else _open_ofb(aes_key, nonce, ciphertext)
        return None if plain is None else plain.decode()
    except ValueError:
        return None


def _open_gcm(aes_key: bytes, nonce: bytes, ciphertext: bytes) -> bytes | None:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(aes_key).decrypt(nonce, ciphertext, None)
    except (InvalidTag, ValueError):
        return None


def _open_ofb(aes_key: bytes, nonce: bytes, ciphertext: bytes) -> bytes | None:
    """The plaintext without padding; None if the padding or a character shows that the key is wrong."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    if len(nonce) != _BLOCK or not ciphertext or len(ciphertext) % _BLOCK:
        return None
    block_cipher = Cipher(algorithms.AES(aes_key), modes.ECB()).encryptor()  # noqa: S305  # one block of key stream
    stream, block = b"", nonce
    while len(stream) < len(ciphertext):
        block = block_cipher.update(block)
        stream += block
    padded = bytes(left ^ right for left, right in zip(ciphertext, stream, strict=True))
    plain = padded.rstrip(b"\0")
    is_padded = 1 <= len(padded) - len(plain) <= _BLOCK
    is_text = all(byte >= 0x20 or byte in b"\t\n\r" for byte in plain)
    return plain if is_padded and is_text else None
