"""Archives of every format that was ever released are verified and read for ever, and their damage is found."""

from __future__ import annotations

import shutil
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.open import open_archive
from portal.ops.errors import NotIntactError
from portal.ops.model import Component, VerifyLevel
from portal.ops.repository.sidecar import sidecar_of
from portal.ops.verify.verify import Verifier

if TYPE_CHECKING:
    from demo.postgres import EmbeddedPostgres

GOLDEN = Path(__file__).parent
INDEXED = "full_20240115_120000_dd56de"
PLAIN = "full_20240115_120000_bbbbbb"

ARCHIVES = {
    INDEXED: "31848890251991d49786af6986633e6002460af9518304c90f1362c4a26ec9cb",
    PLAIN: "d9760f78fb3e97d5f5c825a359ae6407da12a21e53aa04061c245956934db618",
}
DUMP = "a1f58c173c8d8194670ac4e3967cf71fbd856efe382046aa3712ec9e27d6a520"
LONG_NAME = "media/tenant-1/" + "long-" * 40
FILES = {
    "database.sql": DUMP,
    "media/tenant-1/large.sarif": "1ec302bed977d4ce41b9ad7c81eb4c2f448b56a46d2c9b3a8aa0b04529eaac2c",
    "media/tenant-1/scan.json": "afd43aa69434129865e80ac818f08b3f52c03b11ae63e96958d2664eed81f9d4",
    LONG_NAME: "fc66f021c67d064c1490a12b5a4d4d2f5167ca692a16ca12f1f3a4cda29a6fa9",
    "media/tenant-1/not-\udcff-text": "277089d91c0bdf4f2e6862ba7e4a07605119431f5d13f726dd352b06f1b206a9",
    "audit/audit.jsonl": "bab97a4eeef58ed9fa510363f431319a5d3a6103a31a519043058a24fee9e48e",
}
OTHERS = {
    "media": (MemberType.DIRECTORY, ""),
    "media/tenant-1": (MemberType.DIRECTORY, ""),
    "media/tenant-1/empty": (MemberType.DIRECTORY, ""),
    "media/tenant-1/latest": (MemberType.SYMLINK, "scan.json"),
    "media/tenant-1/second-name.json": (MemberType.HARDLINK, "media/tenant-1/scan.json"),
    "audit": (MemberType.DIRECTORY, ""),
}
MTIME_NS = 1_705_319_999_123_456_789

DAMAGED: dict[str, tuple[str, set[str | None]]] = {
    "flipped-media": ("media/tenant-1/large.sarif, frame 5", {"media/tenant-1/large.sarif"}),
    "flipped-dump": ("database.sql, frame 2", {"database.sql"}),
    "cut": ("does not end as it should", {None}),
}


def archive_of(name: str) -> Path:
    return GOLDEN / f"{name}.tar.gz"


def contents(name: str) -> list[tuple[Member, bytes]]:
    with closing(open_archive(archive_of(name))) as archive:
        return [(member, b"".join(content)) for member, content in archive.contents(2)]


@pytest.fixture(params=ARCHIVES)
def name(request: pytest.FixtureRequest) -> str:
    """Each whole archive."""
    name: str = request.param
    return name


def test_archive_is_the_one_that_was_made(name: str) -> None:
    """Nobody made a golden archive again: that would test the writer of today."""
    assert sha256(archive_of(name).read_bytes()).hexdigest() == ARCHIVES[name]


@pytest.mark.parametrize("level", [VerifyLevel.CHECKSUM, VerifyLevel.CONTENTS])
def test_archive_verifies(name: str, level: VerifyLevel) -> None:
    """An old archive is intact at each level that needs no other program."""
    found = Verifier().verify(archive_of(name), level)
    assert (found.message.split(":")[0], found.checksum) == (f"{name} is intact", ARCHIVES[name])


def test_dump_decodes(name: str, postgres: EmbeddedPostgres) -> None:
    """The dump in an old archive is decoded to its end by pg_restore."""
    verifier = Verifier(pg_bin_dir=postgres.bin_dir)
    assert verifier.verify(archive_of(name), VerifyLevel.DUMP).message.endswith("the dump decodes to its end")


def test_archive_verifies_without_its_sidecar(name: str, tmp_path: Path) -> None:
    """An old archive whose sidecar was lost is intact by its contents."""
    shutil.copy(archive_of(name), tmp_path)
    assert Verifier().verify(tmp_path / f"{name}.tar.gz").intact
    assert not sidecar_of(tmp_path / f"{name}.tar.gz").exists()


def test_files_are_what_they_were(name: str) -> None:
    """Every file of an old archive has the content that it was given."""
    digests = {member.path: sha256(content).hexdigest() for member, content in contents(name)}
    files = {member.path for member, _ in contents(name) if member.type is MemberType.FILE}
    assert files == {*FILES, "manifest.json"}
    assert {path: digests[path] for path in FILES} == FILES


def test_directories_and_links_are_what_they_were(name: str) -> None:
    """Every directory and every link of an old archive is there."""
    found = {
        member.path: (member.type, member.link) for member, _ in contents(name) if member.type is not MemberType.FILE
    }
    assert found == OTHERS


def test_modes_and_times_are_what_they_were(name: str) -> None:
    """Modes and times come back as exactly as the format of the archive has them."""
    exact = MTIME_NS if name == INDEXED else MTIME_NS // 10**9 * 10**9
    members = [member for member, _ in contents(name)]
    media = [one for one in members if one.path.startswith("media/") and one.type is MemberType.FILE]
    assert {(one.mode, one.mtime_ns) for one in media} == {(0o600, exact)}


def test_manifest_is_what_it_was(name: str) -> None:
    """The manifest of an old archive is understood: its seven keys at least."""
    with closing(open_archive(archive_of(name))) as archive:
        manifest = archive.manifest()
    assert (manifest.backup_id, manifest.type, manifest.timestamp) == (name, "full", "2024-01-15T12:00:00Z")
    assert manifest.components == (Component.DATABASE, Component.MEDIA, Component.AUDIT_LOGS)
    assert manifest.db_name == "defectdojo"
    if name == INDEXED:
        assert manifest.details["database"]["rows"] == {"public.finding": 50, "public.product": 2}


@pytest.mark.parametrize("damaged", DAMAGED)
def test_damage_is_found_and_named(damaged: str) -> None:
    """A damaged copy of an old archive is reported with what is hit, and with nothing that is not."""
    words, paths = DAMAGED[damaged]
    found = Verifier().verify(archive_of(damaged))
    assert words in found.message
    assert {damage.path for damage in found.damages} == paths


@pytest.mark.parametrize("damaged", ["flipped-media", "flipped-dump"])
def test_whole_files_of_a_damaged_archive_are_read(damaged: str) -> None:
    """What the damage does not hit can still be taken out."""
    with closing(open_archive(archive_of(damaged))) as archive:
        found = {}
        for member, content in archive.contents(2):
            try:
                found[member.path] = sha256(b"".join(content)).hexdigest()
            except NotIntactError as error:
                assert member.path in DAMAGED[damaged][1], error
    assert {path: found[path] for path in FILES if path in found} == {
        path: digest for path, digest in FILES.items() if path not in DAMAGED[damaged][1]
    }
