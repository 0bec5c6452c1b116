"""Keys of stores and of age: where they are found, and what is no key."""

from __future__ import annotations

import mmap
import os
import re
import resource
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import pyrage
import pytest

from portal.ops.errors import (
    ConfigurationError,
    IdentityError,
    NotIntactError,
    StorageError,
)
from portal.ops.settings.destination import parse_destination
from portal.ops.storage.age_format import (
    HEADER_MOST,
    Layout,
    NeedMoreError,
    StreamDecryptor,
    open_payload,
    parse_header,
)
from portal.ops.storage.age_keys import Identity, _key_of, check_recipients, generate, read_identities
from portal.ops.storage.credentials import Credentials, find_credentials, region_of
from portal.ops.storage.encrypt_helper import _Buffer, _Part
from portal.ops.storage.encryption import Encryptor
from portal.ops.storage.signature import SigningKey, is_signed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAIR: Final = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
CHUNK: Final = 65_536


class TestCredentials:
    def test_of_variables(self, tmp_path: Path) -> None:
        """Each by itself, or in a file; the token too."""
        (tmp_path / "secret").write_text(" from file\n")
        environ = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY_FILE": str(tmp_path / "secret")}
        assert find_credentials(environ) == Credentials(access_key="a", secret_key="from file")
        both = {**environ, "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "t"}
        assert find_credentials(both) == Credentials(access_key="a", secret_key="b", session_token="t")
        assert repr(find_credentials(both)) == "Credentials(access_key='a')"

    @pytest.mark.parametrize("name", PAIR)
    def test_one_alone(self, name: str) -> None:
        """It is of no use."""
        with pytest.raises(ConfigurationError, match="go together, and one of them is missing"):
            find_credentials({name: "x"})

    @pytest.mark.parametrize(
        ("content", "why"), [(None, "no such file or directory"), (b"\xff", "it is not text")], ids=["gone", "binary"]
    )
    def test_a_file_that_cannot_be_read(self, tmp_path: Path, content: bytes | None, why: str) -> None:
        """The variable is named, and not the file."""
        if content is not None:
            (tmp_path / "f").write_bytes(content)
        with pytest.raises(ConfigurationError) as caught:
            find_credentials({"AWS_ACCESS_KEY_ID_FILE": str(tmp_path / "f")})
        assert caught.value.message == f"the file that AWS_ACCESS_KEY_ID_FILE names cannot be read: {why}"
        with pytest.raises(ConfigurationError) as caught:
            find_credentials({"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "f")})
        assert caught.value.message == f"the file that AWS_SHARED_CREDENTIALS_FILE names cannot be read: {why}"

    def test_of_the_shared_file(self, tmp_path: Path) -> None:
        """By its profile; the one at home need not be there, nor have keys."""
        (tmp_path / ".aws").mkdir()
        shared = tmp_path / ".aws/credentials"
        home = {"HOME": str(tmp_path)}
        assert find_credentials(home) is None
        assert find_credentials({}) is None
        shared.write_text("no section")
        assert find_credentials(home) is None
        shared.write_bytes(b"\xff")
        assert find_credentials(home) is None
        shared.write_text(
            "[default]\naws_access_key_id=a\naws_secret_access_key=b%\n"
            "[other]\naws_access_key_id=c\naws_secret_access_key=d\naws_session_token=t\n"
        )
        assert find_credentials(home) == Credentials(access_key="a", secret_key="b%")
        other = Credentials(access_key="c", secret_key="d", session_token="t")
        named = {"AWS_SHARED_CREDENTIALS_FILE": str(shared)}
        assert find_credentials({**named, "AWS_PROFILE": "other"}) == other
        with pytest.raises(ConfigurationError, match="a file without keys for the profile third"):
            find_credentials({**named, "AWS_PROFILE": "third"})
        assert find_credentials({**home, "AWS_PROFILE": "third"}) is None

    def test_region(self) -> None:
        """The URL's, a variable's, or the usual one."""
        plain, given = parse_destination("s3://b"), parse_destination("s3://b?region=url")
        variables = {"AWS_REGION": "one", "AWS_DEFAULT_REGION": "two"}
        assert region_of(given, variables) == "url"
        assert region_of(plain, variables) == "one"
        assert region_of(plain, {"AWS_DEFAULT_REGION": "two"}) == "two"
        assert region_of(plain, {}) == "us-east-1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The file of an identity, and its recipient."""
    found = generate(tmp_path_factory.mktemp("key") / "identity")
    return found.path, found.recipient


class TestAgeKeys:
    def test_a_file_of_several(self, tmp_path: Path, made: tuple[Path, str]) -> None:
        """Remarks and empty lines are passed over; case does not count, but must not be mixed."""
        key = made[0].read_text().split()[-1]
        (tmp_path / "keys").write_text(f"# remark\n\n {key} \n{key.lower()}\n")
        first, second = read_identities(tmp_path / "keys")
        assert first == second
        assert len(first.secret) == 32
        assert str(first.secret) not in repr(first)
        (tmp_path / "keys").write_text(key.replace("AGE", "age", 1))
        with pytest.raises(IdentityError, match="holds a line that is no age identity"):
            read_identities(tmp_path / "keys")

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"", "{} holds no age identity"),
            (b"# x\n", "{} holds no age identity"),
            (b"AGE\n", "{} holds a line that is no age identity"),
            (b"\xff", "the identity file {} cannot be read: it is not text"),
            (None, "the identity file {} cannot be read: no such file or directory"),
        ],
    )
    def test_no_identity(self, tmp_path: Path, content: bytes | None, why: str) -> None:
        """What is wrong is told, and never the content."""
        path = tmp_path / "keys"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(IdentityError) as caught:
            read_identities(path)
        assert caught.value.message == why.format(path)
        assert caught.value.hint

    def test_one_good_line_among_others(self, tmp_path: Path, made: tuple[Path, str]) -> None:
        """The file is refused as a whole."""
        (tmp_path / "keys").write_text(made[0].read_text() + "ssh-ed25519 AAAA\n")
        with pytest.raises(IdentityError, match="a line that is no age identity"):
            read_identities(tmp_path / "keys")

    def test_recipients(self, made: tuple[Path, str]) -> None:
        """A secret key is none, nor is anything with another letter, prefix or length."""
        recipient = made[1]
        assert check_recipients([recipient, recipient.upper()]) == (recipient, recipient.upper())
        secret = made[0].read_text().split()[-1]
        wrong = [
            secret,
            "",
            "age1",
            "1",
            "age1b" + recipient[5:],
            f"x{recipient}",
            recipient[:-1],
            recipient[:20].upper() + recipient[20:],
        ]
        for text in wrong:
            with pytest.raises(ConfigurationError, match="is no age recipient") as caught:
                check_recipients([recipient, text])
            assert caught.value.message.startswith(repr(text[:80]))

    @pytest.mark.parametrize(
        "text",
        [
            "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq",
            "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq",
        ],
    )
    def test_a_wrong_checksum_or_another_prefix(self, text: str) -> None:
        """Bech32 of others is none of age."""
        with pytest.raises(ConfigurationError):
            check_recipients([text])

    def test_a_new_key(self, tmp_path: Path) -> None:
        """Two remarks and the key, for the owner only."""
        found = generate(tmp_path / "key")
        created, public, key = (tmp_path / "key").read_text().splitlines()
        assert datetime.fromisoformat(created.removeprefix("# created: ")).tzinfo is not None
        assert public == f"# public key: {found.recipient}"
        assert str(pyrage.x25519.Identity.from_str(key).to_public()) == found.recipient
        with pytest.raises(ConfigurationError, match=r"^cannot write .*: no such file or directory"):
            generate(tmp_path / "none/key")

    def test_a_key_on_a_full_disk(self, tmp_path: Path) -> None:
        """A key that could not be written leaves no file, so that the same command makes one when there is room."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
        try:
            with pytest.raises(ConfigurationError, match=r"^cannot write .*: file too large"):
                generate(tmp_path / "key")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert list(tmp_path.iterdir()) == []
        assert generate(tmp_path / "key").path.is_file()


def identity() -> tuple[Identity, Any]:
    """An identity, and its recipient for `pyrage`."""
    made_key = pyrage.x25519.Identity.generate()
    return _identity_of(str(made_key)), made_key.to_public()


def _identity_of(text: str) -> Identity:
    secret = _key_of(text, "age-secret-key-")
    assert secret is not None
    return Identity(secret=secret)


class TestAgeFormat:
    def test_headers_that_are_longer(self) -> None:
        """More is asked for while it may still become one."""
        own, public = identity()
        sealed = pyrage.encrypt(b"x", [public])
        header = parse_header(sealed)
        for length in (0, 1, 21, header.size - 1):
            with pytest.raises(NeedMoreError):
                parse_header(sealed[:length])
        assert parse_header(sealed[: header.size]) == header
        with pytest.raises(NotIntactError, match="does not start as a file of age does"):
            parse_header(b"other")
        with pytest.raises(NeedMoreError):
            parse_header(b"age-encryption.org/v1\n" + b"x" * (HEADER_MOST - 22))
        with pytest.raises(NotIntactError):
            parse_header(b"age-encryption.org/v1\n" + b"x" * (HEADER_MOST - 21))
        assert open_payload(header, sealed[header.size : header.size + 16], [own])

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda data: data.replace(b"/v1\n", b"/v2\n", 1), "it is of another version of age"),
            (lambda data: data.replace(b"-> X25519", b"=> X25519", 1), "its header is invalid"),
            (lambda data: data.replace(b"-> X25519 ", b"-> X25519 A", 1), "its header is invalid"),
            (lambda data: data.replace(b"-> X25519 ", b"-> X25519 more ", 1), "its header is invalid"),
            (lambda data: data.replace(b"\n--- ", b"\n--- !", 1), "its header is invalid"),
            (lambda data: re.sub(rb"(-> X25519 \S+\n\S+)", rb"\1A", data, count=1), "its header is invalid"),
            (lambda data: data.replace(b"-> X25519", b"->", 1).replace(b"->", b"->\n", 1), "its header is invalid"),
        ],
    )
    def test_headers_that_make_no_sense(self, change: Callable[[bytes], bytes], why: str) -> None:
        """They are damage."""
        _, public = identity()
        with pytest.raises(NotIntactError) as caught:
            parse_header(change(pyrage.encrypt(b"x", [public])))
        assert caught.value.message == f"an encrypted file is damaged: {why}"

    def test_stanzas_of_other_kinds(self) -> None:
        """They are passed over, but are part of what is authenticated."""
        own, public = identity()
        sealed = pyrage.encrypt(b"x", [public])
        other = sealed.replace(b"/v1\n", b"/v1\n-> other a b\n" + b"A" * 64 + b"\nAAAA\n", 1)
        header = parse_header(other)
        assert header.stanzas == parse_header(sealed).stanzas
        with pytest.raises(NotIntactError, match="its header was changed"):
            open_payload(header, other[header.size : header.size + 16], [own])

    def test_the_nonce_is_cut(self) -> None:
        """There is no payload then."""
        own, public = identity()
        sealed = pyrage.encrypt(b"x", [public])
        header = parse_header(sealed)
        with pytest.raises(NotIntactError, match="it is cut short"):
            open_payload(header, sealed[header.size : header.size + 15], [own])

    def test_several_recipients_and_identities(self) -> None:
        """Any pair that fits opens it."""
        (one, first), (two, second), (three, _) = identity(), identity(), identity()
        sealed = pyrage.encrypt(b"content", [first, second])
        for identities in ([one], [three, two], [two, one]):
            decryptor = StreamDecryptor(identities)
            assert b"".join(decryptor.feed(sealed)) + decryptor.finish() == b"content"
        with pytest.raises(IdentityError, match="not encrypted for any of the identities"):
            list(StreamDecryptor([three]).feed(sealed))

    @pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK])
    def test_where_chunks_are(self, size: int) -> None:
        """Each has a tag; an empty file has one chunk."""
        count = max(1, -(-size // CHUNK))
        layout = Layout(start=200, size=200 + size + 16 * count)
        assert (layout.count, layout.plain_size) == (count, size)
        assert layout.span(0, count - 1) == (200, size + 16 * count)
        if count > 1:
            assert layout.span(0, 0) == (200, CHUNK + 16)
            assert layout.span(1, 1) == (200 + CHUNK + 16, min(size - CHUNK, CHUNK) + 16)

    def test_a_file_without_room_for_a_tag(self) -> None:
        """It is cut."""
        assert Layout(start=200, size=216).plain_size == 0
        with pytest.raises(NotIntactError, match="it is cut short"):
            _ = Layout(start=200, size=215).plain_size

    def test_an_end_within_the_header(self) -> None:
        """Nothing has come of the content."""
        own, public = identity()
        sealed = pyrage.encrypt(b"x", [public])
        header = parse_header(sealed)
        for length in (5, header.size, header.size + 15):
            decryptor = StreamDecryptor([own])
            assert list(decryptor.feed(sealed[:length])) == []
            with pytest.raises(NotIntactError, match="it is cut short"):
                decryptor.finish()


class TestEncrypting:
    def test_a_part_of_a_file(self, tmp_path: Path) -> None:
        """It is read in pieces, and not beyond its end."""
        (tmp_path / "f").write_bytes(b"0123456789")
        with (tmp_path / "f").open("rb") as file:
            part = _Part(file.fileno(), 2, 5)
            assert not part.is_complete
            assert [part.read(2), part.read(2), part.read(9), part.read(9)] == [b"23", b"45", b"6", b""]
            assert part.is_complete
            assert _Part(file.fileno(), 2, 5).read() == b"23456"
            short = _Part(file.fileno(), 8, 5)
            assert short.read() + short.read() == b"89"
            assert not short.is_complete
        broken = _Part(os.open(tmp_path, os.O_RDONLY), 0, 5)
        with pytest.raises(IsADirectoryError):
            broken.read()
        assert broken.error == 21

    def test_a_buffer(self) -> None:
        """It begins empty, whatever was in it."""
        descriptor = os.memfd_create("test")
        os.write(descriptor, b"old content")
        buffer = _Buffer(descriptor)
        assert (buffer.write(b"ab"), buffer.write(b"c"), buffer.size) == (2, 1, 3)
        assert os.pread(descriptor, 100, 0) == b"abc"
        assert buffer.digest == sha256(b"abc").hexdigest()
        os.close(descriptor)

    def test_the_helper_ends(self, made: tuple[Path, str], tmp_path: Path) -> None:
        """It is told as such, wherever it is noticed; errors of the disk come with their number; nothing stays open."""
        before = len(os.listdir("/proc/self/fd"))
        with Encryptor([made[1]]) as sealing:
            assert sealing.load(b"x" * 1000) == 1000
            sealing.begin(0, sealing.load(b"short"), 0)
            with sealing.sealed(0) as part:
                assert (
                    pyrage.decrypt(bytes(part.data), [pyrage.x25519.Identity.from_str(made[0].read_text().split()[-1])])
                    == b"short"
                )
            assert os.fstat(sealing._buffers[0]).st_size == 0
            assert sealing._helper
            sealing._helper.process.kill()
            sealing._helper.process.wait()
            with pytest.raises(StorageError, match="the process that encrypts has ended"), sealing.sealed(0):
                pass
            with pytest.raises(StorageError, match="the process that encrypts has ended"):
                sealing.begin(0, 1, 0)
        descriptor = os.open(tmp_path, os.O_RDONLY)
        with Encryptor([made[1]], descriptor) as sealing:
            sealing.begin(0, 5, 0)
            with pytest.raises(IsADirectoryError), sealing.sealed(0):
                pass
        os.close(descriptor)
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_view_that_is_still_read(self, made: tuple[Path, str]) -> None:
        """An abandoned thread keeps its bytes."""
        with Encryptor([made[1]]) as sealing:
            sealing.begin(0, sealing.load(b"x"), 0)
            with sealing.sealed(0) as part:
                kept = memoryview(part.data)
                assert isinstance(part.data.obj, mmap.mmap)
            assert bytes(kept)[:21] == b"age-encryption.org/v1"


def test_signatures() -> None:
    """Of the same bytes by the same key; what is no key or signature signs nothing. The key is not shown."""
    key = SigningKey(b"s" * 32)
    signature = key.sign(b"data")
    assert is_signed(b"data", key.signer, signature)
    assert repr(key) == f"SigningKey({key.signer})"
    other = SigningKey(b"t" * 32)
    for data, signer, signed in (
        (b"datb", key.signer, signature),
        (b"data", other.signer, signature),
        (b"data", "x", signature),
        (b"data", "00", signature),
        (b"data", key.signer, "x"),
        (b"data", key.signer, "00"),
    ):
        assert not is_signed(data, signer, signed)
