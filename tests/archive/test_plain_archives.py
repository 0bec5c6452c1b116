"""Archives that tar and gzip wrote, as the portal's first scripts did: they are read, and damage in them is found."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portal.ops.archive.open import open_archive
from portal.ops.archive.reader import is_indexed
from portal.ops.errors import NotIntactError
from tests.support.archives import BACKUP_ID, NAME, program, seal, tree_in_archive, tree_on_disk, verify

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST = {
    "backup_id": BACKUP_ID,
    "type": "full",
    "timestamp": "2024-01-15T12:00:00Z",
    "format_version": 1,
    "components": ["media", "audit_logs"],
    "hostname": "portal-server",
    "db_name": "defectdojo",
}
WITH_MANIFEST = (f"{BACKUP_ID}/manifest.json", json.dumps(MANIFEST).encode())


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """The directory that an early script made before it called tar: its parent is where tar was called."""
    root = tmp_path / "work" / BACKUP_ID
    media = root / "media"
    media.mkdir(parents=True)
    (root / "audit").mkdir()
    (root / "audit" / "audit.jsonl").write_bytes(b'{"event": "login"}\n' * 50)
    (root / "manifest.json").write_text(json.dumps(MANIFEST))
    (media / "scan.json").write_bytes(os.urandom(3000))
    (media / "empty").touch()
    (media / "nothing").mkdir()
    (media / "link").symlink_to("scan.json")
    os.link(media / "scan.json", media / "second-name")
    return root


def pack(backup: Path, *options: str, top: str = BACKUP_ID) -> Path:
    """Archive the directory with GNU tar."""
    archive = backup.parents[1] / NAME
    subprocess.run([program("tar"), "-C", backup.parent, "-czf", archive, *options, top], check=True)
    return archive


@pytest.mark.parametrize("form", ["gnu", "pax", "posix", "ustar", "oldgnu"])
@pytest.mark.parametrize("top", [BACKUP_ID, f"./{BACKUP_ID}", "."])
def test_archive_of_tar_is_intact(backup: Path, form: str, top: str) -> None:
    """Each format that tar writes verifies, with the directory named in each way."""
    archive = pack(backup, f"--format={form}", top=top)
    assert not is_indexed(archive)
    assert verify(archive).message.startswith(f"{BACKUP_ID} is intact: 3 files")


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_contents_are_what_tar_put_in(backup: Path, form: str) -> None:
    """Names, modes, links and contents are read back; times as exactly as the format has them."""
    for child in (backup / "media").iterdir():
        os.utime(child, ns=(0, 1_700_000_000_000_000_000), follow_symlinks=False)
    os.utime(backup / "media" / "nothing", ns=(0, 1_700_000_000_123_456_789 if form == "pax" else 10**18))
    os.utime(backup / "media", ns=(0, 10**18))
    expected = tree_on_disk(backup / "media")
    order = ["--sort=name", f"--format={form}"]
    assert tree_in_archive(pack(backup, *order)) == expected


def test_long_names_are_read(backup: Path) -> None:
    """Names that no plain header holds are read in either way that tar has for them."""
    deep = backup / "media" / ("d" * 200)
    deep.mkdir()
    (deep / ("f" * 250)).write_bytes(b"long")
    (deep / "link").symlink_to("t" * 300)
    for form in ("gnu", "pax"):
        archive = pack(backup, f"--format={form}")
        assert set(tree_in_archive(archive)) == set(tree_on_disk(backup / "media"))
        assert verify(archive).intact


@pytest.mark.parametrize("options", [["--format=gnu", "-S"], ["--format=pax", "-S"], ["--format=gnu"]])
def test_sparse_file_is_read_whole(backup: Path, options: list[str]) -> None:
    """A sparse file that tar recorded as one is read with its holes, as one that it did not."""
    with (backup / "media" / "sparse").open("wb") as file:
        for at in (0, 1 << 20, 5 << 20):
            file.seek(at)
            file.write(b"data" * 2000)
        file.truncate(6 << 20)
    archive = pack(backup, *options)
    expected = tree_on_disk(backup / "media")[b"sparse"]
    found = tree_in_archive(archive)[b"sparse"]
    assert (found.content, found.size) == (expected.content, expected.size)
    assert verify(archive).intact


def test_archive_without_manifest_describes_itself(backup: Path) -> None:
    """What an archive holds can be told without a manifest."""
    (backup / "manifest.json").unlink()
    archive = pack(backup)
    with closing(open_archive(archive)) as found:
        manifest = found.manifest()
    assert (manifest.backup_id, manifest.type) == (BACKUP_ID, "full")
    assert [component.value for component in manifest.components] == ["media", "audit_logs"]
    assert verify(archive).intact


def test_database_alone_without_manifest_is_intact(tmp_path: Path) -> None:
    """The smallest archive of the earliest script: a dump in a directory."""
    root = tmp_path / "work" / BACKUP_ID
    root.mkdir(parents=True)
    (root / "database.sql").write_bytes(b"PGDMP and so on")
    assert verify(pack(root)).intact


def test_missing_sidecar_is_a_note(backup: Path) -> None:
    """Without a sidecar the contents alone speak, and that is said."""
    found = verify(pack(backup))
    assert found.intact
    assert f"{NAME}.sha256" in found.notes[0]


def test_wrong_sidecar_is_damage(backup: Path) -> None:
    """Contents that look whole do not outweigh a checksum that is wrong."""
    archive = seal(pack(backup))
    assert verify(archive).intact
    archive.write_bytes(gzip.compress(gzip.decompress(archive.read_bytes()), 1))
    assert "its SHA-256 is" in verify(archive).message


@pytest.mark.parametrize("missing", ["audit", "media"])
def test_what_the_manifest_lists_and_the_archive_lacks_is_a_warning(backup: Path, missing: str) -> None:
    """The portal's own scripts list three components, whichever they have put in: what counts is what is there."""
    shutil.rmtree(backup / missing)
    archive = pack(backup)
    found = verify(archive)
    assert found.intact
    assert any("the archive contains none" in note for note in found.notes)
    with closing(open_archive(archive)) as opened:
        assert [component.member for component in opened.manifest().components] == sorted(
            {"media", "audit"} - {missing}
        )


