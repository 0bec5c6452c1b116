"""A copy of an archive whose disk fails while it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from portal.ops.model import SUFFIX
from portal.ops.repository.catalogue import Catalogue
from portal.ops.repository.repository import Repository
from tests.support.bad_disk import BLOCK_BYTES, bad_disk
from tests.support.restores import mounted

if TYPE_CHECKING:
    from tests.support.offsite import Offsite


def commits(offsite: Offsite) -> list[str]:
    """The copies that are complete."""
    return [name for name in offsite.names() if name.endswith(".json")]


@pytest.mark.parametrize("settings", [{}, {"BACKUP_OFFSITE_ENCRYPTION": "off", "BACKUP_ENCRYPTION_RECIPIENTS": ""}])
@pytest.mark.parametrize("readable", [300, -4], ids=["its middle", "its end"])
def test_the_archive_is_named_and_the_process_lives(offsite: Offsite, settings: dict[str, str], readable: int) -> None:
    """Nothing is committed, and the error has the archive and the system's reason, encrypted or not."""
    (archive,) = offsite.uploads.archives.glob(f"*{SUFFIX}")
    offsite.copied(**settings)  # which reads it once, so that the catalogue knows it
    content = archive.read_bytes()
    blocks = readable if readable > 0 else len(content) // BLOCK_BYTES + readable
    before = commits(offsite)
    disk = bad_disk(offsite.directory / "disk-of-it", archive.name, content, good_blocks=blocks)
    with disk as bad, mounted(archive, bad):
        result = offsite.copy(archive.name.removesuffix(SUFFIX), again=True, **settings)
    assert f"cannot read {archive}: input/output error" in str(result.error)
    assert commits(offsite) == before


def test_the_others_are_copied(offsite: Offsite) -> None:
    """An archive that cannot be read to its end keeps none of the others on the machine."""
    other = offsite.uploads.base().backup_id
    (archive,) = (one for one in offsite.uploads.archives.glob(f"*{SUFFIX}") if not one.name.startswith(other))
    list(Catalogue(Repository(offsite.uploads.archives)).entries())  # which knows it from now on
    disk = bad_disk(offsite.directory / "disk-of-it", archive.name, archive.read_bytes(), good_blocks=300)
    with disk as bad, mounted(archive, bad):
        result = offsite.copy()
    assert f"cannot read {archive}: input/output error" in str(result.error)
    assert [name for _, name in result.copied] == [other]
