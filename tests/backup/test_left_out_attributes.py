"""Extended attributes that archives leave out: a backup counts and names them."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.archive.open import open_archive
from portal.ops.archive.packer import LARGE_BYTES

if TYPE_CHECKING:
    from portal.ops.backup import BackupResult
    from tests.support.incrementals import Uploads

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def give(path: Path, **attributes: bytes) -> None:
    """Set extended attributes, with underscores for dots."""
    for name, value in attributes.items():
        try:
            os.setxattr(path, name.replace("_", "."), value)
        except OSError as error:
            pytest.skip(f"this user and this file system have no {name} ({error.strerror})")


def counts(result: BackupResult) -> Any:
    """The attributes that the manifest counts, without those of the machine that runs the test."""
    with closing(open_archive(Path(result.destination_path))) as reader:
        found = reader.manifest().details["media"].get("attributes_left_out", {})
    return {name: count for name, count in found.items() if name != "security.ima"}


@pytest.fixture
def labelled(uploads: Uploads) -> Uploads:
    """Uploads with attributes of each kind: on small files, on a large one, on a directory."""
    large = uploads.root / "tenant-1" / "large.json"
    large.write_bytes(bytes(LARGE_BYTES))
    for path in (uploads.root / "tenant-1", uploads.root / "tenant-1" / "scan.json", large):
        give(path, security_selinux=b"label", user_name=b"kept", trusted_origin=b"import")
    give(large, security_capability=CAPABILITY)
    return uploads


def test_each_attribute_is_named_once(labelled: Uploads) -> None:
    """With the number of files; labels that the machine gives to each file are counted, and no warning."""
    result = labelled.base()
    assert counts(result) == {"security.selinux": 3, "trusted.origin": 3, "security.capability": 1}
    where = "media/tenant-1"
    assert result.warnings == (
        f"trusted.origin, an extended attribute of 3 files and directories, is not kept (the first: {where})",
        "security.capability, an extended attribute of 1 file or directory, is not kept "
        f"(the first: {where}/large.json)",
    )


def test_an_incremental_names_those_of_what_it_holds(labelled: Uploads) -> None:
    """Files that have not changed are not read again."""
    labelled.base()
    (labelled.root / "tenant-1" / "scan.json").write_bytes(b"changed")
    result = labelled.incremental()
    assert counts(result)["trusted.origin"] == 1
    assert [warning.partition(",")[0] for warning in result.warnings] == ["trusted.origin"]


def test_attributes_that_are_kept_are_not_counted(uploads: Uploads) -> None:
    """Those of the owner are in the archive, so nothing is said."""
    give(uploads.root / "tenant-1" / "scan.json", user_name=b"kept")
    result = uploads.base()
    assert (counts(result), result.warnings) == ({}, ())
