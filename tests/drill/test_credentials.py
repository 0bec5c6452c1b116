"""Stored credentials: whether a key opens them is found out, in both formats of DefectDojo."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from portal.ops.drill.credentials import decrypt, try_credentials
from portal.ops.manifest import Manifest
from portal.ops.model import Component
from portal.ops.postgres.credential_key import fingerprint, is_key_of, key_warnings
from portal.ops.settings.database_url import Secret
from tests.support.portal import execute

if TYPE_CHECKING:
    from portal.ops.settings.load import DatabaseTarget

KEY = Secret("&91a*agLqesc*0DJ+2*bAbsUZfR*4nLw")
OTHER = Secret("another key")
NONCE = "000102030405060708090a0b0c0d0e0f"
# openssl enc -aes-256-ofb -nopad, of 'correct horse' and of 'sixteen letters!', each filled up with zero bytes
STORED = f"AES.1:{NONCE}:86106e32af8419f87a080352248b8e2b"
WHOLE_BLOCK = f"AES.1:{NONCE}:96166434af8203f87e02055524f9fd0a7c9cb0952bd27cebc4143c7a7b216ee9"


def aes_key(key: Secret) -> bytes:
    return sha256(key.reveal().encode()).hexdigest()[:32].encode()


def stored_by_gcm(text: str, key: Secret = KEY) -> str:
    nonce = bytes(range(12))
    return f"AES.2:{nonce.hex()}:{AESGCM(aes_key(key)).encrypt(nonce, text.encode(), None).hex()}"


@pytest.mark.parametrize(
    ("stored", "text"),
    [(STORED, "correct horse"), (WHOLE_BLOCK, "sixteen letters!"), (stored_by_gcm("pässword"), "pässword")],
)
def test_the_right_key_opens_it(stored: str, text: str) -> None:
    """As DefectDojo does, for credentials of its old and of its new format."""
    assert decrypt(stored, aes_key(KEY)) == text


@pytest.mark.parametrize("stored", [STORED, WHOLE_BLOCK, stored_by_gcm("text")])
def test_another_key_does_not(stored: str) -> None:
    """The old format is not authenticated: its padding and its characters tell."""
    assert [decrypt(stored, aes_key(Secret(f"key {n}"))) for n in range(200)] == [None] * 200


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "AES.1",
        "AES.1:00",
        "AES.2:00:00",
        f"AES.1:{NONCE}:",
        f"AES.1:{NONCE}:0",
        f"AES.1:{NONCE}:00",
        "AES.2:::",
        "x:y:z",
    ],
)
def test_what_makes_no_sense_is_not_opened(stored: str) -> None:
    """Nothing that a column may hold is an error."""
    assert decrypt(stored, aes_key(KEY)) is None


def test_a_database_is_tried(portal_database: DatabaseTarget) -> None:
    """The columns are found in the schema, and those that the key does not open are named without their content."""
    execute(
        portal_database,
        "CREATE TABLE dojo_cred_user (id int, password varchar(600))",
        f"INSERT INTO dojo_cred_user VALUES (1, '{STORED}'), (2, 'not encrypted'), (3, NULL)",  # noqa: S608
        "CREATE TABLE dojo_tool_configuration (id int, password text, ssh text, api_key text)",
        f"INSERT INTO dojo_tool_configuration VALUES (1, NULL, '{stored_by_gcm('a', OTHER)}', '{stored_by_gcm('b')}')",  # noqa: S608
    )
    found = try_credentials(portal_database, KEY)
    assert (found.tried, found.opened, found.closed) == (3, 2, ("dojo_tool_configuration.ssh",))
    assert try_credentials(portal_database, Secret("nonsense")).opened == 0


class TestFingerprint:
    """The note of a key that a backup has."""

    def manifest(self, **details: str) -> Manifest:
        """A manifest with these details of its database."""
        return Manifest(
            backup_id="database_20260101_000000_abcdef",
            type="database",
            timestamp="2026-01-01T00:00:00Z",
            components=(Component.DATABASE,),
            hostname="host",
            db_name="defectdojo",
            details={"database": details},
        )

    def test_it_tells_one_key_from_another(self) -> None:
        """And says nothing where there is no note, or no key."""
        noted = self.manifest(credential_key=fingerprint(KEY, "database_20260101_000000_abcdef"))
        assert (is_key_of(noted, KEY), is_key_of(noted, OTHER), is_key_of(noted, None)) == (True, False, None)
        assert is_key_of(self.manifest(), KEY) is None
        assert (len(key_warnings(noted, KEY)), len(key_warnings(noted, OTHER)), len(key_warnings(noted, None))) == (
            0,
            1,
            1,
        )

    def test_it_tells_nobody_else_anything(self) -> None:
        """The same key has another fingerprint in each backup, and neither is the key's own digest."""
        one, two = fingerprint(KEY, "full_1"), fingerprint(KEY, "full_2")
        assert len({one, two, sha256(KEY.reveal().encode()).hexdigest()}) == 3
