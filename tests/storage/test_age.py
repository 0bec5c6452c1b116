"""age: what is written opens with others' tools, and what they write is read; nothing that was changed passes."""

from __future__ import annotations

import os
import shutil
import subprocess
from hashlib import sha256
from typing import TYPE_CHECKING

import pyrage
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portal.ops.errors import ConfigurationError, IdentityError, NotIntactError
from portal.ops.storage.age_format import Layout, StreamDecryptor, open_payload, parse_header
from portal.ops.storage.age_keys import check_recipients, generate, read_identities
from portal.ops.storage.encryption import Encryptor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from portal.ops.storage.age_keys import Identity

SIZES = [0, 1, 65_535, 65_536, 65_537, 131_072, 400_000]


def decrypted(data: bytes, identities: Sequence[Identity], step: int = 10_000) -> bytes:
    decryptor = StreamDecryptor(identities)
    found = b"".join(piece for at in range(0, len(data), step) for piece in decryptor.feed(data[at : at + step]))
    return found + decryptor.finish()


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an identity."""
    return generate(tmp_path_factory.mktemp("key") / "identity").path


@pytest.fixture(scope="module")
def recipient(key: Path) -> str:
    """The public key that goes with it."""
    return key.read_text().split("public key: ")[1].split()[0]


class TestEncryption:
    def test_parts_open_with_another_implementation(self, tmp_path: Path, key: Path, recipient: str) -> None:
        """Any part of a file, encrypted in the helper process, is read by `pyrage` as it was, by every recipient."""
        content = os.urandom(300_000)
        (tmp_path / "file").write_bytes(content)
        other = generate(tmp_path / "other")
        with (tmp_path / "file").open("rb") as file, Encryptor([recipient, other.recipient], file.fileno()) as sealing:
            sealing.begin(5, 200_000, 0)
            sealing.begin(0, 0, 1)
            with sealing.sealed(0) as first, sealing.sealed(1) as second:
                sealed, empty = bytes(first.data), bytes(second.data)
                assert sha256(sealed).hexdigest() == first.sha256
        for path in (key, other.path):
            identity = pyrage.x25519.Identity.from_str(path.read_text().split()[-1])
            assert pyrage.decrypt(sealed, [identity]) == content[5:200_005]
            assert pyrage.decrypt(empty, [identity]) == b""

    @pytest.mark.skipif(shutil.which("age") is None, reason="the age command is not installed")
    def test_opens_with_the_age_command(self, tmp_path: Path, key: Path, recipient: str) -> None:
        """The age command reads what is written here, and what it writes is read here."""
        content = os.urandom(100_000)
        with Encryptor([recipient]) as sealing:
            sealing.begin(0, sealing.load(content), 0)
            with sealing.sealed(0) as part:
                opened = subprocess.run(["age", "-d", "-i", key], input=part.data, capture_output=True, check=True)
        assert opened.stdout == content
        made = subprocess.run(["age", "-r", recipient], input=content, capture_output=True, check=True).stdout
        assert decrypted(made, read_identities(key)) == content

    def test_a_source_that_has_shrunk(self, tmp_path: Path, recipient: str) -> None:
        """A file that is shorter than it was is no success."""
        (tmp_path / "file").write_bytes(b"short")
        with (tmp_path / "file").open("rb") as file, Encryptor([recipient], file.fileno()) as sealing:
            sealing.begin(0, 100, 0)
            with pytest.raises(Exception, match="shorter"), sealing.sealed(0):
                pass


class TestDecryption:
    @pytest.mark.parametrize("size", SIZES)
    def test_reads_what_others_wrote(self, size: int, key: Path, recipient: str) -> None:
        """Files of `pyrage` are read whatever their size, also where the last chunk is exactly full."""
        content = os.urandom(size)
        sealed = pyrage.encrypt(content, [pyrage.x25519.Recipient.from_str(recipient)])
        assert decrypted(sealed, read_identities(key)) == content

    @given(where=st.integers(0, 10**9), size=st.sampled_from(SIZES))
    @settings(max_examples=60, deadline=None)
    def test_notices_every_change(self, key: Path, recipient: str, where: int, size: int) -> None:
        """A file with one bit changed, wherever that is, does not come to its end."""
        sealed = bytearray(pyrage.encrypt(os.urandom(size), [pyrage.x25519.Recipient.from_str(recipient)]))
        sealed[where % len(sealed)] ^= 1
        with pytest.raises((NotIntactError, IdentityError)):
            decrypted(bytes(sealed), read_identities(key))

    @pytest.mark.parametrize("size", SIZES)
    def test_notices_every_cut(self, size: int, key: Path, recipient: str) -> None:
        """A file that is cut, also between two chunks, does not come to its end."""
        sealed = pyrage.encrypt(os.urandom(size), [pyrage.x25519.Recipient.from_str(recipient)])
        cuts = {1, 16, 17, size % 65_536 + 16, 65_552, len(sealed) // 2, len(sealed) - 30}
        possible = [cut for cut in cuts if 0 < cut < len(sealed)]
        assert possible
        for cut in possible:
            with pytest.raises(NotIntactError):
                decrypted(sealed[:-cut], read_identities(key))

    def test_reads_a_chunk_alone(self, key: Path, recipient: str) -> None:
        """Any chunk is read without those before it, and passes for no other."""
        content = os.urandom(200_000)
        sealed = pyrage.encrypt(content, [pyrage.x25519.Recipient.from_str(recipient)])
        header = parse_header(sealed[:1000])
        layout = Layout(start=header.size + 16, size=len(sealed))
        payload = open_payload(header, sealed[header.size : layout.start], read_identities(key))
        start, length = layout.span(2, 2)
        assert (layout.count, layout.plain_size) == (4, len(content))
        assert payload.chunk(2, sealed[start : start + length], is_last=False) == content[131_072:196_608]
        with pytest.raises(NotIntactError):
            payload.chunk(1, sealed[start : start + length], is_last=False)

    def test_another_identity(self, tmp_path: Path, recipient: str) -> None:
        """A file for others is told from one that is damaged."""
        sealed = pyrage.encrypt(b"x", [pyrage.x25519.Recipient.from_str(recipient)])
        with pytest.raises(IdentityError):
            decrypted(sealed, read_identities(generate(tmp_path / "other").path))


class TestKeys:
    def test_a_key_is_for_its_owner_alone(self, tmp_path: Path) -> None:
        """A new key is in a file that nobody else may read, and never replaces another."""
        made = generate(tmp_path / "identity")
        assert made.path.stat().st_mode & 0o777 == 0o600
        assert made.recipient.startswith("age1")
        with pytest.raises(ConfigurationError, match="is there already"):
            generate(tmp_path / "identity")

    @pytest.mark.parametrize("text", ["", "# nothing\n", "AGE-SECRET-KEY-1XYZ\n", "ssh-ed25519 AAAA\n"])
    def test_what_is_no_identity(self, tmp_path: Path, text: str) -> None:
        """A file without a key, or with something else in it, is refused without showing it."""
        (tmp_path / "identity").write_text(text)
        with pytest.raises(IdentityError) as caught:
            read_identities(tmp_path / "identity")
        assert "XYZ" not in str(caught.value)

    def test_a_recipient_with_a_typing_error(self, recipient: str) -> None:
        """The checksum of a public key is checked before anything is encrypted for it."""
        check_recipients([recipient])
        wrong = recipient[:-1] + ("q" if recipient[-1] != "q" else "p")
        with pytest.raises(ConfigurationError, match="no age recipient"):
            check_recipients([wrong])
