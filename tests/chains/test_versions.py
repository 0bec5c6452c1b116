"""Which archive has which version of a file."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.chains.extract import find_in_archive
from portal.ops.chains.versions import Found, Wanted, find_versions
from portal.ops.errors import ConfigurationError
from portal.ops.model import Component
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.repository import Repository
from tests.support.incrementals import Uploads

if TYPE_CHECKING:
    from pathlib import Path

SCAN = "media/tenant/scan.sarif"


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    """One file, which tests change."""
    made = Uploads(directory=tmp_path)
    made.write("tenant/scan.sarif", b"one")
    return made


def search(uploads: Uploads, path: str, **options: Any) -> Found:
    repository = Repository(uploads.archives)
    return find_versions(Catalogue(repository).entries(), repository.path, Wanted(path=path, **options))


def seen(found: Found, path: str = SCAN) -> list[tuple[str, list[str]]]:
    """The versions of one file: the start of each digest, and the archives."""
    (file,) = [file for file in found.files if file.path == path]
    return [(version.sha256, list(version.archives)) for version in file.versions]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_each_version_with_its_archives(uploads: Uploads) -> None:
    """Newest first; an incremental has what its parent has, and a content that comes back is the same version."""
    base = uploads.base().backup_id
    uploads.write("tenant/other", b"other")
    same = uploads.incremental().backup_id
    uploads.write("tenant/scan.sarif", b"two")
    changed = uploads.incremental().backup_id
    uploads.write("tenant/scan.sarif", b"one")
    full = uploads.base().backup_id
    found = search(uploads, SCAN)
    assert seen(found) == [(digest(b"one"), [full, same, base]), (digest(b"two"), [changed])]
    assert (found.searched, found.unread, found.files[0].gone_since) == (4, {}, "")
    assert found.files[0].versions[1].size == 3


def test_every_archive_that_is_named_gives_that_version(uploads: Uploads) -> None:
    """What is shown can be extracted."""
    uploads.base()
    for content in (b"two", b"three"):
        uploads.write("tenant/scan.sarif", content)
        uploads.incremental()
    for sha256, archives in seen(search(uploads, SCAN)):
        for archive in archives:
            _, member = find_in_archive(uploads.archive(archive), SCAN)
            assert member.sha256 == sha256


@pytest.mark.parametrize("removed", ["tenant/scan.sarif", "tenant"])
def test_a_file_that_is_gone(uploads: Uploads, removed: str) -> None:
    """The first archive without it is named, whether the file or a directory above it was removed."""
    uploads.write("kept", b"kept")
    base = uploads.base().backup_id
    path = uploads.root / removed
    (uploads.root / "tenant" / "scan.sarif").unlink()
    if path.is_dir():
        path.rmdir()
    gone = uploads.incremental().backup_id
    uploads.write("later", b"later")
    uploads.incremental()
    found = search(uploads, SCAN)
    assert seen(found) == [(digest(b"one"), [base])]
    assert found.files[0].gone_since == gone


def test_a_file_that_was_gone_and_is_back(uploads: Uploads) -> None:
    """It counts as there."""
    base = uploads.base().backup_id
    (uploads.root / "tenant" / "scan.sarif").unlink()
    uploads.write("kept", b"kept")
    uploads.incremental()
    uploads.write("tenant/scan.sarif", b"one")
    back = uploads.incremental().backup_id
    found = search(uploads, SCAN)
    assert seen(found) == [(digest(b"one"), [back, base])]
    assert found.files[0].gone_since == ""


def test_a_file_in_whose_place_is_a_directory(uploads: Uploads) -> None:
    """The file is gone, and what is in the directory is found."""
    base = uploads.base().backup_id
    (uploads.root / "tenant" / "scan.sarif").unlink()
    uploads.write("tenant/scan.sarif/inner", b"inner")
    changed = uploads.incremental().backup_id
    found = search(uploads, SCAN)
    assert seen(found) == [(digest(b"one"), [base])]
    assert seen(found, f"{SCAN}/inner") == [(digest(b"inner"), [changed])]
    assert found.files[0].gone_since == changed


def test_links(uploads: Uploads) -> None:
    """A hard link has its target's content, a symbolic link the target's name; both follow changes."""
    scan = uploads.root / "tenant" / "scan.sarif"
    os.link(scan, uploads.root / "tenant" / "hard")
    (uploads.root / "tenant" / "soft").symlink_to("scan.sarif")
    base = uploads.base().backup_id
    (uploads.root / "tenant" / "soft").unlink()
    (uploads.root / "tenant" / "soft").symlink_to("hard")
    changed = uploads.incremental().backup_id
    found = search(uploads, "media/tenant")
    assert seen(found, "media/tenant/hard") == [(digest(b"one"), [changed, base])]
    assert seen(found) == [(digest(b"one"), [changed, base])]
    (soft,) = [file for file in found.files if file.path.endswith("soft")]
    assert [(version.link, version.archives) for version in soft.versions] == [
        ("hard", (changed,)),
        ("scan.sarif", (base,)),
    ]


def test_an_archive_that_cannot_be_read_and_what_follows_it(uploads: Uploads) -> None:
    """They are named with the reason, and the others are searched."""
    base = uploads.base().backup_id
    uploads.write("tenant/scan.sarif", b"two")
    broken = uploads.incremental().backup_id
    uploads.write("tenant/scan.sarif", b"three")
    after = uploads.incremental().backup_id
    uploads.archive(broken).write_bytes(uploads.archive(broken).read_bytes()[:-100])
    found = search(uploads, SCAN)
    assert seen(found) == [(digest(b"one"), [base])]
    assert found.unread.keys() == {broken, after}
    assert broken in found.unread[after]


def test_other_archives_are_not_searched(uploads: Uploads) -> None:
    """A database archive has no uploads, so a file is not gone in it; one of unknown contents is named."""
    uploads.base()
    repository = Repository(uploads.archives)
    entries = Catalogue(repository).entries()
    (media,) = entries
    database = media._replace(name="database_20300101_000000_abc123", components=(Component.DATABASE,))
    unknown = media._replace(name="copied_by_hand", components=())
    found = find_versions([unknown, database, *entries], repository.path, Wanted(path=SCAN))
    assert (found.searched, found.files[0].gone_since, list(found.unread)) == (1, "", [unknown.name])


@pytest.mark.parametrize(
    ("wanted", "path", "is_match"),
    [
        (Wanted(path="media/a"), "media/a", True),
        (Wanted(path="media/a"), "media/a/b", True),
        (Wanted(path="media/a"), "media/ab", False),
        (Wanted(path="media/*.sarif"), "media/x/y.sarif", True),
        (Wanted(path="media/[x]"), "media/[x]", True),
        (Wanted(path="media/scan.sarif"), "media/t/scan.sarif", False),
        (Wanted(path="media/scan.sarif", everywhere=True), "media/t/scan.sarif", True),
        (Wanted(path="media/scan.sarif", everywhere=True), "media/t/other-scan.sarif", False),
        (Wanted(path="media/scan.*", everywhere=True), "audit/t/scan.sarif", False),
    ],
)
def test_what_matches(wanted: Wanted, path: str, is_match: bool) -> None:
    """A path, everything below a directory, a pattern, and a name in any directory."""
    assert wanted.matches(path) is is_match


def test_too_many_files(uploads: Uploads) -> None:
    """A pattern that matches very many files is refused."""
    for number in range(1001):
        uploads.write(f"tenant/{number}")
    uploads.base()
    with pytest.raises(ConfigurationError, match="more than 1,000 files"):
        search(uploads, "media/*")