# -- damage -----------------------------------------------------------------------------------------------------------


def small(path: Path) -> bytes:
    """A small archive of tar's kind: its bytes."""
    write(path, [WITH_MANIFEST, (f"{BACKUP_ID}/media/a", b"one"), (f"{BACKUP_ID}/audit/b", b"two")])
    return path.read_bytes()


def write(path: Path, members: list[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    """Write a gzip file of these members; what is not given is as tar would have it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            found = tarfile.TarInfo(name) if isinstance(name, str) else name
            found.size = found.size or len(content)
            tar.addfile(found, io.BytesIO(content) if content else None)
    path.write_bytes(gzip.compress(buffer.getvalue(), 6, mtime=0))
    return path


def contents(path: Path) -> list[tuple[str, bytes]]:
    with closing(open_archive(path)) as archive:
        return [(member.path, b"".join(content)) for member, content in archive.contents(1)]


def test_flip_of_any_byte_is_found(tmp_path: Path) -> None:
    """Each byte of an archive matters, but for those of gzip's header that mean nothing."""
    path = tmp_path / NAME
    data = small(path)
    expected = contents(path)
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        found = verify(path)
        assert not found.intact or (4 <= position < 10 and contents(path) == expected), position


def test_archive_that_is_cut_is_found(tmp_path: Path) -> None:
    """An archive that ends too early is damaged, wherever that is."""
    path = tmp_path / NAME
    data = small(path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert not verify(path).intact, length


def test_tar_that_was_cut_before_it_was_compressed_is_found(tmp_path: Path) -> None:
    """A tar that lacks its end is damaged though gzip finds nothing wrong; one zero block is end enough."""
    path = tmp_path / NAME
    tar = gzip.decompress(small(path)).rstrip(b"\x00")
    end = len(tar) + -len(tar) % 512
    for length in range(0, end + 1, 256):
        path.write_bytes(gzip.compress(tar[:length].ljust(length, b"\x00")))
        assert not verify(path).intact, length
    path.write_bytes(gzip.compress(tar.ljust(end + 512, b"\x00")))
    assert verify(path).intact


def test_header_that_makes_no_sense_is_not_the_end(tmp_path: Path) -> None:
    """A broken header in the middle is damage, and not taken for the end of the archive."""
    path = tmp_path / NAME
    tar = bytearray(gzip.decompress(small(path)))
    at = tar.index(f"{BACKUP_ID}/audit/b".encode())
    tar[at] ^= 1
    path.write_bytes(gzip.compress(tar))
    assert "damaged from here on" in verify(path).message


@pytest.mark.parametrize("more", [b"x", gzip.compress(b"more", mtime=0), b"\x1f\x8b", b"x" * 5000], ids=len)
def test_what_follows_the_end_is_found(tmp_path: Path, more: bytes) -> None:
    """Nothing but zeros may follow an archive, inside gzip or behind it."""
    path = tmp_path / NAME
    data = small(path)
    path.write_bytes(data + more)
    assert not verify(path).intact
    path.write_bytes(gzip.compress(gzip.decompress(data) + more))
    assert not verify(path).intact


# -- hostile archives -------------------------------------------------------------------------------------------------


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: str | int | dict[str, str]) -> tarfile.TarInfo:
    """A header with fields that tar would not write."""
    found = tarfile.TarInfo(name)
    found.type = kind
    for field, value in fields.items():
        setattr(found, field, value)
    return found


TOP = BACKUP_ID
HOSTILE: dict[str, str | tarfile.TarInfo] = {
    "absolute": "/etc/passwd",
    "absolute directory": "/media/a",
    "above": "../media/a",
    "above later": f"{TOP}/../other/a",
    "above inside": f"{TOP}/media/../../a",
    "here": f"{TOP}/media/./a",
    "no name": f"{TOP}/media//a",
    "other top": "other/media/a",
    "no component": f"{TOP}/etc/passwd",
    "below the dump": f"{TOP}/database.sql/a",
    "block device": member(f"{TOP}/media/sda", tarfile.BLKTYPE, devmajor=8),
    "character device": member(f"{TOP}/media/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
    "fifo": member(f"{TOP}/media/fifo", tarfile.FIFOTYPE),
    "link above": member(f"{TOP}/media/link", tarfile.LNKTYPE, linkname=f"{TOP}/../../etc/passwd"),
    "link to absolute": member(f"{TOP}/media/link", tarfile.LNKTYPE, linkname="/etc/passwd"),
    "link to another top": member(f"{TOP}/media/link", tarfile.LNKTYPE, linkname="etc/passwd"),
    "index": f"{TOP}/index.jsonl",
}


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_member_is_refused(tmp_path: Path, name: str, first: bool) -> None:
    """A path, link or device that no backup has is damage, wherever in the archive it is."""
    hostile = HOSTILE[name]
    members: list[tuple[str | tarfile.TarInfo, bytes]] = [(f"{TOP}/media/a", b"one"), (f"{TOP}/audit/b", b"two")]
    members.insert(0 if first else 2, (hostile, b"x" if isinstance(hostile, str) else b""))
    assert not verify(write(tmp_path / NAME, members)).intact


@pytest.mark.parametrize("time", ["nan", "inf", "1e9", "twelve", "", "1.2.3", "9" * 30])
def test_time_that_is_no_time_is_refused(tmp_path: Path, time: str) -> None:
    """A pax record that is not a time is damage, and nothing worse."""
    path = tmp_path / NAME
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member(f"{TOP}/media/a", pax_headers={"mtime": time}))
    assert not verify(path).intact


def test_endless_chain_of_extensions_is_refused(tmp_path: Path) -> None:
    """Headers that only announce other headers are damage, and nothing worse."""
    path = tmp_path / NAME
    announcement = member("x", tarfile.XHDTYPE, size=512).tobuf() + b"11 path=aa\n".ljust(512, b"\x00")
    path.write_bytes(gzip.compress(announcement * 5000 + member(f"{TOP}/media/a").tobuf() + bytes(1024)))
    assert not verify(path).intact


def test_name_of_a_gibibyte_is_refused(tmp_path: Path) -> None:
    """A name that is said to be huge is refused before it is read."""
    path = tmp_path / NAME
    name = member("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=1 << 30).tobuf()
    path.write_bytes(gzip.compress(name + bytes(4 << 20)))
    assert "longer than any name" in verify(path).message


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"null", b"{}", b'{"format_version": 1}', b'{"format_version": 2}', b"\xff", b"[" * 100_000],
    ids=len,
)
def test_manifest_that_makes_no_sense_is_refused(tmp_path: Path, document: bytes) -> None:
    """A manifest that is none is damage, and nothing worse."""
    path = write(tmp_path / NAME, [(f"{TOP}/manifest.json", document), (f"{TOP}/media/a", b"one")])
    assert not verify(path).intact


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 8000), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_change_of_the_tar_ends_in_a_verdict(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    """Whatever the bytes are that a gzip file holds, looking at them ends in a finding or a refusal."""
    path = tmp_path / NAME
    tar = bytearray(gzip.decompress(small(path)).rstrip(b"\x00").ljust(8192, b"\x00"))
    for position, value in changes:
        tar[position] = value
    path.write_bytes(gzip.compress(tar, 1))
    verify(path)
    try:
        contents(path)
    except NotIntactError as error:
        assert error.exit_code == 4


def test_names_are_the_bytes_that_they_are_in_every_locale(backup: Path) -> None:
    """A restore by a process whose locale has Latin-1 gives the files the names that they had."""
    localedef = shutil.which("localedef")
    made = localedef and subprocess.run(
        [localedef, "-i", "de_DE", "-f", "ISO-8859-1", backup.parent / "de_DE.ISO-8859-1"], check=False
    )
    if not made or made.returncode:
        pytest.skip("no locale with another encoding can be made")
    (backup / "media" / "prüfung").touch()
    listing = """
import sys
from pathlib import Path
from portal.ops.archive.index import encode_name
from portal.ops.archive.plain import PlainArchive
names = (ascii(encode_name(member.path)) for member in PlainArchive(Path(sys.argv[1])).members())
print(sys.getfilesystemencoding(), *names)
"""
    environment = os.environ | {"LOCPATH": str(backup.parent), "LC_ALL": "de_DE.ISO-8859-1"}
    found = subprocess.run(
        [sys.executable, "-c", listing, pack(backup)], env=environment, capture_output=True, text=True, check=True
    )
    encoding, *names = found.stdout.split()
    assert encoding == "iso8859-1"
    assert ascii("media/prüfung".encode()) in names


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00" * 4096, b"PK\x03\x04" * 200, gzip.compress(b"", mtime=0), gzip.compress(b"text", mtime=0)],
    ids=len,
)
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    """A file that is empty, or something else, is not intact."""
    path = tmp_path / NAME
    path.write_bytes(data)
    found = verify(path)
    assert not found.intact
    with pytest.raises(NotIntactError):
        found.raise_damage()
