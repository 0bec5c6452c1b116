"""An archive with an index of version 2 is verified, read and restored for ever; a reader of version 1 refuses it."""

from __future__ import annotations

import os
import shutil
from base64 import b64decode
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from portal.ops.archive import index
from portal.ops.archive.reader import ArchiveReader
from portal.ops.chains.reader import open_tree
from portal.ops.errors import NotIntactError
from portal.ops.model import Component
from portal.ops.restore.files.restore import FileRestore
from portal.ops.verify.verify import Verifier
from tests.golden.make import ACCESS_LIST

ARCHIVE = Path(__file__).parent / "extended" / "media_20240115_120000_dd56de.tar.gz"
SHA256 = "7e186279bc233aac90b714d13fd3ced82442bdac066146932cb1f0be1028cd59"
IMAGE = "media/tenant-1/" + "image-" * 20
TIMES = {"media/tenant-1/old": -1_999_999_999_000_000_001, "media/tenant-1/far": 10_413_792_000_000_000_000}


def test_archive_is_the_one_that_was_made() -> None:
    """Nobody made it again: that would test the writer of today."""
    assert sha256(ARCHIVE.read_bytes()).hexdigest() == SHA256


def test_it_says_what_it_said() -> None:
    """Attributes, extents and times are read as they were written, and everything is intact."""
    assert Verifier(jobs=2).verify(ARCHIVE).intact
    with closing(ArchiveReader(ARCHIVE)) as reader:
        members = {member.path: member for member in reader.members()}
        scan = {name: b64decode(value) for name, value in members["media/tenant-1/scan.json"].xattrs}
        assert scan == {"user.origin=100%": b"scanner\0\xff", "system.posix_acl_access": ACCESS_LIST}
        assert members["media/tenant-1"].xattrs == (("user.tenant", "MQ=="),)
        assert {path: members[path].mtime_ns for path in TIMES} == TIMES
        image = members[IMAGE]
        assert (image.size, len(image.sparse)) == (1 << 32, 3)
        assert sum(map(len, reader.extract(image))) == 1 << 32


def test_it_is_restored(tmp_path: Path) -> None:
    """Attributes, holes and times are there again, as far as this file system takes them."""
    restore = FileRestore(tmp_path / "live", restore_id="restore_1", component=Component.MEDIA)
    with closing(open_tree(ARCHIVE)) as opened:
        report = restore.stage_from(opened, 2)
    restore.apply()
    with (tmp_path / "live" / IMAGE.removeprefix("media/")).open("rb") as file:
        assert os.fstat(file.fileno()).st_size == 1 << 32
        assert os.fstat(file.fileno()).st_blocks * 512 < 1 << 20
        file.seek(3 << 30)
        assert file.read(8004) == b"data" * 2000 + bytes(4)
    if not report.warnings:
        assert os.getxattr(tmp_path / "live" / "tenant-1" / "scan.json", "user.origin=100%") == b"scanner\0\xff"


def test_a_release_that_knows_version_1_alone_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told to use the release that wrote the archive, rather than that the archive is damaged."""
    shutil.copy(ARCHIVE, tmp_path)
    monkeypatch.setattr(index, "EXTENDED_VERSION", index.VERSION)
    with pytest.raises(NotIntactError, match="version 2") as refused:
        ArchiveReader(tmp_path / ARCHIVE.name)
    assert "release that wrote" in refused.value.hint
